"""Which parameter feeds a value, through steps that only move or convert its elements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from trimtab.graph._jax import Literal, bind
from trimtab.graph.flat import Address, Body, Node, Value

# Steps after which a value still is the parameter, laid out or rounded differently.
_LAYOUT = frozenset(
    {
        "transpose",
        "reshape",
        "squeeze",
        "expand_dims",
        "broadcast_in_dim",
        "convert_element_type",
        "copy",
        "copy_p",
        "rev",
        "slice",
        "dynamic_slice",
        "stop_gradient",
        "reduce_precision",
        "optimization_barrier",
        "sharding_constraint",
    }
)


@dataclass(frozen=True)
class Provenance:
    """A value that comes from one parameter.

    Args:
        path: name of the parameter.
        steps: the nodes applied to it, in order.
        loops: addresses of the scans that slice the parameter along its leading axis, outermost
            first.
    """

    path: str
    steps: tuple[Node, ...] = ()
    loops: tuple[Address, ...] = ()

    def value(self, parameter: Any) -> Any:
        """Apply the steps to the parameter (or to each slice of it, for one inside a scan)."""
        apply = self._apply
        for _ in self.loops:
            apply = jax.vmap(apply)
        return apply(parameter)

    def _apply(self, array: Any) -> Any:
        for node in self.steps:
            operands = [array, *(_constant(value) for value in node.inputs[1:])]
            array = bind(node.eqn, operands)[0]
        return array


def trace_parameters(body: Body, names: tuple[str, ...]) -> dict[int, Provenance]:
    """Find the parameter behind every value of a program.

    Args:
        body: the flat program, whose first inputs are the parameters.
        names: their names, in order.

    Returns:
        Provenance by value number, for the values that have one; loop bodies included.
    """
    found = {number: Provenance(name) for number, name in zip(body.inputs, names)}
    _follow(body, found)
    return found


def _follow(body: Body, found: dict[int, Provenance]) -> None:
    for node in body.nodes:
        if node.bodies:
            _enter(node, found)
            continue
        if not node.inputs or isinstance(node.inputs[0], Literal):
            continue
        source = found.get(node.inputs[0])
        if source is None:
            other = _scaled_by_one(node)
            source = found.get(other) if other is not None else None
            if source is not None:
                found[node.outputs[0]] = source
            continue
        if node.name in _LAYOUT and all(_is_constant(value) for value in node.inputs[1:]):
            steps = (*source.steps, node)
            found[node.outputs[0]] = Provenance(source.path, steps, source.loops)
        elif _scaled_by_one(node) is not None:
            found[node.outputs[0]] = source


def _enter(node: Node, found: Mapping[int, Provenance] | dict[int, Provenance]) -> None:
    assert isinstance(found, dict)
    pairs = {
        "scan": lambda: [node.inputs],
        "while": lambda: _while_operands(node),
        "cond": lambda: [node.inputs[1:]] * len(node.bodies),
    }.get(node.name, lambda: [node.inputs] * len(node.bodies))()
    for child, operands in zip(node.bodies, pairs):
        for position, (inner, outer) in enumerate(zip(child.inputs, operands)):
            if isinstance(outer, Literal) or outer not in found:
                continue
            source = found[outer]
            if node.name == "scan":
                consts, carries = node.params["num_consts"], node.params["num_carry"]
                if consts <= position < consts + carries:
                    continue
                if position >= consts + carries:
                    if source.steps:
                        continue
                    source = Provenance(source.path, (), (*source.loops, node.address))
            found[inner] = source
        _follow(child, found)


def _while_operands(node: Node) -> list[tuple[Value, ...]]:
    condition = node.params["cond_nconsts"]
    body = node.params["body_nconsts"]
    # Carried values change from one turn to the next, so they are no parameters inside.
    return [node.inputs[:condition], node.inputs[condition : condition + body]]


def _scaled_by_one(node: Node) -> int | None:
    """Return the operand that a node multiplies by the literal 1, as torch's alpha and beta do."""
    if node.name != "mul" or len(node.inputs) != 2:
        return None
    for literal, other in (node.inputs, node.inputs[::-1]):
        if isinstance(literal, Literal) and not isinstance(other, Literal):
            value = np.asarray(literal.val)
            if value.shape == () and value == 1:
                return other
    return None


def _is_constant(value: Value) -> bool:
    return isinstance(value, Literal)


def _constant(value: Value) -> Any:
    assert isinstance(value, Literal)
    return value.val
