"""The report of a run: one JSON document, and one HTML page that needs nothing beside itself."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trimtab.files import atomic_file
from trimtab.reproduce.outcome import SystemOutcome
from trimtab.reproduce.page import render


@dataclass(frozen=True)
class Report:
    """What was run, where, and what came of it.

    Args:
        machine: what :func:`trimtab.hardware.provenance` says.
        outcomes: one a system that was asked for, in the registry's order.
        seed: the first random seed.
        full: whether the full size was run.
        date: when the run began, ISO 8601 in UTC.
    """

    machine: Mapping[str, Any]
    outcomes: Sequence[SystemOutcome]
    seed: int
    full: bool
    date: str

    @property
    def failed(self) -> bool:
        """Whether a system broke; a claim that does not hold is no failure."""
        return any(outcome.status == "failed" for outcome in self.outcomes)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON document; its keys are part of the command's interface."""
        systems = {outcome.system: outcome.to_json() for outcome in self.outcomes}
        for system in systems.values():
            for row in system["rows"]:
                row["where"] = row["where"] or self.machine.get("summary", "")
        return {
            "machine": dict(self.machine),
            "date": self.date,
            "seed": self.seed,
            "size": "full" if self.full else "quick",
            "systems": systems,
        }

    def to_html(self) -> str:
        """Return the page: styles, pictures and script are inside it."""
        return render(self.machine, self.outcomes, self.date, self.seed, self.full)

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``report.html``, ``report.json`` and the figures; return the page's path.

        Args:
            folder: made if it is not there; files of the same names are replaced.
        """
        folder = Path(folder)
        for outcome in self.outcomes:
            for number, figure in enumerate(outcome.figures, start=1):
                name = f"figures/{outcome.system}-{number}.{figure.kind}"
                data = figure.data if isinstance(figure.data, bytes) else figure.data.encode()
                _write(folder / name, data)
        _write(folder / "report.json", (json.dumps(self.to_json(), indent=2) + "\n").encode())
        _write(folder / "report.html", self.to_html().encode())
        return folder / "report.html"


def now() -> str:
    """Return the present moment as reports write it."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _write(path: Path, data: bytes) -> None:
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)
