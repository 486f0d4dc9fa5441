"""The README and the docs agree with the package, and the site builds without a warning."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from trimtab.reproduce import SYSTEMS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_to_one(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), target


def test_the_first_screen_of_the_readme_holds_the_two_commands():
    first = (ROOT / "README.md").read_text().splitlines()[:30]
    assert any(line.startswith("pip install . && trimtab reproduce") for line in first)
    assert any(line.startswith("pip install '.[test]' && pytest") for line in first)


def rows_of_the_readme():
    """The table of systems: name to cells."""
    lines = re.findall(r"^\| `([\w-]+)` \|(.*)\|$", (ROOT / "README.md").read_text(), re.M)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in lines}


def test_the_readme_has_a_row_for_every_system_in_order():
    assert list(rows_of_the_readme()) == [system.name for system in SYSTEMS]


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_a_row_links_to_the_page_of_a_system_that_has_landed_and_of_no_other(system):
    page = rows_of_the_readme()[system.name][2]
    if system.available:
        assert page == f"[{system.name}](docs/systems/{system.name}.md)"
        assert (ROOT / "docs" / "systems" / f"{system.name}.md").exists()
    else:
        assert page == "not yet"


def test_the_table_of_extras_is_that_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "install.md").read_text(), re.M)
    extras = set(project["optional-dependencies"])
    assert extras == {name for name in listed if name == name.lower()}


def test_result_files_that_pages_name_are_in_the_repository():
    for page in PAGES:
        for name in re.findall(r"benchmarks/results/[\w./-]+\.json", page.read_text()):
            assert (ROOT / name).exists(), f"{page.name} names {name}"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="Sphinx is not installed")
def test_the_site_builds_without_a_warning(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-W",
            "--keep-going",
            "-q",
            "-d",
            str(tmp_path / "doctrees"),
            str(ROOT / "docs"),
            str(tmp_path / "html"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    reference = (tmp_path / "html" / "reference" / "generated" / "trimtab.graph.html").read_text()
    assert "trimtab.graph.capture" in reference
