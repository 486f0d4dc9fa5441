"""A jaxpr seen as one flat list of nodes, with calls opened and every value numbered once.

Analysis works on this view: a pattern such as softmax attention then looks the same whether or not
its pieces sit inside ``jit``, ``custom_jvp`` or ``remat``. Loops and branches keep their bodies.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from trimtab.graph._jax import ClosedJaxpr, JaxprEqn, Literal, bodies, called, scope

# An address names an equation by its index in each jaxpr on the way down from the program.
Address = tuple[int, ...]
# A value is a number, or a literal of the jaxpr.
Value = int | Literal


@dataclass(frozen=True, eq=False)
class Node:
    """One equation: its operands and results by value number, and the bodies that it loops over."""

    address: Address
    eqn: JaxprEqn
    inputs: tuple[Value, ...]
    outputs: tuple[int, ...]
    scope: str
    bodies: tuple[Body, ...] = ()

    @property
    def name(self) -> str:
        """The name of the primitive."""
        return self.eqn.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the primitive."""
        return self.eqn.params


@dataclass(frozen=True, eq=False)
class Body:
    """A flat list of nodes between input and output values."""

    inputs: tuple[int, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    avals: dict[int, Any]
    constants: dict[int, Any]
    producer: dict[int, Node] = field(default_factory=dict)
    consumers: dict[int, tuple[Node, ...]] = field(default_factory=dict)
    # What each opened call hands out, by the address of the call.
    calls: dict[Address, tuple[Value, ...]] = field(default_factory=dict)

    def aval(self, value: Value) -> Any:
        """Return the abstract value (shape and dtype) of a value."""
        return value.aval if isinstance(value, Literal) else self.avals[value]


def flatten(jaxpr: ClosedJaxpr) -> Body:
    """Return the flat view of a closed jaxpr."""
    return _flatten_body(jaxpr, (), "", itertools.count(), {})


def walk(body: Body, repeats: float = 1.0) -> Iterator[tuple[Body, Node, float]]:
    """Yield every node with its body and how many times it runs, loops included.

    A ``while`` body counts once (its trip count is not in the jaxpr) and all branches count.
    """
    for node in body.nodes:
        yield body, node, repeats
        inner = repeats * (node.params["length"] if node.name == "scan" else 1)
        for child in node.bodies:
            yield from walk(child, inner)


def _flatten_body(
    jaxpr: ClosedJaxpr,
    prefix: Address,
    outer_scope: str,
    numbers: Iterator[int],
    avals: dict[int, Any],
) -> Body:
    nodes: list[Node] = []
    constants: dict[int, Any] = {}
    calls: dict[Address, tuple[Value, ...]] = {}

    def new(variable: Any) -> int:
        number = next(numbers)
        avals[number] = variable.aval
        return number

    def run(inner: ClosedJaxpr, arguments: list[Value], at: Address, above: str) -> list[Value]:
        environment: dict[Any, Value] = dict(zip(inner.jaxpr.invars, arguments))
        for variable, constant in zip(inner.jaxpr.constvars, inner.consts):
            environment[variable] = new(variable)
            constants[environment[variable]] = constant  # type: ignore[index]

        def read(atom: Any) -> Value:
            return atom if isinstance(atom, Literal) else environment[atom]

        for index, eqn in enumerate(inner.jaxpr.eqns):
            operands = [read(atom) for atom in eqn.invars]
            here = "/".join(part for part in (above, scope(eqn)) if part)
            callee = called(eqn)
            if callee is not None:
                results = run(callee, operands, (*at, index), here)
                calls[(*at, index)] = tuple(results)
                environment.update(zip(eqn.outvars, results))
                continue
            outputs = tuple(new(variable) for variable in eqn.outvars)
            environment.update(zip(eqn.outvars, outputs))
            children = tuple(
                _flatten_body(child, (*at, index, which), here, numbers, avals)
                for which, child in enumerate(bodies(eqn))
            )
            nodes.append(Node((*at, index), eqn, tuple(operands), outputs, here, children))
        return [read(atom) for atom in inner.jaxpr.outvars]

    inputs = tuple(new(variable) for variable in jaxpr.jaxpr.invars)
    outputs = tuple(run(jaxpr, list(inputs), prefix, outer_scope))
    consumers: dict[int, list[Node]] = defaultdict(list)
    for node in nodes:
        for value in dict.fromkeys(v for v in node.inputs if not isinstance(v, Literal)):
            consumers[value].append(node)
    return Body(
        inputs,
        outputs,
        tuple(nodes),
        avals,
        constants,
        {number: node for node in nodes for number in node.outputs},
        {number: tuple(users) for number, users in consumers.items()},
        calls,
    )
