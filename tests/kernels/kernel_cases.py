"""Inputs for every kernel with a JAX reference; a new kernel is tested by adding rows here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import ml_dtypes
import numpy as np

from trimtab.kernels import _library
from trimtab.kernels.activation import bias_gelu_backward_kernel, bias_gelu_kernel
from trimtab.kernels.binding import Kernel, shaped
from trimtab.kernels.fourier import fourier_mix_kernel, fourier_mix_residual_norm_kernel
from trimtab.kernels.normalization import (
    layer_norm_backward_kernel,
    layer_norm_kernel,
    residual_layer_norm_backward_kernel,
    residual_layer_norm_kernel,
)

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
# Largest error relative to the largest magnitude; 16-bit results may round the other way.
TOLERANCE = {"float32": 2e-6, "bfloat16": 8e-3, "float16": 1e-3}


@dataclass(frozen=True)
class Case:
    """One kernel with a way to draw arguments of a given size."""

    kernel: Kernel
    draw: Callable[[Callable[..., Any], int, int], tuple[Any, ...]]
    attributes: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return self.kernel.name

    def arguments(self, rows: int, size: int, dtype: str, seed: int = 0) -> tuple[Any, ...]:
        """NumPy arguments drawn from a normal distribution."""
        generator = np.random.default_rng(seed)

        def normal(*shape: int) -> np.ndarray:
            return generator.normal(size=shape).astype(DTYPES[dtype])

        return self.draw(normal, rows, size)

    def reference(self) -> Callable[..., Any]:
        """The reference with its attributes filled in, compiled."""
        return _compiled(self.kernel, self.attributes)


@functools.cache
def _compiled(kernel: Kernel, attributes: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    return jax.jit(functools.partial(kernel.reference, **dict(attributes)))


_EPSILON = (("epsilon", 1e-5),)
_MIX = (("factor", 0.25),)
CASES = (
    Case(layer_norm_kernel, lambda a, n, d: (a(n, d), a(d), a(d)), _EPSILON),
    Case(layer_norm_backward_kernel, lambda a, n, d: (a(n, d), a(d), a(n, d)), _EPSILON),
    Case(residual_layer_norm_kernel, lambda a, n, d: (a(n, d), a(n, d), a(d), a(d)), _EPSILON),
    Case(
        residual_layer_norm_backward_kernel,
        lambda a, n, d: (a(n, d), a(n, d), a(d), a(n, d)),
        _EPSILON,
    ),
    Case(bias_gelu_kernel, lambda a, n, d: (a(n, d), a(d))),
    Case(bias_gelu_backward_kernel, lambda a, n, d: (a(n, d), a(d), a(n, d))),
    Case(fourier_mix_kernel, lambda a, n, d: (a(n, d),), _MIX),
    Case(
        fourier_mix_residual_norm_kernel,
        lambda a, n, d: (a(n, d), a(d), a(d)),
        (*_EPSILON, *_MIX),
    ),
)


def run_raw(
    kernel: Kernel, arguments: tuple[Any, ...], attributes: dict[str, Any]
) -> tuple[Any, ...]:
    """Call the native function on NumPy memory, without JAX or PyTorch in between."""
    native = _library.extension()
    assert native is not None
    shapes = kernel.result_shapes([shaped(array) for array in arguments], attributes)
    results = tuple(
        np.full(shape, 77, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        for shape, dtype in shapes
    )
    native.call(
        native.kernel_index(kernel.name),
        tuple(_raw(array) for array in arguments),
        tuple(_raw(array) for array in results),
        attributes,
    )
    return results


def _raw(array: np.ndarray) -> tuple[int, ...]:
    return (array.ctypes.data, _library.DATA_TYPES[str(array.dtype)], *array.shape)


def worst_error(found: Any, expected: Any) -> float:
    """Largest difference relative to the largest expected magnitude or to 1 (0 if empty)."""
    expected = np.asarray(expected).astype(np.float64)
    difference = np.abs(np.asarray(found).astype(np.float64) - expected)
    if difference.size == 0:
        return 0.0
    if not np.isfinite(difference).all():
        return float("inf")
    # Arguments are of order one: a result that cancels is judged by what it cancels from.
    return float(difference.max() / max(np.abs(expected).max(), 1.0))
