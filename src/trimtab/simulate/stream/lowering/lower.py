"""Lowering a program to a network: one unit per operation, one FIFO per use of a value."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from trimtab.errors import UnsupportedError
from trimtab.simulate.stream.dataflow import Dataflow, Operand, Operation, Value
from trimtab.simulate.stream.lowering import memory, primitives
from trimtab.simulate.stream.lowering.primitives import Hardware
from trimtab.simulate.stream.lowering.roles import Roles, Views, free_axes
from trimtab.simulate.stream.lowering.streams import NestAxis, Streams, token_bits, value_bits
from trimtab.simulate.stream.network import Network, NetworkBuilder, Stream
from trimtab.simulate.stream.rates import Rate, last_of, trailing


def lower(
    flow: Dataflow, hardware: Hardware | None = None, *, trip_counts: Sequence[int] = ()
) -> Network:
    """Turn a program into units and FIFOs (without depths; see ``sizing``).

    Args:
        flow: see :func:`trimtab.simulate.stream.dataflow.from_jaxpr`.
        hardware: latencies and intervals.
        trip_counts: iterations of the ``while`` loops, in program order, as a run of the program
            has shown them.

    Raises:
        UnsupportedError: names every primitive that has no unit.
    """
    missing = unsupported(flow)
    if missing:
        raise UnsupportedError(
            f"No streaming unit for {', '.join(missing)}. Keep such operations out of the "
            f"function, or simulate the parts around them."
        )
    return _Lowering(flow, hardware or Hardware(), trip_counts).run()


def unsupported(flow: Dataflow) -> list[str]:
    """Return the names of the primitives in a program that cannot be lowered."""
    return sorted({op.name for op in flow.operations} - primitives.SUPPORTED)


class _Lowering:
    """One pass over a program; the handlers of memory-like operations are in ``memory``."""

    def __init__(self, flow: Dataflow, hardware: Hardware, trip_counts: Sequence[int]) -> None:
        self.flow, self.hardware = flow, hardware
        self.trip_counts = iter(trip_counts)
        self.builder = NetworkBuilder()
        self.views = Views(flow)
        self.roles = Roles(flow, self.views)
        self.streams = Streams(self.builder, self.views, self.roles, hardware)

    def run(self) -> Network:
        for operation in self.flow.operations:
            if self.views.is_view(operation) or self.views.is_uniform(operation.outputs[0]):
                continue
            handler = _handler(operation.name)
            handler(self, operation)
        for number, output in enumerate(self.flow.outputs):
            self.sink(number, output)
        return self.builder.build()

    def sink(self, number: int, output: Operand) -> None:
        if self.views.is_uniform(output):
            return
        view = self.views(output)
        order = self.streams.order_of(output)
        axes = [view.axes.index(axis) if axis in view.axes else None for axis in order]
        nest = self.nest(output, [axis for axis in axes if axis is not None])
        feed = self.streams.feed(output, nest)
        if feed.stream is None:  # an argument that is returned as it is
            return
        firings = math.prod(size for _, size in nest)
        self.builder.unit(
            f"result {number}", [(feed.stream, feed.rate)], kind="sink", firings=firings
        )

    # --------------------------------------------------------------------- building blocks
    def nest(self, operand: Operand, axes: Sequence[int]) -> list[NestAxis]:
        return [(axis, operand.shape[axis]) for axis in axes]

    def unit(
        self,
        operation: Operation,
        feeds: Sequence[tuple[Operand, Sequence[NestAxis]]],
        firings: int,
        *,
        kind: str = "map",
        name: str | None = None,
        latency: int | None = None,
        rate: Rate | None = None,
        bits: int = 32,
        memory_bits: int = 0,
        divisions: int = 0,
    ) -> Stream:
        """Add a unit that reads operands along loop nests."""
        inputs = []
        for operand, nest in feeds:
            feed = self.streams.feed(operand, nest)
            memory_bits += feed.memory_bits
            if feed.stream is not None:
                inputs.append((feed.stream, feed.rate))
        return self.builder.unit(
            name or operation.name,
            inputs,
            kind=kind,
            rate=rate or Rate(),
            firings=firings,
            latency=self.hardware.latency(operation.name) if latency is None else latency,
            interval=self.hardware.interval,
            bits=bits,
            memory_bits=memory_bits,
            divisions=divisions,
        )

    # ---------------------------------------------------------------------------- handlers
    def elementwise(self, operation: Operation) -> None:
        output = operation.outputs[0]
        order = self.roles.order(output)
        feeds = [(operand, self._along(operand, output, order)) for operand in operation.inputs]
        lanes = math.prod(output.shape) // max(1, math.prod(output.shape[a] for a in order))
        stream = self.unit(
            operation,
            feeds,
            math.prod(output.shape[axis] for axis in order),
            bits=token_bits(output, order),
            divisions=lanes if operation.name in ("div", "rem") else 0,
        )
        self.streams.put(output, stream, order)

    def _along(self, operand: Operand, output: Value, order: Sequence[int]) -> list[NestAxis]:
        """The nest of an element-wise unit, as an operand of the same or of no rank sees it."""
        if len(operand.shape) != len(output.shape):
            return [(None, output.shape[axis]) for axis in order]
        return self.nest(output, order)

    def source(self, operation: Operation) -> None:
        for output in operation.outputs:
            order = self.roles.order(output)
            stream = self.unit(
                operation,
                [],
                max(1, math.prod(output.shape[axis] for axis in order)),
                kind="source",
                bits=token_bits(output, order),
            )
            self.streams.put(output, stream, order)

    def reduce(self, operation: Operation) -> None:
        operand, output = operation.inputs[0], operation.outputs[0]
        reduced = [int(axis) for axis in operation.params["axes"]]
        order = [axis for axis in self.axes_in_order(operand) if operand.shape[axis] > 1]
        inside = [axis for axis in order if axis in reduced]
        last = order[len(order) - len(inside) :] == inside
        outer_pass = len(inside) == 1 and not last
        if not last and not outer_pass:
            order = [axis for axis in order if axis not in reduced] + inside
        kept = [axis for axis in range(len(operand.shape)) if axis not in reduced]
        out_order = [kept.index(axis) for axis in order if axis not in reduced]
        bits = token_bits(output, out_order)
        if outer_pass:
            # The reduced axis runs outside of others: one accumulator for each step of those.
            at = order.index(inside[0])
            block = math.prod(operand.shape[axis] for axis in order[at + 1 :])
            rate, memory_bits = trailing(block, block * operand.shape[inside[0]]), block * bits
        else:
            rate, memory_bits = last_of(math.prod(operand.shape[a] for a in inside)), 0
        nest = self.nest(operand, order)
        stream = self.unit(
            operation,
            [(operand, nest)],
            math.prod(size for _, size in nest),
            kind="reduce",
            rate=rate,
            bits=bits,
            memory_bits=memory_bits,
        )
        self.streams.put(output, stream, out_order)

    def axes_in_order(self, operand: Operand) -> list[int]:
        """Streamed axes of an operand (as the operand numbers them) in the order they come."""
        view = self.views(operand)
        order = self.streams.order_of(operand)
        present = [view.axes.index(axis) for axis in order if axis in view.axes]
        repeated = [
            axis for axis, base in enumerate(view.axes) if base is None and operand.shape[axis] > 1
        ]
        return sorted(repeated) + present

    def scan_axis(self, operation: Operation) -> None:
        operand, output = operation.inputs[0], operation.outputs[0]
        axis, backwards = int(operation.params["axis"]), bool(operation.params.get("reverse"))
        order = self.axes_in_order(operand)
        after = order[order.index(axis) + 1 :] if axis in order else []
        lanes = math.prod(operand.shape[a] for a in after)
        bits = token_bits(output, order)
        nest = self.nest(operand, order)
        # A backward scan fills a buffer, runs from the end, and turns the result round again.
        window = operand.shape[axis] * lanes * bits if backwards else 0
        stream = self.unit(
            operation,
            [(operand, nest)],
            math.prod(size for _, size in nest),
            kind="scan",
            bits=bits,
            memory_bits=lanes * bits + 2 * window,
            latency=self.hardware.latency(operation.name),
        )
        if backwards:
            made = memory.delay_line(self, output, stream, order, 2 * operand.shape[axis] - 1)
            stream = made.stream
        self.streams.put(output, stream, order)

    def product(self, operation: Operation) -> None:
        lhs, rhs = operation.inputs
        output = operation.outputs[0]
        contract, batch = operation.params["dimension_numbers"]
        pairs = [(int(a), int(b)) for a, b in zip(*contract)]
        streamed = [pair for pair in pairs if self._contracts_stream(operation, pair)]
        lanes = math.prod(lhs.shape[a] for a, _ in pairs if (a, _) not in streamed)
        order = list(self.roles.order(output))
        rows = self.roles.row_side(operation)
        left = len(free_axes(operation, 0))
        if streamed:
            # Accumulate over the stream: only batches and rows loop, the other side is lanes.
            side = range(len(batch[0]), len(batch[0]) + left)
            if rows == 1:
                side = range(len(batch[0]) + left, len(output.shape))
            order = [a for a in order if a < len(batch[0]) or a in side]
        nests = self._product_nests(operation, order, streamed)
        firings = math.prod(size for _, size in nests[0])
        bits = token_bits(output, order)
        accumulators = math.prod(output.shape) // max(1, math.prod(output.shape[a] for a in order))
        stream = self.unit(
            operation,
            [(lhs, nests[0]), (rhs, nests[1])],
            firings,
            kind="memreduce" if streamed else "dot",
            name="product",
            latency=self.hardware.dot_latency(lanes) if lanes > 1 else self.hardware.default,
            rate=last_of(math.prod(lhs.shape[a] for a, _ in streamed)) if streamed else None,
            bits=bits,
            memory_bits=accumulators * value_bits(output) if streamed and accumulators > 1 else 0,
        )
        self.streams.put(output, stream, order)

    def _contracts_stream(self, operation: Operation, pair: tuple[int, int]) -> bool:
        for operand, axis in zip(operation.inputs, pair):
            view = self.views(operand)
            base_axis = view.axes[axis]
            if base_axis is not None and self.roles.streams(view.base, base_axis):
                return True
        return False

    def _product_nests(
        self, operation: Operation, order: Sequence[int], streamed: Sequence[tuple[int, int]]
    ) -> tuple[list[NestAxis], list[NestAxis]]:
        output = operation.outputs[0]
        _, batch = operation.params["dimension_numbers"]
        frees = free_axes(operation, 0), free_axes(operation, 1)
        first = len(batch[0]), len(batch[0]) + len(frees[0])
        nests: tuple[list[NestAxis], list[NestAxis]] = ([], [])
        for side in (0, 1):
            for axis in order:
                own: int | None = None
                if axis < len(batch[0]):
                    own = int(batch[side][axis])
                elif first[side] <= axis < first[side] + len(frees[side]):
                    own = frees[side][axis - first[side]]
                nests[side].append((own, output.shape[axis]))
            for pair in streamed:
                nests[side].append((pair[side], operation.inputs[0].shape[pair[0]]))
        return nests

    def running(self, operation: Operation) -> None:
        """A statistic carried by a scan, and accumulators that are corrected as it moves."""
        operand = operation.inputs[0]
        axis = int(operation.params["axes"][0])
        order = [a for a in self.axes_in_order(operand) if a != axis] + [axis]
        nest = self.nest(operand, order)
        firings = math.prod(size for _, size in nest)
        length = operand.shape[axis]
        kept = [a for a in range(len(operand.shape)) if a != axis]
        scan = self.unit(
            operation,
            [(operand, nest)],
            firings,
            kind="scan",
            name="running statistic",
            latency=operation.params["latency"](self.hardware),
            bits=2 * value_bits(operand),
            memory_bits=value_bits(operand),
        )
        out_order = [kept.index(a) for a in order if a != axis]
        last = Stream(scan.unit, last_of(length), value_bits(operand))
        self.streams.put(operation.outputs[0], last, out_order)
        for position, output in enumerate(operation.outputs[1:]):
            self._accumulator(operation, position, output, scan, order)

    def _accumulator(
        self, operation: Operation, position: int, output: Value, scan: Stream, order: list[int]
    ) -> None:
        operand = operation.inputs[0]
        axis = int(operation.params["axes"][0])
        product = operation.params["products"][position]
        # One token holds the correction and the weight side by side.
        inputs: list[tuple[Stream, Rate]] = [(scan, Rate())]
        memory_bits = 0
        row_axes = [a for a in order if a != axis]
        out_order = [
            _kept(a, axis) if product is None else product.result_axis(a) for a in row_axes
        ]
        if product is not None:
            pairs = dict(product.batch) | {axis: product.contract}
            weights = operation.inputs[operation.params["weights"][position]]
            feed = self.streams.feed(weights, [(pairs.get(a), operand.shape[a]) for a in order])
            memory_bits = feed.memory_bits
            if feed.stream is not None:
                inputs.append((feed.stream, feed.rate))
        bits = token_bits(output, out_order)
        stream = self.builder.unit(
            "running sum" if product is None else "running product",
            inputs,
            kind="reduce" if product is None else "memreduce",
            rate=last_of(operand.shape[axis]),
            firings=math.prod(operand.shape[a] for a in order),
            latency=self.hardware.default,
            interval=self.hardware.interval,
            bits=bits,
            memory_bits=memory_bits + bits,
        )
        self.streams.put(output, stream, out_order)


def _kept(axis: int, reduced: int) -> int:
    """The number of an axis once another one is gone."""
    return axis - (axis > reduced)


Handler = Callable[[_Lowering, Operation], None]


def _handler(name: str) -> Handler:
    if name in primitives.ELEMENTWISE:
        return _Lowering.elementwise
    if name in primitives.REDUCTIONS:
        return _Lowering.reduce
    if name in primitives.CUMULATIVE:
        return _Lowering.scan_axis
    if name in primitives.SOURCES:
        return _Lowering.source
    table: dict[str, Any] = {
        "dot_general": _Lowering.product,
        "running_reduce": _Lowering.running,
        "reshape": memory.reshape,
        "slice": memory.cut,
        "pad": memory.pad,
        "concatenate": memory.concatenate,
        "rev": memory.reverse,
        "restream": memory.second_pass,
        "scan": memory.loop,
        "while": memory.loop,
    }
    return table.get(name, memory.block)
