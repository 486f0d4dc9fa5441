"""What a reproduced system is: a claim, a baseline, two sizes, and a run that yields rows."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, SupportsFloat, runtime_checkable

from trimtab.errors import InputError
from trimtab.progress import Progress

Value = float | int | str | None


@dataclass(frozen=True)
class Row:
    """One line of an experiment's table: what the paper says, and what was measured here.

    Args:
        metric: what is compared, in the reader's words (``"training step, length 512"``).
        unit: unit of ``baseline`` and ``ours`` (``"ms"``, ``"tokens/s"``, ``"%"``).
        paper: the paper's figure, as a number or as text with its setting (``"1.8x (GPU)"``);
            None where the paper gives none.
        baseline: what the compared method reached in this run, in ``unit``.
        ours: what the system reached in this run, in ``unit``.
        ratio: how many times better ours is than the baseline; above 1 means better, whichever
            direction is good for the unit. None where a ratio means nothing.
        holds: whether the claim held in this run; None where there is nothing to hold it against.
        seeds: the random seeds that were run; empty for a deterministic row.
        command: the command that measures this row again.
        note: how it was measured: sizes, data, precision, repetitions, what differs from the paper.
        where: the machine or simulator that was measured; empty for the machine of this run.
    """

    metric: str
    unit: str
    paper: Value = None
    baseline: Value = None
    ours: Value = None
    ratio: float | None = None
    holds: bool | None = None
    seeds: tuple[int, ...] = ()
    command: str = ""
    note: str = ""
    where: str = ""

    def __post_init__(self) -> None:
        if not self.metric:
            raise InputError("A row needs a metric: say in a few words what it compares.")
        # NumPy and JAX scalars, which callers may well have, would not survive json.dumps.
        for name in ("paper", "baseline", "ours", "ratio"):
            object.__setattr__(self, name, _plain(getattr(self, name)))
        holds = self.holds if self.holds is None else bool(self.holds)
        object.__setattr__(self, "holds", holds)
        object.__setattr__(self, "seeds", tuple(int(seed) for seed in self.seeds))

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON values; a figure that is not finite becomes null."""
        values = dataclasses.asdict(self)
        values["seeds"] = list(self.seeds)
        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                values[name] = None
        return values


def compared(
    metric: str,
    unit: str,
    *,
    baseline: SupportsFloat,
    ours: SupportsFloat,
    better: Literal["higher", "lower"],
    at_least: float | None = None,
    paper: Value = None,
    seeds: Sequence[int] = (),
    command: str = "",
    note: str = "",
    where: str = "",
) -> Row:
    """Build a row whose ratio and verdict follow from the two measured figures.

    Args:
        metric: what is compared.
        unit: unit of both figures.
        baseline: the compared method's figure.
        ours: the system's figure.
        better: which direction is good; the ratio is above 1 when ours is better.
        at_least: the ratio that the claim asks for; None gives ``holds=None``.
        paper: the paper's figure.
        seeds: the random seeds that were run.
        command: the command that measures the row again.
        note: how it was measured.
        where: the machine or simulator measured; empty for the machine of this run.

    >>> compared("step", "ms", baseline=30.0, ours=20.0, better="lower", at_least=1.4).ratio
    1.5
    """
    baseline, ours = float(baseline), float(ours)
    above, below = (ours, baseline) if better == "higher" else (baseline, ours)
    ratio = above / below if below else None
    if ratio is not None and not math.isfinite(ratio):
        ratio = None
    holds = None if at_least is None else bool(ratio is not None and ratio >= at_least)
    return Row(
        metric=metric,
        unit=unit,
        paper=paper,
        baseline=baseline,
        ours=ours,
        ratio=ratio,
        holds=holds,
        seeds=tuple(seeds),
        command=command,
        note=note,
        where=where,
    )


@dataclass(frozen=True)
class Figure:
    """A picture for the report, complete in itself.

    SVG figures may use the report's colours: ``var(--ink)``, ``var(--quiet)``, ``var(--grid)`` and
    ``var(--series-1)`` to ``var(--series-8)`` follow the reader's light or dark theme.
    :mod:`trimtab.reproduce.plot` draws such figures without matplotlib.

    Args:
        title: the heading above the picture.
        alt: what the picture shows, for those who cannot see it.
        data: an SVG document as text, or PNG bytes.
        table: the plotted figures, header row first; shown folded under the picture.
    """

    title: str
    alt: str
    data: str | bytes
    table: tuple[tuple[Value, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.alt:
            raise InputError(f"Figure {self.title!r} needs a text alternative: pass alt=.")
        if isinstance(self.data, bytes) and not self.data.startswith(b"\x89PNG\r\n"):
            raise InputError(f"Figure {self.title!r} has bytes that are not PNG; pass SVG as text.")
        if isinstance(self.data, str) and "<svg" not in self.data:
            raise InputError(f"Figure {self.title!r} has text that is not SVG.")
        table = tuple(tuple(_plain(cell) for cell in row) for row in self.table)
        object.__setattr__(self, "table", table)

    @property
    def kind(self) -> Literal["svg", "png"]:
        """``"svg"`` or ``"png"``, which is also the file suffix."""
        return "png" if isinstance(self.data, bytes) else "svg"


@dataclass(frozen=True)
class Result:
    """What an experiment found: rows in reading order, and figures."""

    rows: tuple[Row, ...]
    figures: tuple[Figure, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))
        object.__setattr__(self, "figures", tuple(self.figures))


@runtime_checkable
class Run(Protocol):
    """Measure the experiment.

    Args:
        progress: told what is being done; long loops report ``done`` of ``total``.
        seed: the first random seed; a run with several seeds counts up from it.
        full: the full size instead of the quick one (at most a minute on two cores).
    """

    def __call__(self, progress: Progress, seed: int, full: bool = False) -> Result: ...


@dataclass(frozen=True)
class Experiment:
    """A published system's headline experiment, at a size that fits the machine.

    Args:
        system: the name in the registry, such as ``"fnet"``.
        title: a few words for lists.
        source: authors, title, venue and year.
        claim: what the paper claims, with its number and its setting.
        baseline: what it is compared with here, and how that is made fair.
        quick: what the quick size runs.
        full: what the full size runs.
        run: the measurement itself; it raises :class:`trimtab.errors.MissingExtraError` where an
            optional package is absent.
    """

    system: str
    title: str
    source: str
    claim: str
    baseline: str
    quick: str
    full: str
    run: Run = field(repr=False)


def _plain(value: Any) -> Value:
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value)
