"""Programs cut into parts against the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trimtab as tt
from trimtab.errors import InputError
from trimtab.graph.segments import split


def residual_stack(p, x, y):
    for block in p["blocks"]:
        x = x + jnp.tanh(x @ block["w"].T.astype(jnp.float32)) * y
    return {"sum": x.sum(), "x": x, "y": y}


@pytest.fixture(scope="module")
def program():
    keys = jax.random.split(jax.random.key(0), 3)
    blocks = [{"w": jax.random.normal(k, (4, 4), jnp.bfloat16)} for k in keys]
    return tt.capture(residual_stack, jnp.ones((2, 4)), 2.0, parameters={"blocks": blocks})


def test_the_parts_in_turn_give_the_whole(program, key):
    sites = program.sites("linear")
    parts = split(program, [site.address[0] for site in sites])
    # Work on the first weight alone moves to the part that uses it, so nothing stands before it.
    assert len(parts) == 4
    x = jax.random.normal(key, (2, 4))
    values = (x, 2.0)
    for part in parts:
        values = part(*values)
    expected = jax.tree.leaves(program(x, 2.0))
    for a, b in zip(values, expected):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_each_part_finds_its_own_sites(program):
    sites = program.sites("linear")
    parts = split(program, [site.address[0] for site in sites[1:]])
    assert [[s.path for s in part.sites("linear")] for part in parts] == [
        ["blocks/0"],
        ["blocks/1"],
        ["blocks/2"],
    ]
    assert [list(part.parameters) for part in parts] == [[f"blocks/{i}/w"] for i in range(3)]


def test_cuts_at_the_ends_are_dropped_and_bad_cuts_are_named(program):
    assert len(split(program, [0])) == 1
    with pytest.raises(InputError, match="rising positions"):
        split(program, [3, 1])
