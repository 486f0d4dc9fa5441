"""Decoder-only language models (Llama, SmolLM2, Mistral, Qwen, Gemma 3, BitNet) as one module.

Names load on first use: the configuration and the weight table are plain NumPy, so a native engine
starts without importing JAX.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.models.decoder.cache import KVCache as KVCache
    from trimtab.models.decoder.config import DecoderConfig as DecoderConfig
    from trimtab.models.decoder.config import Rotary as Rotary
    from trimtab.models.decoder.linear import BlockLinear as BlockLinear
    from trimtab.models.decoder.linear import Linear as Linear
    from trimtab.models.decoder.linear import TernaryLinear as TernaryLinear
    from trimtab.models.decoder.model import Decoder as Decoder
    from trimtab.models.decoder.weights import Tensor as Tensor

_EXPORTS = {
    "BlockLinear": "linear",
    "Decoder": "model",
    "DecoderConfig": "config",
    "KVCache": "cache",
    "Linear": "linear",
    "Rotary": "config",
    "Tensor": "weights",
    "TernaryLinear": "linear",
}

__all__ = [*_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
