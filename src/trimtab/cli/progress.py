"""Progress on standard error: live bars on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from trimtab.cli.output import stderr_console
from trimtab.progress import Progress


class TerminalProgress:
    """A :class:`trimtab.progress.Progress` for people.

    On a terminal it shows one live line. Elsewhere it prints a line whenever the message changes,
    so that a log shows what was going on without being flooded.

    Args:
        quiet: show nothing at all.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = stderr_console()
        self._quiet = quiet
        self._live = self._console.is_terminal and not self._console.is_dumb_terminal and not quiet
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("[bold]{task.fields[label]}[/bold] {task.description}", markup=True),
            BarColumn(bar_width=24, pulse_style="dim"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._label = ""
        self._last = ""

    def __enter__(self) -> TerminalProgress:
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._bars.stop()

    def __call__(self, message: str, done: float = 0.0, total: float = 0.0) -> None:
        """Show what is being done, with a bar where the total is known."""
        if self._live:
            if self._task is None:
                self._task = self._bars.add_task("", label=self._label, total=None)
            self._bars.update(
                self._task,
                description=escape(message),
                completed=done,
                total=total if total > 0 else None,
            )
        elif not self._quiet and message != self._last:
            label = f"{self._label}: " if self._label else ""
            self._console.print(f"{label}{message}", markup=False, soft_wrap=True)
        self._last = message

    @contextmanager
    def stage(self, label: str) -> Iterator[Progress]:
        """Show the block's progress under a label, with a clock of its own."""
        outer_task, outer_label = self._task, self._label
        self._task, self._label, self._last = None, label, ""
        try:
            yield self
        finally:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task, self._label = outer_task, outer_label

    def note(self, line: str) -> None:
        """Print a line that stays above the live one; rich markup is understood."""
        if not self._quiet:
            self._console.print(line, soft_wrap=True)
