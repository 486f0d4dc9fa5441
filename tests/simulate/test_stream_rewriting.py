"""The rewrites that a search finds with no hint, and that their values stay the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from trimtab.simulate.stream import find_rewrites, from_jaxpr, lower, report, simulate, size_fifos

F32 = jnp.float32


def attention(query, key, value, bias=None, mask=None):
    scores = query @ key.T / jnp.sqrt(query.shape[-1])
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    return jax.nn.softmax(scores, axis=-1) @ value


def rms_linear(x, weight):
    return (x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)) @ weight


def unit_dot(x, weight):
    return (x / jnp.linalg.norm(x, axis=-1, keepdims=True)) @ weight


def layer_norm(x):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + 1e-6)


def given(*shapes, seed=0):
    state = np.random.default_rng(seed)
    return [jnp.asarray(state.normal(size=shape), F32) for shape in shapes]


def search(function, *arguments, **options):
    flow = from_jaxpr(jax.make_jaxpr(function)(*arguments))
    return find_rewrites(flow, **options)


def relative_error(found, function, *arguments):
    expected = jax.jit(function)(*arguments)
    mine = jax.jit(found.best.flow.evaluate)(*arguments)[0]
    return float(jnp.max(jnp.abs(mine - expected)) / jnp.max(jnp.abs(expected)))


@pytest.mark.parametrize("length", [128, 512, 2048])
def test_plain_attention_needs_the_same_few_places_at_any_length(length):
    specs = [jax.ShapeDtypeStruct((length, 64), F32)] * 3
    found = search(attention, *specs)
    network = size_fifos(lower(found.best.flow)).network
    assert network.total_depth == 34  # and more than 2 * length as it was written
    assert found.original.network.total_depth > 2 * length
    assert "running max beside its sums" in found.best.steps
    assert simulate(network).cycles == simulate(network.unbounded()).cycles


causal = jnp.tril(jnp.ones((96, 96), bool))
VARIANTS = {
    "plain": lambda q, k, v: attention(q, k, v),
    "causal": lambda q, k, v: attention(q, k, v, mask=causal),
    "biased": lambda q, k, v: attention(q, k, v, bias=jnp.cos(q @ k.T)),
    "library": lambda q, k, v: jax.nn.dot_product_attention(
        q[None, :, None], k[None, :, None], v[None, :, None], is_causal=True
    ),
    "base two": lambda q, k, v: (lambda s: jnp.exp2(s - s.max(-1, keepdims=True)))(q @ k.T) @ v,
}


@pytest.mark.parametrize("name", VARIANTS)
def test_values_stay_within_rounding(name):
    arguments = given((96, 16), (96, 16), (96, 16))
    found = search(VARIANTS[name], *arguments)
    assert any(step.startswith("running max") for step in found.best.steps)
    assert relative_error(found, VARIANTS[name], *arguments) < 1e-6
    # What remains short does not depend on the length of a row.
    assert max(found.best.network.depths) <= 8


def test_fully_masked_rows_give_zero_and_other_rows_are_untouched():
    query, key, value = given((96, 16), (96, 16), (96, 16))
    mask = np.random.default_rng(1).random((96, 96)) > 0.4
    mask[3] = False  # nothing to attend to
    mask[5, :50] = False  # a masked start

    def masked(q, k, v):
        return attention(q, k, v, mask=mask)

    found = search(masked, query, key, value)
    assert any(step.startswith("running max") for step in found.best.steps)
    mine = np.asarray(found.best.flow.evaluate(query, key, value)[0])
    expected = np.asarray(masked(query, key, value))
    assert np.isnan(expected[3]).all()
    assert (mine[3] == 0).all()
    rest = np.arange(96) != 3
    np.testing.assert_allclose(mine[rest], expected[rest], rtol=2e-6, atol=2e-6)


def test_infinite_and_undefined_scores_propagate():
    query, key, value = given((96, 16), (96, 16), (96, 16))
    query = query.at[7, 0].set(jnp.nan)
    found = search(attention, query, key, value)
    mine = np.asarray(found.best.flow.evaluate(query, key, value)[0])
    assert np.isnan(mine[7]).all()
    assert np.isfinite(np.delete(mine, 7, 0)).all()


@pytest.mark.parametrize("function", [rms_linear, unit_dot])
@pytest.mark.parametrize("features", [128, 512])
def test_a_normalised_linear_layer_loses_its_row_fifo(function, features):
    arguments = given((32, features), (features, 8))
    found = search(function, *arguments)
    assert any("by a row factor after dot_general" in step for step in found.best.steps)
    sizing = size_fifos(lower(found.best.flow))
    assert sizing.network.total_depth <= 20
    assert found.original.network.total_depth > features
    assert relative_error(found, function, *arguments) < 1e-6


def test_layer_norm_keeps_one_row_or_reads_twice():
    arguments = given((16, 128))
    found = search(layer_norm, *arguments)
    assert "running mean beside its variance" in found.best.steps
    long = [depth for depth in found.best.network.depths if depth > 64]
    assert len(long) == 1
    assert relative_error(found, layer_norm, *arguments) < 1e-6
    twice = search(layer_norm, *arguments, second_pass=True)
    assert max(twice.best.network.depths) < 16
    assert relative_error(twice, layer_norm, *arguments) < 1e-6


def test_log_sum_exp_becomes_one_pass():
    arguments = given((16, 256))
    found = search(lambda x: jax.nn.logsumexp(x, -1), *arguments)
    assert max(found.best.network.depths) < 16
    assert relative_error(found, lambda x: jax.nn.logsumexp(x, -1), *arguments) < 1e-6


def test_a_statistic_without_the_property_is_left_alone():
    def shifted_square(x):
        return ((x - x.max(-1, keepdims=True)) ** 2).sum(-1)

    found = search(shifted_square, *given((16, 256)))
    assert not any("running max" in step for step in found.best.steps)


def test_nothing_is_rewritten_where_bits_must_stay():
    found = search(attention, *given((128, 16), (128, 16), (128, 16)), bitwise=True)
    assert found.best.steps == ()


def test_a_report_shows_what_was_rewritten():
    specs = [jax.ShapeDtypeStruct((128, 16), F32)] * 3
    result = report(attention, *specs, rewrite=True)
    assert result.full_throughput
    assert "running max beside its sums" in result.text()
    assert result.original_bits > result.network.fifo_bits
    arguments = given((128, 16), (128, 16), (128, 16))
    np.testing.assert_allclose(
        result.evaluate(*arguments)[0], attention(*arguments), rtol=1e-5, atol=1e-5
    )
