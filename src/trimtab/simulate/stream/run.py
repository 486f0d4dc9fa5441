"""What a simulated run leaves behind, whichever engine ran it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trimtab.simulate.stream.network import Network

STARVED, FULL = 1, 2


@dataclass(frozen=True)
class Blocked:
    """A unit that can never fire again.

    Args:
        unit: index of the unit.
        fifo: index of the FIFO that it waits for.
        full: it waits for room there; otherwise for a token.
    """

    unit: int
    fifo: int
    full: bool


@dataclass(frozen=True)
class Run:
    """The outcome of simulating a network.

    Args:
        network: what was run.
        cycles: the largest final time of a unit.
        completed: every unit fired as often as it should.
        unit_time: final time of each unit.
        unit_firings: firings of each unit.
        sent, received: tokens per FIFO.
        starved: cycles that the consumer of a FIFO waited for its tokens.
        blocked: cycles that the producer of a FIFO waited for room.
        waiting: for an incomplete run, what each unfinished unit waits for.
        events: tokens that were simulated one by one.
        skipped: tokens that exact fast-forward stepped over.
        visible_at, received_at: per FIFO the times of all tokens, if the run was recorded.
        values: tokens that reached units without outputs, by unit name (co-simulation only).
        fork: ``"atomic"`` or ``"sequential"``.
    """

    network: Network
    cycles: int
    completed: bool
    unit_time: np.ndarray
    unit_firings: np.ndarray
    sent: np.ndarray
    received: np.ndarray
    starved: np.ndarray
    blocked: np.ndarray
    waiting: tuple[Blocked, ...] = ()
    events: int = 0
    skipped: int = 0
    visible_at: tuple[np.ndarray, ...] | None = None
    received_at: tuple[np.ndarray, ...] | None = None
    values: dict[str, list[Any]] = field(default_factory=dict)
    fork: str = "atomic"

    @property
    def deadlocked(self) -> bool:
        """Whether units still had work when nothing could move any more."""
        return not self.completed

    @property
    def efficiency(self) -> float:
        """Ideal cycles of the busiest unit, as a share of the cycles taken; 0 in a deadlock."""
        if not self.completed:
            return 0.0
        return self.network.ideal_cycles / self.cycles if self.cycles else 1.0
