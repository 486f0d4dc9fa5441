"""The ways to compute the real part of a two-dimensional discrete Fourier transform.

Each maps (..., tokens, width) to ``Y[k, m] = Σ_i Σ_j x[i, j] cos(2π (k i / n + m j / d))``,
unnormalised. Which is quickest depends on the machine: :mod:`trimtab.models.fourier_choice`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Mix = Callable[[Array], Array]


def cosine_matrix(size: int) -> np.ndarray:
    """Return ``cos(2π k i / size)`` for 0 <= k, i <= size // 2 as float32.

    Angles are reduced as integers and taken in float64; naive float32 angles lose digits.
    """
    return _angles(size, 0, size // 2 + 1)[0]


def sine_matrix(size: int) -> np.ndarray:
    """Return ``sin(2π k i / size)`` for 1 <= k, i <= (size - 1) // 2 as float32."""
    return _angles(size, 1, (size - 1) // 2 + 1)[1]


@lru_cache(maxsize=32)
def _angles(size: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    index = np.arange(start, stop, dtype=np.int64)
    angle = (np.outer(index, index) % size) * (2.0 * np.pi / size)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def mix_by_complex_fft(
    x: Float[Array, "*batch tokens width"],
) -> Float[Array, "*batch tokens width"]:
    """The definition: a complex transform of both axes, of which the real part is kept."""
    return jnp.fft.fftn(x, axes=(-2, -1)).real


def mix_by_real_fft(x: Float[Array, "*batch tokens width"]) -> Float[Array, "*batch tokens width"]:
    """A real transform of the features, a complex one of half the columns, and a mirror.

    The mirror is the point symmetry ``Y[(-k) mod n, (-m) mod d] = Y[k, m]``.
    """
    width = x.shape[-1]
    half = jnp.fft.fft(jnp.fft.rfft(x, axis=-1), axis=-2).real
    rest = _reflect(half[..., 1 : (width + 1) // 2], -2)
    return jnp.concatenate([half, jnp.flip(rest, -1)], axis=-1)


def mix_by_matmul(x: Float[Array, "*batch tokens width"]) -> Float[Array, "*batch tokens width"]:
    """Full real matrices: ``C_n x C_d - S_n x S_d``, with no transform instruction."""
    tokens, width = x.shape[-2:]
    cosine, sine = (jnp.asarray(m) for m in _angles(width, 0, width))
    cosine_tokens, sine_tokens = (jnp.asarray(m) for m in _angles(tokens, 0, tokens))
    return cosine_tokens @ (x @ cosine) - sine_tokens @ (x @ sine)


def mix_by_folded_matmul(
    x: Float[Array, "*batch tokens width"],
) -> Float[Array, "*batch tokens width"]:
    """Matrices of a quarter of the size, on the even and odd parts of both axes.

    Cosines are even and sines odd in each index, so each axis folds in half before its product
    and each quadrant of the result is a sum or a difference of the same two products.
    """
    tokens, width = x.shape[-2:]
    even, odd = _fold(x, -1)
    cosine_part = even @ jnp.asarray(cosine_matrix(width))
    sine_part = odd @ jnp.asarray(sine_matrix(width))
    cosine_sum = jnp.asarray(cosine_matrix(tokens)) @ _fold(cosine_part, -2)[0]
    sine_sum = jnp.asarray(sine_matrix(tokens)) @ _fold(sine_part, -2)[1]
    pad = [(0, 0)] * (x.ndim - 2)
    pad += [(1, 1 - size % 2) for size in (tokens, width)]
    sine_sum = jnp.pad(sine_sum, pad)
    same, mirrored = cosine_sum - sine_sum, cosine_sum + sine_sum
    upper = jnp.concatenate([same, _tail(mirrored, width, -1)], axis=-1)
    lower = jnp.concatenate([mirrored, _tail(same, width, -1)], axis=-1)
    return jnp.concatenate([upper, _tail(lower, tokens, -2)], axis=-2)


def _fold(x: Array, axis: int) -> tuple[Array, Array]:
    """Even part (indices 0 .. n // 2) and odd part (1 .. (n - 1) // 2) of an axis of length n."""
    size = x.shape[axis]
    paired = (size - 1) // 2
    take = partial(jax.lax.slice_in_dim, axis=axis)
    front = take(x, 1, 1 + paired)
    back = jnp.flip(take(x, size - paired, size), axis)
    parts = [take(x, 0, 1), front + back]
    if size % 2 == 0:
        parts.append(take(x, size // 2, size // 2 + 1))
    return jnp.concatenate(parts, axis=axis), front - back


def _tail(half: Array, size: int, axis: int) -> Array:
    """The reflected indices n // 2 + 1 .. n - 1, from those at (n - 1) // 2 .. 1."""
    return jnp.flip(jax.lax.slice_in_dim(half, 1, (size + 1) // 2, axis=axis), axis)


def _reflect(x: Array, axis: int) -> Array:
    """Index ``-k mod n`` in place of k."""
    return jnp.roll(jnp.flip(x, axis), 1, axis)


class MixingPath(NamedTuple):
    """One way to compute the operator."""

    run: Mix
    """Maps (..., tokens, width) to the same shape, in float32."""
    work: Callable[[int, int], float]
    """Floating-point operations for given tokens and width, the shape of its cost."""
    transforms: bool
    """Whether it holds FFT instructions, which some exports cannot carry."""
    serves: Callable[[str], bool] = lambda backend: True
    """Whether it runs on a backend (``"cpu"``, ``"gpu"``, ``"tpu"``) of this machine."""


def _fft_work(tokens: int, width: int) -> float:
    return 5.0 * tokens * width * np.log2(max(2, tokens * width))


def _folded_work(tokens: int, width: int) -> float:
    return 1.0 * tokens * width**2 + 0.5 * tokens**2 * width


def mix_natively(x: Float[Array, "*batch tokens width"]) -> Float[Array, "*batch tokens width"]:
    """This package's own real transform for CPUs."""
    from trimtab.kernels.fourier import fourier_mix

    return fourier_mix(x)


def _native_kernel_serves(backend: str) -> bool:
    from trimtab.kernels._library import kernel_names

    return backend == "cpu" and "fourier_mix" in kernel_names()


PATHS: dict[str, MixingPath] = {
    "native": MixingPath(
        mix_natively, lambda n, d: 0.5 * _fft_work(n, d), True, _native_kernel_serves
    ),
    "complex_fft": MixingPath(mix_by_complex_fft, _fft_work, True),
    "real_fft": MixingPath(mix_by_real_fft, lambda n, d: 0.5 * _fft_work(n, d), True),
    "matmul": MixingPath(mix_by_matmul, lambda n, d: 4.0 * n * d**2 + 4.0 * n**2 * d, False),
    "folded_matmul": MixingPath(mix_by_folded_matmul, _folded_work, False),
}
