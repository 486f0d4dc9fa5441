"""The smallest FIFOs that keep full throughput: a linear program first, simulation to be sure.

The program places every unit on a strictly periodic schedule, firing n at ``start + n * pace``, and
asks of each FIFO (with token k made at firing a(k) and used at firing b(k)):

- data: ``start_c >= start_p + latency + max_k(a(k) pace_p - b(k) pace_c)``;
- room: ``depth * interval >= start_c - start_p + response + max_k(b(k) pace_c - a(k) pace_p)``,

where ``interval`` is the mean time between tokens. It minimises the bits of all FIFOs together. For
rates that keep step with one another (element, row, constant) this is exact; otherwise it is where
the search by simulation begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.errors import InputError
from trimtab.simulate.stream.analysis import token_firings
from trimtab.simulate.stream.deadlock import grow
from trimtab.simulate.stream.engine import Fork, simulate, sweep
from trimtab.simulate.stream.network import Fifo, Network

_PATTERN_TOKENS = 1 << 16


@dataclass(frozen=True)
class Sizing:
    """FIFO depths with the proof that they suffice.

    Args:
        network: the network with these depths.
        cycles: of a simulated run with them.
        unbounded_cycles: of a run without limits: the target.
        aligned: the linear program alone reached the target.
        tight: lowering any one depth by one costs cycles (each was tried).
    """

    network: Network
    cycles: int
    unbounded_cycles: int
    aligned: bool
    tight: bool

    @property
    def depths(self) -> dict[str, int]:
        """Depth by FIFO name."""
        return {fifo.name: fifo.depth or 0 for fifo in self.network.fifos}


def size_fifos(network: Network, *, slack: float = 0.0, fork: Fork = "atomic") -> Sizing:
    """Find small FIFO depths at which a network is as fast as with unlimited ones.

    Args:
        network: units of fixed rates; its depths are ignored.
        slack: cycles that may be lost, as a share of the unbounded run.
        fork: see :func:`trimtab.simulate.stream.engine.simulate`.

    Returns:
        Depths that were verified by simulation.

    Raises:
        InputError: the network cannot complete at any depth.
    """
    free = simulate(network.unbounded(), fork=fork)
    if not free.completed:
        raise InputError("This network cannot complete at any depth: a loop lacks initial tokens.")
    target = free.cycles + math.floor(slack * free.cycles)

    def fast_enough(depths: Sequence[Sequence[int]]) -> np.ndarray:
        cycles = sweep(network, depths, fork=fork)
        return (cycles >= 0) & (cycles <= target)

    depths = linear_program(network)
    aligned = bool(fast_enough([depths])[0])
    if not aligned:
        depths = _enlarge(network, depths, target, fork)
    depths = _trim(network, depths, fast_enough)
    sized = network.with_depths(depths)
    cycles = simulate(sized, fork=fork).cycles
    return Sizing(sized, cycles, free.cycles, aligned, True)


# ------------------------------------------------------------------------- linear program
def linear_program(network: Network) -> list[int]:
    """Return the depths of the periodic schedule with the fewest FIFO bits.

    Args:
        network: units of fixed rates.

    Returns:
        One depth per FIFO; exact for aligned rates, a first guess otherwise.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    fifos = network.fifos
    if not fifos:
        return []
    paces = _paces(network)
    offsets = [_offsets(network, f, paces) for f in range(len(fifos))]
    intervals = [_token_interval(network, fifo, paces) for fifo in fifos]
    units, count = len(network.units), len(fifos)
    rows, columns, values, lower = [], [], [], []
    for f, fifo in enumerate(fifos):
        if fifo.initial == 0:
            rows += [2 * f] * 2
            columns += [fifo.consumer, fifo.producer]
            values += [1.0, -1.0] if fifo.consumer != fifo.producer else [0.0, 0.0]
            lower.append(offsets[f][0] if fifo.consumer != fifo.producer else -np.inf)
        else:
            rows += [2 * f] * 2
            columns += [fifo.consumer, fifo.producer]
            values += [1.0, -1.0]
            lower.append(-np.inf)
        rows += [2 * f + 1] * 3
        columns += [units + f, fifo.consumer, fifo.producer]
        same = fifo.consumer == fifo.producer
        values += [intervals[f], 0.0 if same else -1.0, 0.0 if same else 1.0]
        lower.append(offsets[f][1] + fifo.initial * intervals[f])
    matrix = coo_array((values, (rows, columns)), shape=(2 * count, units + count)).tocsr()
    smallest = [_smallest_depth(fifo) for fifo in fifos]
    # Of equally small schedules the earliest: start times cost next to nothing.
    weights = np.concatenate([np.full(units, 1e-6), [max(1, fifo.bits) for fifo in fifos]])
    least = np.concatenate([np.zeros(units), smallest])
    for _ in range(2):
        solution = milp(
            weights,
            constraints=LinearConstraint(matrix, np.array(lower), np.inf),  # type: ignore[arg-type]
            bounds=Bounds(least, np.inf),  # type: ignore[arg-type]
        )
        if solution.x is None:
            return smallest
        depths = np.ceil(solution.x[units:] - 1e-6)
        # Slow FIFOs get whole places first; the others may then profit from what that gives away.
        slow = np.array(intervals) != 1
        if not np.any(slow & (depths > solution.x[units:] + 1e-6)):
            break
        least[units:] = np.where(slow, depths, smallest)
    return [int(max(low, depth)) for low, depth in zip(smallest, depths)]


