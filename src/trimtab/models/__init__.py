"""Equinox modules of the models that the systems are about.

Names load on first use: the decoder's configuration serves a native engine that needs no JAX.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.models.bert import bert_base as bert_base
    from trimtab.models.bert import bert_large as bert_large
    from trimtab.models.bert import bert_like as bert_like
    from trimtab.models.encoder import Classifier as Classifier
    from trimtab.models.encoder import Encoder as Encoder
    from trimtab.models.encoder import EncoderConfig as EncoderConfig
    from trimtab.models.encoder import EncoderOutput as EncoderOutput
    from trimtab.models.encoder import PretrainingModel as PretrainingModel
    from trimtab.models.encoder import cast as cast
    from trimtab.models.encoder import trainable as trainable
    from trimtab.models.fnet import fnet_base as fnet_base
    from trimtab.models.fnet import fnet_large as fnet_large
    from trimtab.models.fnet import with_attention as with_attention
    from trimtab.models.fourier import fourier_mix as fourier_mix
    from trimtab.models.fourier import hartley_mix as hartley_mix
    from trimtab.models.fourier import ragged_fourier_mix as ragged_fourier_mix
    from trimtab.models.mixing import MIXERS as MIXERS
    from trimtab.models.mixing import Mixer as Mixer
    from trimtab.models.mixing import attention_layers as attention_layers
    from trimtab.models.mixing import hybrid as hybrid

# Public name -> file that defines it.
_EXPORTS = {
    "bert_base": "bert",
    "bert_large": "bert",
    "bert_like": "bert",
    "Classifier": "encoder",
    "Encoder": "encoder",
    "EncoderConfig": "encoder",
    "EncoderOutput": "encoder",
    "PretrainingModel": "encoder",
    "cast": "encoder",
    "trainable": "encoder",
    "fnet_base": "fnet",
    "fnet_large": "fnet",
    "with_attention": "fnet",
    "fourier_mix": "fourier",
    "hartley_mix": "fourier",
    "ragged_fourier_mix": "fourier",
    "MIXERS": "mixing",
    "Mixer": "mixing",
    "attention_layers": "mixing",
    "hybrid": "mixing",
}

__all__ = [*_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
