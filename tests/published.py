"""Experiments that behave well and badly, in the place of the real ones."""

import importlib
import os
import sys
from pathlib import Path

import pytest

import trimtab.reproduce

# Imported before the package's folder is replaced, after which they could not be found.
import trimtab.reproduce.plot
import trimtab.reproduce.report
import trimtab.reproduce.runner

FOLDER = Path(__file__).parent / "reproduce" / "systems"
NAMES = ("fnet", "vrgd", "sparamx", "mixpe", "deltallm", "redco")


@pytest.fixture
def fake_systems(monkeypatch):
    """Replace the registry's experiments, here and in started processes.

    fnet works, vrgd raises, sparamx dies, mixpe lacks a package, deltallm cannot be imported,
    redco waits a minute; the others have not landed.
    """
    monkeypatch.setattr(trimtab.reproduce, "__path__", [str(FOLDER)])
    for name in NAMES:
        monkeypatch.delitem(sys.modules, f"trimtab.reproduce.{name}", raising=False)
    importlib.invalidate_caches()
    source = str(Path(trimtab.__file__).parents[1])
    paths = [str(FOLDER), source, os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    yield NAMES
    for name in NAMES:
        sys.modules.pop(f"trimtab.reproduce.{name}", None)
