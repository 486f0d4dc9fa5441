"""Lowering of operations that cut, join, reorder, store or loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from trimtab.errors import UnsupportedError
from trimtab.simulate.stream.dataflow import Dataflow, Operand, Operation, Value
from trimtab.simulate.stream.lowering.primitives import Hardware
from trimtab.simulate.stream.lowering.streams import Produced, token_bits
from trimtab.simulate.stream.network import Stream
from trimtab.simulate.stream.rates import EVERY, Rate, first_of, last_of, traced


def _streamed_axes(lowering: Any, output: Value, axis: int) -> list[int]:
    """Axes of a result that stream, in natural order, so that ``axis`` has one period."""
    return [a for a in range(len(output.shape)) if lowering.roles.streams(output, a) or a == axis]


def _put_map(lowering: Any, operation: Operation, order: Sequence[int], rate: Rate = EVERY) -> None:
    """One token in, one token out: the change is among lanes."""
    output = operation.outputs[0]
    feeds = [(operand, [(a, output.shape[a]) for a in order]) for operand in operation.inputs]
    firings = math.prod(output.shape[a] for a in order)
    stream = lowering.unit(operation, feeds, firings, rate=rate, bits=token_bits(output, order))
    lowering.streams.put(output, stream, order)


def _changed_axes(operand: Operand, output: Value) -> list[int]:
    return [a for a, (old, new) in enumerate(zip(operand.shape, output.shape)) if old != new]


def reshape(lowering: Any, operation: Operation) -> None:
    """Tokens keep their row-major order; a unit is needed only where their size changes."""
    operand, output = operation.inputs[0], operation.outputs[0]
    prefix = _natural_prefix(lowering, operand)
    tokens = math.prod(operand.shape[axis] for axis in prefix)
    sizes = np.cumprod([1, *output.shape]).tolist()
    if tokens in sizes:
        order = [a for a in range(sizes.index(tokens)) if output.shape[a] > 1]
        factor_in = factor_out = 1
    else:
        # The longest prefix of the result whose tokens are whole parts, or multiples, of ours.
        count = max(size for size in sizes if tokens % size == 0 or size % tokens == 0)
        order = [a for a in range(sizes.index(count)) if output.shape[a] > 1]
        factor_in, factor_out = max(1, tokens // count), max(1, count // tokens)
    nest = [(axis, operand.shape[axis]) for axis in prefix]
    feed = lowering.streams.feed(operand, nest)
    bits = token_bits(output, order)
    if feed.stream is not None and factor_in == factor_out == 1:
        lowering.streams.put(output, Stream(feed.stream.unit, feed.stream.rate, bits), order)
        return
    stream = lowering.builder.unit(
        "reshape",
        [] if feed.stream is None else [(feed.stream, first_of(factor_out))],
        kind="source" if feed.stream is None else "pack" if factor_in > 1 else "unpack",
        rate=last_of(factor_in),
        firings=max(tokens, math.prod(output.shape[a] for a in order)),
        bits=bits,
        memory_bits=feed.memory_bits + (bits * factor_out if factor_out > 1 else 0),
    )
    lowering.streams.put(output, stream, order)


def _natural_prefix(lowering: Any, operand: Operand) -> list[int]:
    """Leading axes that stream, so that tokens come in row-major order."""
    streamed = set(lowering.axes_in_order(operand))
    prefix: list[int] = []
    for axis, size in enumerate(operand.shape):
        if size > 1 and axis not in streamed:
            break
        if size > 1:
            prefix.append(axis)
    return prefix


def cut(lowering: Any, operation: Operation) -> None:
    """A slice: the unit reads every token and passes on those inside."""
    operand, output = operation.inputs[0], operation.outputs[0]
    changed = [a for a in _changed_axes(operand, output) if lowering.roles.streams(output, a)]
    order = [a for a in range(len(output.shape)) if lowering.roles.streams(output, a)]
    order = sorted({*order, *changed})
    kept = np.ones([operand.shape[a] for a in order], bool)
    strides = operation.params["strides"] or (1,) * len(output.shape)
    for position, axis in enumerate(order):
        start, limit = (
            operation.params["start_indices"][axis],
            operation.params["limit_indices"][axis],
        )
        inside = np.zeros(operand.shape[axis], bool)
        inside[start : limit : strides[axis]] = True
        kept &= inside.reshape([-1 if p == position else 1 for p in range(len(order))])
    _rearranged(lowering, operation, operand, order, traced(kept.ravel()), kept.size)


def _rearranged(
    lowering: Any,
    operation: Operation,
    operand: Operand,
    order: list[int],
    rate: Rate,
    firings: int,
) -> None:
    output = operation.outputs[0]
    stream = lowering.unit(
        operation,
        [(operand, [(a, operand.shape[a]) for a in order])],
        max(1, firings),
        kind="rearrange",
        rate=rate,
        bits=token_bits(output, order),
    )
    lowering.streams.put(output, stream, order)


def pad(lowering: Any, operation: Operation) -> None:
    """Padding: tokens of the fill value are inserted without reading."""
    operand, output = operation.inputs[0], operation.outputs[0]
    config = operation.params["padding_config"]
    changed = _changed_axes(operand, output)
    if not changed:
        return _put_map(lowering, operation, lowering.roles.order(output))
    if any(low < 0 or high < 0 for low, high, _ in config):
        return block(lowering, operation)
    order = _streamed_axes(lowering, output, changed[0])
    real = np.ones([output.shape[a] for a in order], bool)
    for position, axis in enumerate(order):
        low, high, interior = config[axis]
        inside = np.zeros(output.shape[axis], bool)
        inside[low : output.shape[axis] - high : interior + 1] = True
        real &= inside.reshape([-1 if p == position else 1 for p in range(len(order))])
    feed = lowering.streams.feed(operand, [(a, operand.shape[a]) for a in order])
    stream = lowering.builder.unit(
        "pad",
        [] if feed.stream is None else [(feed.stream, traced(real.ravel()))],
        kind="rearrange",
        firings=real.size,
        bits=token_bits(output, order),
        memory_bits=feed.memory_bits,
    )
    return lowering.streams.put(output, stream, order)


def concatenate(lowering: Any, operation: Operation) -> None:
    """Joining: the unit reads from one operand after the other."""
    output, axis = operation.outputs[0], int(operation.params["dimension"])
    order = [a for a in range(len(output.shape)) if lowering.roles.streams(output, a)]
    if axis not in order:
        _put_map(lowering, operation, order)
        return
    inner = math.prod(output.shape[a] for a in order[order.index(axis) + 1 :])
    inputs, memory_bits, before = [], 0, 0
    for operand in operation.inputs:
        width = operand.shape[axis] * inner
        whole = output.shape[axis] * inner
        counts = [(before, 0), (width, 1), (whole - before - width, 0)]
        feed = lowering.streams.feed(operand, [(a, operand.shape[a]) for a in order])
        memory_bits += feed.memory_bits
        before += width
        if feed.stream is not None:
            inputs.append((feed.stream, Rate(tuple(run for run in counts if run[0]))))
    stream = lowering.builder.unit(
        "concatenate",
        inputs,
        kind="rearrange",
        firings=math.prod(output.shape[a] for a in order),
        bits=token_bits(output, order),
        memory_bits=memory_bits,
    )
    lowering.streams.put(output, stream, order)


def delay_line(
    lowering: Any, value: Operand, stream: Stream, order: Sequence[int], window: int
) -> Produced:
    """Reorder a stream within a window of tokens."""
    tokens = math.prod(value.shape[a] for a in order)
    made = Produced(stream, tuple(order), tokens)
    return lowering.streams.delayed(value, made, tuple(order), min(window, tokens), "reverse")


def reverse(lowering: Any, operation: Operation) -> None:
    """Reversal: the window is everything inside the outermost reversed axis."""
    operand, output = operation.inputs[0], operation.outputs[0]
    order = lowering.axes_in_order(operand)
    turned = [a for a in order if a in {int(d) for d in operation.params["dimensions"]}]
    if not turned:
        _put_map(lowering, operation, order)
        return
    positions = np.arange(math.prod(operand.shape[a] for a in order))
    grid = positions.reshape([operand.shape[a] for a in order])
    needed = np.flip(grid, tuple(order.index(a) for a in turned)).ravel()
    window = int(np.max(needed - positions)) + 1
    stream = lowering.unit(
        operation,
        [(operand, [(a, operand.shape[a]) for a in order])],
        len(positions),
        bits=token_bits(output, order),
    )
    made = delay_line(lowering, output, stream, order, window)
    lowering.streams.put(output, made.stream, order)


def second_pass(lowering: Any, operation: Operation) -> None:
    """An argument read from memory once more, in place of a FIFO that holds it."""
    output = operation.outputs[0]
    order = lowering.roles.order(output)
    stream = lowering.builder.unit(
        f"{operation.inputs[0].name} again",  # type: ignore[union-attr]
        kind="source",
        firings=math.prod(output.shape[a] for a in order),
        latency=lowering.hardware.default,
        bits=token_bits(output, order),
    )
    lowering.streams.put(output, stream, order)


def block(lowering: Any, operation: Operation) -> None:
    """A memory: operands are taken in whole, then the result is streamed out of it."""
    bits = sum(token_bits(operand, ()) for operand in operation.inputs)
    latency = _body_latency(operation, lowering.hardware)
    for output in operation.outputs:
        order = lowering.roles.order(output)
        sizes = [(None, output.shape[a]) for a in order]
        stream = lowering.unit(
            operation,
            [(operand, sizes) for operand in operation.inputs],
            max(1, math.prod(size for _, size in sizes)),
            kind="memory",
            latency=latency,
            bits=token_bits(output, order),
            memory_bits=bits,
        )
        lowering.streams.put(output, stream, order)


def _body_latency(operation: Operation, hardware: Hardware) -> int:
    own = hardware.latency(operation.name)
    return max([own, *(latency_of(body, hardware) for body in operation.bodies)])


def latency_of(flow: Dataflow, hardware: Hardware) -> int:
    """Cycles along the longest chain of operations of a loop body."""
    ready: dict[int, int] = {}
    for operation in flow.operations:
        start = max((ready.get(id(operand), 0) for operand in operation.inputs), default=0)
        if operation.name == "dot_general":
            lanes = math.prod(
                operation.inputs[0].shape[int(a)]
                for a in operation.params["dimension_numbers"][0][0]
            )
            cost = hardware.dot_latency(lanes)
        else:
            cost = _body_latency(operation, hardware)
        ready.update((id(value), start + cost) for value in operation.outputs)
    return max((ready.get(id(output), 0) for output in flow.outputs), default=0) or hardware.default


def loop(lowering: Any, operation: Operation) -> None:
    """A loop: its carry returns through a feedback FIFO that holds one token at the start."""
    if operation.name == "scan":
        trips, constants = int(operation.params["length"]), int(operation.params["num_consts"])
        carries = int(operation.params["num_carry"])
        body = operation.bodies[0]
    else:
        try:
            trips = max(1, next(lowering.trip_counts))
        except StopIteration:
            raise UnsupportedError(
                "The iterations of a while loop depend on its data; pass arrays, not shapes, so "
                "that they can be counted."
            ) from None
        constants = operation.params["cond_nconsts"] + operation.params["body_nconsts"]
        carries = len(operation.inputs) - constants
        body = operation.bodies[1]
    held = operation.inputs[: constants + carries]
    feeds = [(operand, [(None, trips)]) for operand in held]
    feeds += [(operand, [(0, trips)]) for operand in operation.inputs[constants + carries :]]
    latency = latency_of(body, lowering.hardware)
    carry = operation.outputs[:carries]
    bits = sum(token_bits(value, ()) for value in carry)
    unit = lowering.unit(operation, feeds, trips, kind="loop", latency=latency, bits=bits)
    if carries:
        lowering.builder.connect(unit, unit, name=f"{operation.name} carry", initial=1)
    for value in carry:
        lowering.streams.put(value, Stream(unit.unit, last_of(trips), token_bits(value, ())), ())
    for value in operation.outputs[carries:]:
        order = (0,) if value.shape[0] > 1 else ()
        lowering.streams.put(value, Stream(unit.unit, EVERY, token_bits(value, order)), order)
