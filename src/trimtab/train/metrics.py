"""Where metrics go: JSON lines always, TensorBoard files on request.

A sink is any callable ``(step, mapping of names to numbers)``; the ones here can also forget what
came after a step, which a resumed run needs so that no step appears twice.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from trimtab.errors import FileFormatError, require_extra
from trimtab.files import atomic_file


@runtime_checkable
class MetricSink(Protocol):
    """Called with the step and its scalar metrics."""

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of one step."""
        ...


class JsonLines:
    """One JSON object a step, appended and flushed at once.

    Args:
        path: the file; created with its directory.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: Any = None

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8")
        record = {"step": step} | {
            name: value if math.isfinite(value) else None for name, value in metrics.items()
        }
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def rewind(self, step: int) -> None:
        """Drop what was written after ``step``, and a line that a killed process left half."""
        self.close()
        if not self.path.exists():
            return
        kept = [record for record in read_metrics(self.path) if record["step"] <= step]
        with atomic_file(self.path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), "utf-8")

    def close(self) -> None:
        """Close the file; the next record opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


class TensorBoard:
    """TensorBoard event files, by the package tensorboardX.

    Args:
        directory: where the event files go.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self._tensorboard = require_extra("tensorboardX", "metrics", "Writing TensorBoard files")
        self._writer: Any = None

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._writer is None:
            self._writer = self._tensorboard.SummaryWriter(str(self.directory))
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def rewind(self, step: int) -> None:
        """Tell TensorBoard to hide what an earlier process wrote after ``step``."""
        self.close()
        if self.directory.exists():
            self._writer = self._tensorboard.SummaryWriter(str(self.directory), purge_step=step + 1)

    def close(self) -> None:
        """Write what is pending and close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the records of a JSON lines file; a last line without its end is left out.

    Raises:
        FileFormatError: a complete line is not a JSON object with a step.
    """
    text = Path(path).read_text("utf-8")
    lines = text.split("\n")[:-1]
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            record["step"]
        except (ValueError, KeyError, TypeError) as error:
            raise FileFormatError(
                f"{path}, line {number}: not a JSON object with a step. Remove the line."
            ) from error
        records.append(record)
    return records
