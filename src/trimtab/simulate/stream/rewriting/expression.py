"""Element-wise pieces of a program as functions that can be probed and run again elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from trimtab.simulate.stream.dataflow import Constant, Dataflow, Operand, Operation
from trimtab.simulate.stream.lowering.primitives import ELEMENTWISE
from trimtab.simulate.stream.lowering.roles import Views


@dataclass(frozen=True)
class Expression:
    """Element-wise operations between named leaves and a result.

    Args:
        operations: in topological order, views left out.
        result: what it computes.
        views: of the program.
    """

    operations: tuple[Operation, ...]
    result: Operand
    views: Views

    def __call__(self, leaves: Mapping[int, Any]) -> Any:
        """Evaluate on arrays of one shape.

        Args:
            leaves: identity of each leaf's base to its array.
        """
        known = dict(leaves)
        shape = jnp.shape(next(iter(leaves.values())))

        def read(operand: Operand) -> Any:
            base = self.views(operand).base
            if id(base) in known:
                return known[id(base)]
            if isinstance(base, Constant):
                return jnp.full(shape, np.asarray(base.value).reshape(-1)[0], base.dtype)
            raise KeyError(operand)

        for operation in self.operations:
            known[id(operation.outputs[0])] = operation.compute(
                *(read(operand) for operand in operation.inputs)
            )[0]
        return jnp.asarray(read(self.result))


def expression(
    flow: Dataflow, result: Operand, leaves: set[int], views: Views
) -> Expression | None:
    """Return how ``result`` follows from the leaves element by element, or None if it does not.

    Args:
        result: the value to explain.
        leaves: identities of base values at which to stop.
    """
    producers = flow.producers()
    needed: list[Operation] = []
    seen: set[int] = set()

    def visit(operand: Operand) -> bool:
        base = views(operand).base
        if id(base) in leaves or id(base) in seen:
            return True
        if isinstance(base, Constant):
            return int(np.prod(np.shape(base.value))) == 1
        made = producers.get(id(base))
        if made is None or made.name not in ELEMENTWISE:
            return False
        if not all(visit(operand) for operand in made.inputs):
            return False
        seen.add(id(base))
        needed.append(made)
        return True

    return Expression(tuple(needed), result, views) if visit(result) else None


def uses(expr: Expression, leaf: int) -> bool:
    """Whether an expression reads a leaf at all."""
    operands = [expr.result, *(v for operation in expr.operations for v in operation.inputs)]
    return any(id(expr.views(operand).base) == leaf for operand in operands)
