"""What a run tells: occupancy and stalls from time stamps, utilisation, and the critical cycle."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from trimtab.errors import InputError
from trimtab.simulate.stream.network import Network
from trimtab.simulate.stream.run import Run


def peak_occupancy(run: Run) -> np.ndarray:
    """Return the most tokens that each FIFO held at once.

    Occupancy at time t counts tokens with ``visible <= t`` less those with ``received <= t``; the
    queue inside a simulator is another thing, since units run ahead of one another there.

    Args:
        run: a run with ``record=True``.
    """
    visible, received = _recorded(run)
    return np.array(
        [
            int(
                np.max(np.arange(1, len(seen) + 1) - np.searchsorted(taken, seen, side="right"))
                if len(seen)
                else 0
            )
            for seen, taken in zip(visible, received)
        ],
        np.int64,
    )


def occupancy_changes(run: Run, fifo: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the times at which a FIFO's occupancy changes and its value from then on."""
    visible, received = _recorded(run)
    times = np.concatenate([visible[fifo], received[fifo]])
    steps = np.concatenate([np.ones(len(visible[fifo])), -np.ones(len(received[fifo]))])
    at, index = np.unique(times, return_inverse=True)
    change = np.bincount(index, weights=steps, minlength=len(at)).astype(np.int64)
    level = np.cumsum(change)
    keep = np.concatenate([[True], level[1:] != level[:-1]]) if len(at) else np.zeros(0, bool)
    return at[keep], level[keep]


def _recorded(run: Run) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    if run.visible_at is None or run.received_at is None:
        raise InputError("This run kept no time stamps; simulate with record=True.")
    return run.visible_at, run.received_at


@dataclass(frozen=True)
class UnitReport:
    """Where a unit's time went.

    Args:
        name, kind: of the unit.
        firings: how often it fired.
        utilisation: share of the run in which it was busy (firings times interval).
        starved: cycles waited for tokens, by input FIFO.
        blocked: cycles waited for room, by output FIFO.
    """

    name: str
    kind: str
    firings: int
    utilisation: float
    starved: dict[str, int]
    blocked: dict[str, int]


def unit_reports(run: Run) -> tuple[UnitReport, ...]:
    """Attribute each unit's stalls to the FIFOs that caused them."""
    network = run.network
    reports = []
    for index, unit in enumerate(network.units):
        firings = int(run.unit_firings[index])
        reports.append(
            UnitReport(
                unit.name,
                unit.kind,
                firings,
                firings * unit.interval / run.cycles if run.cycles else 0.0,
                {network.fifos[f].name: int(run.starved[f]) for f in unit.inputs if run.starved[f]},
                {
                    network.fifos[f].name: int(run.blocked[f])
                    for f in unit.outputs
                    if run.blocked[f]
                },
            )
        )
    return tuple(reports)


def fill_latency(run: Run) -> int:
    """Return the time at which the first token reached a unit without outputs."""
    visible, _ = _recorded(run)
    ends = [
        int(visible[f][0])
        for unit in run.network.units
        if not unit.outputs
        for f in unit.inputs
        if len(visible[f])
    ]
    return min(ends, default=run.cycles)


