"""Run decoder-only language models: weight readers, cache, sampling, chat, server.

>>> from trimtab.generate import load                      # doctest: +SKIP
>>> load("smollm2").generate("The capital of France is").text   # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.generate.batch import Batch as Batch
    from trimtab.generate.batch import Event as Event
    from trimtab.generate.batch import Request as Request
    from trimtab.generate.checkpoint import Checkpoint as Checkpoint
    from trimtab.generate.engine import Engine as Engine
    from trimtab.generate.engine import JaxEngine as JaxEngine
    from trimtab.generate.language_model import Completion as Completion
    from trimtab.generate.language_model import LanguageModel as LanguageModel
    from trimtab.generate.language_model import load as load
    from trimtab.generate.language_model import open_checkpoint as open_checkpoint
    from trimtab.generate.locate import ModelNotFoundError as ModelNotFoundError
    from trimtab.generate.locate import find_model as find_model
    from trimtab.generate.locate import pull as pull
    from trimtab.generate.sampling import SamplingOptions as SamplingOptions
    from trimtab.generate.tokenizer import Tokenizer as Tokenizer

# Public name -> file that defines it. Loaded on first use: the native engine needs no JAX.
_EXPORTS = {
    "Batch": "batch",
    "Checkpoint": "checkpoint",
    "Completion": "language_model",
    "Engine": "engine",
    "Event": "batch",
    "JaxEngine": "engine",
    "LanguageModel": "language_model",
    "ModelNotFoundError": "locate",
    "Request": "batch",
    "SamplingOptions": "sampling",
    "Tokenizer": "tokenizer",
    "find_model": "locate",
    "load": "language_model",
    "open_checkpoint": "language_model",
    "pull": "locate",
}

__all__ = [*_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
