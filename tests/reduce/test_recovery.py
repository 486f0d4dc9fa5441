"""Adapters through the mask, and fractions from a quality budget."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import trimtab as tt
from trimtab.errors import InputError
from trimtab.reduce.sparsity import (
    adapter_names,
    add_adapters,
    allocate,
    merge_adapters,
    sparsify,
)


@pytest.fixture(scope="module")
def data():
    x = jax.random.normal(jax.random.key(5), (256, 8))
    return x, jnp.sin(x @ jax.random.normal(jax.random.key(6), (8, 4)))


@pytest.fixture(scope="module")
def program(data):
    model = eqx.nn.MLP(8, 4, 32, 2, key=jax.random.key(0))
    return tt.capture(model, data[0], batched=True)


def mean_square(program, data):
    return jnp.mean((program(data[0]) - data[1]) ** 2)


def test_new_adapters_change_nothing_and_trained_ones_keep_every_zero(program, data):
    pruned = program.rewrite(sparsify(0.7))
    adapted = add_adapters(pruned, pruned.sites("linear"), rank=4, key=jax.random.key(1))
    np.testing.assert_allclose(adapted(data[0]), pruned(data[0]), atol=1e-6)
    names = adapter_names(adapted)
    assert len(names) == 6

    trainable = {name: adapted.parameters[name] for name in names}
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(values, state):
        def loss(v):
            return mean_square(adapted.with_parameters(v), data)

        value, gradients = jax.value_and_grad(loss)(values)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(values, updates), state, value

    state = optimizer.init(trainable)
    for _ in range(60):
        trainable, state, _ = step(trainable, state)
    trained = adapted.with_parameters(trainable)
    assert mean_square(trained, data) < 0.8 * mean_square(pruned, data)
    merged = merge_adapters(pruned, trained.parameters)
    np.testing.assert_allclose(merged(data[0]), trained(data[0]), atol=1e-4)
    for name, array in pruned.parameters.items():
        if name.endswith("weight"):
            assert (np.asarray(merged.parameters[name])[np.asarray(array) == 0] == 0).all()
    assert set(merged.parameters) == set(pruned.parameters)


def test_adapters_work_in_scanned_layers(key):
    weights = jax.random.normal(key, (3, 6, 6))

    def model(w, x):
        return jax.lax.scan(lambda h, layer: (jnp.tanh(h @ layer), None), x, w["w"])[0]

    x = jax.random.normal(key, (4, 6))
    program = tt.capture(model, x, parameters={"w": weights})
    adapted = add_adapters(program, program.sites("linear"), rank=2, key=key)
    assert adapted.parameters["w/adapter/up"].shape == (3, 6, 2)
    moved = adapted.with_parameters({"w/adapter/up": jnp.ones((3, 6, 2))})
    merged = merge_adapters(program, moved.parameters)
    np.testing.assert_allclose(moved(x), merged(x), atol=1e-4)


def test_a_budget_is_kept_and_a_larger_one_prunes_more(program, data):
    def loss(p):
        return float(mean_square(p, (data[0], program(data[0]))) + 1.0)

    fractions = [
        allocate(program, [data[0]], loss, budget=budget, rounds=6) for budget in (0.002, 0.05)
    ]
    for budget, chosen in zip((0.002, 0.05), fractions):
        lean = program.rewrite(sparsify(chosen, calibrate=[data[0]]))
        assert loss(lean) <= loss(program) * (1 + budget)
    assert sum(fractions[1].values()) > sum(fractions[0].values())


def test_bad_requests_are_named(program, data):
    with pytest.raises(InputError, match="at least 1"):
        add_adapters(program, program.sites("linear"), rank=0, key=jax.random.key(0))
    with pytest.raises(InputError, match="must not be negative"):
        allocate(program, [data[0]], lambda p: 1.0, budget=-1)