def firing_times(run: Run) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return per unit the times at which firings had all tokens, and all room as well.

    Reconstructed from the tokens' time stamps; requires a recorded run of fixed rates.
    """
    network = run.network
    visible, received = _recorded(run)
    times = []
    for index, unit in enumerate(network.units):
        firings = int(run.unit_firings[index])
        tokens_at, room_at = np.zeros((2, firings), np.int64)
        for f in unit.inputs:
            at = token_firings(network, f, len(received[f]), producer=False)
            within = at < firings
            np.maximum.at(tokens_at, at[within], visible[f][: len(at)][within])
        for f in unit.outputs:
            fifo = network.fifos[f]
            if fifo.depth is None:
                continue
            at = token_firings(network, f, len(visible[f]) - fifo.initial, producer=True)
            token = np.arange(len(at)) + fifo.initial
            late = (token >= fifo.depth) & (at < firings)
            free = received[f][token[late] - fifo.depth] + fifo.response_latency
            np.maximum.at(room_at, at[late], free)
        pace = np.arange(firings) * unit.interval
        fired = np.maximum.accumulate(np.maximum(tokens_at, room_at) - pace) + pace
        fired = np.maximum(fired, pace)
        before = np.concatenate([[0], fired[:-1] + unit.interval]) if firings else fired
        times.append((np.maximum(tokens_at, before), fired))
    return times


def token_firings(network: Network, fifo: int, tokens: int, *, producer: bool) -> np.ndarray:
    """Return at which firing of the FIFO's producer (or consumer) each token moves."""
    entry = network.fifos[fifo]
    rate = entry.produce if producer else entry.consume
    if rate.runs == ((1, 1),):
        return np.arange(tokens)
    periods = -(-tokens // max(1, rate.tokens_per_period))
    counts = np.tile(rate.counts(rate.period), periods)
    return np.repeat(np.arange(len(counts)), counts)[:tokens]


@dataclass(frozen=True)
class CriticalCycle:
    """The loop of dependences that sets the pace, and what the whole run waited for.

    Args:
        steps: one sentence per dependence of the loop, in time order.
        cycles, firings: the loop takes so many cycles for so many firings of its first unit.
        shares: cause to share of the whole critical path (causes: a unit's interval, a FIFO's
            latency, a FIFO's depth).
    """

    steps: tuple[str, ...]
    cycles: int
    firings: int
    shares: dict[str, float]

    @property
    def pace(self) -> Fraction:
        """Cycles per firing."""
        return Fraction(self.cycles, self.firings)


def critical_cycle(run: Run, *, longest: int = 200_000) -> CriticalCycle:
    """Walk back from the end of a run along the dependences that decided each time.

    Args:
        run: a completed run with ``record=True``.
        longest: most steps to walk.
    """
    walker = _Walker(run)
    node = walker.last()
    path: list[_Link] = []
    while node is not None and len(path) < longest:
        before, cause, cycles = walker.predecessor(node)
        path.append((node, cause, cycles))
        node = before
    total = sum(cycles for _, _, cycles in path) or 1
    spent = Counter[str]()
    for _, cause, cycles in path:
        spent[cause] += cycles
    loop = _loop(path)
    first, last = loop[0][0], loop[-1][0]
    return CriticalCycle(
        steps=tuple(cause for _, cause, _ in reversed(loop[:-1])),
        cycles=sum(cycles for _, _, cycles in loop[:-1]),
        firings=max(1, first.firing - last.firing),
        shares={cause: cycles / total for cause, cycles in spent.most_common() if cycles},
    )


@dataclass(frozen=True)
class _Event:
    """A firing that is ready or has all its room, or one token that is received."""

    unit: int
    firing: int
    fired: bool
    fifo: int = -1
    token: int = -1

    @property
    def place(self) -> tuple[int, bool, int]:
        """What recurs from firing to firing."""
        return self.unit, self.fired, self.fifo


# An event, why it happened when it did, and the cycles since what decided it.
_Link = tuple[_Event, str, int]


def _loop(path: list[_Link]) -> list[_Link]:
    """The shortest stretch, from the middle on, that returns to its place at an earlier firing."""
    start = len(path) // 2
    event = path[start][0]
    for end in range(start + 1, len(path)):
        other = path[end][0]
        if other.place == event.place and other.firing < event.firing:
            return path[start : end + 1]
    return path[start : start + 2]


class _Walker:
    """Finds what decided the time of an event."""

    def __init__(self, run: Run) -> None:
        self.run, self.network = run, run.network
        self.visible, self.received = _recorded(run)
        self.times = firing_times(run)
        self.made: dict[int, np.ndarray] = {}
        self.used: dict[int, np.ndarray] = {}
        for f, fifo in enumerate(self.network.fifos):
            own = len(self.visible[f]) - fifo.initial
            self.made[f] = token_firings(self.network, f, own, producer=True)
            self.used[f] = token_firings(self.network, f, len(self.received[f]), producer=False)

    def last(self) -> _Event | None:
        u = int(np.argmax(self.run.unit_time))
        firings = int(self.run.unit_firings[u])
        return _Event(u, firings - 1, True) if firings else None

    def predecessor(self, node: _Event) -> tuple[_Event | None, str, int]:
        """Return what decided an event's time, why, and the cycles between the two."""
        if node.fifo >= 0:
            return self._received(node)
        ready, fired = (int(times[node.firing]) for times in self.times[node.unit])
        if node.fired and fired != ready:
            return self._room(node, fired)
        receives = self._receives(node.unit, node.firing)
        if not receives:
            return self._interval(node.unit, node.firing, ready)
        fifo, token = receives[-1]
        return self._received(_Event(node.unit, node.firing, False, fifo, token))

    def _receives(self, unit: int, firing: int) -> list[tuple[int, int]]:
        """The tokens that a firing takes, in order."""
        return [
            (f, token)
            for f in self.network.units[unit].inputs
            for token in range(*np.searchsorted(self.used[f], [firing, firing + 1]))
        ]

    def _interval(self, unit: int, firing: int, time: int) -> tuple[_Event | None, str, int]:
        if firing == 0:
            return None, "start", time
        entry = self.network.units[unit]
        cause = f"{entry.name} fires every {entry.interval}"
        return _Event(unit, firing - 1, True), cause, entry.interval

    def _room(self, node: _Event, time: int) -> tuple[_Event | None, str, int]:
        for f in self.network.units[node.unit].outputs:
            fifo = self.network.fifos[f]
            if fifo.depth is None:
                continue
            first, last = np.searchsorted(self.made[f], [node.firing, node.firing + 1])
            for token in range(max(first + fifo.initial, fifo.depth), last + fifo.initial):
                freed = token - fifo.depth
                if int(self.received[f][freed]) + fifo.response_latency == time:
                    reader = self.network.units[fifo.consumer].name
                    cause = f"{fifo.name} is full (depth {fifo.depth}) until {reader} reads"
                    event = _Event(fifo.consumer, int(self.used[f][freed]), False, f, freed)
                    return event, cause, fifo.response_latency
        return None, "start", time

    def _received(self, node: _Event) -> tuple[_Event | None, str, int]:
        f, token = node.fifo, node.token
        time, fifo = int(self.received[f][token]), self.network.fifos[f]
        receives = self._receives(node.unit, node.firing)
        position = receives.index((f, token))
        if position > 0:
            before = receives[position - 1]
            if int(self.received[before[0]][before[1]]) == time:
                return self._received(_Event(node.unit, node.firing, False, *before))
        elif node.firing > 0:
            interval = self.network.units[node.unit].interval
            if int(self.times[node.unit][1][node.firing - 1]) + interval == time:
                return self._interval(node.unit, node.firing, time)
        if int(self.visible[f][token]) != time or token < fifo.initial:
            return None, "start", time
        m = int(self.made[f][token - fifo.initial])
        cause = f"{self.network.units[fifo.producer].name} takes {fifo.latency} to fill {fifo.name}"
        ready, fired = (int(times[m]) for times in self.times[fifo.producer])
        if ready + fifo.latency == time:
            return _Event(fifo.producer, m, False), cause, fifo.latency
        return _Event(fifo.producer, m, True), cause, time - fired


def cycle_time(network: Network) -> Fraction:
    """Predict the cycles per firing in the inner steady state: the maximum cycle ratio.

    The max-plus graph holds, for the longest run of each port's rate, the interval of every unit,
    the latencies of every FIFO and, against the stream, its response latency over its depth.

    Raises:
        InputError: some port moves several tokens at a firing there.
    """
    moving = []
    for f, fifo in enumerate(network.fifos):
        made, used = max(fifo.produce.runs)[1], max(fifo.consume.runs)[1]
        if max(made, used) > 1:
            raise InputError(
                f"FIFO {fifo.name} moves {max(made, used)} tokens at a firing; "
                f"use critical_cycle on a recorded run."
            )
        if made and used:
            moving.append(f)
    # Nodes: a FIFO's number for the receipt of its token, then each unit's start and its end.
    edges: list[tuple[int, int, int, int]] = []
    for u, unit in enumerate(network.units):
        ready, fired = len(network.fifos) + 2 * u, len(network.fifos) + 2 * u + 1
        chain = [f for f in unit.inputs if f in moving] + [ready]
        edges += [(fired, chain[0], unit.interval, 1), (ready, fired, 0, 0)]
        edges += [(one, other, 0, 0) for one, other in itertools.pairwise(chain)]
    for f in moving:
        fifo = network.fifos[f]
        ready = len(network.fifos) + 2 * fifo.producer
        edges.append((ready, f, fifo.latency, fifo.initial))
        edges.append((ready + 1, f, fifo.send_latency, fifo.initial))
        if fifo.depth is not None:
            edges.append((f, ready + 1, fifo.response_latency, fifo.depth - fifo.initial))
    return _maximum_cycle_ratio(edges)


def _maximum_cycle_ratio(edges: list) -> Fraction:
    nodes = sorted({node for edge in edges for node in edge[:2]})
    ratio = Fraction(0)
    while True:
        cycle = _positive_cycle(nodes, edges, ratio)
        if cycle is None:
            return ratio
        tokens = sum(edge[3] for edge in cycle)
        if tokens == 0:
            raise InputError("A loop of this network holds no token: it can never fire.")
        ratio = Fraction(sum(edge[2] for edge in cycle), tokens)


def _positive_cycle(nodes: list, edges: list, ratio: Fraction) -> list | None:
    """Bellman-Ford for longest paths: a cycle that gains at this ratio, or None."""
    # Integers: weights times the ratio's denominator.
    scale, slope = ratio.denominator, ratio.numerator
    distance = dict.fromkeys(nodes, 0)
    reached: dict = {}
    changed = None
    for _ in range(len(nodes) + 1):
        changed = None
        for edge in edges:
            source, target, weight, tokens = edge
            longer = distance[source] + weight * scale - tokens * slope
            if longer > distance[target]:
                distance[target], reached[target], changed = longer, edge, target
        if changed is None:
            return None
    node = changed
    for _ in nodes:
        node = reached[node][0]
    cycle, at = [], node
    while True:
        cycle.append(reached[at])
        at = reached[at][0]
        if at == node:
            return cycle
