"""A matrix of low-bit codes in groups, and its product with low-bit activations.

The one definition of a quantised tensor: simulation in JAX, native kernels and generated hardware
all follow it. Row n, column k of the matrix stands for ``scale[n, g] * (code[n, k] - zero[n, g])``
with g the group of k; or, with a float offset, for ``scale * code + offset``.

The product multiplies integer codes and applies scales once per group,

    y[m, n] = sum_g sa[m, g] * scale[n, g] * (sum_k x[m, k] code[n, k] - zero[n, g] * X[m, g]),

where X is the sum of the activation codes of a group. The integer part is exact; groups are added
in rising order in float32.

Source: Zhang et al., "MixPE", arXiv 2411.16158, on dequantising after the group product.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from trimtab.errors import DtypeError, InputError, ShapeError

Bits = Literal[2, 3, 4, 8]
BITS = (2, 3, 4, 8)


@dataclasses.dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix (outputs, inputs) of unsigned codes in groups along the inputs.

    Args:
        packed: codes, ``bits`` each, least significant bit first along the inputs: uint8
            ``(outputs, padded inputs * bits / 8)``.
        scale: float32 ``(outputs, groups)``.
        zero: uint8 ``(outputs, groups)``; the code that stands for 0. None with an offset.
        offset: float32 ``(outputs, groups)``; the value of code 0. None with a zero point.
        bits: 2, 3, 4 or 8.
        group: inputs in a group; the last group is padded with codes that stand for 0.
        inputs: inputs of the matrix, without padding.
    """

    packed: Any
    scale: Any
    zero: Any
    offset: Any
    bits: int
    group: int
    inputs: int

    @property
    def outputs(self) -> int:
        """Number of rows."""
        return self.scale.shape[-2]

    @property
    def groups(self) -> int:
        """Number of groups in a row."""
        return self.scale.shape[-1]

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight: code, a 16-bit scale, and its share of the zero or offset."""
        second = self.bits if self.zero is not None else 16
        return self.bits + (16 + second) / self.group


jax.tree_util.register_dataclass(
    QuantizedMatrix,
    data_fields=["packed", "scale", "zero", "offset"],
    meta_fields=["bits", "group", "inputs"],
)


def check_format(bits: int, group: int) -> None:
    """Check code width and group size.

    Raises:
        InputError: the width is not 2, 3, 4 or 8, or the group is not a positive multiple of 8.
    """
    if bits not in BITS:
        raise InputError(f"Codes have 2, 3, 4 or 8 bits, not {bits}.")
    if group < 8 or group % 8:
        raise InputError(f"A group is a multiple of 8 inputs, not {group}.")


def pack_codes(codes: Int[Array, "*rows inputs"], bits: int) -> UInt8[Array, "*rows bytes"]:
    """Pack codes below ``2**bits``, least significant bit first.

    Args:
        codes: integers; the last axis holds a multiple of 8.
        bits: width of a code.
    """
    if codes.size == 0:
        return jnp.zeros((*codes.shape[:-1], codes.shape[-1] * bits // 8), jnp.uint8)
    planes = (codes[..., None] >> jnp.arange(bits)) & 1
    flat = planes.reshape(*codes.shape[:-1], codes.shape[-1] * bits).astype(jnp.uint8)
    return jnp.packbits(flat, axis=-1, bitorder="little")


def unpack_codes(packed: UInt8[Array, "*rows bytes"], bits: int) -> UInt8[Array, "*rows inputs"]:
    """Undo :func:`pack_codes`."""
    if bits == 8 or packed.size == 0:
        return packed.reshape(*packed.shape[:-1], packed.shape[-1] * 8 // bits)
    planes = jnp.unpackbits(packed, axis=-1, bitorder="little")
    planes = planes.reshape(*packed.shape[:-1], packed.shape[-1] * 8 // bits, bits)
    return jnp.sum(planes << jnp.arange(bits, dtype=jnp.uint8), -1, dtype=jnp.uint8)


def dequantize(matrix: QuantizedMatrix) -> Float[Array, "*stack outputs inputs"]:
    """Return the float32 matrix that the codes stand for."""
    codes = unpack_codes(matrix.packed, matrix.bits)
    grouped = codes.reshape(*codes.shape[:-1], matrix.groups, matrix.group)
    if matrix.zero is not None:
        signed = grouped.astype(jnp.int32) - matrix.zero[..., None].astype(jnp.int32)
        values = signed.astype(jnp.float32) * matrix.scale[..., None]
    else:
        values = grouped.astype(jnp.float32) * matrix.scale[..., None] + matrix.offset[..., None]
    return values.reshape(*codes.shape)[..., : matrix.inputs]


def quantize_activations(
    x: Float[Array, "rows inputs"], group: int | None
) -> tuple[Int[Array, "rows padded"], Float[Array, "rows groups"]]:
    """Round activations to int8 with a scale of absmax / 127 per row, or per row and group.

    Args:
        x: finite activations.
        group: inputs that share a scale; None for one scale per row.

    Returns:
        Codes in -127..127, padded with zeros to whole groups, and the scales.
    """
    rows, inputs = x.shape
    width = inputs if group is None else group
    padded = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, -inputs % max(width, 1))))
    grouped = padded.reshape(rows, padded.shape[1] // max(width, 1), width)
    scale = jnp.max(jnp.abs(grouped), -1, initial=0.0) / 127.0
    safe = jnp.where(scale > 0, scale, 1.0)
    codes = jnp.clip(jnp.round(grouped / safe[..., None]), -127, 127)
    return codes.reshape(padded.shape).astype(jnp.int8), scale


def group_products(
    codes: Int[Array, "rows padded"], matrix: QuantizedMatrix
) -> tuple[Int[Array, "groups rows outputs"], Int[Array, "groups rows"]]:
    """Return the exact integer product of each group, and each group's sum of activations.

    Args:
        codes: int8 activation codes, padded to the matrix's groups.
        matrix: the matrix.

    Returns:
        int32 ``sum_k x[m, k] code[n, k]`` and int32 ``sum_k x[m, k]`` by group.
    """
    weights = unpack_codes(matrix.packed, matrix.bits).reshape(
        matrix.outputs, matrix.groups, matrix.group
    )
    grouped = codes.reshape(codes.shape[0], matrix.groups, matrix.group)
    products = jnp.einsum(
        "mgk,ngk->gmn",
        grouped.astype(jnp.int32),
        weights.astype(jnp.int32),
        preferred_element_type=jnp.int32,
    )
    return products, jnp.sum(grouped.astype(jnp.int32), -1).T


def quantized_linear(
    x: Float[Array, "rows inputs"],
    matrix: QuantizedMatrix,
    *,
    activation_bits: int = 8,
    activation_group: int | None = -1,
) -> Float[Array, "rows outputs"]:
    """Multiply activations by a quantised matrix, applying scales after each group's product.

    Args:
        x: float activations.
        matrix: the quantised matrix.
        activation_bits: 8 rounds activations to int8; 16 keeps them as float16, products exact and
            sums in float32; 32 keeps float32.
        activation_group: inputs that share an activation scale: -1 for the matrix's group, None for
            one scale per row. A multiple of the matrix's group or a divisor's multiple is not
            allowed: scales change only between groups.

    Returns:
        float32 ``(rows, outputs)``.

    Raises:
        ShapeError: ``x`` has another number of inputs.
        InputError: the activation width or group is not supported.
        DtypeError: ``x`` is not floating.
    """
    if x.ndim != 2 or x.shape[1] != matrix.inputs:
        raise ShapeError(
            f"The matrix has {matrix.inputs} inputs; the activations have shape {x.shape}."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise DtypeError(f"Activations must be floating, not {x.dtype}.")
    if activation_bits not in (8, 16, 32):
        raise InputError(f"Activations have 8, 16 or 32 bits, not {activation_bits}.")
    if activation_group not in (-1, None, matrix.group):
        raise InputError(
            f"Activation scales go with the matrix's groups of {matrix.group} or with whole rows, "
            f"not with groups of {activation_group}."
        )
    if activation_bits != 8:
        return _float_activations(x, matrix, activation_bits)
    per_row = activation_group is None
    codes, scale = quantize_activations(x, None if per_row else matrix.group)
    codes = jnp.pad(codes, ((0, 0), (0, matrix.groups * matrix.group - codes.shape[1])))
    if per_row:
        scale = jnp.broadcast_to(scale, (x.shape[0], matrix.groups))
    products, sums = group_products(codes, matrix)

    def add(total: jax.Array, group: Any) -> tuple[jax.Array, None]:
        product, total_x, scale_x, scale_w, zero, offset = group
        if zero is not None:
            exact = product - total_x[:, None] * zero.astype(jnp.int32)[None]
            term = exact.astype(jnp.float32) * scale_w
        else:
            term = product.astype(jnp.float32) * scale_w
            term = term + total_x.astype(jnp.float32)[:, None] * offset
        return total + scale_x[:, None] * term, None

    start = jnp.zeros((x.shape[0], matrix.outputs), jnp.float32)
    zero = None if matrix.zero is None else matrix.zero.T
    offset = None if matrix.offset is None else matrix.offset.T
    groups = (products, sums, scale.T, matrix.scale.T, zero, offset)
    return jax.lax.scan(add, start, groups)[0]


def _float_activations(x: jax.Array, matrix: QuantizedMatrix, bits: int) -> jax.Array:
    values = x.astype(jnp.float16 if bits == 16 else jnp.float32).astype(jnp.float32)
    padding = matrix.groups * matrix.group - x.shape[1]
    grouped = jnp.pad(values, ((0, 0), (0, padding))).reshape(
        x.shape[0], matrix.groups, matrix.group
    )
    codes = unpack_codes(matrix.packed, matrix.bits).reshape(
        matrix.outputs, matrix.groups, matrix.group
    )
    products = jnp.einsum("mgk,ngk->gmn", grouped, codes.astype(jnp.float32), precision="highest")
    sums = jnp.sum(grouped, -1)
    if matrix.zero is not None:
        shift = matrix.zero.astype(jnp.float32)
        terms = products - sums.T[:, :, None] * shift.T[:, None]
        return jnp.sum(terms * matrix.scale.T[:, None], 0)
    return jnp.sum(
        products * matrix.scale.T[:, None] + sums.T[:, :, None] * matrix.offset.T[:, None], 0
    )
