"""Which weights of a matrix to drop, and how to repair the ones that stay.

Matrices are ``(outputs, inputs)``. A pattern is either a fraction of weights to drop or
``Keep(n, m)``: keep n of each m consecutive inputs. Papers write "2:4" for what is dropped or kept
alike; here the number is always what is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from trimtab.errors import InputError, ShapeError

Method = Literal["magnitude", "wanda", "sparsegpt"]
METHODS: tuple[Method, ...] = ("magnitude", "wanda", "sparsegpt")
_BLOCK = 128


@dataclass(frozen=True)
class Keep:
    """Keep ``count`` of every ``of`` consecutive inputs of each output.

    Raises:
        InputError: not ``0 < count <= of``.
    """

    count: int
    of: int

    def __post_init__(self) -> None:
        if not 0 < self.count <= self.of:
            raise InputError(f"Cannot keep {self.count} of {self.of} weights.")


Pattern = float | Keep


def check_pattern(pattern: Pattern, inputs: int, path: str = "The matrix") -> None:
    """Check that a pattern can be applied to rows of a length.

    Raises:
        InputError: the fraction is outside 0..1.
        ShapeError: the group length does not divide the row.
    """
    if isinstance(pattern, Keep):
        if inputs % pattern.of:
            raise ShapeError(
                f"{path} has {inputs} inputs, which {pattern.of} does not divide. "
                "Choose another pattern, or exclude it with where='!PATH'."
            )
    elif not 0.0 <= pattern <= 1.0:
        raise InputError(f"The fraction of weights to drop must lie in 0..1, not {pattern}.")


def magnitude_mask(
    weight: Float[Array, "outputs inputs"], pattern: Pattern
) -> Bool[Array, "outputs inputs"]:
    """Keep the largest weights of the matrix (or of each group).

    Returns:
        True where a weight stays. With a fraction s, exactly ``int(size * s)`` weights are dropped,
        ties by position.
    """
    score = jnp.abs(weight)
    if isinstance(pattern, Keep):
        return _keep_in_groups(score, pattern)
    return _keep_largest(score.reshape(1, -1), pattern).reshape(score.shape)


def wanda_mask(
    weight: Float[Array, "outputs inputs"],
    mean_squares: Float[Array, " inputs"],
    pattern: Pattern,
) -> Bool[Array, "outputs inputs"]:
    """Keep, in each output, the weights with the largest ``|W| * ||X||``.

    Args:
        weight: the matrix.
        mean_squares: mean square of each input feature over calibration rows.
        pattern: fraction to drop in each row, or groups.

    Returns:
        True where a weight stays; every row drops exactly ``int(inputs * s)``.

    Source: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models",
    arXiv 2306.11695, equation 1.
    """
    score = jnp.abs(weight) * jnp.sqrt(mean_squares)
    if isinstance(pattern, Keep):
        return _keep_in_groups(score, pattern)
    return _keep_largest(score, pattern)


def sparsegpt(
    weight: Float[Array, "outputs inputs"],
    gram: Float[Array, "inputs inputs"],
    pattern: Pattern,
    *,
    damping: float = 0.01,
) -> tuple[Float[Array, "outputs inputs"], Bool[Array, "outputs inputs"]]:
    """Drop weights column by column, and let the later columns make up for the error.

    Each column's error ``(w - q) / U_ii`` is spread over the columns to its right along the rows of
    U, the upper Cholesky factor of the inverse of ``H = 2 E[x xᵀ] + damping``. With a fraction, the
    scores ``w² / U_ii²`` of 128 columns are compared together; with groups, those of one group,
    after earlier columns have been made up for.

    Args:
        weight: the matrix.
        gram: mean outer product of the calibration inputs.
        pattern: fraction to drop, or groups.
        damping: share of the mean diagonal of H added to its diagonal.

    Returns:
        The repaired matrix with its dropped weights at zero, and True where a weight stays.

    Source: Frantar and Alistarh, "SparseGPT", arXiv 2301.00774, algorithm 1.
    """
    check_pattern(pattern, weight.shape[1])
    factor, dead = inverse_factor(gram, damping)
    start = jnp.where(dead, 0.0, weight.astype(jnp.float32))
    padding = -weight.shape[1] % _BLOCK
    if isinstance(pattern, Keep) and _BLOCK % pattern.of:
        raise ShapeError(f"Groups of {pattern.of} do not divide blocks of {_BLOCK} columns.")
    padded = jnp.pad(start, ((0, 0), (0, padding)))
    factor = jnp.pad(factor, ((0, padding), (0, padding)))
    factor = factor + jnp.diag(jnp.where(jnp.arange(len(factor)) >= weight.shape[1], 1.0, 0.0))
    repaired, kept = _sparsegpt_blocks(padded, factor, pattern, weight.shape[1])
    columns = slice(0, weight.shape[1])
    return repaired[:, columns].astype(weight.dtype), kept[:, columns]


def inverse_factor(
    gram: Float[Array, "inputs inputs"], damping: float
) -> tuple[Float[Array, "inputs inputs"], Bool[Array, " inputs"]]:
    """Return the upper Cholesky factor of the damped inverse Hessian, and the dead inputs.

    Computed in float64 on the host: the inverse of a nearly singular Gram matrix loses more digits
    than float32 has.

    Args:
        gram: mean outer product of inputs.
        damping: share of the mean diagonal added to the diagonal.

    Raises:
        InputError: the matrix is not positive definite even after damping.
    """
    hessian = 2.0 * np.asarray(gram, np.float64)
    diagonal = np.diag(hessian).copy()
    dead = diagonal == 0
    hessian[dead, dead] = 1.0
    hessian[np.diag_indices_from(hessian)] += damping * np.mean(np.diag(hessian))
    try:
        lower = np.linalg.cholesky(hessian)
        inverse_lower = np.linalg.inv(lower)
        # H⁻¹ = L⁻ᵀ L⁻¹; its upper factor U satisfies Uᵀ U = H⁻¹.
        factor = np.linalg.cholesky(inverse_lower.T @ inverse_lower).T
    except np.linalg.LinAlgError as error:
        raise InputError(
            "The calibration inputs give a singular matrix. Use more batches or a larger damping."
        ) from error
    return jnp.asarray(factor, jnp.float32), jnp.asarray(dead)


def prune(
    weight: Float[Array, "outputs inputs"],
    pattern: Pattern,
    method: Method,
    statistic: Float[Array, " *features"] | None = None,
) -> Float[Array, "outputs inputs"]:
    """Prune one matrix by a named method.

    Args:
        weight: the matrix.
        pattern: fraction of weights to drop, or groups.
        method: ``"magnitude"``, ``"wanda"`` (statistic: mean squares) or ``"sparsegpt"``
            (statistic: Gram matrix).
        statistic: from :func:`trimtab.reduce.calibration.calibrate`.

    Returns:
        The matrix with dropped weights at zero, in its own dtype.
    """
    check_pattern(pattern, weight.shape[1])
    if method == "sparsegpt":
        assert statistic is not None
        return sparsegpt(weight, statistic, pattern)[0]
    if method == "wanda":
        assert statistic is not None
        kept = wanda_mask(weight, statistic, pattern)
    else:
        kept = magnitude_mask(weight, pattern)
    return jnp.where(kept, weight, jnp.zeros((), weight.dtype))


def _keep_largest(score: jax.Array, fraction: float) -> jax.Array:
    """Drop exactly ``int(length * fraction)`` of each row, the first among equals."""
    length = score.shape[1]
    dropped = int(length * fraction)
    order = jnp.argsort(score, axis=1, stable=True)
    rank = jnp.argsort(order, axis=1, stable=True)
    return rank >= dropped


def _keep_in_groups(score: jax.Array, pattern: Keep) -> jax.Array:
    rows, length = score.shape
    check_pattern(pattern, length)
    grouped = score.reshape(rows * (length // pattern.of), pattern.of)
    fraction = (pattern.of - pattern.count) / pattern.of
    # Adding a half keeps int() from rounding an exact count down.
    kept = _keep_largest(grouped, fraction + 0.5 / pattern.of)
    return kept.reshape(rows, length)


def _sparsegpt_blocks(
    weight: jax.Array, factor: jax.Array, pattern: Pattern, columns: int
) -> tuple[jax.Array, jax.Array]:
    blocks = weight.shape[1] // _BLOCK
    repaired, kept = [], []
    for index in range(blocks):
        start = index * _BLOCK
        stop = start + _BLOCK
        real = min(columns - start, _BLOCK)
        done, mask, errors = _sparsegpt_block(
            weight[:, start:stop], factor[start:stop, start:stop], pattern, real
        )
        repaired.append(done)
        kept.append(mask)
        if stop < weight.shape[1]:
            later = weight[:, stop:] - errors @ factor[start:stop, stop:]
            weight = jnp.concatenate([weight[:, :stop], later], 1)
    return jnp.concatenate(repaired, 1), jnp.concatenate(kept, 1)


def _sparsegpt_block(
    block: jax.Array, factor: jax.Array, pattern: Pattern, real: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Prune one block of columns; returns it repaired, what stays, and the scaled errors."""
    diagonal = jnp.diag(factor)
    rows = block.shape[0]
    if isinstance(pattern, Keep):
        kept = jnp.ones(block.shape, bool)
    else:
        scores = (block / diagonal) ** 2
        # Padding columns score above everything, so they are never counted among the dropped.
        scores = jnp.where(jnp.arange(_BLOCK) < real, scores, jnp.inf)
        dropped = int(rows * real * pattern)
        order = jnp.argsort(scores.reshape(-1), stable=True)
        kept = jnp.ones(rows * _BLOCK, bool).at[order[:dropped]].set(False).reshape(block.shape)
    group = pattern if isinstance(pattern, Keep) else None
    return _sweep(block, factor, kept, group)


