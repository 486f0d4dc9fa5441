"""FLOPs and memory of programs against XLA's own analysis."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trimtab as tt
from trimtab.graph.cost import si


def _dense(key):
    model = eqx.nn.MLP(64, 10, 128, 3, key=key)
    return model, jax.ShapeDtypeStruct((32, 64), "float32"), True


def _convolutions(key):
    first, second = jax.random.split(key)
    model = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(3, 16, 3, padding=1, key=first),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Conv2d(16, 32, 3, stride=2, padding=1, key=second),
            eqx.nn.AvgPool2d(2, 2),
        ]
    )
    return model, jax.ShapeDtypeStruct((4, 3, 24, 24), "float32"), True


def _attention(key):
    attention = eqx.nn.MultiheadAttention(4, 64, key=key)
    return lambda x: attention(x, x, x), jax.ShapeDtypeStruct((48, 64), "float32"), False


def _recurrent(key):
    cell = eqx.nn.GRUCell(32, 64, key=key)

    def model(sequence):
        hidden = jnp.zeros(64)
        for step in range(6):
            hidden = cell(sequence[step], hidden)
        return hidden

    return model, jax.ShapeDtypeStruct((6, 32), "float32"), False


def _norms(key):
    def model(x):
        layer = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
        return layer * jax.lax.rsqrt(jnp.mean(layer**2, -1, keepdims=True) + 1e-6)

    return model, jax.ShapeDtypeStruct((64, 256), "float32"), False


def _embedding(key):
    table, head = jax.random.normal(key, (100, 32)), jax.random.normal(key, (32, 100))
    return (
        lambda ids: jax.nn.log_softmax(table[ids] @ head),
        jax.ShapeDtypeStruct((8, 16), "int32"),
        False,
    )


def _linen_vision(key):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(8, (3, 3))(x))
            x = nn.Conv(16, (3, 3), strides=2, feature_group_count=8)(x)
            x = nn.BatchNorm(use_running_average=True)(x)
            return nn.Dense(10)(x.reshape(x.shape[0], -1))

    net, x = Net(), jnp.ones((2, 16, 16, 3))
    variables = net.init(key, x)
    return (
        lambda images: net.apply(variables, images),
        jax.ShapeDtypeStruct(x.shape, x.dtype),
        False,
    )


def _gated(key):
    up, gate, down = (jax.random.normal(k, (64, 128)) for k in jax.random.split(key, 3))
    return (
        lambda x: (jax.nn.silu(x @ gate) * (x @ up)) @ down.T,
        jax.ShapeDtypeStruct((17, 64), "float32"),
        False,
    )


def _training_step(key):
    model = eqx.nn.MLP(32, 4, 64, 2, key=key)
    arrays, rest = eqx.partition(model, eqx.is_array)

    def step(x):
        def loss(values):
            return jnp.mean(jax.vmap(eqx.combine(values, rest))(x) ** 2)

        gradients = jax.grad(loss)(arrays)
        return jax.tree.map(lambda p, g: p - 0.1 * g, arrays, gradients)

    return step, jax.ShapeDtypeStruct((64, 32), "float32"), False


def _unrolled_scan(key):
    weights = jax.random.normal(key, (4, 48, 48))

    def model(x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, weights, unroll=4)[0]

    return model, jax.ShapeDtypeStruct((16, 48), "float32"), False


def _remat(key):
    weights = jax.random.normal(key, (64, 64))
    layer = jax.checkpoint(lambda h: jax.nn.gelu(h @ weights))
    return (
        lambda x: jax.grad(lambda y: layer(layer(y)).sum())(x),
        jax.ShapeDtypeStruct((32, 64), "float32"),
        False,
    )


MODELS = [
    _dense, _convolutions, _attention, _recurrent, _norms, _embedding, _linen_vision, _gated,
    _training_step, _unrolled_scan, _remat,
]  # fmt: skip


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__.strip("_"))
def test_flops_are_within_three_percent_of_xla(build, key):
    model, spec, batched = build(key)
    program = tt.capture(model, spec, batched=batched)
    cost = program.cost()
    lowered = jax.jit(lambda p, x: p(x)).lower(program, spec)
    expected = lowered.cost_analysis()
    assert cost.flops == pytest.approx(expected["flops"], rel=0.03)
    assert cost.transcendentals == pytest.approx(expected.get("transcendentals", 0), rel=0.03)


@pytest.mark.parametrize("build", [_dense, _attention, _gated, _training_step])
def test_peak_memory_is_close_to_what_xla_allocates(build, key):
    model, spec, batched = build(key)
    program = tt.capture(model, spec, batched=batched)
    memory = jax.jit(lambda p, x: p(x)).lower(program, spec).compile().memory_analysis()
    allocated = (
        memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    )
    assert program.cost().peak_bytes == pytest.approx(allocated, rel=0.25)


def test_a_scan_costs_its_length_times_its_body(key):
    weights = jax.random.normal(key, (5, 16, 16))

    def model(w, x):
        return jax.lax.scan(lambda h, layer: (h @ layer, None), x, w)[0]

    x = jnp.ones((4, 16))
    program = tt.capture(model, x, parameters=weights)
    assert program.cost().flops == 5 * 2 * 4 * 16 * 16
    (row,) = program.cost().rows
    assert row.repeats == 5


def test_a_counted_while_loop_costs_its_trip_count():
    def model(x):
        return jax.lax.while_loop(lambda s: s[0] < 7, lambda s: (s[0] + 1, s[1] @ x), (0, x))[1]

    cost = tt.capture(model, jnp.ones((8, 8))).cost()
    products = 7 * 2 * 8**3
    assert products <= cost.flops <= products + 100
    assert not cost.assumed_trips


def test_an_open_while_loop_is_reported_and_takes_the_given_count():
    def model(x):
        return jax.lax.while_loop(lambda y: y.sum() < 1e3, lambda y: y @ x, x)

    program = tt.capture(model, jnp.ones((8, 8)))
    assert program.cost().assumed_trips
    more = program.cost(while_trips=10).flops - program.cost(while_trips=9).flops
    assert more >= 2 * 8**3


def test_a_branch_costs_its_dearest_side():
    def model(x):
        return jax.lax.cond(x[0, 0] > 0, lambda y: y @ y, lambda y: y, x)

    assert tt.capture(model, jnp.ones((8, 8))).cost().flops >= 2 * 8**3


def test_a_foreign_call_without_a_price_is_named():
    def model(x):
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct((4,), "float32"), x)

    cost = tt.capture(model, jnp.ones(4)).cost()
    assert cost.unpriced == ("pure_callback",)
    assert cost.bytes_read >= 16


def test_bytes_of_a_product_are_its_operands_and_result():
    cost = tt.capture(lambda w, x: x @ w, jnp.ones((8, 32)), parameters=jnp.ones((32, 16))).cost()
    assert cost.bytes_read == 4 * (8 * 32 + 32 * 16)
    assert cost.bytes_written == 4 * 8 * 16


def test_pointwise_chains_read_and_write_memory_once():
    cost = tt.capture(lambda x: jnp.tanh(x * 2 + 1) * 3, jnp.ones((128, 8))).cost()
    assert cost.bytes_read == cost.bytes_written == 4 * 128 * 8


def test_counts_are_written_with_a_unit_prefix():
    assert [si(0), si(999), si(1_530_000), si(2e12)] == ["0", "999", "1.53M", "2T"]