def _smallest_depth(fifo: Fifo) -> int:
    most = max(tokens for rate in (fifo.produce, fifo.consume) for _, tokens in rate.runs)
    return max(1, most, fifo.initial)


def _paces(network: Network) -> list[float]:
    horizon = max(
        ((unit.firings - unit.warmup) * unit.interval for unit in network.units), default=1
    )
    return [horizon / max(1, unit.firings - unit.warmup) for unit in network.units]


def _offsets(network: Network, index: int, paces: list[float]) -> tuple[float, float]:
    """The least start differences for data, and for room apart from the depth's share.

    Over one joint repetition of both rates.
    """
    fifo = network.fifos[index]
    latency = max(fifo.latency, fifo.send_latency)
    joint = math.lcm(max(1, fifo.produce.tokens_per_period), max(1, fifo.consume.tokens_per_period))
    tokens = int(min(network.tokens(fifo) - fifo.initial, joint, _PATTERN_TOKENS))
    if tokens <= 0:
        return float(latency), float(fifo.response_latency)
    made = token_firings(network, index, tokens, producer=True) * paces[fifo.producer]
    used = token_firings(network, index, tokens, producer=False) * paces[fifo.consumer]
    spread = made - used
    return latency + float(spread.max()), fifo.response_latency - float(spread.min())


def _token_interval(network: Network, fifo: Fifo, paces: list[float]) -> float:
    rate = fifo.produce
    if rate.tokens_per_period == 0:
        return 1.0
    return paces[fifo.producer] * rate.period / rate.tokens_per_period


# ------------------------------------------------------------------------------ simulation
def _enlarge(network: Network, depths: list[int], target: int, fork: Fork) -> list[int]:
    """Deepen FIFOs until the target is met: first to complete, then wherever producers wait."""
    bits = [max(1, fifo.bits) for fifo in network.fifos]
    limits = [max(1, network.tokens(fifo)) for fifo in network.fifos]
    depths = [min(depth, limit) for depth, limit in zip(depths, limits)]
    grown, completed = grow(network.with_depths(depths), bits)
    if not completed:
        raise InputError("This network cannot complete at any depth: a loop lacks initial tokens.")
    depths = [depth or 1 for depth in grown]
    while True:
        run = simulate(network.with_depths(depths), fork=fork)
        if run.completed and run.cycles <= target:
            return depths
        full = [f for f in range(len(depths)) if run.blocked[f] and depths[f] < limits[f]]
        if not full:
            full = [f for f in range(len(depths)) if depths[f] < limits[f]]
        if not full:
            return depths
        depths = _deeper(depths, full, limits)


