"""Hardware that you do not have: streaming dataflow chips and systolic arrays."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Subpackages, loaded on first use.
_ROOMS = ("array", "stream")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS])
