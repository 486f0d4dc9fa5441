"""Streams of values in some token order, and the adapters that change that order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.simulate.stream.dataflow import Operand
from trimtab.simulate.stream.lowering.primitives import Hardware
from trimtab.simulate.stream.lowering.roles import Roles, Views
from trimtab.simulate.stream.network import NetworkBuilder, Stream
from trimtab.simulate.stream.rates import EVERY, Rate, first_of, last_of

# An axis of a loop nest: (axis of the operand or None where the operand repeats, size).
NestAxis = tuple[int | None, int]


@dataclass(frozen=True)
class Produced:
    """A stream of a value's tokens; ``order`` are its streamed axes, the others are lanes."""

    stream: Stream
    order: tuple[int, ...]
    tokens: int


@dataclass(frozen=True)
class Feed:
    """What a unit needs in order to read an operand.

    Args:
        stream: its tokens; None if the operand is resident in the unit.
        rate: how the unit consumes them.
        memory_bits: storage for a resident operand.
    """

    stream: Stream | None
    rate: Rate = EVERY
    memory_bits: int = 0


def value_bits(value: Operand) -> int:
    """Width of one element."""
    return 1 if value.dtype == np.bool_ else value.dtype.itemsize * 8


def token_bits(value: Operand, order: Sequence[int]) -> int:
    """Width of one token when the axes in ``order`` stream."""
    lanes = math.prod(size for axis, size in enumerate(value.shape) if axis not in order)
    return lanes * value_bits(value)


