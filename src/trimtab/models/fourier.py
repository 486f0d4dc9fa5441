"""Mixing tokens by the real part of a two-dimensional discrete Fourier transform.

``Y[k, m] = Σ_i Σ_j x[i, j] cos(2π (k i / n + m j / d))`` over tokens and features ("FNet: Mixing
Tokens with Fourier Transforms", Lee-Thorp et al., 2022, equation 3). The operator is its own
adjoint: ``⟨Mx, g⟩ = ⟨x, Mg⟩``. Hence its gradient is itself and the backward pass stores nothing.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import zero_from_primal
from jaxtyping import Array, Float, Int, Shaped

from trimtab.errors import DtypeError, ShapeError
from trimtab.models.fourier_choice import choose_path
from trimtab.models.fourier_paths import PATHS, _reflect


def fourier_mix(
    x: Shaped[Array, "*batch tokens width"], *, path: str = "auto"
) -> Float[Array, "*batch tokens width"]:
    """Return the real part of the unnormalised 2-D Fourier transform of the last two axes.

    Args:
        x: real numbers; 16-bit input is widened, because a sum over all tokens and features
            overflows float16 and costs bfloat16 its digits.
        path: a name in :data:`trimtab.models.fourier_paths.PATHS`, or ``"auto"`` for the quickest
            on this backend at this shape.

    Returns:
        float32 (float64 for float64 input), of the input's shape.

    Raises:
        ShapeError: fewer than two axes, or an empty one.
        DtypeError: the input is not a real floating-point array.
        UnknownNameError: no such path.
    """
    _check(x)
    tokens, width = x.shape[-2:]
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return _self_adjoint(choose_path(tokens, width, path), wide)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _self_adjoint(path: str, x: Array) -> Array:
    return PATHS[path].run(x)


def _forward(path: str, x: Array) -> tuple[Array, None]:
    return _self_adjoint(path, x), None


def _backward(path: str, _: None, gradient: Array) -> tuple[Array]:
    return (_self_adjoint(path, gradient),)


_self_adjoint.defvjp(_forward, _backward)


def ragged_fourier_mix(
    x: Float[Array, "tokens width"], length: Int[Array, ""] | int
) -> Float[Array, "tokens width"]:
    """Mix only the first ``length`` tokens, as if the rest of the array were not there.

    The transform over tokens has a length known only at run time. Bluestein's identity
    ``2ki = k² + i² - (k - i)²`` turns it into a convolution with a chirp whose array size is fixed,
    so one compiled program serves every length.

    Args:
        x: one example, padded at the end.
        length: number of true tokens, 1 to ``tokens``; may differ between examples under `vmap`.

    Returns:
        the mixed tokens in float32; rows from ``length`` on are zero.
    """
    _check(x)
    return _ragged_self_adjoint(x.astype(jnp.float32), jnp.asarray(length, jnp.int32))


@jax.custom_vjp
def _ragged_self_adjoint(x: Array, length: Array) -> Array:
    tokens, width = x.shape
    valid = (jnp.arange(tokens) < length)[:, None]
    half = jnp.fft.rfft(jnp.where(valid, x, 0.0), axis=-1)
    real = _bluestein(half, length).real
    mirror = real[(length - jnp.arange(tokens)) % length]
    rest = jnp.flip(mirror[:, 1 : (width + 1) // 2], -1)
    return jnp.where(valid, jnp.concatenate([real, rest], axis=-1), 0.0)


def _ragged_forward(x: Array, length: Array) -> tuple[Array, Array]:
    return _ragged_self_adjoint(x, length), length


def _ragged_backward(length: Array, gradient: Array) -> tuple[Array, Array]:
    return _ragged_self_adjoint(gradient, length), zero_from_primal(length)


_ragged_self_adjoint.defvjp(_ragged_forward, _ragged_backward)


def _bluestein(x: Array, length: Array) -> Array:
    """Transform the first axis over its first ``length`` entries; the others must be zero."""
    tokens = x.shape[0]
    size = _fast_size(2 * tokens - 1)
    index = jnp.arange(tokens, dtype=jnp.int32)
    # i² stays below 2³¹ up to 46,340 tokens; the phase is reduced as an integer to keep digits.
    phase = (index * index % (2 * length)).astype(jnp.float32) * (jnp.pi / length)
    chirp = jax.lax.complex(jnp.cos(phase), jnp.sin(phase))
    wrapped = jnp.zeros(size, chirp.dtype).at[:tokens].set(chirp)
    wrapped = wrapped.at[size - tokens + 1 :].set(jnp.flip(chirp[1:]))
    spectrum = jnp.fft.fft(x * jnp.conj(chirp)[:, None], size, axis=0)
    convolved = jnp.fft.ifft(spectrum * jnp.fft.fft(wrapped)[:, None], axis=0)
    return convolved[:tokens] * jnp.conj(chirp)[:, None]


def _fast_size(at_least: int) -> int:
    """The next size whose only prime factors are 2, 3 and 5."""
    best = 1 << int(np.ceil(np.log2(max(1, at_least))))
    for threes in (1, 3, 9, 27):
        for fives in (1, 5, 25):
            rest = int(np.ceil(at_least / (threes * fives)))
            best = min(best, threes * fives * (1 << int(np.ceil(np.log2(max(1, rest))))))
    return best


def hartley_mix(
    x: Float[Array, "*batch tokens width"],
) -> Float[Array, "*batch tokens width"]:
    """Return the 2-D Hartley transform: the real part less the imaginary part of the Fourier one.

    Unlike the real part alone it is invertible (``H² = n d``), and it too is its own adjoint.

    Args:
        x: real numbers; 16-bit input is widened.

    Returns:
        float32 of the input's shape, unnormalised.
    """
    _check(x)
    return _hartley_self_adjoint(x.astype(jnp.promote_types(x.dtype, jnp.float32)))


@jax.custom_vjp
def _hartley_self_adjoint(x: Array) -> Array:
    width = x.shape[-1]
    half = jnp.fft.fft(jnp.fft.rfft(x, axis=-1), axis=-2)
    rest = _reflect((half.real + half.imag)[..., 1 : (width + 1) // 2], -2)
    return jnp.concatenate([half.real - half.imag, jnp.flip(rest, -1)], axis=-1)


_hartley_self_adjoint.defvjp(
    lambda x: (_hartley_self_adjoint(x), None),
    lambda _, gradient: (_hartley_self_adjoint(gradient),),
)


def _check(x: Array) -> None:
    if x.ndim < 2 or 0 in x.shape[-2:]:
        raise ShapeError(
            f"Mixing needs an array (..., tokens, width) without empty axes, got {x.shape}."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise DtypeError(f"Mixing needs real floating-point numbers, got {x.dtype}.")
