"""``trimtab doctor``: what it reports and what it calls a problem."""

import re
from pathlib import Path

import trimtab
from trimtab.cli import doctor


def test_the_doctor_reports_versions_settings_kernels_and_caches(
    trimtab_command, monkeypatch, tmp_path
):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "machine").mkdir(parents=True)
    (tmp_path / "cache" / "machine" / "profile.json").write_text("x" * 1000)
    shown = trimtab_command("doctor", "--json")
    assert shown.code == 0
    report = shown.json
    assert report["versions"]["jax"]
    assert report["variables"]["TRIMTAB_CACHE"]["value"] == str(tmp_path / "cache")
    assert report["cache"] == {
        "folder": str(tmp_path / "cache"),
        "bytes": 1000,
        "parts": {"machine": 1000},
    }
    assert report["machine"]["cores"] >= 1
    assert report["problems"] == []


def test_people_get_the_same_as_tables(trimtab_command):
    shown = trimtab_command("doctor")
    assert shown.code == 0
    for words in ("machine", "kernels", "versions", "TRIMTAB_THREADS", "No problems found."):
        assert words in shown.stdout


def test_a_cache_that_cannot_be_made_is_a_problem(trimtab_command, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "file" / "cache"))
    shown = trimtab_command("doctor")
    assert shown.code == 1
    assert "problem: The cache folder cannot be made" in shown.stdout


def test_extras_come_from_the_installed_metadata(monkeypatch):
    requirements = [
        "jax>=0.10",
        'torch>=2.6; extra == "torch"',
        'no-such-package; extra == "edge"',
        "trimtab[models]; extra == 'serve'",
        "starlette>=0.48; extra == 'serve'",
    ]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: requirements)
    extras = doctor._extras()
    assert list(extras) == ["torch", "edge", "serve"]
    assert extras["edge"] == {"no-such-package": None}
    assert set(extras["serve"]) == {"starlette"}


def test_every_variable_that_the_package_reads_is_listed():
    source = Path(trimtab.__file__).parent
    read = set()
    for path in [*source.rglob("*.py"), *source.rglob("*.cpp"), *source.rglob("*.h")]:
        read |= set(re.findall(r"[\"'](TRIMTAB_[A-Z]+)[\"']", path.read_text(errors="replace")))
    assert read <= set(doctor.VARIABLES)
