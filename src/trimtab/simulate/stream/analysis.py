"""What a run tells: occupancy and stalls from time stamps, utilisation, and the critical cycle."""

from __future__ import annotations

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
    path: list[tuple[tuple[int, int, str], str, int]] = []
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
        firings=max(1, first[1] - last[1]),
        shares={cause: cycles / total for cause, cycles in spent.most_common() if cycles},
    )


def _loop(
    path: list[tuple[tuple[int, int, str], str, int]],
) -> list[tuple[tuple[int, int, str], str, int]]:
    """The shortest stretch, from the middle on, that returns to its unit at a later firing."""
    start = len(path) // 2
    unit, firing, point = path[start][0]
    for end in range(start + 1, len(path)):
        other = path[end][0]
        if (other[0], other[2]) == (unit, point) and other[1] < firing:
            return path[start : end + 1]
    return path[start : start + 2]


class _Walker:
    """Finds what decided the time of an event; events are (unit, firing, point)."""

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

    def last(self) -> tuple[int, int, str] | None:
        u = int(np.argmax(self.run.unit_time))
        firings = int(self.run.unit_firings[u])
        return (u, firings - 1, "fired") if firings else None

    def predecessor(
        self, node: tuple[int, int, str]
    ) -> tuple[tuple[int, int, str] | None, str, int]:
        u, n, point = node
        ready, fired = self.times[u][0][n], self.times[u][1][n]
        if point == "fired":
            if fired == ready:
                return self.predecessor((u, n, "ready"))
            return self._room(u, n, int(fired))
        return self._tokens(u, n, int(ready))

    def _room(self, u: int, n: int, time: int) -> tuple[tuple[int, int, str] | None, str, int]:
        for f in self.network.units[u].outputs:
            fifo = self.network.fifos[f]
            if fifo.depth is None:
                continue
            first, last = np.searchsorted(self.made[f], [n, n + 1]) + fifo.initial
            for token in range(max(first, fifo.depth), last):
                freed = int(self.received[f][token - fifo.depth])
                if freed + fifo.response_latency == time:
                    at = int(self.used[f][token - fifo.depth])
                    reader = self.network.units[fifo.consumer].name
                    cause = f"{fifo.name} is full (depth {fifo.depth}) until {reader} reads"
                    return (fifo.consumer, at, "ready"), cause, fifo.response_latency
        return None, "start", time

    def _tokens(self, u: int, n: int, time: int) -> tuple[tuple[int, int, str] | None, str, int]:
        unit = self.network.units[u]
        if n > 0 and self.times[u][1][n - 1] + unit.interval == time:
            cause = f"{unit.name} fires every {unit.interval}"
            return (u, n - 1, "fired"), cause, unit.interval
        for f in unit.inputs:
            fifo = self.network.fifos[f]
            first, last = np.searchsorted(self.used[f], [n, n + 1])
            for token in range(first, last):
                if int(self.visible[f][token]) != time or token < fifo.initial:
                    continue
                m = int(self.made[f][token - fifo.initial])
                maker = self.network.units[fifo.producer].name
                cause = f"{maker} takes {fifo.latency} to fill {fifo.name}"
                ready, fired = self.times[fifo.producer][0][m], self.times[fifo.producer][1][m]
                if ready + fifo.latency == time:
                    return (fifo.producer, m, "ready"), cause, fifo.latency
                return (fifo.producer, m, "fired"), cause, time - int(fired)
        return None, "start", time


def cycle_time(network: Network) -> Fraction:
    """Predict the cycles per firing in the inner steady state: the maximum cycle ratio.

    The max-plus graph holds, for the longest run of each port's rate, the interval of every unit,
    the latencies of every FIFO and, against the stream, its response latency over its depth.

    Raises:
        InputError: some port moves several tokens at a firing there.
    """
    edges: list[tuple[tuple[int, int], tuple[int, int], int, int]] = []
    READY, FIRED = 0, 1
    for u, unit in enumerate(network.units):
        edges += [((u, READY), (u, FIRED), 0, 0), ((u, FIRED), (u, READY), unit.interval, 1)]
    for fifo in network.fifos:
        made = max(fifo.produce.runs)[1]
        used = max(fifo.consume.runs)[1]
        if max(made, used) > 1:
            raise InputError(
                f"FIFO {fifo.name} moves {max(made, used)} tokens at a firing; "
                f"use critical_cycle on a recorded run."
            )
        if not made or not used:
            continue
        p, c = fifo.producer, fifo.consumer
        edges.append(((p, READY), (c, READY), fifo.latency, fifo.initial))
        edges.append(((p, FIRED), (c, READY), fifo.send_latency, fifo.initial))
        if fifo.depth is not None:
            places = fifo.depth - fifo.initial
            edges.append(((c, READY), (p, FIRED), fifo.response_latency, places))
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