@partial(jax.jit, static_argnames="group")
def _sweep(
    block: jax.Array, factor: jax.Array, kept: jax.Array, group: Keep | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    diagonal = jnp.diag(factor)

    def column(index: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        current, done, mask, errors = state
        if group is not None:
            mask = jax.lax.cond(
                index % group.of == 0,
                lambda: _choose_group(current, diagonal, mask, index, cast(Keep, group)),
                lambda: mask,
            )
        value = current[:, index]
        kept_value = jnp.where(mask[:, index], value, 0.0)
        error = (value - kept_value) / diagonal[index]
        # Columns up to this one are finished; the factor is upper triangular, so they do not move.
        current = current - error[:, None] * factor[index][None]
        return (
            current,
            done.at[:, index].set(kept_value),
            mask,
            errors.at[:, index].set(error),
        )

    start = (block, jnp.zeros_like(block), kept, jnp.zeros_like(block))
    _, done, mask, errors = jax.lax.fori_loop(0, block.shape[1], column, start)
    return done, mask, errors


def _choose_group(
    current: jax.Array, diagonal: jax.Array, mask: jax.Array, index: jax.Array, group: Keep
) -> jax.Array:
    values = jax.lax.dynamic_slice_in_dim(current, index, group.of, 1)
    scale = jax.lax.dynamic_slice_in_dim(diagonal, index, group.of)
    chosen = _keep_in_groups((values / scale) ** 2, group)
    return jax.lax.dynamic_update_slice_in_dim(mask, chosen, index, 1)
