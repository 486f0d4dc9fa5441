"""Parts that several drawings share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from trimtab.envs.viewers.scene import Circle, Line, Point, Rectangle, Shape, Text, rgb

GAP = 0.04


def tiles(grid: np.ndarray, color: Callable[[Any], str | None], gap: float = GAP) -> list[Shape]:
    """A square for each cell that ``color`` gives a colour."""
    shapes: list[Shape] = []
    for (row, column), value in np.ndenumerate(grid):
        fill = color(value.item())
        if fill is not None:
            shapes.append(Rectangle(column + gap, row + gap, 1 - 2 * gap, 1 - 2 * gap, fill))
    return shapes


def labels(
    grid: np.ndarray,
    text: Callable[[Any], str],
    size: float = 0.3,
    color: Callable[[Any], str] = lambda _: "#222222",
) -> list[Shape]:
    """Text in the middle of each cell."""
    shapes: list[Shape] = []
    for (row, column), entry in np.ndenumerate(grid):
        value = entry.item()
        if text(value):
            shapes.append(Text(column + 0.5, row + 0.5, text(value), size, color(value)))
    return shapes


def disc(cell: Any, fill: str, radius: float = 0.36) -> Circle:
    """A circle in the middle of a ``(row, column)`` cell."""
    return Circle(float(cell[1]) + 0.5, float(cell[0]) + 0.5, radius, fill)


def square(cell: Any, fill: str, side: float = 0.6) -> Rectangle:
    """A square in the middle of a ``(row, column)`` cell."""
    offset = (1 - side) / 2
    return Rectangle(float(cell[1]) + offset, float(cell[0]) + offset, side, side, fill)


def path(points: Iterable[Point], color: str, width: float = 0.05) -> list[Shape]:
    """Lines from point to point."""
    points = list(points)
    return [Line(start, end, color, width) for start, end in itertools.pairwise(points)]


def on_circle(count: int, radius: float, middle: float) -> list[Point]:
    """Points evenly spread on a circle, the first on top."""
    angles = [2 * math.pi * index / count - math.pi / 2 for index in range(count)]
    return [(middle + radius * math.cos(a), middle + radius * math.sin(a)) for a in angles]


def ink(fill: str) -> str:
    """Black or white, whichever reads on a colour."""
    red, green, blue = rgb(fill)
    return "#222222" if 0.3 * red + 0.59 * green + 0.11 * blue > 130 else "#ffffff"
