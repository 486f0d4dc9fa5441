"""Layer normalisation over the last axis, optionally of a sum (Ba et al. 2016, equation 4).

``y = (s - mean(s)) / sqrt(var(s) + epsilon) * scale + bias``, ``s = x`` or ``s = x + residual``.
Arithmetic is in float32 whatever the arrays hold, and ``epsilon`` is used as given: BERT-style
models keep 1e-12, which matters for constant rows. The gradient keeps nothing but the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trimtab.errors import ShapeError
from trimtab.kernels.binding import check_floats, kernel


def _normalise(total: jax.Array, epsilon: float) -> jax.Array:
    mean = total.mean(-1, keepdims=True)
    centred = total - mean
    return centred * jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + epsilon)


def _reference(
    x: Float[Array, "rows size"],
    scale: Float[Array, " size"],
    bias: Float[Array, " size"],
    *,
    epsilon: float,
) -> Float[Array, "rows size"]:
    normal = _normalise(x.astype(jnp.float32), epsilon)
    return (normal * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def _residual_reference(
    x: Float[Array, "rows size"],
    residual: Float[Array, "rows size"],
    scale: Float[Array, " size"],
    bias: Float[Array, " size"],
    *,
    epsilon: float,
) -> Float[Array, "rows size"]:
    total = x.astype(jnp.float32) + residual.astype(jnp.float32)
    normal = _normalise(total, epsilon)
    return (normal * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def _backward_of_sum(
    total: jax.Array, scale: jax.Array, cotangent: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    mean = total.mean(-1, keepdims=True)
    centred = total - mean
    inverse = jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + epsilon)
    normal = centred * inverse
    g = cotangent.astype(jnp.float32)
    scaled = g * scale.astype(jnp.float32)
    plain = scaled.mean(-1, keepdims=True)
    aligned = (scaled * normal).mean(-1, keepdims=True)
    return inverse * (scaled - plain - normal * aligned), (g * normal).sum(0), g.sum(0)


def _backward_reference(
    x: Float[Array, "rows size"],
    scale: Float[Array, " size"],
    cotangent: Float[Array, "rows size"],
    *,
    epsilon: float,
) -> tuple[Float[Array, "rows size"], Float[Array, " size"], Float[Array, " size"]]:
    total = x.astype(jnp.float32)
    d_x, d_scale, d_bias = _backward_of_sum(total, scale, cotangent, epsilon)
    return d_x.astype(x.dtype), d_scale.astype(scale.dtype), d_bias.astype(scale.dtype)


def _residual_backward_reference(
    x: Float[Array, "rows size"],
    residual: Float[Array, "rows size"],
    scale: Float[Array, " size"],
    cotangent: Float[Array, "rows size"],
    *,
    epsilon: float,
) -> tuple[Float[Array, "rows size"], Float[Array, " size"], Float[Array, " size"]]:
    total = x.astype(jnp.float32) + residual.astype(jnp.float32)
    d_x, d_scale, d_bias = _backward_of_sum(total, scale, cotangent, epsilon)
    return d_x.astype(x.dtype), d_scale.astype(scale.dtype), d_bias.astype(scale.dtype)


def _operations(each: int) -> Callable[..., float]:
    """So many operations for each element of x; roots of rows are not counted."""
    return lambda x, *rest, **attributes: each * math.prod(x.shape)


layer_norm_backward_kernel = kernel(
    "layer_norm_backward",
    reference=_backward_reference,
    batching="broadcast_all",
    results=(0, 1, 1),
    operations=_operations(18),
)
residual_layer_norm_backward_kernel = kernel(
    "residual_layer_norm_backward",
    reference=_residual_backward_reference,
    batching="broadcast_all",
    results=(0, 2, 2),
    operations=_operations(19),
)


def _backward(arrays: Any, cotangent: Any, *, epsilon: float) -> tuple[Any, ...]:
    x, scale, _ = arrays
    return layer_norm_backward_kernel(x, scale, cotangent, epsilon=epsilon)


def _residual_backward(arrays: Any, cotangent: Any, *, epsilon: float) -> tuple[Any, ...]:
    x, residual, scale, _ = arrays
    d_x, d_scale, d_bias = residual_layer_norm_backward_kernel(
        x, residual, scale, cotangent, epsilon=epsilon
    )
    return d_x, d_x, d_scale, d_bias


layer_norm_kernel = kernel(
    "layer_norm",
    reference=_reference,
    backward=_backward,
    batching="broadcast_all",
    results=(0,),
    operations=_operations(7),
)
residual_layer_norm_kernel = kernel(
    "residual_layer_norm",
    reference=_residual_reference,
    backward=_residual_backward,
    batching="broadcast_all",
    results=(0,),
    operations=_operations(8),
)


def layer_norm(x: Any, scale: Any, bias: Any, *, residual: Any = None, epsilon: float = 1e-12):
    """Normalise the last axis, after adding ``residual`` if there is one.

    Args:
        x: ``(..., size)``, float32, bfloat16 or float16; JAX or PyTorch.
        scale: ``(size,)`` gain.
        bias: ``(size,)`` offset.
        residual: of the shape and type of ``x``, or None.
        epsilon: added to the variance.

    Returns:
        Array of the shape and type of ``x``.

    Raises:
        ShapeError: the shapes do not fit together.
        DtypeError: arrays that do not hold floating-point numbers.
    """
    check_floats("layer_norm", x, scale, bias, *(() if residual is None else (residual,)))
    size = x.shape[-1] if len(x.shape) else None
    if size is None or tuple(scale.shape) != (size,) or tuple(bias.shape) != (size,):
        raise ShapeError(
            f"layer_norm got x of shape {tuple(x.shape)}, scale {tuple(scale.shape)} and bias "
            f"{tuple(bias.shape)}; scale and bias must be as long as the last axis of x."
        )
    if residual is not None and tuple(residual.shape) != tuple(x.shape):
        raise ShapeError(
            f"layer_norm got a residual of shape {tuple(residual.shape)} for x of shape "
            f"{tuple(x.shape)}; pass one of the same shape."
        )
    rows = as_rows(x)
    if residual is None:
        out = layer_norm_kernel(rows, scale, bias, epsilon=float(epsilon))
    else:
        added = as_rows(residual)
        out = residual_layer_norm_kernel(rows, added, scale, bias, epsilon=float(epsilon))
    return out.reshape(x.shape)


def as_rows(x: Any) -> Any:
    """Every axis but the last as one, for either framework and for empty arrays too."""
    return x.reshape((math.prod(x.shape[:-1]), x.shape[-1]))
