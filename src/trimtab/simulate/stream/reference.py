"""The time rules, executed one firing at a time in plain Python: the oracle of the native engines,
their substitute where there is no extension, and the host of units that decide by arrival time.

Each unit has a local time T (cycles, from 0); each FIFO has depth C, send latency Ls and response
latency Lr, both at least 1 (the semantics of the DAM simulator, ISCA 2024).

- *receive* of token n: T = max(T, visible(n)); received(n) = T.
- *send* of token n requested for time t: if n >= C, T = max(T, received(n - C) + Lr); then
  visible(n) = max(t, T + Ls).
- *firing*: receive what the rates ask for, in port order; t0 = T; send every output with
  t = t0 + latency; then T = T + interval. With ``fork="atomic"`` a firing starts only when all its
  tokens and all its places are there, and its tokens leave together after the last wait for room;
  with ``fork="sequential"`` ports act one after another and an early output may leave while a later
  one still waits.
- a unit ends after its last firing; the run takes as long as the largest T.

Values never depend on time unless a unit looks at the clock, so for all other networks the order of
execution changes no time.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from trimtab.errors import InputError
from trimtab.simulate.stream.behaviour import (
    Closed,
    Nothing,
    Peek,
    Receive,
    Send,
    Something,
    StreamClosed,
    Wait,
    WaitAny,
)
from trimtab.simulate.stream.network import Network, Unit
from trimtab.simulate.stream.rates import Rate
from trimtab.simulate.stream.run import Blocked, Run

# What a process yields when it cannot go on: the kind of wait and the FIFOs concerned.
_Wait = tuple[str, tuple[int, ...]]


def simulate_reference(network: Network, *, fork: str = "atomic") -> Run:
    """Run a network under the rules above.

    Args:
        network: any network, with units that decide by arrival time included.
        fork: ``"atomic"`` or ``"sequential"``.
    """
    return _Machine(network, fork).run()


def _counts(rate: Rate) -> Iterator[int]:
    while True:
        for length, tokens in rate.runs:
            for _ in range(length):
                yield tokens


class _Machine:
    """Mutable state of one run; not for other modules."""

    def __init__(self, network: Network, fork: str) -> None:
        self.network, self.fork = network, fork
        fifos = network.fifos
        self.time = [0] * len(network.units)
        self.fired = [0] * len(network.units)
        self.ended = [False] * len(network.units)
        self.visible: list[list[int]] = [[0] * fifo.initial for fifo in fifos]
        self.received: list[list[int]] = [[] for _ in fifos]
        self.tokens: list[deque[Any]] = [deque([None] * fifo.initial) for fifo in fifos]
        self.starved, self.blocked = [0] * len(fifos), [0] * len(fifos)
        self.values: dict[str, list[Any]] = {}
        self.waits: list[_Wait | None] = [None] * len(network.units)
        self.answers: dict[int, Any] = {}
        self.ready: deque[int] = deque()

    # ------------------------------------------------------------------ the rules
    def receive(self, u: int, f: int) -> Any:
        visible = self.visible[f][len(self.received[f])]
        self.starved[f] += max(0, visible - self.time[u])
        self.time[u] = max(self.time[u], visible)
        self.received[f].append(self.time[u])
        self.wake(self.network.fifos[f].producer, "full", f)
        return self.tokens[f].popleft()

    def await_room(self, u: int, f: int, ahead: int = 0) -> None:
        fifo = self.network.fifos[f]
        token = len(self.visible[f]) + ahead
        if fifo.depth is not None and token >= fifo.depth:
            free_at = self.received[f][token - fifo.depth] + fifo.response_latency
            self.blocked[f] += max(0, free_at - self.time[u])
            self.time[u] = max(self.time[u], free_at)

    def send(self, u: int, f: int, requested: int, token: Any) -> None:
        self.visible[f].append(max(requested, self.time[u] + self.network.fifos[f].send_latency))
        self.tokens[f].append(token)
        self.wake(self.network.fifos[f].consumer, "starved", f)

    def has_tokens(self, f: int, count: int = 1) -> bool:
        return len(self.visible[f]) - len(self.received[f]) >= count

    def has_room(self, f: int, count: int = 1) -> bool:
        depth = self.network.fifos[f].depth
        return depth is None or len(self.visible[f]) + count - len(self.received[f]) <= depth

    def closed(self, f: int) -> bool:
        return self.ended[self.network.fifos[f].producer]

    # ------------------------------------------------------------------ processes
    def fixed_rate_process(self, u: int) -> Generator[_Wait, Any, None]:
        """The firings of a unit whose rates are known."""
        unit, fifos = self.network.units[u], self.network.fifos
        consume = [_counts(fifos[f].consume) for f in unit.inputs]
        produce = [_counts(fifos[f].produce) for f in unit.outputs]
        while unit.firings < 0 or self.fired[u] < unit.firings:
            ins = [(f, next(count)) for f, count in zip(unit.inputs, consume)]
            outs = [(f, next(count)) for f, count in zip(unit.outputs, produce)]
            if self.fork == "atomic":
                for f, count in ins:
                    while not self.has_tokens(f, count):
                        if unit.firings < 0 and self.closed(f):
                            return
                        yield "starved", (f,)
                for f, count in outs:
                    while not self.has_room(f, count):
                        yield "full", (f,)
            yield from self.fire(u, unit, ins, outs)
            self.time[u] += unit.interval
            self.fired[u] += 1

    def fire(
        self, u: int, unit: Unit, ins: list[tuple[int, int]], outs: list[tuple[int, int]]
    ) -> Generator[_Wait, Any, None]:
        taken: list[list[Any]] = []
        for f, count in ins:
            taken.append([])
            for _ in range(count):
                while not self.has_tokens(f):
                    if unit.firings < 0 and self.closed(f):
                        raise StreamClosed
                    yield "starved", (f,)
                taken[-1].append(self.receive(u, f))
        started = self.time[u]
        made = self.evaluate(unit, taken, outs)
        for position, (f, count) in enumerate(outs):
            for n in range(count):
                while not self.has_room(f):
                    yield "full", (f,)
                self.await_room(u, f, n if self.fork == "atomic" else 0)
                if self.fork == "sequential":
                    latency = self.network.fifos[f].latency
                    self.send(u, f, started + latency, made[position])
        if self.fork == "atomic":
            for position, (f, count) in enumerate(outs):
                for _ in range(count):
                    self.send(u, f, started + self.network.fifos[f].latency, made[position])

    def evaluate(self, unit: Unit, taken: list[list[Any]], outs: list[tuple[int, int]]) -> list:
        if not unit.outputs and taken:
            self.values.setdefault(unit.name, []).extend(token for port in taken for token in port)
        if unit.function is None:
            first = next((port[0] for port in taken if port), None)
            return [first] * len(outs)
        result = unit.function(*(port[0] if len(port) == 1 else port or None for port in taken))
        return result if isinstance(result, list) else [result] * len(outs)

    def timed_process(self, u: int) -> Generator[_Wait, Any, None]:
        """A user's generator; each request is served by the rules."""
        unit = self.network.units[u]
        generator = unit.behaviour()
        answer: Any = None
        failed = False
        while True:
            try:
                request = generator.throw(StreamClosed()) if failed else generator.send(answer)
            except (StopIteration, StreamClosed):
                return
            answer, failed = None, False
            if isinstance(request, Receive):
                f = unit.inputs[request.port]
                while not self.has_tokens(f) and not self.closed(f):
                    yield "starved", (f,)
                failed = not self.has_tokens(f)
                if not failed:
                    answer = self.receive(u, f)
                    self.fired[u] += 1
            elif isinstance(request, Send):
                f = unit.outputs[request.port]
                while not self.has_room(f):
                    yield "full", (f,)
                latency = self.network.fifos[f].latency if request.after is None else request.after
                started = self.time[u]
                self.await_room(u, f)
                self.send(u, f, started + latency, request.token)
            elif isinstance(request, Wait):
                if request.cycles < 0:
                    raise InputError(f"Unit {unit.name} waits {request.cycles} cycles; give 0 up.")
                self.time[u] += request.cycles
            elif isinstance(request, Peek):
                answer = yield from self.peek(u, unit.inputs[request.port])
            elif isinstance(request, WaitAny):
                answer = yield from self.wait_any(u, unit, request.ports)
            else:
                raise InputError(
                    f"Unit {unit.name} yielded {request!r}; yield Receive, Send, Peek, Wait or "
                    f"WaitAny."
                )

    def peek(self, u: int, f: int) -> Generator[_Wait, Any, Any]:
        while True:
            if self.has_tokens(f):
                visible = self.visible[f][len(self.received[f])]
                if visible <= self.time[u]:
                    return Something(self.tokens[f][0])
                return Nothing(self.time[u])
            if self.closed(f):
                return Closed()
            # Only when nothing else can run is it known that no token can still come.
            if (yield "peek", (f,)) == "nothing":
                return Nothing(self.time[u])

    def wait_any(self, u: int, unit: Unit, ports: tuple[int, ...]) -> Generator[_Wait, Any, Any]:
        fifos = tuple(unit.inputs[port] for port in ports)
        while True:
            undecided = [f for f in fifos if not self.has_tokens(f) and not self.closed(f)]
            heads = [
                (max(self.time[u], self.visible[f][len(self.received[f])]), position)
                for position, f in enumerate(fifos)
                if self.has_tokens(f)
            ]
            if not undecided and not heads:
                return None
            if undecided and (yield "any", fifos) != "decided":
                continue
            self.time[u], position = min(heads)
            return ports[position]

    # ------------------------------------------------------------------ scheduling
    def wake(self, u: int, kind: str, f: int) -> None:
        wait = self.waits[u]
        if wait is None or f not in wait[1]:
            return
        if wait[0] == kind or (kind == "starved" and wait[0] in ("peek", "any")):
            self.waits[u] = None
            self.ready.append(u)

    def run(self) -> Run:
        units = self.network.units
        processes = [
            self.timed_process(u) if unit.behaviour is not None else self.fixed_rate_process(u)
            for u, unit in enumerate(units)
        ]
        self.ready.extend(range(len(units)))
        while True:
            while self.ready:
                u = self.ready.popleft()
                try:
                    self.waits[u] = processes[u].send(self.answers.pop(u, None))
                except (StopIteration, StreamClosed):
                    self.end(u)
            if not self.decide():
                return self.outcome()

    def end(self, u: int) -> None:
        self.ended[u] = True
        for f in self.network.units[u].outputs:
            self.wake(self.network.fifos[f].consumer, "starved", f)

    def decide(self) -> bool:
        """With nothing left to run, settle the questions about what cannot arrive any more."""
        asking = [u for u, wait in enumerate(self.waits) if self._asks(u, wait)]
        if not asking:
            return False
        bounds = self.earliest_action()
        fifos = self.network.fifos
        settled = False
        for u in asking:
            kind, watched = self.waits[u] or ("", ())
            empty = [f for f in watched if not self.has_tokens(f) and not self.closed(f)]
            earliest = min(
                (bounds[fifos[f].producer] + fifos[f].send_latency for f in empty), default=np.inf
            )
            if kind == "peek" and earliest > self.time[u]:
                self.answers[u] = "nothing"
            elif kind == "any" and self._earliest_head(u, watched) <= earliest:
                self.answers[u] = "decided"
            else:
                continue
            self.waits[u] = None
            self.ready.append(u)
            settled = True
        return settled

    def _asks(self, u: int, wait: _Wait | None) -> bool:
        if self.ended[u] or wait is None:
            return False
        return wait[0] == "peek" or (wait[0] == "any" and any(self.has_tokens(f) for f in wait[1]))

    def _earliest_head(self, u: int, watched: tuple[int, ...]) -> float:
        heads = [self.visible[f][len(self.received[f])] for f in watched if self.has_tokens(f)]
        return max(self.time[u], min(heads)) if heads else np.inf

    def earliest_action(self) -> list[float]:
        """Earliest time at which each unit may act again (infinite if it never will).

        Only the asking units can act by themselves; all others wait for one of their neighbours,
        which takes at least one cycle: shortest paths from the asking units.
        """
        bounds: list[float] = [np.inf] * len(self.waits)
        heap: list[tuple[float, int]] = []
        dependants: dict[int, list[tuple[int, int]]] = {}
        for u, wait in enumerate(self.waits):
            if self.ended[u] or wait is None:
                continue
            kind, watched = wait
            if self._asks(u, wait):
                start = self.time[u] if kind == "peek" else self._earliest_head(u, watched)
                heapq.heappush(heap, (start, u))
            for f in watched:
                fifo = self.network.fifos[f]
                if kind == "full":
                    dependants.setdefault(fifo.consumer, []).append((u, fifo.response_latency))
                elif not self.has_tokens(f):
                    dependants.setdefault(fifo.producer, []).append((u, fifo.send_latency))
        while heap:
            time, u = heapq.heappop(heap)
            if time >= bounds[u]:
                continue
            bounds[u] = time
            for other, latency in dependants.get(u, ()):
                heapq.heappush(heap, (max(self.time[other], time + latency), other))
        return bounds

    # ------------------------------------------------------------------ results
    def outcome(self) -> Run:
        waiting = tuple(
            Blocked(u, wait[1][0], wait[0] == "full")
            for u, wait in enumerate(self.waits)
            if not self.ended[u] and wait is not None
        )
        return Run(
            network=self.network,
            cycles=max(self.time, default=0),
            completed=all(self.ended),
            unit_time=np.array(self.time, np.int64),
            unit_firings=np.array(self.fired, np.int64),
            sent=np.array([len(times) for times in self.visible], np.int64),
            received=np.array([len(times) for times in self.received], np.int64),
            starved=np.array(self.starved, np.int64),
            blocked=np.array(self.blocked, np.int64),
            waiting=waiting,
            events=sum(len(times) for times in self.visible),
            visible_at=tuple(np.array(times, np.int64) for times in self.visible),
            received_at=tuple(np.array(times, np.int64) for times in self.received),
            values=self.values,
            fork=self.fork,
        )
