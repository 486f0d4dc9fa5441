"""Matrix leaves of the decoder: dense, block-quantised and ternary, with one interface.

A leaf maps ``[..., in]`` to ``[..., out]`` and can hand out single rows (token embeddings). Any
other module with the same two methods can replace one: so sparse or re-quantised weights enter.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from trimtab.kernels.block_formats import dequantize
from trimtab.models.decoder.weights import DENSE_KINDS, Tensor, dense_view


class Linear(eqx.Module):
    """Dense matrix: ``y = x Wᵀ + b``.

    Attributes:
        weight: ``[out, in]`` of any float type; products accumulate in float32.
        bias: ``[out]`` or None.
    """

    weight: Float[Array, "out in"]
    bias: Float[Array, " out"] | None = None

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        return _product(x, self.weight, self.bias)

    def rows(self, indices: Int[Array, "*batch"]) -> Float[Array, "*batch in"]:
        """Return the chosen rows in float32."""
        return self.weight[indices].astype(jnp.float32)


class BlockLinear(eqx.Module):
    """Matrix in one of GGUF's block formats, kept packed in memory.

    Attributes:
        weight: raw rows as in the file.
        bias: ``[out]`` or None.
        kind: block format, such as ``"q4_1"``.
    """

    weight: UInt8[Array, "out row_bytes"]
    bias: Float[Array, " out"] | None = None
    kind: str = eqx.field(static=True, default="q8_0")

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        return _product(x, dequantize(self.kind, self.weight), self.bias)

    def rows(self, indices: Int[Array, "*batch"]) -> Float[Array, "*batch in"]:
        """Return the chosen rows, unpacked to float32."""
        return dequantize(self.kind, self.weight[indices])


class TernaryLinear(eqx.Module):
    """Matrix of -1, 0, 1 times one scale; activations are rounded to int8 (BitNet b1.58).

    ``y = (q(x) Wqᵀ) s / a`` with ``a = 127 / max(max |x|, 1e-5)`` per token and
    ``q(x) = clip(round(a x), -128, 127)``; integer sums are exact in float32 below 2^24.

    Attributes:
        weight: four codes a byte.
        scale: multiplies the whole matrix.
        bias: ``[out]`` or None.
        quantize_activations: False keeps activations in floating point.
    """

    weight: UInt8[Array, "out packed"]
    scale: Float[Array, ""]
    bias: Float[Array, " out"] | None = None
    quantize_activations: bool = eqx.field(static=True, default=True)

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        matrix = dequantize("ternary", self.weight)
        if not self.quantize_activations:
            return _product(x, matrix * self.scale, self.bias)
        wide = x.astype(jnp.float32)
        largest = jnp.max(jnp.abs(wide), axis=-1, keepdims=True)
        factor = 127.0 / jnp.maximum(largest, 1e-5)
        codes = jnp.clip(jnp.round(wide * factor), -128, 127)
        y = _product(codes, matrix, None) * self.scale / factor
        y = y if self.bias is None else y + self.bias
        return y.astype(x.dtype)

    def rows(self, indices: Int[Array, "*batch"]) -> Float[Array, "*batch in"]:
        """Return the chosen rows in float32."""
        return dequantize("ternary", self.weight[indices]) * self.scale


class RMSNorm(eqx.Module):
    """``x / sqrt(mean(x²) + epsilon) * weight``, computed in float32 (Zhang and Sennrich, 2019)."""

    weight: Float[Array, " width"]
    epsilon: float = eqx.field(static=True, default=1e-5)

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normed = wide * jax.lax.rsqrt(mean_square + self.epsilon)
        return (normed * self.weight.astype(jnp.float32)).astype(x.dtype)


Matrix = Linear | BlockLinear | TernaryLinear


def linear_from_tensor(
    weight: Tensor, bias: Tensor | None = None, *, quantize_activations: bool = False
) -> Matrix:
    """Build the leaf that serves a stored tensor without unpacking it."""
    offset = None if bias is None else jnp.asarray(bias.float32())
    if weight.kind in DENSE_KINDS:
        return Linear(jnp.asarray(dense_view(weight)), offset)
    rows = jnp.asarray(weight.data)
    if weight.kind == "ternary":
        scale = jnp.asarray(weight.scale, jnp.float32)
        return TernaryLinear(rows, scale, offset, quantize_activations)
    return BlockLinear(rows, offset, weight.kind)


def _product(
    x: Float[Array, "*batch in"], weight: Float[Array, "out in"], bias: Float[Array, " out"] | None
) -> Float[Array, "*batch out"]:
    y = jax.lax.dot_general(
        x,
        weight.astype(x.dtype),
        (((x.ndim - 1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    return (y if bias is None else y + bias.astype(jnp.float32)).astype(x.dtype)
