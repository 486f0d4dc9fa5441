"""``gelu(x + bias)`` in its tanh form, fused (Hendrycks and Gimpel 2016, section 2).

``gelu(u) = u / (1 + exp(-2 z))``, ``z = sqrt(2/pi) (u + 0.044715 u^3)``: equal to
``0.5 u (1 + tanh z)`` and more accurate for negative ``u``. Arithmetic is in float32. The gradient
keeps nothing but ``x`` and ``bias``.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trimtab.errors import ShapeError
from trimtab.kernels.binding import check_floats, kernel
from trimtab.kernels.normalization import as_rows

_ROOT = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715


def _reference(
    x: Float[Array, "rows size"], bias: Float[Array, " size"]
) -> Float[Array, "rows size"]:
    u = x.astype(jnp.float32) + bias.astype(jnp.float32)
    return (u * jax.nn.sigmoid(_ROOT * u * (1 + _CUBIC * u * u))).astype(x.dtype)


def _backward_reference(
    x: Float[Array, "rows size"], bias: Float[Array, " size"], cotangent: Float[Array, "rows size"]
) -> tuple[Float[Array, "rows size"], Float[Array, " size"]]:
    # Beyond 15 the slope is 0 or 1 to the bit; its cubic would overflow far out.
    u = jnp.clip(x.astype(jnp.float32) + bias.astype(jnp.float32), -15.0, 15.0)
    s = jax.nn.sigmoid(_ROOT * u * (1 + _CUBIC * u * u))
    slope = s + u * s * (1 - s) * _ROOT * (1 + 3 * _CUBIC * u * u)
    d_x = slope * cotangent.astype(jnp.float32)
    return d_x.astype(x.dtype), d_x.sum(0).astype(bias.dtype)


bias_gelu_backward_kernel = kernel(
    "bias_gelu_backward",
    reference=_backward_reference,
    batching="broadcast_all",
    results=(0, 1),
    operations=lambda x, *rest: 18.0 * math.prod(x.shape),
)


def _backward(arrays: Any, cotangent: Any) -> tuple[Any, ...]:
    x, bias = arrays
    return bias_gelu_backward_kernel(x, bias, cotangent)


bias_gelu_kernel = kernel(
    "bias_gelu",
    reference=_reference,
    backward=_backward,
    batching="broadcast_all",
    results=(0,),
    operations=lambda x, *rest: 9.0 * math.prod(x.shape),
)


def bias_gelu(x: Any, bias: Any):
    """Add a bias and apply the tanh-form GELU.

    Args:
        x: ``(..., size)``, float32, bfloat16 or float16; JAX or PyTorch.
        bias: ``(size,)``.

    Returns:
        Array of the shape and type of ``x``.

    Raises:
        ShapeError: the bias is not as long as the last axis of ``x``.
        DtypeError: arrays that do not hold floating-point numbers.
    """
    check_floats("bias_gelu", x, bias)
    if len(x.shape) == 0 or tuple(bias.shape) != (x.shape[-1],):
        raise ShapeError(
            f"bias_gelu got x of shape {tuple(x.shape)} and bias {tuple(bias.shape)}; the bias "
            "must be as long as the last axis of x."
        )
    return bias_gelu_kernel(as_rows(x), bias).reshape(x.shape)
