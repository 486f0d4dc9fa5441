"""Axes, labels and marks: what the charts of :mod:`trimtab.reproduce.plot` are drawn with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from trimtab.errors import InputError

# Units of the viewBox. Narrow, so that text stays legible when a phone scales the picture down.
WIDTH = 460
HEIGHT = 300
FONT = 12.0
MARKERS = ("circle", "square", "triangle", "diamond")
COLORS = (
    "#0b7a75",
    "#c2571a",
    "#6757c9",
    "#b0386b",
    "#3f7d20",
    "#96751a",
    "#2f6fb7",
    "#6b7480",
)


@dataclass(frozen=True)
class Axis:
    """A mapping from figures to viewBox units, linear or logarithmic."""

    low: float
    high: float
    start: float
    stop: float
    log: bool
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        low, high, at = (
            (math.log(self.low), math.log(self.high), math.log(value))
            if self.log
            else (self.low, self.high, value)
        )
        return self.start + (at - low) / (high - low) * (self.stop - self.start)


def axis_over(
    values: Sequence[float],
    start: float,
    stop: float,
    log: bool,
    title: str,
    pad: float = 0.04,
    prefer: Sequence[float] = (),
) -> Axis:
    low, high = min(values), max(values)
    if log and low <= 0:
        raise InputError(f"Figure {title!r}: a logarithmic axis cannot show {low:g}.")
    # A range of nothing, or one lost in rounding, would have no length to divide.
    reach = max(abs(low), abs(high))
    if high - low <= 1e-9 * reach or reach < 1e-290:
        half = reach / 2 if reach > 1e-290 else 0.5
        low, high = (low / 2, high * 2) if log else (low - half, high + half)
    if log:
        grow = (high / low) ** pad
        low, high = low / grow, high * grow
        ticks = tuple(prefer) if 1 < len(prefer) <= 7 else _log_ticks(low, high)
        return Axis(low, high, start, stop, True, ticks or (low, high))
    grow = (high - low) * pad
    # An axis that nearly touches zero starts there; bars always do.
    low = 0.0 if 0 <= low < 0.35 * high else low - grow
    high = high + grow
    step = _nice_step((high - low) / 5)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return Axis(low, high, start, stop, False, tuple(n * step for n in range(first, last + 1)))


def _nice_step(rough: float) -> float:
    magnitude = 10.0 ** math.floor(math.log10(rough))
    return next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * (1 - 1e-9))


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        ticks = tuple(m * 10.0**d for d in decades for m in mantissas if low <= m * 10.0**d <= high)
        if len(ticks) >= 3:
            return ticks[:: math.ceil(len(ticks) / 8)]
    return (low, high)


def marker(x: float, y: float, index: int) -> str:
    color, shape = color_of(index), MARKERS[index % len(MARKERS)]
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" fill="{color}"/>'
    offsets = {
        "square": ((-3.3, -3.3), (3.3, -3.3), (3.3, 3.3), (-3.3, 3.3)),
        "triangle": ((0, -4.4), (4.2, 3.2), (-4.2, 3.2)),
        "diamond": ((0, -4.8), (4.8, 0), (0, 4.8), (-4.8, 0)),
    }[shape]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in offsets)
    return f'<polygon points="{points}" fill="{color}"/>'


def color_of(index: int) -> str:
    """The report's colour, with one that reads on white and on black where there is no report."""
    fallback = [
        "#0b7a75",
        "#c2571a",
        "#6757c9",
        "#b0386b",
        "#3f7d20",
        "#96751a",
        "#2f6fb7",
        "#6b7480",
    ]
    slot = index % len(fallback)
    return f"var(--series-{slot + 1}, {fallback[slot]})"


def rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="var(--grid, #8884)" stroke-width="1"/>'
    )


def label(x: float, y: float, text: str, anchor: str = "start", *, quiet: bool = False) -> str:
    color = "var(--quiet, #5b6770)" if quiet else "var(--ink, #26323a)"
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{escape(text)}</text>'
    )


def document(parts: Sequence[str], height: float, title: str) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'role="img" aria-label="{escape(title)}" font-size="{FONT:g}" '
        f'font-family="ui-sans-serif, system-ui, sans-serif">\n{body}\n</svg>'
    )


def text_width(text: str) -> float:
    """Estimate a label's width in viewBox units; the font is the reader's, so it is not known."""
    return 0.58 * FONT * len(text)


def shorten(text: str, width: float) -> str:
    fits = int(width / (0.58 * FONT))
    return text if len(text) <= fits else text[: max(fits - 1, 1)].rstrip() + "…"


def short_number(value: float) -> str:
    """Format a figure for a label: three significant digits, thousands folded into k, M, G."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if suffix == 'k' else limit):.3g}{suffix}"
    if value and abs(value) < 1e-3:
        return f"{value:.2g}"
    return f"{value:.4g}" if abs(value) >= 1000 else f"{value:.3g}"


def finite(values: Sequence[float | None]) -> list[float]:
    return [float(value) for value in values if value is not None and math.isfinite(value)]
