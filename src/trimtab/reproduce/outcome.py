"""What became of a system that was asked for, and how it travels between processes."""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trimtab.reproduce.experiment import Experiment, Figure, Result, Row, Value

Status = Literal["ok", "failed", "unavailable"]
# The parts of an experiment that describe it to a reader.
_ABOUT = ("title", "source", "claim", "baseline", "quick", "full")


@dataclass(frozen=True)
class SystemOutcome:
    """One system's part of a report.

    Args:
        system: its name.
        status: ``"ok"``, ``"failed"`` (it broke) or ``"unavailable"`` (it cannot run here).
        seconds: how long it ran.
        rows: what it measured.
        figures: what it drew.
        about: title, source, claim, baseline, and what the quick and full sizes run.
        error: why it failed or is not available, in one line.
        details: the traceback or the last words of a failed run.
    """

    system: str
    status: Status
    seconds: float = 0.0
    rows: tuple[Row, ...] = ()
    figures: tuple[Figure, ...] = ()
    about: Mapping[str, str] = dataclasses.field(default_factory=dict)
    error: str = ""
    details: str = ""

    def count(self, holds: bool | None) -> int:
        """How many rows have that verdict."""
        return sum(row.holds is holds for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as it stands in the JSON document."""
        values: dict[str, Any] = {
            "status": self.status,
            "seconds": round(self.seconds, 2),
            **self.about,
            "rows": [row.to_json() for row in self.rows],
            "figures": [{"title": figure.title, "alt": figure.alt} for figure in self.figures],
        }
        return values | ({"error": self.error} if self.error else {})


def describe(experiment: Experiment) -> dict[str, str]:
    """Return the parts of an experiment that describe it."""
    return {name: getattr(experiment, name) for name in _ABOUT}


def pack(result: Result | SystemOutcome) -> dict[str, Any]:
    """Turn a result into JSON values, figures included."""
    return {
        "rows": [row.to_json() for row in result.rows],
        "figures": [
            {
                "title": figure.title,
                "alt": figure.alt,
                "kind": figure.kind,
                "data": figure.data
                if isinstance(figure.data, str)
                else base64.b64encode(figure.data).decode(),
                "table": [[_finite(cell) for cell in row] for row in figure.table],
            }
            for figure in result.figures
        ],
    }


def unpack(values: Mapping[str, Any]) -> Result:
    """Undo :func:`pack`."""
    rows = [Row(**{**row, "seeds": tuple(row["seeds"])}) for row in values["rows"]]
    figures = [
        Figure(
            title=figure["title"],
            alt=figure["alt"],
            data=base64.b64decode(figure["data"]) if figure["kind"] == "png" else figure["data"],
            table=tuple(tuple(row) for row in figure["table"]),
        )
        for figure in values["figures"]
    ]
    return Result(tuple(rows), tuple(figures))


def _finite(value: Value) -> Value:
    return None if isinstance(value, float) and not math.isfinite(value) else value
