"""Attention over the cache against its reference and a loop over keys."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import run_raw, worst_error

from trimtab import kernels
from trimtab.errors import ShapeError
from trimtab.kernels import _library
from trimtab.kernels.token_attention import cached_attention_kernel

needs_native = pytest.mark.skipif(
    _library.extension() is None, reason="the native kernels are not built"
)


def draw(heads, groups, dim, rows, runs, dtype=np.float32, seed=0):
    """A full cache and the tokens of `runs`: (slot, first position, count)."""
    generator = np.random.default_rng(seed)
    slots = np.concatenate([np.full(count, slot) for slot, _, count in runs]).astype(np.int32)
    positions = np.concatenate([first + np.arange(count) for _, first, count in runs])
    shape = (int(slots.max()) + 1, groups, rows, dim)
    keys, values = (generator.normal(size=shape).astype(dtype) for _ in range(2))
    queries = generator.normal(size=(slots.size, heads, dim)).astype(np.float32)
    return queries, keys, values, slots, positions.astype(np.int32)


def one_by_one(queries, keys, values, slots, positions, scale, window):
    """Position by position, in float64; rings resolved by hand."""
    out = np.zeros(queries.shape)
    rows, group = keys.shape[2], queries.shape[1] // keys.shape[1]
    for t, (slot, position) in enumerate(zip(slots, positions)):
        first = max(0, position - window + 1) if window else 0
        at = np.arange(first, position + 1) % rows
        for head in range(queries.shape[1]):
            k = keys[slot, head // group, at].astype(np.float64)
            v = values[slot, head // group, at].astype(np.float64)
            scores = k @ queries[t, head] * scale
            weights = np.exp(scores - scores.max())
            out[t, head] = weights @ v / weights.sum()
    return out


CASES = [
    # heads, groups, dim, rows, runs, window
    (3, 1, 64, 40, [(0, 0, 1)], 0),
    (9, 3, 64, 300, [(1, 299, 1), (0, 7, 1)], 0),
    (4, 4, 16, 64, [(0, 20, 7), (2, 0, 1)], 0),
    (5, 1, 6, 400, [(0, 390, 1)], 0),
    (2, 1, 128, 600, [(0, 530, 2)], 0),
    (9, 3, 64, 200, [(0, 0, 150), (1, 30, 8)], 0),
    (4, 1, 40, 150, [(0, 140, 10)], 0),
    (4, 2, 256, 70, [(0, 50, 20)], 0),
    (4, 2, 32, 40, [(0, 100, 1), (1, 33, 1)], 24),
    (4, 1, 32, 50, [(0, 200, 20), (1, 5, 9)], 24),
]


@needs_native
@pytest.mark.parametrize("isa", kernels.available_isas())
@pytest.mark.parametrize("case", CASES, ids=str)
def test_native_attention_equals_the_loop_over_keys(case, isa):
    heads, groups, dim, rows, runs, window = case
    for dtype, tolerance in ((np.float32, 2e-5), (ml_dtypes.bfloat16, 1e-2)):
        arrays = draw(heads, groups, dim, rows, runs, dtype)
        with kernels.use_isa(isa):
            (found,) = run_raw(cached_attention_kernel, arrays, {"scale": 0.2, "window": window})
        assert worst_error(found, one_by_one(*arrays, 0.2, window)) < tolerance


@pytest.mark.parametrize("case", CASES[1::3], ids=str)
def test_the_reference_equals_the_loop_over_keys(case):
    heads, groups, dim, rows, runs, window = case
    arrays = draw(heads, groups, dim, rows, runs)
    found = cached_attention_kernel.reference(*map(jnp.asarray, arrays), scale=0.2, window=window)
    assert worst_error(found, one_by_one(*arrays, 0.2, window)) < 2e-5


@needs_native
@given(
    group=st.integers(1, 5),
    groups=st.integers(1, 3),
    dim=st.integers(1, 70),
    first=st.integers(0, 300),
    count=st.integers(1, 40),
    window=st.sampled_from([0, 1, 17]),
)
@settings(max_examples=40, deadline=None)
def test_any_shape_window_and_place_in_the_ring_is_right(group, groups, dim, first, count, window):
    rows = window + count - 1 if window else first + count
    arrays = draw(group * groups, groups, dim, rows, [(0, first, count)], seed=first)
    (found,) = run_raw(cached_attention_kernel, arrays, {"scale": 0.3, "window": window})
    assert worst_error(found, one_by_one(*arrays, 0.3, window)) < 2e-5


@needs_native
def test_threads_and_neighbours_do_not_change_a_bit():
    runs = [(0, 30, 20), (1, 299, 1), (2, 5, 1)]
    queries, keys, values, slots, positions = draw(9, 3, 64, 300, runs)
    attributes = {"scale": 0.2, "window": 0}
    results = []
    for threads in (1, 3):
        with kernels.use_threads(threads):
            (out,) = run_raw(
                cached_attention_kernel, (queries, keys, values, slots, positions), attributes
            )
        results.append(out)
    assert results[0].tobytes() == results[1].tobytes()
    for part in (slice(0, 20), slice(20, 21), slice(21, 22)):
        arrays = (queries[part], keys, values, slots[part], positions[part])
        (alone,) = run_raw(cached_attention_kernel, arrays, attributes)
        assert alone.tobytes() == results[0][part].tobytes()


def test_heads_that_no_group_divides_are_refused():
    arrays = draw(9, 3, 8, 10, [(0, 0, 1)])
    with pytest.raises(ShapeError, match="heads a multiple of groups"):
        kernels.cached_attention(arrays[0][:, :8], *arrays[1:], scale=1.0)
