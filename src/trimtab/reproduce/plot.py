"""Plots as small SVG documents that follow the reader's theme, and pixels as PNG."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.errors import InputError, ShapeError
from trimtab.reproduce._svg import (
    HEIGHT,
    WIDTH,
    Axis,
    axis_over,
    color_of,
    document,
    finite,
    label,
    marker,
    rule,
    short_number,
    shorten,
    text_width,
)
from trimtab.reproduce.experiment import Figure, Value


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Args:
        name: its name in the legend.
        x: abscissae, increasing.
        y: ordinates; None or a non-finite value leaves a gap.
        low: lower edge of the spread, as long as ``y``.
        high: upper edge of the spread.
        dashed: draw it dashed, the convention here for a baseline.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dashed: bool = False


def line_chart(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    *,
    log_x: bool = False,
    log_y: bool = False,
    alt: str = "",
) -> Figure:
    """Draw lines with markers, a legend and optional bands of spread.

    Args:
        title: heading of the figure.
        x_label: what the horizontal axis shows, with its unit.
        y_label: what the vertical axis shows, with its unit.
        series: the lines, at most eight.
        log_x: logarithmic horizontal axis.
        log_y: logarithmic vertical axis.
        alt: text alternative; by default one is made from the series' ends.

    Raises:
        InputError: nothing to draw, or a value that a logarithmic axis cannot show.
    """
    _check_series(title, series)
    xs = [float(x) for line in series for x in line.x]
    ys = [y for line in series for y in finite(line.y)]
    for line in series:
        ys += [*finite(line.low or ()), *finite(line.high or ())]
    legend, top = _legend([(line.name, line.dashed) for line in series])
    bottom = HEIGHT - 42
    y_axis = axis_over(ys, bottom, top + 26, log_y, title)
    left = 14 + max(text_width(short_number(tick)) for tick in y_axis.ticks)
    right = WIDTH - max(12.0, text_width(short_number(max(xs))) / 2 + 2)
    x_axis = axis_over(xs, left, right, log_x, title, pad=0.0, prefer=sorted(set(xs)))
    parts = [*_grid(x_axis, y_axis, x_label, y_label, title), *legend]
    for index, line in enumerate(series):
        parts += _line(line, index, x_axis, y_axis)
    return Figure(
        title=title,
        alt=alt or _line_alt(x_label, y_label, series),
        data=document(parts, HEIGHT, title),
        table=_line_table(x_label, series),
    )


def bar_chart(
    title: str,
    unit: str,
    categories: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    *,
    alt: str = "",
) -> Figure:
    """Draw groups of horizontal bars that start at zero, with their figures at the end.

    Args:
        title: heading of the figure.
        unit: unit of the figures, with the direction that is better if it is not plain.
        categories: one label a group.
        series: name of each bar in a group -> one figure a category; None draws no bar.
        alt: text alternative; by default one is made from the figures.

    Raises:
        InputError: nothing to draw, or lengths that differ.
    """
    _check_bars(title, categories, series)
    names = list(series)
    legend, top = _legend([(name, False) for name in names], bars=True)
    if len(names) == 1:
        legend, top = [], 4.0
    left = 12 + max(text_width(category) for category in categories)
    left = min(left, WIDTH * 0.42)
    thick = 15.0 if len(series) > 1 else 20.0
    group = thick * len(series) + 14
    height = top + group * len(categories) + 34
    values = [value for row in series.values() for value in finite(row)]
    widest = max(text_width(short_number(value)) for value in values)
    axis = axis_over([0.0, *values], left, WIDTH - 14 - widest, False, title, pad=0.0)
    parts = list(legend)
    for tick in axis.ticks:
        parts.append(rule(axis(tick), top, axis(tick), height - 32))
        parts.append(label(axis(tick), height - 18, short_number(tick), "middle", quiet=True))
    parts.append(label((left + axis.stop) / 2, height - 3, unit, "middle", quiet=True))
    for row, category in enumerate(categories):
        middle = top + group * row + group / 2
        parts.append(label(left - 8, middle + 4, shorten(category, left - 12), "end"))
        for index, figures in enumerate(series.values()):
            value = figures[row]
            if value is None or not math.isfinite(value):
                continue
            y = middle - thick * len(series) / 2 + thick * index
            start, stop = sorted((axis(0.0), axis(value)))
            parts.append(
                f'<rect x="{start:.1f}" y="{y + 1:.1f}" width="{max(stop - start, 1):.1f}" '
                f'height="{thick - 2:.1f}" rx="2" fill="{color_of(index)}"/>'
            )
            parts.append(label(stop + 5, y + thick / 2 + 4, short_number(value)))
    table = (("", *names), *zip(categories, *series.values()))
    return Figure(title, alt or _bar_alt(unit, table), document(parts, height, title), table)


def picture(title: str, alt: str, pixels: np.ndarray, *, scale: int = 1) -> Figure:
    """Show an array of pixels, enlarged by whole steps so that they stay sharp.

    Args:
        title: heading of the figure.
        alt: what the picture shows.
        pixels: ``[height, width]`` grey or ``[height, width, 3]`` colour, uint8.
        scale: pixels a side that one element becomes.

    Raises:
        ShapeError: the array is not an image.
    """
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)):
        raise ShapeError(
            f"Figure {title!r}: expected uint8 pixels of shape [height, width] or "
            f"[height, width, 3], given {pixels.dtype} {list(pixels.shape)}."
        )
    pixels = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if pixels.ndim == 2 else 2, 0, 0, 0)
    # Every scanline starts with its filter; 0 is none.
    lines = np.zeros((height, 1 + pixels[0].size), np.uint8)
    lines[:, 1:] = pixels.reshape(height, -1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return Figure(title, alt, b"\x89PNG\r\n\x1a\n" + body)


def _check_series(title: str, series: Sequence[Series]) -> None:
    if not any(finite(line.y) for line in series):
        raise InputError(f"Figure {title!r} has no finite point to draw.")
    for line in series:
        if len(line.x) != len(line.y):
            raise InputError(
                f"Figure {title!r}: series {line.name!r} has {len(line.x)} abscissae and "
                f"{len(line.y)} ordinates; give as many of each."
            )
        for edge in (line.low, line.high):
            if edge is not None and len(edge) != len(line.y):
                raise InputError(f"Figure {title!r}: the spread of {line.name!r} is not as long.")


def _check_bars(
    title: str, categories: Sequence[str], series: Mapping[str, Sequence[float | None]]
) -> None:
    for name, figures in series.items():
        if len(figures) != len(categories):
            raise InputError(
                f"Figure {title!r}: {name!r} has {len(figures)} figures for "
                f"{len(categories)} categories; give one each."
            )
    if not any(finite(figures) for figures in series.values()):
        raise InputError(f"Figure {title!r} has no finite bar to draw.")


def _grid(x_axis: Axis, y_axis: Axis, x_label: str, y_label: str, title: str) -> list[str]:
    left, right, bottom, top = x_axis.start, x_axis.stop, y_axis.start, y_axis.stop
    parts = []
    for tick in y_axis.ticks:
        parts.append(rule(left, y_axis(tick), right, y_axis(tick)))
        parts.append(label(left - 6, y_axis(tick) + 4, short_number(tick), "end", quiet=True))
    free = -math.inf
    for tick in x_axis.ticks:
        name, at = short_number(tick), x_axis(tick)
        half = text_width(name) / 2
        if at - half < free:
            continue
        free = at + half + 6
        parts.append(rule(at, bottom, at, bottom + 4))
        parts.append(label(at, bottom + 17, name, "middle", quiet=True))
    parts.append(label((left + right) / 2, HEIGHT - 6, x_label, "middle", quiet=True))
    # Lying above the axis, a long label neither collides nor has to be read sideways.
    parts.append(label(8, top - 10, shorten(y_label, WIDTH - 16), quiet=True))
    return parts


def _line(line: Series, index: int, x_axis: Axis, y_axis: Axis) -> list[str]:
    color = color_of(index)
    parts = []
    if line.low is not None and line.high is not None:
        edge = [(x_axis(x), y_axis(y)) for x, y in zip(line.x, line.high)]
        edge += [(x_axis(x), y_axis(y)) for x, y in zip(reversed(line.x), reversed(line.low))]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in edge)
        parts.append(f'<polygon points="{points}" fill="{color}" opacity="0.18"/>')
    for run in _runs(line):
        points = [(x_axis(x), y_axis(y)) for x, y in run]
        path = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        parts.append(
            f'<path d="{path}" fill="none" stroke="{color}" stroke-width="2.2" '
            f'stroke-linejoin="round"{dash}/>'
        )
        # Markers on a dense curve would hide it.
        if len(line.x) <= 24:
            parts += [marker(x, y, index) for x, y in points]
    return parts


def _runs(line: Series) -> list[list[tuple[float, float]]]:
    """Split a line at its gaps."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(line.x, line.y):
        if y is None or not math.isfinite(y):
            runs.append([])
        else:
            runs[-1].append((float(x), float(y)))
    return [run for run in runs if run]


