"""Why nothing moves any more: the cycle of waiting units, its full FIFOs, and the smallest fix."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.errors import InputError
from trimtab.kernels.stream import stream_engine_available
from trimtab.simulate.stream.engine import simulate
from trimtab.simulate.stream.network import Network
from trimtab.simulate.stream.run import Blocked, Run


@dataclass(frozen=True)
class Deadlock:
    """A cycle of units each of which waits for the next.

    Args:
        network: what was run.
        cycle_time: the time at which the last unit came to rest.
        cycle: the waits around the cycle; the last one waits for the first. When the network just
            ran out of tokens, the chain of waits that ends at a finished unit.
        circular: whether ``cycle`` is a cycle.
        fork: as in the run.
    """

    network: Network
    cycle_time: int
    cycle: tuple[Blocked, ...]
    circular: bool
    fork: str

    @property
    def units(self) -> tuple[str, ...]:
        """Names of the units of the cycle."""
        return tuple(self.network.units[wait.unit].name for wait in self.cycle)

    @property
    def full_fifos(self) -> tuple[str, ...]:
        """Names of the full FIFOs of the cycle."""
        return tuple(self.network.fifos[wait.fifo].name for wait in self.cycle if wait.full)

    def fix(self) -> Fix:
        """Find the smallest change of depths that lets the network complete.

        Raises:
            InputError: no FIFO of the cycle is full: more room does not help.
        """
        return smallest_fix(self)

    def __str__(self) -> str:
        lines = [f"Deadlock at cycle {self.cycle_time}:"]
        for wait in self.cycle:
            unit, fifo = self.network.units[wait.unit].name, self.network.fifos[wait.fifo]
            if wait.full:
                other = self.network.units[fifo.consumer].name
                lines.append(
                    f"  {unit} waits for room in '{fifo.name}', full at depth {fifo.depth}, "
                    f"which {other} does not read,"
                )
            else:
                other = self.network.units[fifo.producer].name
                lines.append(f"  {unit} waits for a token of {other} in '{fifo.name}',")
        end = "and so round." if self.circular else "which has ended."
        return "\n".join([*lines, f"  {end}"])


@dataclass(frozen=True)
class Fix:
    """The smallest change of depths that lets a network complete.

    Args:
        depths: FIFO name to its new depth.
        added_places, added_bits: what the change costs.
    """

    depths: dict[str, int]
    added_places: int
    added_bits: int

    def __str__(self) -> str:
        changes = ", ".join(f"'{name}' to depth {depth}" for name, depth in self.depths.items())
        return f"Raise {changes} ({self.added_places} places, {self.added_bits} bits more)."


def explain_deadlock(run: Run) -> Deadlock:
    """Name the cycle of waiting units in a run that did not complete.

    Raises:
        InputError: the run completed.
    """
    if run.completed:
        raise InputError("This run completed; there is no deadlock to explain.")
    waits = {wait.unit: wait for wait in run.waiting}
    fallback: tuple[Blocked, ...] = ()
    for origin in waits:
        path: list[int] = []
        unit = origin
        while unit in waits and unit not in path:
            path.append(unit)
            fifo = run.network.fifos[waits[unit].fifo]
            unit = fifo.consumer if waits[unit].full else fifo.producer
        chain = tuple(waits[u] for u in path)
        if unit in path:
            cycle = chain[path.index(unit) :]
            if any(wait.full for wait in cycle):
                return Deadlock(run.network, run.cycles, cycle, True, run.fork)
            fallback = fallback or cycle
        elif not fallback:
            fallback = chain
    circular = bool(fallback) and _next_unit(run.network, fallback[-1]) == fallback[0].unit
    return Deadlock(run.network, run.cycles, fallback, circular, run.fork)


def _next_unit(network: Network, wait: Blocked) -> int:
    fifo = network.fifos[wait.fifo]
    return fifo.consumer if wait.full else fifo.producer


def smallest_fix(deadlock: Deadlock) -> Fix:
    """See :meth:`Deadlock.fix`."""
    network = deadlock.network
    candidates = [wait.fifo for wait in deadlock.cycle if wait.full]
    if not candidates:
        raise InputError(
            "No FIFO of this deadlock is full, so no depth frees it: a loop lacks initial tokens, "
            "or a producer fires too seldom."
        )
    fixes = [_fix_with(network, fifo, deadlock.fork) for fifo in candidates]
    return min(fixes, key=lambda fix: (fix.added_bits, fix.added_places))


def _fix_with(network: Network, candidate: int, fork: str) -> Fix:
    """Grow one FIFO as far as it helps, and others only where another cycle closes."""
    bits = [fifo.bits for fifo in network.fifos]
    alone = [1 if index == candidate else -1 for index in range(len(bits))]
    depths, completed = grow(network, alone)
    if not completed:
        weights = [fifo_bits * 1000 for fifo_bits in bits]
        weights[candidate] = 0
        depths, completed = grow(network, weights)
    if not completed:
        raise InputError("This network cannot complete at any depth: a loop lacks initial tokens.")
    if fork == "sequential":
        depths = _lower(network, list(depths), fork)
    return _difference(network, depths)


def _lower(network: Network, depths: list[int | None], fork: str) -> tuple[int | None, ...]:
    """A firing that is served in steps may need less room than a whole one."""
    for index, fifo in enumerate(network.fifos):
        while depths[index] is not None and fifo.depth is not None and depths[index] > fifo.depth:  # type: ignore[operator]
            trial = list(depths)
            trial[index] -= 1  # type: ignore[operator]
            if simulate(network.with_depths(trial), fork=fork).deadlocked:  # type: ignore[arg-type]
                break
            depths = trial
    return tuple(depths)


def _difference(network: Network, depths: tuple[int | None, ...]) -> Fix:
    changed = {
        fifo.name: depth
        for fifo, depth in zip(network.fifos, depths)
        if depth is not None and depth != fifo.depth
    }
    added = [
        (changed.get(fifo.name, fifo.depth) or 0) - (fifo.depth or 0) for fifo in network.fifos
    ]
    bits = sum(places * fifo.bits for places, fifo in zip(added, network.fifos))
    return Fix(changed, sum(added), bits)


def grow(network: Network, cost: list[int]) -> tuple[tuple[int | None, ...], bool]:
    """Deepen full FIFOs of waiting cycles, cheapest first, by single places, until all completes.

    Args:
        network: units of fixed rates.
        cost: of one place of each FIFO; negative forbids.

    Returns:
        Depths, and whether the network completes with them.
    """
    if stream_engine_available():
        from trimtab.simulate.stream.native import grow_native

        growth = grow_native(network, cost)
        return growth.depths, growth.completed
    while True:
        run = simulate(network)
        if run.completed:
            return network.depths, True
        full = [wait.fifo for wait in explain_deadlock(run).cycle if wait.full]
        allowed = [fifo for fifo in full if cost[fifo] >= 0]
        if not allowed:
            return network.depths, False
        cheapest = min(allowed, key=lambda fifo: cost[fifo])
        name = network.fifos[cheapest].name
        network = network.with_depths({name: (network.fifos[cheapest].depth or 0) + 1})
