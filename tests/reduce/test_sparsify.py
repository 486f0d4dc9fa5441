"""The sparsify rewrite on programs: order, statistics, layouts and bad input."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trimtab as tt
from trimtab.errors import InputError, ShapeError, UnknownNameError
from trimtab.reduce.calibration import calibrate
from trimtab.reduce.sparsity import Keep, prune, sparsify


@pytest.fixture(scope="module")
def model():
    return eqx.nn.MLP(8, 4, 16, 2, key=jax.random.key(0))


@pytest.fixture(scope="module")
def program(model):
    return tt.capture(model, jnp.ones((32, 8)), batched=True)


@pytest.fixture(scope="module")
def batches():
    return [jax.random.normal(jax.random.key(i), (32, 8)) for i in range(3)]


def test_statistics_are_means_over_all_rows(program, model, batches):
    sites = program.sites("linear")
    rows = jnp.concatenate(batches)
    hidden = jax.vmap(lambda x: jax.nn.relu(model.layers[0](x)))(rows)
    norms = calibrate(program, batches, sites, "norms")
    np.testing.assert_allclose(norms["layers/1"], (hidden**2).mean(0), rtol=1e-5)
    gram = calibrate(program, batches, sites, "gram")
    np.testing.assert_allclose(gram["layers/1"], hidden.T @ hidden / len(rows), rtol=1e-4)
    largest = calibrate(program, batches, sites, "largest")
    np.testing.assert_allclose(largest["layers/0"], jnp.abs(rows).max(0), rtol=1e-6)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_layers_are_pruned_in_turn_on_inputs_from_pruned_layers(program, model, batches, method):
    lean = program.rewrite(sparsify(0.5, method=method, calibrate=batches))
    hidden = jnp.concatenate(batches)
    for index, layer in enumerate(model.layers):
        gram = hidden.T @ hidden / len(hidden)
        statistic = gram if method == "sparsegpt" else jnp.diag(gram)
        expected = prune(layer.weight, 0.5, method, statistic)
        ours = lean.parameters[f"layers/{index}/weight"]
        np.testing.assert_array_equal(ours == 0, expected == 0)
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4)
        hidden = jax.nn.relu(hidden @ ours.T + layer.bias)


def test_scanned_layers_are_pruned_each_by_its_own_inputs(key):
    weights = jax.random.normal(key, (3, 8, 8)) / 2

    def model(w, x):
        return jax.lax.scan(lambda h, layer: (jnp.tanh(h @ layer), None), x, w["w"])[0]

    x = jax.random.normal(key, (16, 8)) * jnp.linspace(0.1, 3, 8)
    program = tt.capture(model, x, parameters={"w": weights})
    lean = program.rewrite(sparsify(0.5, calibrate=[x])).parameters["w"]
    hidden = x
    for index in range(3):
        expected = prune(weights[index].T, 0.5, "wanda", (hidden**2).mean(0)).T
        np.testing.assert_allclose(lean[index], expected, atol=1e-6)
        hidden = jnp.tanh(hidden @ weights[index])


@pytest.mark.parametrize("side", ["left", "right", "heads"])
def test_zeros_go_back_in_the_layout_of_the_parameter(side, key):
    shape = {"left": (6, 8), "right": (8, 6), "heads": (8, 2, 3)}[side]
    weight = jax.random.normal(key, shape)

    def model(w, x):
        if side == "left":
            return w @ x.T
        if side == "heads":
            return jnp.einsum("bk,khd->bhd", x, w)
        return x @ w

    program = tt.capture(model, jnp.ones((4, 8)), parameters=weight)
    lean = program.rewrite(sparsify(0.5)).parameters["parameter"]
    assert lean.shape == shape
    assert int((lean == 0).sum()) == weight.size // 2
    kept = np.asarray(lean) != 0
    np.testing.assert_array_equal(np.asarray(lean)[kept], np.asarray(weight)[kept])


def test_where_and_fractions_by_name_choose_the_layers(program):
    lean = program.rewrite(sparsify(Keep(1, 2), where="!layers/0/*"))
    assert not (lean.parameters["layers/0/weight"] == 0).any()
    assert (lean.parameters["layers/1/weight"] == 0).mean() == 0.5
    lean = program.rewrite(sparsify({"layers/2/weight": 0.25}))
    assert (lean.parameters["layers/2/weight"] == 0).mean() == 0.25
    assert not (lean.parameters["layers/1/weight"] == 0).any()


def test_bad_requests_are_named(program):
    with pytest.raises(InputError, match="pass calibrate=batches"):
        sparsify(0.5, method="wanda")
    with pytest.raises(UnknownNameError, match="Did you mean 'wanda'"):
        sparsify(0.5, method="wandaa")
    with pytest.raises(ShapeError, match="layers/0 has 8 inputs, which 5 does not divide"):
        program.rewrite(sparsify(Keep(2, 5)))
