"""Streaming hardware as data: units that fire, FIFOs that join two of them, and a builder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.errors import InputError, unknown_name
from trimtab.simulate.stream.rates import EVERY, Rate


@dataclass(frozen=True)
class Fifo:
    """A bounded queue from one unit to another.

    Args:
        name: unique in its network.
        producer, consumer: indices of units.
        produce, consume: tokens per firing at either end.
        latency: cycles from the start of the producer's firing until its token can be visible.
        depth: places, or ``None`` for no limit.
        send_latency, response_latency: cycles that a token, or the news of a free place, takes;
            each at least 1.
        bits: width of one token.
        initial: tokens present at time 0 (the start value of a feedback loop).
    """

    name: str
    producer: int
    consumer: int
    produce: Rate = EVERY
    consume: Rate = EVERY
    latency: int = 1
    depth: int | None = None
    send_latency: int = 1
    response_latency: int = 1
    bits: int = 32
    initial: int = 0


@dataclass(frozen=True)
class Unit:
    """A sequential process that fires again and again.

    Args:
        name: unique in its network.
        kind: what it does, such as ``"map"``; for reports.
        firings: how often it fires in a complete run.
        interval: cycles between two firings (the initiation interval).
        inputs, outputs: indices of FIFOs, in the order in which they are served.
        memory_bits: declared storage inside the unit.
        behaviour: a Python process that decides by arrival time (see
            :mod:`trimtab.simulate.stream.behaviour`); such a unit has no fixed rates.
        function: values: maps one firing's input tokens to its output tokens.
        divisions: divisions per firing, for the cost of a rewrite.
        warmup: firings beyond those that keep pace with the stream (a delay line's first and
            last ones).
    """

    name: str
    kind: str
    firings: int
    interval: int = 1
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    memory_bits: int = 0
    behaviour: Any = None
    function: Callable[..., Any] | None = None
    divisions: int = 0
    warmup: int = 0


@dataclass(frozen=True)
class Network:
    """Units and the FIFOs between them; immutable."""

    units: tuple[Unit, ...]
    fifos: tuple[Fifo, ...]

    def with_depths(
        self, depths: int | Sequence[int | None] | Mapping[str, int | None] | None
    ) -> Network:
        """Return the network with other FIFO depths.

        Args:
            depths: one depth for all, a sequence in FIFO order, or a mapping from FIFO name.
        """
        if depths is None or isinstance(depths, int | np.integer):
            values: list[int | None] = [depths if depths is None else int(depths)] * len(self.fifos)
        elif isinstance(depths, Mapping):
            known = {fifo.name for fifo in self.fifos}
            for name in depths:
                if name not in known:
                    raise unknown_name("FIFO", name, known)
            values = [depths.get(fifo.name, fifo.depth) for fifo in self.fifos]
        else:
            values = list(depths)
            if len(values) != len(self.fifos):
                raise InputError(
                    f"{len(values)} depths were given for {len(self.fifos)} FIFOs; give one each."
                )
        fifos = tuple(
            dataclasses.replace(fifo, depth=None if depth is None else int(depth))
            for fifo, depth in zip(self.fifos, values)
        )
        return dataclasses.replace(self, fifos=validate_fifos(fifos))

    def unbounded(self) -> Network:
        """Return the network without any limit on its FIFOs."""
        return self.with_depths(None)

    @property
    def depths(self) -> tuple[int | None, ...]:
        """The depth of each FIFO."""
        return tuple(fifo.depth for fifo in self.fifos)

    @property
    def total_depth(self) -> int:
        """Places of all bounded FIFOs together."""
        return sum(fifo.depth or 0 for fifo in self.fifos)

    @property
    def fifo_bits(self) -> int:
        """Bits of all bounded FIFOs together."""
        return sum((fifo.depth or 0) * fifo.bits for fifo in self.fifos)

    @property
    def memory_bits(self) -> int:
        """Bits of FIFOs and of the storage declared inside units."""
        return self.fifo_bits + sum(unit.memory_bits for unit in self.units)

    @property
    def ideal_cycles(self) -> int:
        """The busiest unit's firings times its interval: no run can be shorter."""
        return max((unit.firings * unit.interval for unit in self.units), default=0)

    @property
    def dynamic(self) -> bool:
        """Whether some unit decides by arrival time, so that only co-simulation can tell."""
        return any(unit.behaviour is not None for unit in self.units)

    def tokens(self, fifo: Fifo) -> int:
        """Return how many tokens the FIFO carries in a complete run, initial ones included."""
        return fifo.initial + fifo.produce.tokens(self.units[fifo.producer].firings)

    def fifo_index(self, name: str) -> int:
        """Return the position of a FIFO."""
        for index, fifo in enumerate(self.fifos):
            if fifo.name == name:
                return index
        raise unknown_name("FIFO", name, [fifo.name for fifo in self.fifos])


def validate_fifos(fifos: tuple[Fifo, ...]) -> tuple[Fifo, ...]:
    """Raise on a depth or latency that no hardware can have; return the FIFOs."""
    for fifo in fifos:
        if fifo.send_latency < 1 or fifo.response_latency < 1:
            raise InputError(
                f"FIFO {fifo.name} has send latency {fifo.send_latency} and response latency "
                f"{fifo.response_latency}; both must be at least 1 cycle."
            )
        if fifo.depth is not None and fifo.depth < max(1, fifo.initial):
            raise InputError(
                f"FIFO {fifo.name} has depth {fifo.depth}; it needs at least "
                f"{max(1, fifo.initial)} (its initial tokens, and one place)."
            )
        if fifo.latency < 0:
            raise InputError(f"FIFO {fifo.name} has latency {fifo.latency}; give 0 or more.")
    return fifos


