"""Drawings of programs: what is in them, and that they are well-formed."""

import xml.etree.ElementTree as ElementTree

import jax
import jax.numpy as jnp
import pytest

import trimtab as tt
from trimtab.errors import InputError


def transformer(p, x):
    for block in p["blocks"]:
        q, k, v = (x @ block["attention"][name] for name in "qkv")
        weights = jax.nn.softmax(q @ k.T / 2.0)
        x = x + weights @ v
        x = x + jax.nn.gelu(x @ block["up"]["w"]) @ block["down"]["w"]
    return x @ p["head"]["w"]


@pytest.fixture(scope="module")
def program():
    block = {
        "attention": {name: jnp.ones((4, 4)) for name in "qkv"},
        "up": {"w": jnp.ones((4, 8))},
        "down": {"w": jnp.ones((8, 4))},
    }
    parameters = {"blocks": [block] * 12, "head": {"w": jnp.ones((4, 2))}}
    return tt.capture(transformer, jnp.ones((3, 4)), parameters=parameters)


def test_twelve_layers_are_twelve_boxes_in_a_chain(program):
    level = program.draw(depth=2).levels[1]
    assert [box.name for box in level.boxes] == [*(f"blocks/{i}" for i in range(12)), "head"]
    assert set(level.edges) == {(i, i + 1) for i in range(12)}
    assert level.boxes[0].summary == "5 linear · attention"


def test_boxes_hold_all_operations_and_parameters(program):
    cost = program.cost()
    for level in program.draw().levels:
        assert sum(box.flops for box in level.boxes) == pytest.approx(cost.flops, rel=1e-3)
        assert sum(box.parameters for box in level.boxes) == cost.parameters


def test_residuals_are_edges_that_skip_boxes(program):
    level = program.draw().levels[2]
    names = [box.name for box in level.boxes]
    down, attention = names.index("blocks/0/down"), names.index("blocks/0/attention")
    assert (attention, down) in level.edges


def test_files_are_well_formed_and_self_contained(program, tmp_path):
    drawing = program.draw(tmp_path / "net.svg")
    ElementTree.parse(tmp_path / "net.svg")
    program.draw(tmp_path / "net.html")
    page = (tmp_path / "net.html").read_text()
    assert "src=" not in page
    assert page.count("<section") == len(drawing.levels)
    with pytest.raises(InputError, match=r"saved as \.svg or \.html"):
        drawing.save(tmp_path / "net.png")
    with pytest.raises(InputError, match="at least 1"):
        program.draw(depth=0)


def test_names_are_escaped():
    program = tt.capture(
        lambda p, x: x @ p["<script>"]["w"],
        jnp.ones((2, 2)),
        parameters={"<script>": {"w": jnp.ones((2, 2))}},
    )
    assert "<script>" not in program.draw().svg()
