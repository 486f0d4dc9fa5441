"""``y = x Wᵀ`` for dense matrices, with W stored as models keep it: (outputs, inner).

Made for bfloat16, of which XLA's CPU backend multiplies only after widening: the native code uses
the processor's dot product of bfloat16 pairs where it has one. Sums are in float32. Under `vmap`
over ``x`` alone the examples become rows of one product, and the gradient is XLA's own.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trimtab.errors import ShapeError
from trimtab.kernels.binding import Shaped, kernel


def _reference(
    x: Float[Array, "rows inner"], weight: Float[Array, "outputs inner"]
) -> Float[Array, "rows outputs"]:
    return x @ weight.T


def _shape(x: Shaped, weight: Shaped) -> tuple[Shaped, ...]:
    return (Shaped((x.shape[0], weight.shape[0]), x.dtype),)


def _accepts(x: Shaped, weight: Shaped) -> bool:
    return x.dtype == weight.dtype and x.dtype in ("float32", "bfloat16")


dense_linear_kernel = kernel("dense_linear", reference=_reference, results=_shape, accepts=_accepts)


def dense_linear(
    x: Float[Array, "*lead inner"], weight: Float[Array, "outputs features"]
) -> Float[Array, "*lead outputs"]:
    """Return ``x Wᵀ`` over the last axis.

    Args:
        x: float32 or bfloat16, with any leading axes.
        weight: of the same type.

    Returns:
        Array of the type of ``x``.

    Raises:
        ShapeError: the last axes differ.
    """
    if x.ndim < 1 or weight.ndim != 2 or x.shape[-1] != weight.shape[-1]:
        raise ShapeError(
            f"dense_linear got x of shape {x.shape} and weight {weight.shape}; weight must be "
            "(outputs, inner) with inner the last axis of x."
        )
    return _product(x, weight)


@jax.custom_jvp
def _product(x: Array, weight: Array) -> Array:
    return _as_one_product(x, weight)


@_product.defjvp
def _tangent(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, weight), (d_x, d_weight) = primals, tangents
    return _product(x, weight), d_x @ weight.T + x @ d_weight.T


@jax.custom_batching.custom_vmap
def _as_one_product(x: Array, weight: Array) -> Array:
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return dense_linear_kernel(rows, weight).reshape(*x.shape[:-1], weight.shape[0])


@_as_one_product.def_vmap
def _batched(axis_size: int, batched: list[bool], x: Array, weight: Array) -> tuple[Array, bool]:
    del axis_size
    if not batched[1]:
        return _as_one_product(x, weight), True
    x_axis = "b" if batched[0] else ""
    return jnp.einsum(f"{x_axis}...k,bnk->b...n", x, weight), True
