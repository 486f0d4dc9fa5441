"""A factor that is constant along a contracted axis commutes with the contraction.

``sum_j (e_ij / r_i) v_j = (sum_j e_ij v_j) / r_i``: division after the product, mean and RMS
normalisation after the linear layer, and the like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
from jax import lax

from trimtab.simulate.stream.dataflow import (
    Dataflow,
    Operand,
    Operation,
    Value,
    make_operation,
    replace_operations,
)
from trimtab.simulate.stream.lowering.roles import Views, free_axes

# A factor and how it is applied.
_Factor = tuple[str, Operand]
_APPLY: dict[str, Callable[[Any, Any], Any]] = {"mul": jnp.multiply, "div": jnp.divide}


def move_factor_out(flow: Dataflow) -> Iterator[tuple[str, Dataflow]]:
    """Yield the programs in which one factor moves behind one contraction."""
    producers, views = flow.producers(), Views(flow)
    for operation in flow.operations:
        for side in _sides(operation):
            operand = operation.inputs[side]
            split = _split(operand, _contracted(operation, side), producers, views)
            if split is not None:
                rest, added, factor = split
                yield (
                    f"{factor[0]} by a row factor after {operation.name}",
                    _moved(flow, operation, side, rest, added, factor, views),
                )


def split_sum(flow: Dataflow) -> Iterator[tuple[str, Dataflow]]:
    """Yield the programs in which one sum over ``a + b`` or ``a - b`` becomes two sums."""
    producers = flow.producers()
    for operation in flow.operations:
        if operation.name != "reduce_sum":
            continue
        inner = producers.get(id(operation.inputs[0]))
        shape = operation.inputs[0].shape
        if inner is None or inner.name not in ("add", "sub", "add_any"):
            continue
        if any(operand.shape != shape for operand in inner.inputs):
            continue
        parts = [_again(operation, operand) for operand in inner.inputs]
        combine = jnp.subtract if inner.name == "sub" else jnp.add
        total = make_operation(inner.name, [part.outputs[0] for part in parts], combine)
        yield (
            "one sum as two",
            replace_operations(flow, [*parts, total], {id(operation.outputs[0]): total.outputs[0]}),
        )


def merge_equal(flow: Dataflow) -> Iterator[tuple[str, Dataflow]]:
    """Yield the program in which operations that compute the same are one."""
    seen: dict[tuple, Operation] = {}
    substitutes: dict[int, Operand] = {}

    def known(operand: Operand) -> int:
        return id(substitutes.get(id(operand), operand))

    for operation in flow.operations:
        if operation.bodies:
            continue
        key = (operation.name, tuple(map(known, operation.inputs)), _frozen(operation.params))
        first = seen.setdefault(key, operation)
        if first is not operation:
            substitutes |= {id(old): new for old, new in zip(operation.outputs, first.outputs)}
    if substitutes:
        yield "equal operations as one", replace_operations(flow, [], substitutes)


def _frozen(params: Any) -> str:
    return repr(sorted((key, str(value)) for key, value in params.items()))


def read_again(flow: Dataflow) -> Iterator[tuple[str, Dataflow]]:
    """Yield the programs in which one reader of an argument gets a second pass of its own."""
    for value in flow.inputs:
        users = flow.users(value)
        if len(users) < 2 or not value.shape:
            continue
        for user in users[1:]:
            again = make_operation("restream", [value], lambda array: array + 0 * array)
            again = Operation("restream", (value,), again.outputs, {}, lambda array: (array,))
            inputs = tuple(again.outputs[0] if v is value else v for v in user.inputs)
            outputs = tuple(Value(v.shape, v.dtype, v.name) for v in user.outputs)
            changed = Operation(user.name, inputs, outputs, user.params, user.compute, user.bodies)
            substitutes = {id(old): new for old, new in zip(user.outputs, outputs)}
            yield (
                f"a second pass over {value.name}",
                replace_operations(flow, [again, changed], substitutes),
            )


# ------------------------------------------------------------------------------- factors
def _sides(operation: Operation) -> tuple[int, ...]:
    if operation.name == "dot_general":
        return (0, 1)
    return (0,) if operation.name == "reduce_sum" else ()


def _contracted(operation: Operation, side: int) -> tuple[int, ...]:
    if operation.name == "dot_general":
        return tuple(int(axis) for axis in operation.params["dimension_numbers"][0][side])
    return tuple(int(axis) for axis in operation.params["axes"])


def _constant_along(operand: Operand, axes: tuple[int, ...], views: Views) -> bool:
    view = views(operand)
    return all(view.axes[axis] is None or operand.shape[axis] == 1 for axis in axes)


def _split(
    operand: Operand, axes: tuple[int, ...], producers: dict[int, Operation], views: Views
) -> tuple[Operand, list[Operation], _Factor] | None:
    """Take a factor that is constant along ``axes`` out of a chain of products and quotients."""
    made = producers.get(id(operand))
    if made is None or made.name not in _APPLY or views.is_uniform(operand):
        return None
    if any(len(part.shape) != len(operand.shape) for part in made.inputs):
        return None
    first, second = made.inputs
    for rest, factor in ((first, second), (second, first))[: 1 if made.name == "div" else 2]:
        if views.is_uniform(factor) or rest.shape != operand.shape:
            continue
        if _constant_along(factor, axes, views) and not _constant_along(rest, axes, views):
            return rest, [], (made.name, factor)
        inner = _split(rest, axes, producers, views)
        if inner is not None:
            deeper, added, found = inner
            again = make_operation(made.name, [deeper, factor], _APPLY[made.name])
            return again.outputs[0], [*added, again], found
    return None


def _moved(
    flow: Dataflow,
    operation: Operation,
    side: int,
    rest: Operand,
    added: list[Operation],
    factor: _Factor,
    views: Views,
) -> Dataflow:
    inputs = tuple(rest if i == side else v for i, v in enumerate(operation.inputs))
    old = operation.outputs[0]
    result = Value(old.shape, old.dtype, old.name)
    contracted = Operation(operation.name, inputs, (result,), operation.params, operation.compute)
    spread = _spread(factor[1], _targets(operation, side), result, views)
    last = make_operation(
        factor[0],
        [result, spread[-1].outputs[0]],
        lambda a, b: _APPLY[factor[0]](a, b.astype(a.dtype)),
    )
    return replace_operations(flow, [*added, contracted, *spread, last], {id(old): last.outputs[0]})


def _targets(operation: Operation, side: int) -> dict[int, int]:
    """Which axis of the result each kept axis of an operand becomes."""
    if operation.name == "reduce_sum":
        reduced = _contracted(operation, 0)
        kept = [a for a in range(len(operation.inputs[0].shape)) if a not in reduced]
        return {axis: position for position, axis in enumerate(kept)}
    batch = operation.params["dimension_numbers"][1]
    first = len(batch[0]) + (len(free_axes(operation, 0)) if side == 1 else 0)
    targets = {int(axis): position for position, axis in enumerate(batch[side])}
    targets |= {a: first + i for i, a in enumerate(free_axes(operation, side))}
    return targets


def _spread(
    factor: Operand, targets: dict[int, int], result: Value, views: Views
) -> list[Operation]:
    """Broadcast a row factor over the axes of a contraction's result."""
    view = views(factor)
    places = {
        base_axis: targets[axis]
        for axis, base_axis in enumerate(view.axes)
        if base_axis is not None and view.base.shape[base_axis] > 1 and axis in targets
    }
    wide = [axis for axis, size in enumerate(view.base.shape) if size > 1]
    sizes = [view.base.shape[axis] for axis in wide]
    ordered = sorted(wide, key=lambda axis: places[axis])
    chain: list[Operation] = []
    current = view.base
    if list(current.shape) != sizes:
        chain.append(make_operation("reshape", [current], lambda b: jnp.reshape(b, sizes)))
        current = chain[-1].outputs[0]
    if ordered != wide:
        turn = tuple(wide.index(axis) for axis in ordered)
        chain.append(
            make_operation(
                "transpose", [current], lambda b: jnp.transpose(b, turn), {"permutation": turn}
            )
        )
        current = chain[-1].outputs[0]
    dims = tuple(places[axis] for axis in ordered)
    chain.append(
        make_operation(
            "broadcast_in_dim",
            [current],
            lambda b: lax.broadcast_in_dim(b, result.shape, dims),
            {"broadcast_dimensions": dims, "shape": result.shape},
        )
    )
    return chain


def _again(operation: Operation, operand: Operand) -> Operation:
    old = operation.outputs[0]
    return Operation(
        operation.name,
        (operand,),
        (Value(old.shape, old.dtype, old.name),),
        operation.params,
        operation.compute,
    )
