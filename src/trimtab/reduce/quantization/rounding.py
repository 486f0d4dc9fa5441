"""Turning float matrices into codes: nearest rounding, error feedback, and activation awareness."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from trimtab.kernels.group_quantized import (
    QuantizedMatrix,
    check_format,
    dequantize,
    pack_codes,
)
from trimtab.reduce.sparsity.pruning import inverse_factor

Origin = Literal["zero", "offset", "symmetric"]
Method = Literal["nearest", "gptq", "awq"]
METHODS: tuple[Method, ...] = ("nearest", "gptq", "awq")
_SMALLEST_SCALE = 1e-9
_AWQ_EXPONENTS = tuple(np.linspace(0.0, 1.0, 11))


def quantize_matrix(
    weight: Float[Array, "outputs inputs"],
    *,
    bits: int = 4,
    group: int = 128,
    origin: Origin = "zero",
) -> QuantizedMatrix:
    """Round a matrix to codes, each to the nearest.

    With ``origin="zero"``: ``scale = (max - min) / (2**bits - 1)`` over a group with
    ``min <= 0 <= max``, ``zero = round(-min / scale)``. ``"symmetric"`` puts the zero at the middle
    code; ``"offset"`` keeps the minimum as a float, as GGUF's Q4_1 does.

    Args:
        weight: finite weights.
        bits: width of a code: 2, 3, 4 or 8.
        group: inputs that share a scale; a multiple of 8. A row that it does not divide is padded.
        origin: where zero lies.

    Raises:
        InputError: the width or group is not supported.
    """
    check_format(bits, group)
    padded, _ = _grouped(weight, group)
    scale, zero, offset = group_range(padded, bits, origin)
    codes = encode(padded, scale, zero, offset, bits)
    return _matrix(codes, scale, zero, offset, bits, group, weight.shape[1])


def gptq(
    weight: Float[Array, "outputs inputs"],
    gram: Float[Array, "inputs inputs"],
    *,
    bits: int = 4,
    group: int = 128,
    origin: Origin = "zero",
    damping: float = 0.01,
) -> QuantizedMatrix:
    """Round column by column, and let the later columns make up for each rounding error.

    Scales of a group are set when its first column is reached, from weights that already carry the
    corrections of earlier columns.

    Args:
        weight: the matrix.
        gram: mean outer product of the calibration inputs.
        bits: width of a code.
        group: inputs that share a scale.
        origin: where zero lies.
        damping: share of the mean diagonal of the Hessian added to its diagonal.

    Source: Frantar et al., "GPTQ", arXiv 2210.17323, algorithm 1.
    """
    check_format(bits, group)
    factor, dead = inverse_factor(gram, damping)
    start = jnp.where(dead, 0.0, weight.astype(jnp.float32))
    padding = -weight.shape[1] % group
    current = jnp.pad(start, ((0, 0), (0, padding)))
    factor = jnp.pad(factor, ((0, padding), (0, padding)))
    extra = jnp.where(jnp.arange(len(factor)) >= weight.shape[1], 1.0, 0.0)
    factor = factor + jnp.diag(extra)
    codes, scales, zeros, offsets = [], [], [], []
    for first in range(0, current.shape[1], group):
        block = slice(first, first + group)
        values = current[:, block][:, None]
        scale, zero, offset = group_range(values, bits, origin)
        done, errors = _feedback(current[:, block], factor[block, block], scale, zero, offset, bits)
        codes.append(done)
        scales.append(scale)
        zeros.append(zero)
        offsets.append(offset)
        rest = slice(first + group, None)
        current = current.at[:, rest].add(-errors @ factor[block, rest])
    joined = jnp.concatenate(codes, 1)[:, None].reshape(len(weight), -1, group)
    return _matrix(
        joined,
        jnp.concatenate(scales, 1),
        None if zeros[0] is None else jnp.concatenate(zeros, 1),
        None if offsets[0] is None else jnp.concatenate(offsets, 1),
        bits,
        group,
        weight.shape[1],
    )


def awq_scales(
    weight: Float[Array, "outputs inputs"],
    gram: Float[Array, "inputs inputs"],
    *,
    bits: int = 4,
    group: int = 128,
    origin: Origin = "zero",
) -> Float[Array, " inputs"]:
    """Choose a factor for every input that protects the weights of strong inputs from rounding.

    The weights are multiplied by ``s = (mean square of the input) ** (a / 2)`` and the activations
    divided by it; the exponent a in 0..1 with the least output error is kept.

    Args:
        weight: the matrix.
        gram: mean outer product of the calibration inputs.
        bits: width of a code.
        group: inputs that share a scale.
        origin: where zero lies.

    Returns:
        Positive factors with geometric mean near 1.

    Source: Lin et al., "AWQ", arXiv 2306.00978, section 3.2.
    """
    strength = jnp.sqrt(jnp.maximum(jnp.diag(gram), 1e-12))
    best, least = jnp.ones_like(strength), jnp.inf
    for exponent in _AWQ_EXPONENTS:
        factors = strength**exponent
        factors = factors / jnp.exp(jnp.mean(jnp.log(factors)))
        rounded = dequantize(
            quantize_matrix(weight * factors, bits=bits, group=group, origin=origin)
        )
        change = rounded / factors - weight
        error = jnp.sum((change @ gram) * change)
        best = jnp.where(error < least, factors, best)
        least = jnp.minimum(error, least)
    return best


def fake_quantize(
    weight: Float[Array, "outputs inputs"],
    *,
    bits: int = 4,
    group: int = 128,
    origin: Origin = "zero",
) -> Float[Array, "outputs inputs"]:
    """Round weights and pass gradients straight through, for quantisation-aware training.

    Source: Bengio et al., "Estimating or Propagating Gradients", arXiv 1308.3432.
    """
    matrix = quantize_matrix(jax.lax.stop_gradient(weight), bits=bits, group=group, origin=origin)
    return weight + jax.lax.stop_gradient(dequantize(matrix).astype(weight.dtype) - weight)


def group_range(
    grouped: Float[Array, "outputs groups group"], bits: int, origin: Origin
) -> tuple[Any, Any, Any]:
    """Return (scale, zero, offset) of every group; one of the last two is None."""
    top = 2**bits - 1
    low = jnp.minimum(jnp.min(grouped, -1), 0.0) if origin != "offset" else jnp.min(grouped, -1)
    high = jnp.maximum(jnp.max(grouped, -1), 0.0) if origin != "offset" else jnp.max(grouped, -1)
    if origin == "symmetric":
        middle = 2 ** (bits - 1)
        # The lowest code reaches one step further than the highest.
        reach = jnp.maximum(-low / middle, high / (middle - 1))
        scale = jnp.maximum(reach, _SMALLEST_SCALE)
        return scale, jnp.full(scale.shape, middle, jnp.uint8), None
    scale = jnp.maximum((high - low) / top, _SMALLEST_SCALE)
    if origin == "offset":
        return scale, None, low
    zero = jnp.clip(jnp.round(-low / scale), 0, top).astype(jnp.uint8)
    return scale, zero, None


def encode(
    grouped: Float[Array, "outputs groups group"], scale: Any, zero: Any, offset: Any, bits: int
) -> Any:
    """Return the nearest code of every value."""
    if zero is not None:
        codes = jnp.round(grouped / scale[..., None]) + zero[..., None].astype(jnp.float32)
    else:
        codes = jnp.round((grouped - offset[..., None]) / scale[..., None])
    return jnp.clip(codes, 0, 2**bits - 1).astype(jnp.int32)


def _grouped(weight: jax.Array, group: int) -> tuple[jax.Array, int]:
    padding = -weight.shape[1] % group
    padded = jnp.pad(weight.astype(jnp.float32), ((0, 0), (0, padding)))
    return padded.reshape(len(weight), -1, group), padding


def _matrix(
    codes: Any, scale: Any, zero: Any, offset: Any, bits: int, group: int, inputs: int
) -> QuantizedMatrix:
    packed = pack_codes(codes.reshape(codes.shape[0], -1), bits)
    return QuantizedMatrix(packed, scale, zero, offset, bits, group, inputs)


def _feedback(
    block: jax.Array, factor: jax.Array, scale: Any, zero: Any, offset: Any, bits: int
) -> tuple[jax.Array, jax.Array]:
    """Round one group's columns in order; returns codes and scaled errors."""

    def column(index: Any, state: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
        current, codes, errors = state
        value = current[:, index][:, None, None]
        code = encode(value, scale, zero, offset, bits)[:, 0, 0]
        if zero is not None:
            rounded = (code - zero[:, 0].astype(jnp.int32)).astype(jnp.float32) * scale[:, 0]
        else:
            rounded = code.astype(jnp.float32) * scale[:, 0] + offset[:, 0]
        error = (current[:, index] - rounded) / factor[index, index]
        current = current - error[:, None] * factor[index][None]
        return current, codes.at[:, index].set(code), errors.at[:, index].set(error)

    start = (block, jnp.zeros(block.shape, jnp.int32), jnp.zeros_like(block))
    _, codes, errors = jax.lax.fori_loop(0, block.shape[1], column, start)
    return codes, errors
