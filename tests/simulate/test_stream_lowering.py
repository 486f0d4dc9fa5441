"""From functions to networks: which primitives, which depths, the same values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from trimtab.errors import InputError, UnsupportedError
from trimtab.simulate.stream import (
    SUPPORTED,
    Hardware,
    from_jaxpr,
    lower,
    report,
    simulate,
    size_fifos,
)
from trimtab.simulate.stream.reporting import count_trips

F32 = jnp.float32


def spec(*shape, dtype=F32):
    return jax.ShapeDtypeStruct(shape, dtype)


def attention(query, key, value):
    scores = query @ key.T / jnp.sqrt(query.shape[-1])
    return jax.nn.softmax(scores, axis=-1) @ value


def layer_norm(x):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + 1e-6)


def primitives(flow):
    return {operation.name for operation in flow.operations}


X, Y = spec(6, 8), spec(6, 8)
WHOLE = spec(6, 8, dtype=jnp.int32)
UNARY = {
    name: getattr(lax, name)
    for name in """abs acos acosh asin asinh atan atanh bessel_i0e bessel_i1e cbrt ceil cos cosh
    digamma erf erf_inv erfc exp exp2 expm1 floor is_finite lgamma log log1p logistic neg round
    rsqrt sign sin sinh sqrt square tan tanh""".split()
}
BINARY = {
    name: getattr(lax, name)
    for name in """add atan2 div eq ge gt igamma igammac le lt max min mul ne nextafter pow rem
    sub""".split()
}
INTEGER = {
    name: getattr(lax, name)
    for name in """bitwise_and bitwise_or bitwise_xor shift_left shift_right_arithmetic
    shift_right_logical""".split()
}
CASES = {
    **{name: (function, (X,)) for name, function in UNARY.items()},
    **{name: (function, (X, Y)) for name, function in BINARY.items()},
    **{name: (function, (WHOLE, WHOLE)) for name, function in INTEGER.items()},
    "not": (lax.bitwise_not, (WHOLE,)),
    "population_count": (lax.population_count, (WHOLE,)),
    "clz": (lax.clz, (WHOLE,)),
    "integer_pow": (lambda x: lax.integer_pow(x, 3), (X,)),
    "clamp": (lambda x: lax.clamp(0.0, x, 1.0), (X,)),
    "select": (lambda x, y: jnp.where(x > 0, x, y), (X, Y)),
    "convert": (lambda x: x.astype(jnp.bfloat16), (X,)),
    "bitcast": (lambda x: lax.bitcast_convert_type(x, jnp.int32), (X,)),
    "reduce_precision": (lambda x: lax.reduce_precision(x, 8, 7), (X,)),
    "complex": (lambda x, y: jnp.abs(lax.complex(x, y)), (X, Y)),
    "broadcast": (lambda x, y: x + y[:, None], (X, spec(6))),
    "transpose then add": (lambda x, y: x.T + y, (spec(8, 6), X)),
    "squeeze": (lambda x: jnp.squeeze(x[:, None], 1) * 2, (X,)),
    "reduce_sum": (lambda x: x.sum(-1), (X,)),
    "reduce over rows": (lambda x: x.max(0), (X,)),
    "reduce_prod": (lambda x: x.prod(-1), (X,)),
    "reduce_min": (lambda x: x.min((0, 1)), (X,)),
    "reduce_and": (lambda x: (x > 0).all(-1), (X,)),
    "reduce_or": (lambda x: (x > 0).any(-1), (X,)),
    "argmax": (lambda x: x.argmax(-1), (X,)),
    "argmin": (lambda x: x.argmin(-1), (X,)),
    "cumsum": (lambda x: lax.cumsum(x, axis=1), (X,)),
    "cumsum of rows": (lambda x: lax.cumsum(x, axis=0), (X,)),
    "cummax backwards": (lambda x: lax.cummax(x, axis=1, reverse=True), (X,)),
    "cumprod": (lambda x: lax.cumprod(x, axis=1), (X,)),
    "cumlogsumexp": (lambda x: lax.cumlogsumexp(x, axis=1), (X,)),
    "cummin": (lambda x: lax.cummin(x, axis=1), (X,)),
    "slice": (lambda x: x[1:5, ::2] * 2, (X,)),
    "slice computed": (lambda x: jnp.exp(x)[1:5, 2:], (X,)),
    "pad": (lambda x: jnp.pad(jnp.exp(x), ((1, 2), (0, 1))), (X,)),
    "concatenate": (lambda x, y: jnp.concatenate([jnp.exp(x), y], 1), (X, Y)),
    "concatenate rows": (lambda x, y: jnp.concatenate([x, jnp.exp(y)], 0), (X, Y)),
    "rev": (lambda x: jnp.exp(x)[::-1], (X,)),
    "reshape": (lambda x: jnp.exp(x).reshape(12, 4).sum(-1), (X,)),
    "iota": (lambda x: x + jnp.arange(8.0), (X,)),
    "gather": (lambda x, i: x[i], (X, spec(5, dtype=jnp.int32))),
    "scatter": (lambda x: x.at[jnp.array([1, 3])].add(1.0), (X,)),
    "dynamic_slice": (lambda x: lax.dynamic_slice(jnp.exp(x), (1, 2), (3, 4)), (X,)),
    "dynamic_update_slice": (lambda x, y: lax.dynamic_update_slice(x, y[:2], (1, 0)), (X, Y)),
    "sort": (lambda x: jnp.sort(jnp.exp(x), axis=-1), (X,)),
    "top_k": (lambda x: lax.top_k(x, 3), (X,)),
    "convolution": (
        lambda x, w: lax.conv(x, w, (1, 1), "SAME"),
        (spec(1, 2, 6, 6), spec(3, 2, 3, 3)),
    ),
    "pooling": (
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (2, 2), "VALID"),
        (X,),
    ),
    "scan": (
        lambda x: lax.scan(lambda c, row: (c * 0.5 + row.sum(), c), 0.0, x),
        (X,),
    ),
    "cond": (lambda x: lax.cond(True, jnp.sin, jnp.cos, x), (X,)),
    "switch": (
        lambda i, x: lax.switch(i, [jnp.sin, jnp.cos], x),
        (spec(dtype=jnp.int32), X),
    ),
    "matrix product": (lambda x, y: x @ y, (X, spec(8, 5))),
    "batched product": (
        lambda x, y: jnp.einsum("bij,bjk->bik", x, y),
        (spec(2, 4, 6), spec(2, 6, 3)),
    ),
    "self product": (lambda x: x @ x.T, (X,)),
    "softmax": (jax.nn.softmax, (X,)),
    "attention": (attention, (X, X, X)),
    "attention of one input": (lambda x: attention(x @ x.T, jnp.tanh(x @ x.T), x), (X,)),
    "dot_product_attention": (
        lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True),
        (spec(1, 6, 2, 4),) * 3,
    ),
    "layer norm": (layer_norm, (X,)),
    "gelu": (jax.nn.gelu, (X,)),
    "logsumexp": (lambda x: jax.nn.logsumexp(x, -1), (X,)),
    "one hot": (lambda i: jax.nn.one_hot(i, 5), (spec(6, dtype=jnp.int32),)),
    "gradient": (jax.grad(lambda x: jnp.tanh(x).sum() ** 2), (X,)),
}


def arrays(specs, seed=0):
    state = np.random.default_rng(seed)
    return [
        jnp.asarray(state.uniform(0.1, 0.9, s.shape), s.dtype)
        if jnp.issubdtype(s.dtype, jnp.floating)
        else jnp.asarray(state.integers(0, 4, s.shape), s.dtype)
        for s in specs
    ]


@pytest.fixture(scope="module")
def flows():
    return {name: from_jaxpr(jax.make_jaxpr(f)(*specs)) for name, (f, specs) in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_every_case_becomes_a_network_that_runs(flows, name):
    network = lower(flows[name])
    run = simulate(network.unbounded())
    assert run.completed
    # Every token that is made is used: nothing is left in a FIFO.
    assert np.array_equal(run.sent - run.received, [fifo.initial for fifo in network.fifos])


def test_at_least_sixty_primitives_are_exercised(flows):
    exercised = set().union(*(primitives(flow) for flow in flows.values()))
    assert exercised <= SUPPORTED
    assert len(exercised) >= 60


VALUES = [
    "softmax", "attention", "attention of one input", "layer norm", "dot_product_attention",
    "logsumexp", "scan", "cumsum", "gelu", "top_k", "gradient",
]  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_values_are_those_of_jax_bit_for_bit(flows, name):
    function, specs = CASES[name]
    given = arrays(specs)
    expected = jax.tree.leaves(jax.jit(function)(*given))
    found = jax.jit(flows[name].evaluate)(*given)
    for mine, theirs in zip(found, expected, strict=True):
        assert np.array_equal(np.asarray(mine), np.asarray(theirs), equal_nan=True)


@pytest.mark.parametrize("name", ["transpose then add", "reshape", "sort", "self product", "rev"])
def test_reordering_keeps_full_throughput_with_finite_fifos(flows, name):
    sizing = size_fifos(lower(flows[name]))
    assert sizing.cycles == sizing.unbounded_cycles


def test_plain_attention_has_the_published_fifos():
    network = lower(from_jaxpr(jax.make_jaxpr(attention)(*[spec(256, 64)] * 3)))
    sizing = size_fifos(network)
    assert len(network.fifos) == 14
    assert sizing.network.total_depth == 562
    assert sorted(sizing.depths.values())[-2:] == [262, 263]
    assert sizing.cycles == sizing.unbounded_cycles


def test_layer_norm_has_the_published_long_fifos():
    sizing = size_fifos(lower(from_jaxpr(jax.make_jaxpr(layer_norm)(spec(256, 512)))))
    assert sorted(sizing.depths.values())[-3:] == [519, 519, 526]


def test_unit_latency_gives_the_depth_of_the_hand_made_graph():
    flow = from_jaxpr(jax.make_jaxpr(lambda s, v: jax.nn.softmax(s) @ v)(spec(32, 32), spec(32, 4)))
    sizing = size_fifos(lower(flow, Hardware(transcendental=1, division=1)))
    # One more than the hand-made graph: the maximum passes a unit that compares it with -inf.
    assert sorted(sizing.depths.values())[-2:] == [34, 35]


def test_primitives_without_a_unit_are_named():
    with pytest.raises(UnsupportedError, match="No streaming unit for eigh"):
        report(lambda x: jnp.linalg.eigh(x)[0], spec(4, 4))


def test_a_loop_over_data_needs_arrays_and_counts_its_trips():
    def double(x):
        return lax.while_loop(lambda c: c.sum() < 100, lambda c: c * 2, x)

    flow = from_jaxpr(jax.make_jaxpr(double)(jnp.ones(4)))
    assert count_trips(flow, [jnp.ones(4)]) == (5,)
    result = report(double, jnp.ones(4))
    assert result.network.units[0].firings == 5
    assert result.full_throughput
    with pytest.raises(UnsupportedError, match="pass arrays, not shapes"):
        report(double, spec(4))


def test_a_carried_loop_runs_at_the_latency_of_its_body():
    rows = spec(32, 8)
    result = report(lambda x: lax.scan(lambda c, r: (jnp.tanh(c + r), None), x[0], x), rows)
    body = Hardware().latency("tanh") + Hardware().default
    assert result.run.cycles >= 31 * body
    assert result.critical is not None
    assert result.critical.pace == body


def test_something_that_is_no_function_is_refused():
    with pytest.raises(InputError, match="pass a JAX function"):
        report(3, X)


def test_a_transformer_block_is_sized_to_full_throughput():
    def block(x, qkv, out, up, down):
        heads = 2

        def split(t):
            return t.reshape(t.shape[0], heads, -1).transpose(1, 0, 2)

        y = layer_norm(x)
        q, k, v = (split(part) for part in jnp.split(y @ qkv, 3, axis=-1))
        scores = jnp.einsum("hid,hjd->hij", q, k) / q.shape[-1] ** 0.5
        mixed = jnp.einsum("hij,hjd->hid", jax.nn.softmax(scores), v)
        x = x + mixed.transpose(1, 0, 2).reshape(x.shape) @ out
        return x + jax.nn.gelu(layer_norm(x) @ up) @ down

    specs = spec(8, 16), spec(16, 48), spec(16, 16), spec(16, 32), spec(32, 16)
    flow = from_jaxpr(jax.make_jaxpr(block)(*specs))
    sizing = size_fifos(lower(flow))
    assert sizing.cycles == sizing.unbounded_cycles
    given = arrays(specs)
    assert np.array_equal(jax.jit(flow.evaluate)(*given)[0], jax.jit(block)(*given))
