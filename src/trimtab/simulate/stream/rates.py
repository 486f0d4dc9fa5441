"""How many tokens a port moves at each firing: run-length lists that repeat for ever."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.errors import InputError


@dataclass(frozen=True)
class Rate:
    """Tokens per firing of one port, as runs ``(firings, tokens per firing)`` that repeat.

    Args:
        runs: the list; ``((1, 1),)`` is one token at every firing.
    """

    runs: tuple[tuple[int, int], ...] = ((1, 1),)

    def __post_init__(self) -> None:
        if not self.runs or any(length < 1 or tokens < 0 for length, tokens in self.runs):
            raise InputError(
                f"A rate needs runs of at least one firing with no negative token count, "
                f"not {self.runs!r}."
            )

    @property
    def period(self) -> int:
        """Firings after which the list repeats."""
        return sum(length for length, _ in self.runs)

    @property
    def tokens_per_period(self) -> int:
        """Tokens that move in one period."""
        return sum(length * tokens for length, tokens in self.runs)

    def tokens(self, firings: int) -> int:
        """Return how many tokens the first ``firings`` firings move."""
        cycles, rest = divmod(firings, self.period)
        total = cycles * self.tokens_per_period
        for length, tokens in self.runs:
            total += min(rest, length) * tokens
            rest -= min(rest, length)
        return total

    def firings_for(self, tokens: int) -> int | None:
        """Return the largest number of firings that ``tokens`` tokens suffice for.

        ``None`` when the port never asks for more.
        """
        per_period = self.tokens_per_period
        if per_period == 0:
            return None
        cycles, rest = divmod(tokens, per_period)
        firings = cycles * self.period
        for length, count in self.runs:
            if count == 0:
                firings += length
                continue
            affordable = min(length, rest // count)
            firings += affordable
            rest -= affordable * count
            if affordable < length:
                break
        return firings

    def counts(self, firings: int) -> np.ndarray:
        """Return the tokens moved at each of the first ``firings`` firings."""
        one = np.repeat([count for _, count in self.runs], [length for length, _ in self.runs])
        if len(one) == 1:
            return np.full(firings, one[0], np.int64)
        return np.tile(one, -(-firings // len(one)))[:firings]


EVERY = Rate()


def first_of(period: int) -> Rate:
    """One token at the first of every ``period`` firings: an operand that is then held."""
    return EVERY if period == 1 else Rate(((1, 1), (period - 1, 0)))


def last_of(period: int) -> Rate:
    """One token at the last of every ``period`` firings: the result of a reduction."""
    return EVERY if period == 1 else Rate(((period - 1, 0), (1, 1)))


def leading(active: int, period: int) -> Rate:
    """One token at each of the first ``active`` of every ``period`` firings."""
    return EVERY if active == period else Rate(((active, 1), (period - active, 0)))


def trailing(active: int, period: int) -> Rate:
    """One token at each of the last ``active`` of every ``period`` firings."""
    return EVERY if active == period else Rate(((period - active, 0), (active, 1)))


def traced(counts: np.ndarray | Sequence[int]) -> Rate:
    """Compress the tokens seen at each firing of a run into a rate."""
    values = np.asarray(counts).astype(np.int64)
    if values.size == 0:
        return EVERY
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    lengths = np.diff(np.append(starts, values.size))
    runs = tuple(zip(lengths.tolist(), values[starts].tolist()))
    if len(runs) == 1:
        return Rate(((1, runs[0][1]),))
    return Rate(runs[: _repetition(runs)])


def _repetition(runs: tuple[tuple[int, int], ...]) -> int:
    """The smallest number of leading runs that the whole list repeats."""
    table = np.array(runs)
    for period in range(1, len(runs) // 2 + 1):
        if len(runs) % period == 0 and (table[period:] == table[:-period]).all():
            return period
    return len(runs)
