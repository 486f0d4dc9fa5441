"""Trimtab: make machine-learning programs cheaper to train, run and move to other hardware."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.graph import Program as Program
    from trimtab.graph import capture as capture
    from trimtab.graph import compare as compare
    from trimtab.graph import load as load
    from trimtab.reduce import quantize as quantize
    from trimtab.reduce import sparsify as sparsify

__version__ = "0.1.0"

# Public name -> module that defines it. Loaded on first use, so that `import trimtab` stays cheap.
_EXPORTS = {
    "Program": "trimtab.graph",
    "capture": "trimtab.graph",
    "compare": "trimtab.graph",
    "load": "trimtab.graph",
    "quantize": "trimtab.reduce",
    "sparsify": "trimtab.reduce",
    "stream": "trimtab.simulate",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'trimtab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
