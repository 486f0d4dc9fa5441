"""Which axes of each value stream token by token, and which travel side by side in one token.

Axes that element-wise operations, views and reductions identify form a class. An axis that some
operation reduces or scans streams innermost; the other axes of such a value stream around it, as do
the rows of a matrix product. Features that only matrix products touch are lanes of a vector token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.simulate.stream.dataflow import Constant, Dataflow, Operand, Operation
from trimtab.simulate.stream.lowering.primitives import (
    CUMULATIVE,
    ELEMENTWISE,
    REDUCTIONS,
)


@dataclass(frozen=True)
class View:
    """A value seen through broadcasts and transpositions.

    Args:
        base: what is really there.
        axes: for each axis of the view, the axis of the base, or None where it repeats.
    """

    base: Operand
    axes: tuple[int | None, ...]


class Views:
    """Resolves operands to their bases."""

    def __init__(self, flow: Dataflow) -> None:
        self._views: dict[int, View] = {}
        self.uniform: set[int] = set()
        for operation in flow.operations:
            self._note(operation)

    def __call__(self, operand: Operand) -> View:
        """Return the view that an operand is."""
        found = self._views.get(id(operand))
        return found or View(operand, tuple(range(len(operand.shape))))

    def is_uniform(self, operand: Operand) -> bool:
        """Whether an operand is one known number everywhere, which needs no stream."""
        base = self(operand).base
        if id(base) in self.uniform:
            return True
        return isinstance(base, Constant) and _size(base.shape) == 1

    def is_view(self, operation: Operation) -> bool:
        """Whether an operation makes no tokens of its own."""
        return id(operation.outputs[0]) in self._views

    def _note(self, operation: Operation) -> None:
        output = operation.outputs[0]
        axes = view_axes(operation)
        if axes is not None:
            inner = self(operation.inputs[0])
            through = tuple(None if axis is None else inner.axes[axis] for axis in axes)
            self._views[id(output)] = View(inner.base, through)
        elif operation.name in ELEMENTWISE and all(self.is_uniform(v) for v in operation.inputs):
            self.uniform.add(id(output))


def view_axes(operation: Operation) -> tuple[int | None, ...] | None:
    """For each result axis of a view the operand's axis; None if the operation is no view."""
    name, params = operation.name, operation.params
    shape, output = operation.inputs[0].shape if operation.inputs else (), operation.outputs[0]
    if name == "broadcast_in_dim":
        axes: list[int | None] = [None] * len(output.shape)
        for axis, target in enumerate(params["broadcast_dimensions"]):
            axes[int(target)] = axis if shape[axis] == output.shape[int(target)] else None
        return tuple(axes)
    if name == "transpose":
        return tuple(int(axis) for axis in params["permutation"])
    if name in ("squeeze", "expand_dims") or (
        name == "reshape" and _wide(shape) == _wide(output.shape)
    ):
        wide = iter(axis for axis, size in enumerate(shape) if size != 1)
        return tuple(next(wide) if size != 1 else None for size in output.shape)
    return None


def _wide(shape: tuple[int, ...]) -> list[int]:
    return [size for size in shape if size != 1]


