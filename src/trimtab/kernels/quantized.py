"""Linear layers on quantised weights as files hold them.

``y = x W^T + b`` with W in the block formats of GGUF. On the CPU activations are rounded to int8
with one scale per 32 values (absmax / 127), or per row for ternary weights, and multiplied by
integer dot products; each (row, output) sum has one order, so a row's result does not depend on
the others. Gradients are those of the layer without the rounding.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from trimtab.errors import ShapeError, unknown_name
from trimtab.kernels.binding import Shaped, kernel
from trimtab.kernels.block_formats import BLOCK_FORMATS, dequantize
from trimtab.kernels.decoder import KINDS

_NAMES = {code: name for name, code in KINDS.items()}
_DENSE = {"f32": jnp.float32, "bf16": jnp.bfloat16, "f16": jnp.float16}


def _weights(blocks: Array, kind: str, scale: float) -> Array:
    if kind in _DENSE:
        dtype = jnp.dtype(_DENSE[kind])
        words = blocks.reshape(blocks.shape[0], -1, dtype.itemsize)
        return jax.lax.bitcast_convert_type(words, dtype).astype(jnp.float32)
    weights = dequantize(kind, blocks)
    return weights * scale if kind == "ternary" else weights


def _rounded(x: Array, kind: str) -> Array:
    """What the activations become on the way into the product."""
    if kind in ("f32", "f16"):
        return x
    if kind == "bf16":
        return x.astype(jnp.bfloat16).astype(jnp.float32)
    groups = x if kind == "ternary" else x.reshape(*x.shape[:-1], -1, 32)
    largest = jnp.max(jnp.abs(groups), axis=-1, keepdims=True)
    step = jnp.maximum(largest, 1e-5 if kind == "ternary" else 1e-38) / 127
    return (jnp.round(groups / step) * step).reshape(x.shape)


def _block_linear(x: Array, blocks: Array, bias: Array, *, kind: int, scale: float) -> Array:
    name = _NAMES[kind]
    # Straight through: the rounding is invisible to derivatives.
    values = x + jax.lax.stop_gradient(_rounded(x, name) - x)
    y = jnp.matmul(values, _weights(blocks, name, scale).T, precision="highest")
    return y + bias if bias.size else y


def _rms_block_linear(
    x: Array,
    blocks: Array,
    bias: Array,
    weight: Array,
    *,
    kind: int,
    scale: float,
    epsilon: float,
) -> Array:
    mean = jnp.mean(x * x, axis=-1, keepdims=True)
    return _block_linear(
        x * jax.lax.rsqrt(mean + epsilon) * weight, blocks, bias, kind=kind, scale=scale
    )


def _served(x: Shaped, blocks: Shaped, *floats: Shaped, kind: int, **_: Any) -> bool:
    return (
        blocks.dtype == "uint8"
        and len(blocks.shape) == 2
        and all(array.dtype == "float32" for array in (x, *floats))
        and (_NAMES[kind] in _DENSE or x.shape[-1] % 32 == 0)
    )


def _results(x: Shaped, blocks: Shaped, *_: Shaped, **__: Any) -> tuple[Shaped, ...]:
    return (Shaped((*x.shape[:-1], blocks.shape[0]), "float32"),)


block_linear_kernel = kernel(
    "block_linear", reference=_block_linear, results=_results, accepts=_served
)
rms_block_linear_kernel = kernel(
    "rms_block_linear", reference=_rms_block_linear, results=_results, accepts=_served
)


def _checked(x: Any, blocks: Any, kind: str) -> int:
    if kind not in KINDS:
        raise unknown_name("weight format", kind, KINDS)
    columns = x.shape[-1] if len(x.shape) else 0
    if kind in _DENSE:
        expected = columns * jnp.dtype(_DENSE[kind]).itemsize
    else:
        expected = BLOCK_FORMATS[kind].row_bytes(columns)
    if len(blocks.shape) != 2 or blocks.shape[1] != expected:
        raise ShapeError(
            f"{kind} rows for {columns} inputs are uint8 (outputs, {expected}), not "
            f"{tuple(blocks.shape)}."
        )
    return KINDS[kind]


def _empty_like(x: Any) -> Any:
    return x.new_zeros(0) if hasattr(x, "new_zeros") else jnp.zeros(0, jnp.float32)


def block_linear(
    x: Float[Array, "*batch in"] | Any,
    blocks: UInt8[Array, "out bytes"] | Any,
    kind: str,
    *,
    scale: float = 1.0,
    bias: Float[Array, " out"] | Any | None = None,
) -> Any:
    """Multiply by quantised weights in their file form.

    Args:
        x: float32 activations; JAX or PyTorch.
        blocks: uint8 rows of a GGUF tensor, or the bytes of a dense one.
        kind: ``"q4_0"``, ``"q4_1"``, ``"q5_0"``, ``"q5_1"``, ``"q8_0"``, ``"q4_k"``, ``"q5_k"``,
            ``"q6_k"``, ``"ternary"``, ``"f32"``, ``"bf16"`` or ``"f16"``.
        scale: multiplies ternary weights.
        bias: added to the outputs.

    Returns:
        float32 ``(*batch, out)``.

    Raises:
        UnknownNameError: another format.
        ShapeError: the rows' length does not fit the columns.
    """
    code = _checked(x, blocks, kind)
    shift = _empty_like(x) if bias is None else bias
    return block_linear_kernel(x, blocks, shift, kind=code, scale=float(scale))


def rms_block_linear(
    x: Float[Array, "*batch in"] | Any,
    weight: Float[Array, " in"] | Any,
    blocks: UInt8[Array, "out bytes"] | Any,
    kind: str,
    *,
    epsilon: float,
    scale: float = 1.0,
    bias: Float[Array, " out"] | Any | None = None,
) -> Any:
    """Normalise rows by their root mean square, then :func:`block_linear`, in one pass.

    Args:
        x: float32 activations.
        weight: multiplies the normalised rows.
        blocks: as in :func:`block_linear`.
        kind: as in :func:`block_linear`.
        epsilon: added to the mean square.
        scale: multiplies ternary weights.
        bias: added to the outputs.

    Raises:
        UnknownNameError: another format.
        ShapeError: the rows' length does not fit the columns.
    """
    code = _checked(x, blocks, kind)
    shift = _empty_like(x) if bias is None else bias
    return rms_block_linear_kernel(
        x, blocks, shift, weight, kind=code, scale=float(scale), epsilon=float(epsilon)
    )