class Streams:
    """Keeps who makes which value, and hands it out in the order that a consumer needs."""

    def __init__(
        self, builder: NetworkBuilder, views: Views, roles: Roles, hardware: Hardware
    ) -> None:
        self.builder, self.views, self.roles, self.hardware = builder, views, roles, hardware
        self._produced: dict[int, Produced] = {}
        self._cache: dict[tuple, Produced] = {}
        self.labels: dict[int, str] = {}

    def put(self, value: Operand, stream: Stream, order: Sequence[int]) -> None:
        """Record the stream of a value that a unit makes."""
        tokens = math.prod(value.shape[axis] for axis in order)
        self._produced[id(value)] = Produced(stream, tuple(order), tokens)

    def order_of(self, operand: Operand) -> tuple[int, ...]:
        """Return the streamed axes of a base value: as made, or as its roles say."""
        base = self.views(operand).base
        made = self._produced.get(id(base))
        return made.order if made is not None else self.roles.order(base)

    def is_stored(self, operand: Operand) -> bool:
        """Whether an operand comes from memory and can be read in any order, repeatedly."""
        return id(self.views(operand).base) not in self._produced

    def feed(self, operand: Operand, nest: Sequence[NestAxis]) -> Feed:
        """Bring an operand to a unit that loops over ``nest``, outermost axis first.

        Where the operand lacks an inner axis, its token is held; where it lacks an outer one, its
        tokens are streamed again (from memory, or from a buffer that is filled in the first pass).
        """
        if self.views.is_uniform(operand):
            return Feed(None)
        view = self.views(operand)
        axes: list[NestAxis] = []
        for axis, size in nest:
            base_axis = None if axis is None else view.axes[axis]
            if base_axis is not None and view.base.shape[base_axis] == 1:
                base_axis = None
            axes.append((base_axis, size))
        order = tuple(axis for axis, _ in axes if axis is not None)
        last = max((i for i, (axis, _) in enumerate(axes) if axis is not None), default=-1)
        held = math.prod(size for _, size in axes[last + 1 :])
        if self.is_stored(operand):
            if not order:
                return Feed(None, memory_bits=token_bits(view.base, ()))
            return Feed(self._source(view.base, order, axes[: last + 1]), first_of(held))
        stream = self._in_order(view.base, order)
        stream = self._again(view.base, stream, axes[: last + 1])
        return Feed(stream.stream, first_of(held))

    def _label(self, value: Operand) -> str:
        return self.labels.get(id(value)) or getattr(value, "name", "") or "constant"

    def _source(self, base: Operand, order: tuple[int, ...], axes: Sequence[NestAxis]) -> Stream:
        key = ("source", id(base), tuple(axes))
        if key not in self._cache:
            tokens = math.prod(size for _, size in axes)
            stream = self.builder.unit(
                self._label(base),
                kind="source",
                firings=tokens,
                latency=self.hardware.default,
                interval=self.hardware.interval,
                bits=token_bits(base, order),
            )
            self._cache[key] = Produced(stream, order, tokens)
        return self._cache[key].stream

    # ---------------------------------------------------------------------- adapters
    def _in_order(self, base: Operand, order: tuple[int, ...]) -> Produced:
        made = self._produced[id(base)]
        if made.order == order:
            return made
        key = ("order", id(base), order)
        if key not in self._cache:
            self._cache[key] = self._reordered(base, made, order)
        return self._cache[key]

    def _reordered(self, base: Operand, made: Produced, order: tuple[int, ...]) -> Produced:
        common = 0
        while common < min(len(made.order), len(order)) and made.order[common] == order[common]:
            common += 1
        rest, wanted = made.order[common:], order[common:]
        if rest and wanted and sorted(rest) == sorted(wanted):
            return self._permuted(base, made, order, rest, wanted)
        if rest:
            made = self._packed(base, made, made.order[:common], rest)
        return self._unpacked(base, made, order, wanted) if wanted else made

    def _packed(
        self, base: Operand, made: Produced, order: tuple[int, ...], axes: tuple[int, ...]
    ) -> Produced:
        count = math.prod(base.shape[axis] for axis in axes)
        stream = self.builder.unit(
            f"pack {self._label(base)}",
            [made.stream],
            kind="pack",
            rate=last_of(count),
            firings=made.tokens,
            bits=token_bits(base, order),
        )
        return Produced(stream, order, made.tokens // count)

    def _unpacked(
        self, base: Operand, made: Produced, order: tuple[int, ...], axes: tuple[int, ...]
    ) -> Produced:
        count = math.prod(base.shape[axis] for axis in axes)
        stream = self.builder.unit(
            f"unpack {self._label(base)}",
            [(made.stream, first_of(count))],
            kind="unpack",
            firings=made.tokens * count,
            bits=token_bits(base, order),
            memory_bits=token_bits(base, made.order),
        )
        return Produced(stream, order, made.tokens * count)

    def _permuted(
        self,
        base: Operand,
        made: Produced,
        order: tuple[int, ...],
        rest: tuple[int, ...],
        wanted: tuple[int, ...],
    ) -> Produced:
        positions = np.arange(math.prod(base.shape[axis] for axis in rest))
        grid = positions.reshape([base.shape[axis] for axis in rest])
        needed = grid.transpose([rest.index(axis) for axis in wanted]).ravel()
        return self.delayed(base, made, order, int(np.max(needed - positions)) + 1, "transpose")

    def delayed(
        self, base: Operand, made: Produced, order: tuple[int, ...], window: int, what: str
    ) -> Produced:
        """Reorder tokens within the smallest window that realises a permutation."""
        if window <= 1:
            return Produced(made.stream, order, made.tokens)
        bits = token_bits(base, order)
        wait = window - 1
        stream = self.builder.unit(
            f"{what} {self._label(base)}",
            [(made.stream, Rate(((made.tokens, 1), (wait, 0))))],
            kind="buffer",
            rate=Rate(((wait, 0), (made.tokens, 1))),
            firings=made.tokens + wait,
            bits=bits,
            memory_bits=window * bits,
            warmup=wait,
        )
        return Produced(stream, order, made.tokens)

    def _again(self, base: Operand, made: Produced, axes: Sequence[NestAxis]) -> Produced:
        """Stream blocks of tokens again for every step of a missing outer axis."""
        for position, (axis, size) in enumerate(axes):
            if axis is not None or size == 1:
                continue
            # Axes further in that are missing too are repeated in their turn.
            block = math.prod(s for a, s in axes[position + 1 :] if a is not None)
            key = ("again", id(base), tuple(axes), position)
            if key not in self._cache:
                groups = made.tokens // block
                bits = token_bits(base, made.order)
                stream = self.builder.unit(
                    f"re-stream {self._label(base)}",
                    [(made.stream, Rate(((block, 1), (block * (size - 1), 0))))],
                    kind="buffer",
                    firings=groups * block * size,
                    bits=bits,
                    memory_bits=block * bits,
                )
                self._cache[key] = Produced(stream, made.order, groups * block * size)
            made = self._cache[key]
        return made