def _size(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


class Roles:
    """The roles of all axes of a program."""

    def __init__(self, flow: Dataflow, views: Views) -> None:
        self._views = views
        self._parent: dict[tuple[int, int], tuple[int, int]] = {}
        self._marks: dict[tuple[int, int], set[str]] = {}
        self._computed = {id(value) for op in flow.operations for value in op.outputs}
        for operation in flow.operations:
            self._link(operation)
        for operation in flow.operations:
            if operation.name == "dot_general":
                self._mark_product(operation)

    def streams(self, value: Operand, axis: int) -> bool:
        """Whether an axis (of a base value) streams."""
        if value.shape[axis] == 1:
            return False
        marks = self._found((id(value), axis))
        return bool(marks & {"inner", "around", "row"}) or "lane" not in marks

    def inner(self, value: Operand, axis: int) -> bool:
        """Whether an axis is reduced or scanned somewhere."""
        return "inner" in self._found((id(value), axis))

    def order(self, value: Operand) -> tuple[int, ...]:
        """Return the streamed axes of a value, outermost first: reduced ones innermost."""
        axes = [axis for axis in range(len(value.shape)) if self.streams(value, axis)]
        return tuple(sorted(axes, key=lambda axis: self.inner(value, axis)))

    def row_side(self, operation: Operation) -> int:
        """Return which operand of a matrix product brings the rows (0 or 1)."""
        sides = []
        for side in (0, 1):
            view = self._views(operation.inputs[side])
            free = free_axes(operation, side)
            around = sum(
                "around" in self._found((id(view.base), view.axes[axis]))  # type: ignore[arg-type]
                for axis in free
                if view.axes[axis] is not None and operation.inputs[side].shape[axis] > 1
            )
            sides.append((around, id(view.base) in self._computed, -side))
        return 0 if sides[0] >= sides[1] else 1

    # ------------------------------------------------------------------ classes of axes
    def _root(self, key: tuple[int, int]) -> tuple[int, int]:
        while self._parent.get(key, key) != key:
            key = self._parent[key]
        return key

    def _found(self, key: tuple[int, int]) -> set[str]:
        return self._marks.get(self._root(key), set())

    def _mark(self, operand: Operand, axis: int, mark: str) -> None:
        view = self._views(operand)
        base_axis = view.axes[axis]
        if base_axis is not None and operand.shape[axis] > 1:
            root = self._root((id(view.base), base_axis))
            self._marks.setdefault(root, set()).add(mark)

    def _unite(self, one: Operand, axis: int, other: Operand, other_axis: int) -> None:
        a, b = self._views(one), self._views(other)
        first, second = a.axes[axis], b.axes[other_axis]
        if first is None or second is None or one.shape[axis] == 1 or other.shape[other_axis] == 1:
            return
        root, target = self._root((id(a.base), first)), self._root((id(b.base), second))
        if root != target:
            self._parent[root] = target
            self._marks.setdefault(target, set()).update(self._marks.pop(root, set()))

    def _link(self, operation: Operation) -> None:
        name, output = operation.name, operation.outputs[0]
        if name in ELEMENTWISE or name in CUMULATIVE:
            for operand in operation.inputs:
                if len(operand.shape) == len(output.shape):
                    for axis in range(len(output.shape)):
                        self._unite(operand, axis, output, axis)
            if name in CUMULATIVE:
                self._mark_core(operation.inputs[0], {int(operation.params["axis"])})
        elif name in REDUCTIONS:
            self._link_reduction(operation)
        elif name == "running_reduce":
            self._link_running(operation)
        elif name == "dot_general":
            self._link_product(operation)
        elif name == "sort":
            self._mark_core(operation.inputs[0], {int(operation.params["dimension"])})

    def _link_reduction(self, operation: Operation) -> None:
        axes = {int(axis) for axis in operation.params["axes"]}
        operand = operation.inputs[0]
        self._mark_core(operand, axes)
        kept = [axis for axis in range(len(operand.shape)) if axis not in axes]
        self._unite_rows(operand, kept, operation.outputs[0], range(len(kept)))

    def _link_running(self, operation: Operation) -> None:
        streamed, axis = operation.inputs[0], int(operation.params["axes"][0])
        self._mark_core(streamed, {axis})
        rows = [a for a in range(len(streamed.shape)) if a != axis]
        self._unite_rows(streamed, rows, operation.outputs[0], range(len(rows)))
        for output, product in zip(operation.outputs[1:], operation.params["products"]):
            if product is None:
                self._unite_rows(streamed, rows, output, range(len(rows)))
                continue
            places = [product.result_axis(row) for row in rows]
            self._unite_rows(streamed, rows, output, places)
            for lane in set(range(len(output.shape))) - set(places):
                self._mark(output, lane, "lane")
            self._unite(streamed, axis, product.other, product.contract)
            self._unite_rows(
                streamed,
                [b[0] for b in product.batch],
                product.other,
                [b[1] for b in product.batch],
            )

    def _unite_rows(
        self, one: Operand, axes: Sequence[int], other: Operand, other_axes: Sequence[int]
    ) -> None:
        for axis, other_axis in zip(axes, other_axes):
            self._unite(one, axis, other, other_axis)

    def _mark_core(self, operand: Operand, axes: set[int]) -> None:
        for axis in range(len(operand.shape)):
            self._mark(operand, axis, "inner" if axis in axes else "around")

    def _link_product(self, operation: Operation) -> None:
        lhs, rhs = operation.inputs
        output = operation.outputs[0]
        (contract, _), (batch, rhs_batch) = operation.params["dimension_numbers"]
        for one, other in zip(contract, operation.params["dimension_numbers"][0][1]):
            self._unite(lhs, int(one), rhs, int(other))
        for position, (one, other) in enumerate(zip(batch, rhs_batch)):
            self._unite(lhs, int(one), output, position)
            self._unite(rhs, int(other), output, position)
        # Free axes of one side only: two sides that come from one value must stay apart.
        for position, axis in enumerate(free_axes(operation, 0)):
            self._unite(lhs, axis, output, len(batch) + position)

    def _mark_product(self, operation: Operation) -> None:
        output = operation.outputs[0]
        batch = len(operation.params["dimension_numbers"][1][0])
        left, right = free_axes(operation, 0), free_axes(operation, 1)
        rows = self.row_side(operation)
        for position in range(len(output.shape)):
            side = None if position < batch else int(position >= batch + len(left))
            self._mark(output, position, "row" if side in (None, rows) else "lane")
        for side in (0, 1):
            for axis in operation.params["dimension_numbers"][0][side]:
                self._mark(operation.inputs[side], int(axis), "lane")
        for axis in right if rows == 0 else left:
            self._mark(operation.inputs[1 - rows], axis, "free")


def free_axes(operation: Operation, side: int) -> tuple[int, ...]:
    """Axes of one operand of a matrix product that are neither contracted nor batched."""
    contract, batch = operation.params["dimension_numbers"]
    taken = {int(axis) for axis in (*contract[side], *batch[side])}
    return tuple(axis for axis in range(len(operation.inputs[side].shape)) if axis not in taken)
