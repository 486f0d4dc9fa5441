"""Where a verb's results go: tables or one JSON document on standard output."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Output:
    """How the user wants to read the results.

    Args:
        json: one JSON document instead of tables.
        quiet: no progress.
    """

    json: bool = False
    quiet: bool = False

    def print(self, *renderables: Any) -> None:
        """Print text or tables on standard output; rich markup is understood."""
        console = stdout_console()
        for renderable in renderables:
            # A terminal gets lines broken between words; a file or a pipe gets them whole.
            whole = isinstance(renderable, str) and not console.is_terminal
            console.print(renderable, soft_wrap=whole)

    def document(self, values: Mapping[str, Any]) -> None:
        """Print one JSON document on standard output."""
        click.echo(json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False))

    def progress(self) -> Any:
        """Return a context manager that gives a :class:`trimtab.progress.Progress`."""
        from trimtab.cli.progress import TerminalProgress

        return TerminalProgress(quiet=self.quiet)


def stdout_console() -> Console:
    """Return a console on standard output, without colour where it is unwelcome."""
    return _console(stderr=False)


def stderr_console() -> Console:
    """Return a console on standard error, for progress."""
    return _console(stderr=True)


def output_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb ``--json`` and ``--quiet``, and pass them as its first argument, an Output."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
    @click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
    @functools.wraps(verb)
    def wrapped(*args: Any, as_json: bool, quiet: bool, **kwargs: Any) -> Any:
        return verb(Output(json=as_json, quiet=quiet), *args, **kwargs)

    return wrapped


def examples(*lines: str) -> str:
    """Return the end of a help page: commands that a reader can copy."""
    heading = "Example:" if len(lines) == 1 else "Examples:"
    return "\b\n" + "\n".join([heading, *(f"  {line}" for line in lines)])


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    # Off a terminal rich assumes 80 columns, which would cut tables that go to a file or a pager.
    console = Console(stderr=stderr, highlight=False)
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(stderr=stderr, highlight=False, width=160)
