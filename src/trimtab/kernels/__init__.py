"""Native CPU kernels and the plain JAX references they are tested against.

Every function here takes JAX arrays or PyTorch tensors, differentiates, and falls back to its
reference where the extension is not built. How to add one: ``native/kernels.cmake``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.kernels._library import active_isa as active_isa
    from trimtab.kernels._library import available_isas as available_isas
    from trimtab.kernels._library import cpu_features as cpu_features
    from trimtab.kernels._library import set_thread_count as set_thread_count
    from trimtab.kernels._library import thread_count as thread_count
    from trimtab.kernels._library import use_isa as use_isa
    from trimtab.kernels._library import use_threads as use_threads
    from trimtab.kernels.activation import bias_gelu as bias_gelu
    from trimtab.kernels.binding import Kernel as Kernel
    from trimtab.kernels.binding import kernel as kernel
    from trimtab.kernels.binding import operations_of as operations_of
    from trimtab.kernels.binding import reference_only as reference_only
    from trimtab.kernels.dense import dense_linear as dense_linear
    from trimtab.kernels.fourier import fourier_mix as fourier_mix
    from trimtab.kernels.fourier import fourier_mix_residual_norm as fourier_mix_residual_norm
    from trimtab.kernels.normalization import layer_norm as layer_norm
    from trimtab.kernels.optimizer import adam_step as adam_step
    from trimtab.kernels.optimizer import vr_adam_step as vr_adam_step
    from trimtab.kernels.probe import copy_bandwidth as copy_bandwidth
    from trimtab.kernels.probe import operation_rate as operation_rate
    from trimtab.kernels.probe import read_bandwidth as read_bandwidth
    from trimtab.kernels.quantized import block_linear as block_linear
    from trimtab.kernels.quantized import rms_block_linear as rms_block_linear
    from trimtab.kernels.token_attention import cached_attention as cached_attention

# Public name -> module that defines it; loaded on first use, since most need JAX.
# No module may be named like a public function: importing it would hide the function.
_EXPORTS = {
    "Kernel": "binding",
    "active_isa": "_library",
    "adam_step": "optimizer",
    "available_isas": "_library",
    "bias_gelu": "activation",
    "block_linear": "quantized",
    "cached_attention": "token_attention",
    "cpu_features": "_library",
    "dense_linear": "dense",
    "fourier_mix": "fourier",
    "fourier_mix_residual_norm": "fourier",
    "kernel": "binding",
    "layer_norm": "normalization",
    "copy_bandwidth": "probe",
    "operation_rate": "probe",
    "operations_of": "binding",
    "read_bandwidth": "probe",
    "reference_only": "binding",
    "rms_block_linear": "quantized",
    "set_thread_count": "_library",
    "thread_count": "_library",
    "use_isa": "_library",
    "use_threads": "_library",
    "vr_adam_step": "optimizer",
}

# Modules that bind kernels; tests and tools that list all kernels import these.
KERNEL_MODULES = (
    "activation",
    "dense",
    "fourier",
    "normalization",
    "optimizer",
    "quantized",
    "token_attention",
)

__all__ = ["KERNEL_MODULES", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
