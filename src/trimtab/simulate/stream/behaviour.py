"""Units that decide by arrival time, written as Python generators.

Such a unit yields requests and receives the answers::

    def merge():
        while True:
            port = yield WaitAny((0, 1))
            token = yield Receive(port)
            yield Send(0, token)

A generator that returns, or lets :class:`StreamClosed` pass, ends its unit and closes its outputs.
Time semantics are those of :mod:`trimtab.simulate.stream.reference`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class StreamClosed(Exception):
    """Thrown into a generator that receives from a FIFO whose producer has ended."""


@dataclass(frozen=True)
class Receive:
    """Take the next token of an input port; the answer is the token."""

    port: int


@dataclass(frozen=True)
class Send:
    """Put a token on an output port.

    Args:
        port: position among the unit's outputs.
        token: any value.
        after: cycles until it may be visible; by default the latency of the FIFO.
    """

    port: int
    token: Any = None
    after: int | None = None


@dataclass(frozen=True)
class Peek:
    """Look at an input port; the answer is Something, Nothing or Closed."""

    port: int


@dataclass(frozen=True)
class Wait:
    """Let cycles pass."""

    cycles: int = 1


@dataclass(frozen=True)
class WaitAny:
    """Wait until one of the ports has a visible token; the answer is that port.

    The earliest token wins, the first listed port among equals. The answer is ``None`` when all
    of the ports are closed.
    """

    ports: tuple[int, ...]


@dataclass(frozen=True)
class Something:
    """A token is visible now."""

    token: Any


@dataclass(frozen=True)
class Nothing:
    """No token is visible at this time, and none sent later can be."""

    time: int


@dataclass(frozen=True)
class Closed:
    """The producer has ended and all of its tokens were received."""