def _legend(entries: Sequence[tuple[str, bool]], *, bars: bool = False) -> tuple[list[str], float]:
    """Lay the names out in rows; return the parts and the height they take."""
    parts, x, y = [], 8.0, 12.0
    for index, (name, dashed) in enumerate(entries):
        width = 34 + text_width(name)
        if x > 8.0 and x + width > WIDTH - 8:
            x, y = 8.0, y + 19
        dash = ' stroke-dasharray="5 3"' if dashed else ""
        if bars:
            parts.append(
                f'<rect x="{x}" y="{y - 5}" width="18" height="10" rx="2" '
                f'fill="{color_of(index)}"/>'
            )
        else:
            parts.append(
                f'<line x1="{x}" y1="{y}" x2="{x + 20}" y2="{y}" stroke="{color_of(index)}" '
                f'stroke-width="2.2"{dash}/>'
            )
            parts.append(marker(x + 10, y, index))
        parts.append(label(x + 25, y + 4, name))
        x += width + 8
    return parts, y + 12


def _line_alt(x_label: str, y_label: str, series: Sequence[Series]) -> str:
    ends = []
    for line in series:
        points = [point for run in _runs(line) for point in run]
        if points:
            (x0, y0), (x1, y1) = points[0], points[-1]
            ends.append(f"{line.name}: {y0:.4g} at {x0:g}, {y1:.4g} at {x1:g}")
    return f"Lines of {y_label} over {x_label}. " + "; ".join(ends) + "."


def _line_table(x_label: str, series: Sequence[Series]) -> tuple[tuple[Value, ...], ...]:
    xs = sorted({float(x) for line in series for x in line.x})
    columns = [dict(zip((float(x) for x in line.x), line.y)) for line in series]
    step = max(1, math.ceil(len(xs) / 40))
    rows = [(x, *(column.get(x) for column in columns)) for x in xs[::step]]
    return ((x_label, *(line.name for line in series)), *rows)


def _bar_alt(unit: str, table: tuple[tuple[Value, ...], ...]) -> str:
    header, *rows = table
    groups = []
    for group, *figures in rows:
        pairs = [f"{name} {value:.4g}" for name, value in zip(header[1:], figures) if _known(value)]
        groups.append(f"{group}: {', '.join(pairs)}")
    return f"Bars in {unit}. " + "; ".join(groups) + "."


def _known(value: Value) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
