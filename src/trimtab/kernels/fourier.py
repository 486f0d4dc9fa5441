"""The real part of the two-dimensional Fourier transform as a token mixer.

``Y[k, m] = factor * sum_ij x[i, j] cos(2 pi (k i / tokens + m j / width))`` (FNet, Lee-Thorp et al.
2022, equation 3), alone or followed by residual sum and layer normalisation. The operator is its
own adjoint, so its gradient is the same kernel, and neither form keeps anything but its input.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trimtab.errors import DtypeError, ShapeError
from trimtab.kernels.binding import FLOATS, Shaped, kernel
from trimtab.kernels.normalization import (
    _residual_reference,
    as_rows,
    residual_layer_norm_backward_kernel,
)


def _reference(
    x: Float[Array, "*batch tokens width"], *, factor: float
) -> Float[Array, "*batch tokens width"]:
    mixed = jnp.fft.fftn(x.astype(jnp.float32), axes=(-2, -1)).real
    return mixed * jnp.float32(factor)


def _mixed_shape(x: Shaped, *, factor: float) -> tuple[Shaped, ...]:
    return (Shaped(x.shape, "float32"),)


def _operations(x: Shaped) -> float:
    """The usual count of a fast transform, halved for real input."""
    size = math.prod(x.shape[-2:])
    return 2.5 * math.prod(x.shape) * math.log2(max(2, size))


def _backward(arrays: Any, cotangent: Any, *, factor: float) -> tuple[Any, ...]:
    (x,) = arrays
    return (_like(fourier_mix_kernel(cotangent, factor=factor), x),)


fourier_mix_kernel = kernel(
    "fourier_mix",
    reference=_reference,
    backward=_backward,
    batching="broadcast_all",
    results=_mixed_shape,
    operations=lambda x, **attributes: _operations(x),
)


def _norm_reference(
    x: Float[Array, "*batch tokens width"],
    scale: Float[Array, " width"],
    bias: Float[Array, " width"],
    *,
    factor: float,
    epsilon: float,
) -> Float[Array, "*batch tokens width"]:
    wide = x.astype(jnp.float32)
    mixed = _reference(wide, factor=factor)
    return _residual_reference(mixed, wide, scale, bias, epsilon=epsilon).astype(x.dtype)


def _norm_backward(
    arrays: Any, cotangent: Any, *, factor: float, epsilon: float
) -> tuple[Any, ...]:
    x, scale, _ = arrays
    wide = _wide(x)
    mixed = fourier_mix_kernel(wide, factor=factor)
    d_sum, d_scale, d_bias = residual_layer_norm_backward_kernel(
        as_rows(mixed), as_rows(wide), scale, as_rows(_wide(cotangent)), epsilon=epsilon
    )
    d_sum = d_sum.reshape(x.shape)
    d_x = d_sum + fourier_mix_kernel(d_sum, factor=factor)
    return _like(d_x, x), d_scale, d_bias


fourier_mix_residual_norm_kernel = kernel(
    "fourier_mix_residual_norm",
    reference=_norm_reference,
    backward=_norm_backward,
    batching="broadcast_all",
    results=(0,),
    operations=lambda x, *rest, **attributes: _operations(x) + 8.0 * math.prod(x.shape),
)


def _wide(array: Any) -> Any:
    return array.astype(jnp.float32) if isinstance(array, jax.Array) else array.float()


def _like(array: Any, model: Any) -> Any:
    """The array in the model's data type, for either framework."""
    return array.astype(model.dtype) if isinstance(array, jax.Array) else array.to(model.dtype)


def fourier_mix(x: Any, *, factor: float = 1.0):
    """Real part of the 2-D Fourier transform of the last two axes, times ``factor``.

    Args:
        x: ``(..., tokens, width)``, float32, bfloat16 or float16; JAX or PyTorch. Any lengths:
            those with prime factors above 13 cost about three times their smooth neighbours.
        factor: 1 leaves the transform unnormalised; ``(tokens * width) ** -0.5`` makes it
            orthonormal.

    Returns:
        float32 of the shape of ``x``; sums over all elements do not fit 16-bit formats.

    Raises:
        ShapeError: fewer than two axes, or an empty one among the last two.
        DtypeError: not one of the three types.
    """
    _check(x)
    return fourier_mix_kernel(x, factor=float(factor))


def fourier_mix_residual_norm(
    x: Any, scale: Any, bias: Any, *, factor: float = 1.0, epsilon: float = 1e-12
):
    """``layer_norm(fourier_mix(x) + x)`` in one pass over the mixed rows.

    Args:
        x: ``(..., tokens, width)`` as for :func:`fourier_mix`.
        scale: ``(width,)`` gain of the normalisation.
        bias: ``(width,)`` offset.
        factor: multiplies the transform before the residual is added.
        epsilon: added to the variance.

    Returns:
        Array of the shape and type of ``x``; sums are formed in float32.

    Raises:
        ShapeError: shapes that do not fit together.
        DtypeError: not one of the three types.
    """
    _check(x)
    if tuple(scale.shape) != (x.shape[-1],) or tuple(bias.shape) != (x.shape[-1],):
        raise ShapeError(
            f"fourier_mix_residual_norm got x of shape {tuple(x.shape)}, scale "
            f"{tuple(scale.shape)} and bias {tuple(bias.shape)}; scale and bias must be as long as "
            "the last axis of x."
        )
    return fourier_mix_residual_norm_kernel(
        x, scale, bias, factor=float(factor), epsilon=float(epsilon)
    )


def _check(x: Any) -> None:
    if len(x.shape) < 2 or 0 in tuple(x.shape[-2:]):
        raise ShapeError(
            f"Fourier mixing needs an array (..., tokens, width) without empty axes there, not "
            f"{tuple(x.shape)}."
        )
    name = str(x.dtype).removeprefix("torch.")
    if name not in FLOATS:
        raise DtypeError(
            f"Fourier mixing takes float32, bfloat16 or float16, not {name}; convert the array."
        )
