"""Examples in docstrings run, each with its module's own names."""

import doctest
import importlib
from pathlib import Path

import pytest

import trimtab

SOURCE = Path(trimtab.__file__).parent
MODULES = sorted(
    ".".join(["trimtab", *path.relative_to(SOURCE).with_suffix("").parts])
    for path in SOURCE.rglob("*.py")
    if ">>> " in path.read_text()
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name.removesuffix(".__init__"))
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    outcome = doctest.testmod(module, optionflags=flags)
    assert outcome.failed == 0