def _deeper(depths: list[int], which: list[int], limits: list[int]) -> list[int]:
    return [
        min(limits[f], depth + max(1, depth // 2)) if f in which else depth
        for f, depth in enumerate(depths)
    ]


def _trim(
    network: Network,
    depths: list[int],
    fast_enough: Callable[[Sequence[Sequence[int]]], np.ndarray],
) -> list[int]:
    """Lower depths, widest FIFOs first, until none can lose a place without loss of speed."""
    smallest = [_smallest_depth(fifo) for fifo in network.fifos]
    bits = [max(1, fifo.bits) for fifo in network.fifos]
    depths = list(depths)
    while True:
        able = [f for f, depth in enumerate(depths) if depth > smallest[f]]
        if not able:
            return depths
        trials = [[d - (f == g) for g, d in enumerate(depths)] for f in able]
        spare = [f for f, ok in zip(able, fast_enough(trials)) if ok]
        if not spare:
            return depths
        # One after another: what one FIFO gives up, the next may then need.
        for f in sorted(spare, key=lambda f: -bits[f] * (depths[f] - smallest[f])):
            lower = [d - (f == g) for g, d in enumerate(depths)]
            if fast_enough([lower])[0]:
                depths[f] = _least(depths, f, smallest[f], fast_enough)


def _least(
    depths: list[int],
    fifo: int,
    least: int,
    fast_enough: Callable[[Sequence[Sequence[int]]], np.ndarray],
) -> int:
    """The smallest sufficient depth of one FIFO, eight candidates at a time."""
    low, high = least - 1, depths[fifo] - 1  # `high` is known to suffice, `low` is taken to fail
    while high - low > 1:
        step = max(1, (high - low) // 9)
        points = sorted({min(high - 1, low + step * (i + 1)) for i in range(8)})
        trials = [[point if g == fifo else d for g, d in enumerate(depths)] for point in points]
        enough = fast_enough(trials)
        passing = [point for point, ok in zip(points, enough) if ok]
        failing = [point for point, ok in zip(points, enough) if not ok]
        high = min(passing, default=high)
        low = max([point for point in failing if point < high], default=low)
    return high


# ----------------------------------------------------------------------------------- Pareto
@dataclass(frozen=True)
class ParetoPoint:
    """One configuration that no other beats in both respects."""

    depths: tuple[int, ...]
    fifo_bits: int
    cycles: int


def pareto_front(
    network: Network, *, configurations: int = 1024, seed: int = 0, fork: Fork = "atomic"
) -> tuple[ParetoPoint, ...]:
    """Trade FIFO bits for cycles: sample depths below the full-throughput ones and keep the best.

    Args:
        network: with the depths of full throughput (see :func:`size_fifos`).
        configurations: how many to simulate.
        seed: of the sampling.
        fork: see :func:`trimtab.simulate.stream.engine.simulate`.

    Returns:
        Points in rising order of bits and falling order of cycles.
    """
    if any(depth is None for depth in network.depths):
        raise InputError("A Pareto front starts from bounded FIFOs; call size_fifos first.")
    full = np.array(network.depths, np.int64)
    least = np.array([_smallest_depth(fifo) for fifo in network.fifos])
    random = np.random.default_rng(seed)
    # A common level of shrinkage per configuration, plus its own draw per FIFO.
    level = np.linspace(0, 1, configurations)[:, None]
    share = np.clip(level + random.normal(0, 0.15, (configurations, len(full))), 0, 1)
    table = np.maximum(least, np.rint(least + share * (full - least))).astype(np.int64)
    table[-1] = full
    cycles = sweep(network, table, fork=fork)
    bits = table @ np.array([fifo.bits for fifo in network.fifos], np.int64)
    front: list[ParetoPoint] = []
    for index in np.lexsort((cycles, bits)):
        if cycles[index] < 0 or (front and cycles[index] >= front[-1].cycles):
            continue
        front.append(
            ParetoPoint(tuple(table[index].tolist()), int(bits[index]), int(cycles[index]))
        )
    return tuple(front)
