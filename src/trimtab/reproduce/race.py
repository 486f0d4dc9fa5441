"""Races: callables that do the same work, timed interleaved in one process."""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from trimtab.errors import InputError

# Seconds of one call -> the reported figure, for units that need no amount of work.
_DURATIONS = {"s": 1.0, "ms": 1e3, "us": 1e6}
# Below this a sample is dominated by the clock and by Python's call.
_SHORTEST_SAMPLE_S = 0.02


@dataclass(frozen=True)
class Contestant:
    """What one contestant reached, in the race's unit.

    Args:
        name: how tables call it.
        median: the middle of its samples.
        low: lower quartile.
        high: upper quartile.
        best: the best sample.
        ratio: how many times better the first contestant is than this one: the median of the
            ratios within a round, so that a drifting machine cancels out.
        ratio_low: lower quartile of those ratios.
        ratio_high: upper quartile of those ratios.
        samples: number of samples.
        calls: calls timed together in one sample.
        note: set-up that a reader must know (precision, threads, compiled how).
    """

    name: str
    median: float
    low: float
    high: float
    best: float
    ratio: float
    ratio_low: float
    ratio_high: float
    samples: int
    calls: int
    note: str = ""

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        return (self.high - self.low) / 2 / self.median if self.median else 0.0


@dataclass(frozen=True)
class Outcome:
    """A finished race. The first contestant is ours; the others are what it is compared with."""

    race: str
    unit: str
    better: Literal["higher", "lower"]
    contestants: tuple[Contestant, ...]
    load_before: float | None
    load_after: float | None
    values: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Contestant:
        for contestant in self.contestants:
            if contestant.name == name:
                return contestant
        raise InputError(f"Race {self.race!r} has no contestant {name!r}.")

    def ratio(self, name: str) -> float:
        """How many times better the first contestant is than the one named."""
        return self[name].ratio


@dataclass
class Race:
    """A comparison of callables that do the same work.

    Args:
        name: the case, such as ``"decode, context 512"``.
        unit: ``"s"``, ``"ms"`` or ``"us"`` a call; any other unit is a rate: ``work`` a second.
        work: how much of the unit one call does, such as 32 for 32 tokens, for a rate.
        values: facts of the case for the results file (length, dtype, sparsity).
    """

    name: str
    unit: str = "ms"
    work: float = 1.0
    values: dict[str, Any] = field(default_factory=dict)
    _entries: list[tuple[str, Callable[[], Any], str]] = field(default_factory=list, init=False)

    def enter(self, name: str, call: Callable[[], Any], note: str = "") -> Race:
        """Add a contestant. The first one is ours; ratios compare it with the others.

        Args:
            name: how tables call it.
            call: does the work once and returns its result, which the race waits for.
            note: set-up that a reader must know.
        """
        if any(name == other for other, _, _ in self._entries):
            raise InputError(f"Race {self.name!r} has two contestants called {name!r}.")
        self._entries.append((name, call, note))
        return self

    def run(
        self,
        *,
        rounds: int = 21,
        warmup: int = 2,
        seconds: float = 20.0,
        quick: bool = False,
        seed: int = 0,
    ) -> Outcome:
        """Warm every contestant up, then time them in rounds, in a new order each round.

        Args:
            rounds: samples of each contestant.
            warmup: calls before the first sample; the first one compiles.
            seconds: stop early (but not before five rounds) when this time is spent.
            quick: five rounds, to see that the race runs.
            seed: of the orders.
        """
        if not self._entries:
            raise InputError(f"Race {self.name!r} has no contestant; call enter() first.")
        rounds = 5 if quick else rounds
        before = _load()
        calls = [_warm(call, warmup) for _, call, _ in self._entries]
        order = list(range(len(self._entries)))
        shuffle = random.Random(seed)
        samples: list[list[float]] = [[] for _ in order]
        start = time.perf_counter()
        for done in range(rounds):
            shuffle.shuffle(order)
            for index in order:
                samples[index].append(_sample(self._entries[index][1], calls[index]))
            if done >= 4 and time.perf_counter() - start > seconds:
                break
        return self._outcome(samples, calls, before)

    def _outcome(
        self, samples: Sequence[Sequence[float]], calls: Sequence[int], before: float | None
    ) -> Outcome:
        better: Literal["higher", "lower"] = "lower" if self.unit in _DURATIONS else "higher"
        contestants = []
        for (name, _, note), durations, count in zip(self._entries, samples, calls):
            figures = [self._figure(duration) for duration in durations]
            ratios = [theirs / ours for ours, theirs in zip(samples[0], durations)]
            low, median, high = _quartiles(figures)
            ratio_low, ratio, ratio_high = _quartiles(ratios)
            contestants.append(
                Contestant(
                    name=name,
                    median=median,
                    low=low,
                    high=high,
                    best=min(figures) if better == "lower" else max(figures),
                    ratio=ratio,
                    ratio_low=ratio_low,
                    ratio_high=ratio_high,
                    samples=len(figures),
                    calls=count,
                    note=note,
                )
            )
        return Outcome(
            race=self.name,
            unit=self.unit,
            better=better,
            contestants=tuple(contestants),
            load_before=before,
            load_after=_load(),
            values=dict(self.values),
        )

    def _figure(self, duration_s: float) -> float:
        scale = _DURATIONS.get(self.unit)
        return duration_s * scale if scale else self.work / duration_s


def _warm(call: Callable[[], Any], warmup: int) -> int:
    """Compile and warm up; return how many calls make a sample that a clock can time."""
    for _ in range(max(warmup, 1)):
        _wait(call())
    once = _sample(call, 1)
    return max(1, round(_SHORTEST_SAMPLE_S / max(once, 1e-9)))


def _sample(call: Callable[[], Any], calls: int) -> float:
    """Return the seconds of one call, timed over several."""
    start = time.perf_counter()
    for _ in range(calls):
        # Waiting inside the loop, or calls that return early would overlap and look faster.
        _wait(call())
    return (time.perf_counter() - start) / calls


def _wait(result: Any) -> None:
    """Wait for asynchronous results; a race without JAX does not import it."""
    jax = sys.modules.get("jax")
    if jax is not None:
        jax.block_until_ready(result)


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):  # not every platform has one
        return None
