"""How long work tells its caller how far it is, without knowing who shows it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Called by long work; the command draws a bar, tests pass :func:`silent`."""

    def __call__(self, message: str, done: float = 0.0, total: float = 0.0) -> None:
        """Report.

        Args:
            message: what is being done now, in a few words.
            done: how much of ``total`` is finished, in the caller's own unit.
            total: the whole amount; 0 when unknown.
        """
        ...


def silent(message: str, done: float = 0.0, total: float = 0.0) -> None:
    """Report to nobody."""
