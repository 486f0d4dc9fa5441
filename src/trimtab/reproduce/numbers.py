"""Figures as people read them in tables."""

from __future__ import annotations

import math

from trimtab.reproduce.experiment import Value


def readable(value: Value) -> str:
    """Write a figure with four significant digits and thousands apart; text stays as it is.

    >>> readable(1234567.0), readable(0.98765), readable(None), readable("1.8x"), readable(3)
    ('1,234,567', '0.9877', '–', '1.8x', '3')
    """
    if value is None:
        return "–"
    if isinstance(value, (str, bool)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "not finite"
    size = abs(value)
    if size >= 1e12 or 0 < size < 1e-4:
        return f"{value:.3g}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def times(ratio: float | None) -> str:
    """Write a ratio.

    >>> times(1.5), times(0.034), times(412.3), times(None)
    ('1.50x', '0.034x', '412x', '–')
    """
    if ratio is None:
        return "–"
    if ratio >= 100:
        return f"{ratio:,.0f}x"
    return f"{ratio:.2f}x" if ratio >= 0.1 else f"{ratio:.2g}x"


def duration(seconds: float) -> str:
    """Write a length of time.

    >>> duration(0.42), duration(41.2), duration(125), duration(7322)
    ('0.4 s', '41 s', '2 min 5 s', '2 h 2 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
