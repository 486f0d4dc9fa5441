"""The program as a flat list of operations on values: what lowering reads and rewrites change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trimtab.errors import InputError


@dataclass(frozen=True, eq=False)
class Value:
    """An array that an operation makes, or an input of the program; compared by identity."""

    shape: tuple[int, ...]
    dtype: np.dtype
    name: str = ""


@dataclass(frozen=True, eq=False)
class Constant:
    """An array known before the program runs."""

    value: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        return tuple(np.shape(self.value))

    @property
    def dtype(self) -> np.dtype:
        """Its element type."""
        return np.dtype(getattr(self.value, "dtype", type(self.value)))


Operand = Value | Constant


@dataclass(frozen=True, eq=False)
class Operation:
    """One primitive applied to operands.

    Args:
        name: of the JAX primitive, or of an operation that a rewrite has made.
        inputs, outputs: operands and results.
        params: of the primitive.
        compute: arrays to a sequence of result arrays.
        bodies: flat programs that a loop or branch runs.
    """

    name: str
    inputs: tuple[Operand, ...]
    outputs: tuple[Value, ...]
    params: Mapping[str, Any]
    compute: Callable[..., Sequence[Any]]
    bodies: tuple[Dataflow, ...] = ()


@dataclass(frozen=True, eq=False)
class Dataflow:
    """A program in topological order.

    Args:
        inputs: its arguments.
        operations: each reads inputs, constants and results of earlier ones.
        outputs: its results.
    """

    inputs: tuple[Value, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[Operand, ...]
    _users: dict[int, list[Operation]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for operation in self.operations:
            for operand in {id(operand): operand for operand in operation.inputs}.values():
                self._users.setdefault(id(operand), []).append(operation)

    def users(self, value: Operand) -> Sequence[Operation]:
        """Return the operations that read a value."""
        return self._users.get(id(value), ())

    def is_output(self, value: Operand) -> bool:
        """Return whether a value leaves the program."""
        return any(value is output for output in self.outputs)

    def producers(self) -> dict[int, Operation]:
        """Map the identity of each result to the operation that makes it."""
        return {id(value): op for op in self.operations for value in op.outputs}

    def evaluate(self, *arguments: Any) -> list[Any]:
        """Run the operations one after another with JAX, on arrays or under ``jax.jit``."""
        return self.evaluate_all(*arguments)[0]

    def evaluate_all(self, *arguments: Any) -> tuple[list[Any], dict[int, Any]]:
        """Return the results and every intermediate array, by identity of its value."""
        if len(arguments) != len(self.inputs):
            raise InputError(
                f"This program takes {len(self.inputs)} arrays; {len(arguments)} were given."
            )
        known: dict[int, Any] = {id(v): array for v, array in zip(self.inputs, arguments)}

        def read(operand: Operand) -> Any:
            return operand.value if isinstance(operand, Constant) else known[id(operand)]

        for operation in self.operations:
            results = operation.compute(*(read(operand) for operand in operation.inputs))
            known.update((id(value), array) for value, array in zip(operation.outputs, results))
        return [read(output) for output in self.outputs], known


# Operations that change nothing that a stream could tell.
_IDENTITIES = frozenset({"stop_gradient", "copy", "copy_p", "optimization_barrier", "name"})


def from_jaxpr(jaxpr: Any) -> Dataflow:
    """Flatten a closed jaxpr: calls opened, gradients' marks and no-op conversions dropped.

    Args:
        jaxpr: a ``ClosedJaxpr``, as of ``jax.make_jaxpr``.
    """
    from trimtab.graph.flat import flatten

    return _from_body(flatten(jaxpr))


def _from_body(body: Any) -> Dataflow:
    from trimtab.graph import _jax

    values: dict[int, Operand] = {}

    def new(number: int, name: str = "") -> Value:
        aval = body.avals[number]
        value = Value(tuple(aval.shape), np.dtype(_plain_dtype(aval.dtype)), name)
        values[number] = value
        return value

    def read(entry: Any) -> Operand:
        if isinstance(entry, _jax.Literal):
            return Constant(np.asarray(entry.val, dtype=getattr(entry.aval, "dtype", None)))
        return values[entry]

    inputs = tuple(new(number, f"argument {i}") for i, number in enumerate(body.inputs))
    for number, constant in body.constants.items():
        values[number] = Constant(constant)
    operations = []
    for node in body.nodes:
        operands = tuple(read(entry) for entry in node.inputs)
        if _changes_nothing(node, operands):
            values.update(zip(node.outputs, operands))
            continue
        outputs = tuple(new(number) for number in node.outputs)
        operations.append(
            Operation(
                node.name,
                operands,
                outputs,
                node.params,
                _binder(node.eqn),
                tuple(_from_body(child) for child in node.bodies),
            )
        )
    return remove_dead(
        Dataflow(inputs, tuple(operations), tuple(read(entry) for entry in body.outputs))
    )


def _plain_dtype(dtype: Any) -> Any:
    # Random keys are pairs of words to a stream.
    return np.uint64 if jnp.issubdtype(dtype, jax.dtypes.extended) else dtype


def _changes_nothing(node: Any, operands: Sequence[Operand]) -> bool:
    if node.name in _IDENTITIES:
        return True
    return node.name == "convert_element_type" and operands[0].dtype == node.params["new_dtype"]


def _binder(eqn: Any) -> Callable[..., Sequence[Any]]:
    from trimtab.graph import _jax

    return lambda *arrays: _jax.bind(eqn, arrays)


def remove_dead(flow: Dataflow) -> Dataflow:
    """Return the program without operations whose results nothing reads."""
    needed = {id(output) for output in flow.outputs}
    kept = []
    for operation in reversed(flow.operations):
        if any(id(value) in needed for value in operation.outputs):
            kept.append(operation)
            needed.update(id(operand) for operand in operation.inputs)
    return Dataflow(flow.inputs, tuple(reversed(kept)), flow.outputs)


def make_operation(
    name: str,
    inputs: Sequence[Operand],
    compute: Callable[..., Any],
    params: Mapping[str, Any] | None = None,
) -> Operation:
    """Build an operation whose result shapes follow from its function.

    Args:
        compute: arrays to one array or a tuple of arrays, traceable by JAX.
    """

    def listed(*arrays: Any) -> tuple[Any, ...]:
        result = compute(*arrays)
        return result if isinstance(result, tuple) else (result,)

    specs = [jax.ShapeDtypeStruct(operand.shape, operand.dtype) for operand in inputs]
    shapes = jax.eval_shape(listed, *specs)
    outputs = tuple(Value(tuple(s.shape), np.dtype(s.dtype)) for s in shapes)
    return Operation(name, tuple(inputs), outputs, dict(params or {}), listed)


def replace_operations(
    flow: Dataflow, added: Sequence[Operation], substitutes: Mapping[int, Operand]
) -> Dataflow:
    """Return the program with new operations, and values replaced wherever they are read.

    Args:
        added: new operations, in any order.
        substitutes: identity of an old value to what takes its place.
    """

    def swap(operand: Operand) -> Operand:
        while id(operand) in substitutes:
            operand = substitutes[id(operand)]
        return operand

    fresh = {id(operation) for operation in added}
    operations = [
        operation
        if id(operation) in fresh
        else dataclasses.replace(operation, inputs=tuple(swap(v) for v in operation.inputs))
        for operation in (*flow.operations, *added)
    ]
    outputs = tuple(swap(output) for output in flow.outputs)
    return remove_dead(Dataflow(flow.inputs, _sorted(flow.inputs, operations), outputs))


def _sorted(inputs: Sequence[Value], operations: Sequence[Operation]) -> tuple[Operation, ...]:
    """Order operations so that each follows those it reads, and otherwise as they were."""
    maker = {id(value): op for op in operations for value in op.outputs}
    done: set[int] = set()
    order: list[Operation] = []

    def visit(root: Operation) -> None:
        stack = [(root, iter(root.inputs))]
        while stack:
            operation, rest = stack[-1]
            for operand in rest:
                before = maker.get(id(operand))
                if before is not None and id(before) not in done:
                    stack.append((before, iter(before.inputs)))
                    break
            else:
                stack.pop()
                if id(operation) not in done:
                    done.add(id(operation))
                    order.append(operation)

    for operation in operations:
        if id(operation) not in done:
            visit(operation)
    return tuple(order)