@dataclass(frozen=True)
class Stream:
    """What a unit emits at one of its outputs; every use of it becomes a FIFO of its own."""

    unit: int
    rate: Rate
    bits: int


class NetworkBuilder:
    """Collects units in any order; :meth:`build` infers missing firing counts and freezes them.

    >>> from trimtab.simulate.stream.rates import last_of
    >>> builder = NetworkBuilder()
    >>> numbers = builder.unit("numbers", firings=4)
    >>> total = builder.unit("total", [numbers], rate=last_of(4))
    >>> sink = builder.unit("sink", [total])
    >>> [unit.firings for unit in builder.build().units]
    [4, 4, 1]
    """

    def __init__(self) -> None:
        self._units: list[dict[str, Any]] = []
        self._fifos: list[dict[str, Any]] = []
        self._names: dict[str, int] = {}

    def _unique(self, name: str) -> str:
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return name if count == 0 else f"{name}.{count}"

    def unit(
        self,
        name: str,
        inputs: Sequence[Stream | tuple[Stream, Rate]] = (),
        *,
        kind: str = "map",
        rate: Rate = EVERY,
        firings: int | None = None,
        latency: int = 1,
        interval: int = 1,
        bits: int = 32,
        memory_bits: int = 0,
        behaviour: Any = None,
        function: Callable[..., Any] | None = None,
        divisions: int = 0,
        warmup: int = 0,
    ) -> Stream:
        """Add a unit and return its output.

        Args:
            name: made unique by a suffix if it is taken.
            inputs: streams with the rate at which they are consumed (default: every firing).
            rate: tokens emitted per firing.
            firings: needed for units without inputs; inferred otherwise.
            latency, interval: in cycles.
            bits: width of an emitted token.
        """
        if interval < 1:
            raise InputError(f"Unit {name} has interval {interval}; give at least 1 cycle.")
        index = len(self._units)
        self._units.append(
            dict(
                name=self._unique(name), kind=kind, firings=firings, interval=interval,
                latency=latency, inputs=[], outputs=[], memory_bits=memory_bits,
                behaviour=behaviour, function=function, divisions=divisions, warmup=warmup,
            )
        )  # fmt: skip
        for entry in inputs:
            stream, consume = entry if isinstance(entry, tuple) else (entry, EVERY)
            self.connect(stream, index, consume)
        return Stream(index, rate, bits)

    def connect(
        self,
        stream: Stream,
        consumer: int | Stream,
        consume: Rate = EVERY,
        *,
        name: str | None = None,
        depth: int | None = None,
        initial: int = 0,
        send_latency: int = 1,
        response_latency: int = 1,
        latency: int | None = None,
    ) -> str:
        """Join a stream to a unit through a new FIFO and return the FIFO's name."""
        target = consumer.unit if isinstance(consumer, Stream) else consumer
        producer = self._units[stream.unit]
        label = self._unique(name or f"{producer['name']}->{self._units[target]['name']}")
        self._fifos.append(
            dict(
                name=label, producer=stream.unit, consumer=target, produce=stream.rate,
                consume=consume, latency=producer["latency"] if latency is None else latency,
                depth=depth, bits=stream.bits, initial=initial, send_latency=send_latency,
                response_latency=response_latency,
            )
        )  # fmt: skip
        index = len(self._fifos) - 1
        producer["outputs"].append(index)
        self._units[target]["inputs"].append(index)
        return label

    def build(self) -> Network:
        """Freeze the network.

        Raises:
            InputError: the firings of a unit cannot be inferred, or a FIFO is impossible.
        """
        self._infer_firings()
        units = []
        for unit in self._units:
            fields = {key: value for key, value in unit.items() if key != "latency"}
            fields["inputs"], fields["outputs"] = tuple(unit["inputs"]), tuple(unit["outputs"])
            units.append(Unit(**fields))
        return Network(tuple(units), validate_fifos(tuple(Fifo(**fifo) for fifo in self._fifos)))

    def _infer_firings(self) -> None:
        unknown = [unit for unit in self._units if unit["firings"] is None]
        while unknown:
            progressed = False
            for unit in list(unknown):
                limits, waiting = [], False
                for index in unit["inputs"]:
                    fifo = self._fifos[index]
                    firings = self._units[fifo["producer"]]["firings"]
                    if firings is None:
                        waiting = True
                        continue
                    tokens = fifo["initial"] + fifo["produce"].tokens(firings)
                    limit = fifo["consume"].firings_for(tokens)
                    if limit is not None:
                        limits.append(limit)
                if limits and not waiting:
                    unit["firings"] = min(limits)
                    unknown.remove(unit)
                    progressed = True
            if not progressed:
                names = ", ".join(unit["name"] for unit in unknown)
                raise InputError(
                    f"How often do these units fire: {names}? Their inputs do not tell; "
                    f"pass firings= to one of each feedback loop and to every source."
                )
