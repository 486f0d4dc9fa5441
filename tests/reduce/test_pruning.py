"""Pruning masks against plain loops, and repaired weights against exact least squares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import InputError, ShapeError
from trimtab.reduce.sparsity.pruning import (
    Keep,
    inverse_factor,
    magnitude_mask,
    prune,
    sparsegpt,
    wanda_mask,
)


def _random(seed, rows, columns):
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=(rows, columns)).astype("float32")
    inputs = generator.normal(size=(4 * columns, columns)) * generator.uniform(0.1, 3, columns)
    # Correlated inputs, so that making up for errors matters.
    inputs[:, 1::2] += 0.8 * inputs[:, ::2][:, : inputs[:, 1::2].shape[1]]
    return jnp.asarray(weight), inputs


def _loop_mask(score, fraction):
    kept = np.ones(score.shape, bool)
    for row in range(score.shape[0]):
        order = sorted(range(score.shape[1]), key=lambda column: score[row, column])
        for column in order[: int(score.shape[1] * fraction)]:
            kept[row, column] = False
    return kept


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 99),
    rows=st.integers(1, 9),
    columns=st.sampled_from([1, 5, 16]),
    fraction=st.floats(0, 1),
)
def test_wanda_drops_the_lowest_scores_of_each_row(seed, rows, columns, fraction):
    weight, inputs = _random(seed, rows, columns)
    squares = jnp.asarray((inputs**2).mean(0), jnp.float32)
    score = np.abs(np.asarray(weight)) * np.sqrt(np.asarray(squares))
    kept = wanda_mask(weight, squares, fraction)
    np.testing.assert_array_equal(kept, _loop_mask(score, fraction))


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 99), rows=st.integers(1, 9), columns=st.integers(1, 12), s=st.floats(0, 1)
)
def test_magnitude_drops_the_smallest_of_the_matrix(seed, rows, columns, s):
    weight, _ = _random(seed, rows, columns)
    kept = np.asarray(magnitude_mask(weight, s))
    sizes = np.abs(np.asarray(weight))
    assert (~kept).sum() == int(kept.size * s)
    if kept.any() and not kept.all():
        assert sizes[kept].min() >= sizes[~kept].max()


@pytest.mark.parametrize(("count", "of"), [(2, 4), (1, 4), (3, 4), (4, 8), (4, 4)])
def test_groups_keep_the_stated_number(count, of):
    weight, inputs = _random(3, 6, 32)
    squares = jnp.asarray((inputs**2).mean(0), jnp.float32)
    gram = jnp.asarray(inputs.T @ inputs / len(inputs), jnp.float32)
    pattern = Keep(count, of)
    for kept in (
        magnitude_mask(weight, pattern),
        wanda_mask(weight, squares, pattern),
        sparsegpt(weight, gram, pattern)[1],
    ):
        assert (np.asarray(kept).reshape(6, -1, of).sum(-1) == count).all()


def test_the_inverse_factor_is_upper_and_exact():
    _, inputs = _random(0, 1, 24)
    gram = inputs.T @ inputs / len(inputs)
    factor, dead = inverse_factor(jnp.asarray(gram, jnp.float32), 0.01)
    assert not np.asarray(dead).any()
    upper = np.asarray(factor, np.float64)
    np.testing.assert_allclose(upper, np.triu(upper), atol=0)
    hessian = 2 * gram
    hessian += 0.01 * np.diag(hessian).mean() * np.eye(24)
    np.testing.assert_allclose(upper.T @ upper @ hessian, np.eye(24), atol=1e-3)


def _reference_sparsegpt(weight, gram, fraction, block=128):
    """The algorithm written as its paper lists it, in float64 loops."""
    weight = np.array(weight, np.float64)
    hessian = 2 * np.array(gram, np.float64)
    hessian += 0.01 * np.mean(np.diag(hessian)) * np.eye(len(hessian))
    factor = np.linalg.cholesky(np.linalg.inv(hessian)).T
    columns = weight.shape[1]
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        scores = weight[:, start:stop] ** 2 / np.diag(factor)[start:stop] ** 2
        dropped = np.argsort(scores, axis=None, kind="stable")[: int(scores.size * fraction)]
        mask = np.zeros(scores.size, bool)
        mask[dropped] = True
        mask = mask.reshape(scores.shape)
        errors = np.zeros_like(scores)
        for i in range(start, stop):
            kept = np.where(mask[:, i - start], 0.0, weight[:, i])
            errors[:, i - start] = (weight[:, i] - kept) / factor[i, i]
            weight[:, i:stop] -= np.outer(errors[:, i - start], factor[i, i:stop])
            weight[:, i] = kept
        weight[:, stop:] -= errors @ factor[start:stop, stop:]
    return weight


@pytest.mark.parametrize(("rows", "columns"), [(8, 24), (5, 200), (4, 256)])
def test_sparsegpt_equals_its_paper_written_as_loops(rows, columns):
    weight, inputs = _random(1, rows, columns)
    gram = inputs.T @ inputs / len(inputs)
    ours, kept = sparsegpt(weight, jnp.asarray(gram, jnp.float32), 0.5)
    expected = _reference_sparsegpt(weight, gram, 0.5)
    agreement = (np.asarray(kept) == (expected != 0)).mean()
    assert agreement >= 0.999
    both = np.asarray(kept) & (expected != 0)
    np.testing.assert_allclose(np.asarray(ours)[both], expected[both], rtol=2e-3, atol=2e-3)


def test_sparsegpt_beats_plain_masks_on_the_layer_output():
    weight, inputs = _random(2, 16, 128)
    gram = jnp.asarray(inputs.T @ inputs / len(inputs), jnp.float32)
    squares = jnp.diag(gram)

    def error(pruned):
        return float(np.square(inputs @ np.asarray(pruned - weight, np.float64).T).mean())

    repaired = error(sparsegpt(weight, gram, 0.5)[0])
    wanda = error(prune(weight, 0.5, "wanda", squares))
    magnitude = error(prune(weight, 0.5, "magnitude"))
    assert repaired < wanda < magnitude


def test_one_dropped_weight_is_made_up_for_exactly():
    """With one weight dropped first in the row, the rest is the exact least-squares answer."""
    weight, inputs = _random(4, 1, 6)
    weight = weight.at[0, 0].set(1e-6)
    gram = inputs.T @ inputs / len(inputs)
    ours, kept = sparsegpt(weight, jnp.asarray(gram, jnp.float32), 1 / 6, damping=0.0)
    assert not kept[0, 0]
    target = inputs @ np.asarray(weight, np.float64)[0]
    best = np.linalg.lstsq(inputs[:, 1:], target, rcond=None)[0]
    np.testing.assert_allclose(np.asarray(ours)[0, 1:], best, atol=1e-4)


def test_dead_inputs_lose_their_weights_and_change_nothing_else():
    weight, inputs = _random(5, 4, 16)
    inputs[:, 3] = 0
    gram = jnp.asarray(inputs.T @ inputs / len(inputs), jnp.float32)
    repaired, _ = sparsegpt(weight, gram, 0.25)
    assert (np.asarray(repaired)[:, 3] == 0).all()
    assert np.isfinite(np.asarray(repaired)).all()


def test_bad_patterns_are_named():
    weight = jnp.ones((2, 6))
    with pytest.raises(InputError, match=r"must lie in 0\.\.1"):
        prune(weight, 1.5, "magnitude")
    with pytest.raises(ShapeError, match="which 4 does not divide"):
        prune(weight, Keep(2, 4), "magnitude")
    with pytest.raises(InputError, match="Cannot keep 5 of 4"):
        Keep(5, 4)
    with pytest.raises(InputError, match="singular"):
        inverse_factor(-jnp.eye(3), 0.0)


def test_pruning_keeps_dtype_and_kept_values():
    weight = jax.random.normal(jax.random.key(0), (8, 8)).astype(jnp.bfloat16)
    pruned = prune(weight, 0.5, "magnitude")
    assert pruned.dtype == jnp.bfloat16
    kept = np.asarray(pruned) != 0
    np.testing.assert_array_equal(np.asarray(pruned)[kept], np.asarray(weight)[kept])
