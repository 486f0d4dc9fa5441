"""The dense product: every level of instructions, any shape, batches, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trimtab.errors import ShapeError
from trimtab.kernels import available_isas, dense_linear, use_isa

SHAPES = [(1, 1, 1), (3, 5, 2), (12, 32, 32), (13, 34, 33), (50, 64, 100), (129, 48, 31)]


def operands(rows: int, inner: int, outputs: int, dtype) -> tuple[jax.Array, jax.Array]:
    x_key, weight_key = jax.random.split(jax.random.key(rows * inner + outputs))
    x = jax.random.normal(x_key, (rows, inner)).astype(dtype)
    return x, jax.random.normal(weight_key, (outputs, inner)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("isa", available_isas())
def test_every_level_multiplies_any_shape(isa, shape, dtype):
    x, weight = operands(*shape, dtype)
    exact = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
    with use_isa(isa):
        found = np.asarray(dense_linear(x, weight), np.float64)
    bound = 1e-6 if dtype == "float32" else 2.0**-8
    scale = np.abs(np.asarray(x, np.float64)) @ np.abs(np.asarray(weight, np.float64)).T
    assert (np.abs(found - exact) <= bound * scale + 1e-30).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_batch_is_one_product_and_its_gradient_is_that_of_the_plain_product(dtype):
    x, weight = operands(24, 10, 7, dtype)
    x = x.reshape(4, 6, 10)

    def loss(product):
        return lambda x, w: jnp.square(jax.vmap(product, (0, None))(x, w).astype("float32")).sum()

    def plain(x, w):
        return x @ w.T

    tolerance = dict(rtol=1e-4, atol=1e-4) if dtype == "float32" else dict(rtol=0.05, atol=0.5)
    np.testing.assert_allclose(
        np.asarray(jax.vmap(dense_linear, (0, None))(x, weight), np.float32),
        np.asarray(plain(x, weight), np.float32),
        **tolerance,
    )
    ours = jax.grad(loss(dense_linear), (0, 1))(x, weight)
    theirs = jax.grad(loss(plain), (0, 1))(x, weight)
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), **tolerance
        )
    # One call for the whole batch, and no gradient of the weight for each example.
    program = str(jax.make_jaxpr(jax.grad(loss(dense_linear), 1))(x, weight))
    assert "[4,7,10]" not in program


def test_weights_may_be_batched_too():
    x, weight = operands(6, 5, 4, "float32")
    weights = jnp.stack([weight, 2 * weight])
    both = jax.vmap(dense_linear, (None, 0))(x, weights)
    np.testing.assert_allclose(both[1], 2 * both[0], rtol=1e-5)
    each = jax.vmap(dense_linear)(jnp.stack([x, x]), weights)
    np.testing.assert_allclose(each, both, rtol=1e-5)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="inner the last axis of x"):
        dense_linear(jnp.ones((2, 3)), jnp.ones((4, 5)))
