"""Units written in Python whose values and rates are found by running them, and timed afterwards.

In a network without units that look at the clock, values never depend on time. So values are
computed first, in blocks of many tokens, and what each unit consumed and produced at each firing is
recorded; the recorded rates then go to the native engines. Three ways to write a unit:

- :class:`Block`: fixed rates and a function on arrays;
- :class:`Process`: a generator that receives and sends arrays, with any rates;
- a behaviour that decides by arrival time (:mod:`trimtab.simulate.stream.behaviour`), which only
  co-simulation can host.

The size of blocks changes how fast the values come, and no time stamp.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trimtab.errors import InputError
from trimtab.simulate.stream.network import Network, NetworkBuilder, Stream
from trimtab.simulate.stream.rates import EVERY, Rate, traced


@dataclass(frozen=True)
class Take:
    """Ask for up to ``count`` tokens of an input; the answer is an array, or None at the end.

    Args:
        port: name of the input.
        count: tokens wanted; fewer come only at the end of the stream.
        counts: for an input other than the first: how many of them each firing of the current
            block reads. Without it each firing reads one.
        ahead: the tokens belong to the first firing of the block that comes next.
    """

    port: str
    count: int = 1
    counts: Sequence[int] | np.ndarray | None = None
    ahead: bool = False


@dataclass(frozen=True)
class Give:
    """Emit an array of tokens.

    Args:
        port: name of the output.
        tokens: array whose first axis runs over tokens.
        counts: how many of them each firing of the current block emits. Without it each firing
            emits one; a single token leaves at the last firing.
    """

    port: str
    tokens: Any
    counts: Sequence[int] | np.ndarray | None = None


@dataclass(frozen=True)
class Process:
    """A unit written as a generator over :class:`Take` and :class:`Give`.

    Every token of the first input is one firing (in a unit without inputs, of the first output).

    Args:
        run: the generator function.
        inputs, outputs: names of the ports.
        latency, interval: in cycles.
        bits: width of an emitted token.
    """

    run: Callable[[], Generator[Take | Give, Any, None]]
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ("out",)
    latency: int = 1
    interval: int = 1
    bits: int = 32


@dataclass(frozen=True)
class Block:
    """A unit of fixed rates with a function on arrays.

    Args:
        function: ``(state, *arrays) -> (state, *arrays)`` over the tokens of one block of firings.
        start: the state before the first firing.
        inputs, outputs: port names with their rates.
        firings: how many firings one call should cover (a multiple of the rates' periods).
        latency, interval: in cycles.
        bits: width of an emitted token.
    """

    function: Callable[..., tuple[Any, ...]]
    start: Any = None
    inputs: Mapping[str, Rate] = field(default_factory=lambda: {"in": EVERY})
    outputs: Mapping[str, Rate] = field(default_factory=lambda: {"out": EVERY})
    firings: int = 64
    latency: int = 1
    interval: int = 1
    bits: int = 32


@dataclass(frozen=True)
class Traced:
    """A network whose rates were found by running it.

    Args:
        network: ready for any engine.
        values: for each output that nothing reads, ``unit.port`` to its tokens.
    """

    network: Network
    values: dict[str, np.ndarray]


def trace_network(
    units: Mapping[str, Process | Block], wires: Mapping[str, str | Sequence[str]]
) -> Traced:
    """Run Python units on their values and build the network that has their rates.

    Args:
        units: name to unit.
        wires: output ``"unit.port"`` to the input, or inputs, that read it.

    Raises:
        InputError: a wire names no port, an input has no wire, or units wait for one another.
    """
    readers = {
        source: [targets] if isinstance(targets, str) else list(targets)
        for source, targets in wires.items()
    }
    _check_wires(units, readers)
    runs = {name: _Run(name, unit) for name, unit in units.items()}
    queues = {target: _Queue() for targets in readers.values() for target in targets}
    values: dict[str, list[np.ndarray]] = {}
    progressed = True
    while progressed:
        progressed = False
        for name, run in runs.items():
            progressed |= run.advance(queues, readers, values)
            if run.ended:
                for port in run.outputs:
                    for target in readers.get(f"{name}.{port}", ()):
                        progressed |= not queues[target].closed
                        queues[target].closed = True
    waiting = [name for name, run in runs.items() if not run.ended]
    if waiting:
        raise InputError(
            f"These units wait for one another for ever: {', '.join(waiting)}. A feedback loop "
            f"must emit before it reads."
        )
    return Traced(
        _network(units, readers, runs), {key: np.concatenate(v) for key, v in values.items()}
    )


def _check_wires(
    units: Mapping[str, Process | Block], readers: Mapping[str, Sequence[str]]
) -> None:
    outputs = {f"{name}.{port}" for name, unit in units.items() for port in unit.outputs}
    inputs = {f"{name}.{port}" for name, unit in units.items() for port in unit.inputs}
    read = [target for targets in readers.values() for target in targets]
    for kind, given, known in (("output", readers, outputs), ("input", read, inputs)):
        for port in given:
            if port not in known:
                raise InputError(f"There is no {kind} {port!r}; known: {', '.join(sorted(known))}.")
    if missing := inputs - set(read):
        raise InputError(f"Nothing feeds {', '.join(sorted(missing))}; add a wire to each.")
    if len(read) != len(set(read)):
        raise InputError("An input is wired twice; each has one producer.")


class _Queue:
    """Tokens on their way, as arrays."""

    def __init__(self) -> None:
        self.parts: deque[np.ndarray] = deque()
        self.size = 0
        self.closed = False

    def put(self, tokens: np.ndarray) -> None:
        self.parts.append(tokens)
        self.size += len(tokens)

    def take(self, count: int) -> np.ndarray:
        taken = []
        while count > 0:
            part = self.parts.popleft()
            if len(part) > count:
                self.parts.appendleft(part[count:])
                part = part[:count]
            taken.append(part)
            count -= len(part)
            self.size -= len(part)
        return taken[0] if len(taken) == 1 else np.concatenate(taken)


def _as_process(unit: Block) -> Callable[[], Generator[Take | Give, Any, None]]:
    """A block function as a generator."""

    def run() -> Generator[Take | Give, Any, None]:
        state, start = unit.start, 0
        while True:
            firings, arrays = unit.firings, []
            for port, rate in unit.inputs.items():
                wanted = rate.tokens(start + firings) - rate.tokens(start)
                counts = _window(rate, start, firings)
                if not arrays and rate.runs == ((1, 1),):
                    tokens = yield Take(port, wanted)
                    if tokens is None:
                        return
                    firings = len(tokens)
                else:
                    if not arrays:
                        raise InputError("The first input of a Block is read at every firing.")
                    counts = counts[:firings]
                    tokens = yield Take(port, int(counts.sum()), counts)
                arrays.append(tokens)
            state, *results = unit.function(state, *arrays)
            for (port, rate), result in zip(unit.outputs.items(), results):
                yield Give(port, result, _window(rate, start, firings))
            start += firings

    return run


def _window(rate: Rate, start: int, firings: int) -> np.ndarray:
    """Tokens at each of some firings in the middle of a run."""
    inside = start % rate.period
    return rate.counts(inside + firings)[inside:]


class _Run:
    """One unit's generator with what it has moved so far."""

    def __init__(self, name: str, unit: Process | Block) -> None:
        self.name, self.inputs, self.outputs = name, tuple(unit.inputs), tuple(unit.outputs)
        self.generator = _as_process(unit)() if isinstance(unit, Block) else unit.run()
        self.request: Take | Give | None = None
        self.started = self.ended = False
        self.firings = self.block = 0
        self.counts: dict[str, list[np.ndarray]] = {p: [] for p in (*self.inputs, *self.outputs)}
        self.covered: dict[str, int] = dict.fromkeys(self.counts, 0)
        self.pace = self.inputs[0] if self.inputs else self.outputs[0]

    def advance(self, queues: dict, readers: Mapping, values: dict) -> bool:
        """Go on until something is missing; returns whether anything happened."""
        moved = False
        answer: Any = None
        while not self.ended:
            if self.request is not None:
                if isinstance(self.request, Take):
                    ready, answer = self.take(self.request, queues)
                    if not ready:
                        return moved
                else:
                    self.give(self.request, queues, readers, values)
                    answer = None
            try:
                self.request = self.generator.send(answer if self.started else None)
                self.started = moved = True
            except StopIteration:
                self.ended = moved = True
        return moved

    def take(self, request: Take, queues: dict) -> tuple[bool, np.ndarray | None]:
        if request.port not in self.inputs:
            raise InputError(f"Unit {self.name} has no input {request.port!r}.")
        queue = queues[f"{self.name}.{request.port}"]
        if queue.size < request.count and not queue.closed:
            return False, None
        count = min(request.count, queue.size)
        if count == 0:
            return True, np.zeros(0) if request.count == 0 else None
        if request.port == self.pace:
            self.begin(count)
        self.note(request.port, count, request.counts, request.ahead)
        return True, queue.take(count)

    def give(self, request: Give, queues: dict, readers: Mapping, values: dict) -> None:
        if request.port not in self.outputs:
            raise InputError(f"Unit {self.name} has no output {request.port!r}.")
        tokens = np.asarray(request.tokens)
        if not self.inputs and request.port == self.pace:
            self.begin(len(tokens))
        self.note(request.port, len(tokens), request.counts, ahead=False)
        source = f"{self.name}.{request.port}"
        for target in readers.get(source, ()):
            queues[target].put(tokens)
        if not readers.get(source):
            values.setdefault(source, []).append(tokens)

    def begin(self, firings: int) -> None:
        self.firings += firings
        self.block = firings

    def note(
        self, port: str, tokens: int, counts: Sequence[int] | np.ndarray | None, ahead: bool
    ) -> None:
        """Record at which firings tokens moved."""
        first = self.firings if ahead else self.firings - self.block
        if counts is not None:
            pattern = np.asarray(counts, np.int64)
        elif ahead or (tokens == self.block and port != self.pace) or port == self.pace:
            pattern = np.array([tokens]) if ahead else np.ones(tokens, np.int64)
        elif tokens == 1 or self.block == 1:
            pattern = np.zeros(self.block, np.int64)
            pattern[-1] = tokens
        else:
            raise InputError(
                f"Unit {self.name} moved {tokens} tokens on {port!r} in a block of {self.block} "
                f"firings; pass counts= to say at which firings."
            )
        if pattern.sum() != tokens or (not ahead and len(pattern) != self.block):
            raise InputError(
                f"Unit {self.name}: counts on {port!r} must list {self.block} firings and add up "
                f"to {tokens} tokens."
            )
        gap = first - self.covered[port]
        if gap < 0:
            # A second transfer within the same block adds to the first.
            whole = np.concatenate(self.counts[port])
            whole = np.append(whole, np.zeros(max(0, first + len(pattern) - len(whole)), np.int64))
            whole[first : first + len(pattern)] += pattern
            self.counts[port] = [whole]
        else:
            self.counts[port] += [np.zeros(gap, np.int64), pattern]
        self.covered[port] = max(self.covered[port], first + len(pattern))

    def rate(self, port: str) -> Rate:
        counts = np.concatenate([np.zeros(0, np.int64), *self.counts[port]])
        if len(counts) > self.firings:
            raise InputError(f"Unit {self.name} read {port!r} ahead of a block that never came.")
        return traced(np.append(counts, np.zeros(self.firings - len(counts), np.int64)))


def _network(
    units: Mapping[str, Process | Block],
    readers: Mapping[str, Sequence[str]],
    runs: Mapping[str, _Run],
) -> Network:
    builder = NetworkBuilder()
    made = {
        name: builder.unit(
            name,
            kind="process",
            firings=runs[name].firings,
            latency=unit.latency,
            interval=unit.interval,
            bits=unit.bits,
        )
        for name, unit in units.items()
    }
    for source, targets in readers.items():
        producer, _, port = source.rpartition(".")
        stream = Stream(made[producer].unit, runs[producer].rate(port), units[producer].bits)
        for target in targets:
            consumer, _, into = target.rpartition(".")
            builder.connect(
                stream, made[consumer], runs[consumer].rate(into), name=f"{source}->{target}"
            )
    return builder.build()
