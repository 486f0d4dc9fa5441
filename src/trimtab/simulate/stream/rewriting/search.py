"""Search for the rewrites that make a program cheapest to stream; nothing is told in advance.

Best first over the programs that the rules reach, by total FIFO bits (of the linear program) and
then by divisions. The result is sized and verified by simulation like any other network.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from trimtab.errors import TrimtabError
from trimtab.simulate.stream.dataflow import Dataflow
from trimtab.simulate.stream.lowering.lower import lower
from trimtab.simulate.stream.lowering.primitives import Hardware
from trimtab.simulate.stream.network import Network
from trimtab.simulate.stream.rewriting.factors import (
    merge_equal,
    move_factor_out,
    read_again,
    split_sum,
)
from trimtab.simulate.stream.rewriting.running import run_statistic_beside, run_variance_beside
from trimtab.simulate.stream.sizing import linear_program

Rule = Callable[[Dataflow], Iterator[tuple[str, Dataflow]]]

# A rule yields a description and the rewritten program for each place where it applies.
RULES: tuple[Rule, ...] = (
    move_factor_out,
    run_statistic_beside,
    run_variance_beside,
    split_sum,
    merge_equal,
)


@dataclass(frozen=True)
class Candidate:
    """A program with its cost.

    Args:
        flow: the program.
        network: with the depths of the linear program.
        steps: descriptions of the rewrites that led here.
    """

    flow: Dataflow
    network: Network
    steps: tuple[str, ...]

    @property
    def cost(self) -> tuple[int, int, int]:
        """FIFO bits, then divisions, then operations."""
        divisions = sum(unit.divisions * unit.firings for unit in self.network.units)
        return self.network.fifo_bits, divisions, len(self.flow.operations)


@dataclass(frozen=True)
class Found:
    """The outcome of a search.

    Args:
        original, best: before and after; the same if nothing helps.
        explored: how many programs were priced.
    """

    original: Candidate
    best: Candidate
    explored: int


def find_rewrites(
    flow: Dataflow,
    hardware: Hardware | None = None,
    *,
    second_pass: bool = False,
    bitwise: bool = False,
    expansions: int = 24,
) -> Found:
    """Search for the cheapest equivalent program.

    Args:
        flow: the program.
        hardware: latencies.
        second_pass: allow arguments to be read from memory twice in place of a FIFO.
        bitwise: allow nothing that changes rounding (so only equal operations are merged).
        expansions: how many programs to take further.
    """
    rules: tuple[Rule, ...] = (merge_equal,) if bitwise else RULES
    if second_pass:
        rules = (*rules, read_again)
    start = _priced(flow, hardware, ())
    order = itertools.count()
    frontier = [(start.cost, next(order), start)]
    seen = {_signature(flow)}
    best, explored = start, 1
    for _ in range(expansions):
        if not frontier:
            break
        _, _, current = heapq.heappop(frontier)
        for rule in rules:
            for step, rewritten in rule(current.flow):
                signature = _signature(rewritten)
                if signature in seen:
                    continue
                seen.add(signature)
                try:
                    candidate = _priced(rewritten, hardware, (*current.steps, step))
                except TrimtabError:
                    continue  # no network: a place where the rewrite does not fit
                explored += 1
                heapq.heappush(frontier, (candidate.cost, next(order), candidate))
                best = min(best, candidate, key=lambda c: c.cost)
    return Found(start, best, explored)


def _priced(flow: Dataflow, hardware: Hardware | None, steps: tuple[str, ...]) -> Candidate:
    network = lower(flow, hardware)
    return Candidate(flow, network.with_depths(linear_program(network)), steps)


def _signature(flow: Dataflow) -> tuple:
    """Equal for programs of the same operations on the same operands."""
    number: dict[int, object] = {id(v): i for i, v in enumerate(flow.inputs)}
    names = []
    for operation in flow.operations:
        operands = tuple(
            number.get(id(v), str(getattr(v, "value", v.shape))[:40]) for v in operation.inputs
        )
        key = (operation.name, operands)
        names.append(key)
        number.update((id(v), (len(names), i)) for i, v in enumerate(operation.outputs))
    return tuple(names)
