"""Pictures as lists of shapes, in units of the caller's choice with y pointing down."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Rectangle:
    """A filled rectangle with its upper left corner at ``(x, y)``."""

    x: float
    y: float
    width: float
    height: float
    fill: str


@dataclasses.dataclass(frozen=True)
class Circle:
    """A filled circle around ``(x, y)``."""

    x: float
    y: float
    radius: float
    fill: str


@dataclasses.dataclass(frozen=True)
class Line:
    """A straight line."""

    start: Point
    end: Point
    color: str
    width: float = 0.05


@dataclasses.dataclass(frozen=True)
class Polygon:
    """A filled polygon."""

    points: tuple[Point, ...]
    fill: str


@dataclasses.dataclass(frozen=True)
class Text:
    """Text centred at ``(x, y)``; ``size`` is the height of capitals."""

    x: float
    y: float
    text: str
    size: float
    color: str = "#222222"


Shape = Rectangle | Circle | Line | Polygon | Text


@dataclasses.dataclass(frozen=True)
class Picture:
    """Shapes on a canvas, the first at the bottom.

    Args:
        width: canvas width.
        height: canvas height.
        shapes: what is drawn.
        title: a line about the state, shown above.
        background: colour of the canvas, ``#rrggbb``.
    """

    width: float
    height: float
    shapes: tuple[Shape, ...]
    title: str = ""
    background: str = "#ffffff"


def placed(shape: Shape, scale: float, dx: float, dy: float) -> Shape:
    """The shape scaled about the origin, then moved."""
    if isinstance(shape, Rectangle):
        x, y = shape.x * scale + dx, shape.y * scale + dy
        return Rectangle(x, y, shape.width * scale, shape.height * scale, shape.fill)
    if isinstance(shape, Circle):
        x, y = shape.x * scale + dx, shape.y * scale + dy
        return Circle(x, y, shape.radius * scale, shape.fill)
    if isinstance(shape, Line):
        start = (shape.start[0] * scale + dx, shape.start[1] * scale + dy)
        end = (shape.end[0] * scale + dx, shape.end[1] * scale + dy)
        return Line(start, end, shape.color, shape.width * scale)
    if isinstance(shape, Polygon):
        return Polygon(tuple((x * scale + dx, y * scale + dy) for x, y in shape.points), shape.fill)
    x, y = shape.x * scale + dx, shape.y * scale + dy
    return Text(x, y, shape.text, shape.size * scale, shape.color)


def mosaic(pictures: Sequence[Picture], gap: float = 0.05) -> Picture:
    """Several pictures in a near-square grid of unit cells."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    shapes: list[Shape] = []
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        scale = (1 - gap) / max(picture.width, picture.height)
        dx, dy = column + gap / 2, row + gap / 2
        back = Rectangle(0, 0, picture.width, picture.height, picture.background)
        shapes += [placed(shape, scale, dx, dy) for shape in (back, *picture.shapes)]
    return Picture(columns, rows, tuple(shapes), background="#dddddd")


def hue(index: int, count: int, saturation: float = 0.6, value: float = 0.85) -> str:
    """One of ``count`` well separated colours."""
    import colorsys

    red, green, blue = colorsys.hsv_to_rgb(
        (index % max(count, 1)) / max(count, 1), saturation, value
    )
    return f"#{int(red * 255):02x}{int(green * 255):02x}{int(blue * 255):02x}"


def blend(low: str, high: str, share: float) -> str:
    """A colour between two, ``share`` of the way."""
    parts = zip(rgb(low), rgb(high))
    return "#" + "".join(f"{round(a + (b - a) * min(max(share, 0), 1)):02x}" for a, b in parts)


def rgb(color: str) -> tuple[int, int, int]:
    """Red, green and blue of ``#rrggbb``."""
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)
