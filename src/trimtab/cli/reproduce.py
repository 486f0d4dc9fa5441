"""``trimtab reproduce``: run published experiments and report them beside their baselines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimtab.cli.output import Output, examples, output_options
from trimtab.errors import UnknownNameError
from trimtab.reproduce import SYSTEMS, System, find

if TYPE_CHECKING:
    from trimtab.cli.progress import TerminalProgress
    from trimtab.reproduce.experiment import Row
    from trimtab.reproduce.outcome import SystemOutcome
    from trimtab.reproduce.report import Report

_VERDICTS = {True: "[green]✓ holds[/]", False: "[red]✗ misses[/]", None: "[dim]–[/]"}


class SystemName(click.ParamType):
    """The name of a system, with completion and a hint at the nearest one."""

    name = "system"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> System:
        """Return the system of that name."""
        if isinstance(value, System):
            return value
        try:
            return find(value)
        except UnknownNameError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list:
        """Return the names that begin with what was typed."""
        from click.shell_completion import CompletionItem

        return [
            CompletionItem(system.name, help=system.subject)
            for system in SYSTEMS
            if system.name.startswith(incomplete)
        ]


@click.command(
    epilog=examples("trimtab reproduce", "trimtab reproduce fnet vrgd --full --out report")
)
@click.argument("systems", nargs=-1, type=SystemName(), metavar="[SYSTEM]...")
@click.option("--full", is_flag=True, help="Run the full size (minutes to hours a system).")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write report.html, report.json and the figures there.",
)
@click.option("--seed", default=0, show_default=True, help="The first random seed.")
@click.option("--list", "list_only", is_flag=True, help="List the systems and stop.")
@output_options
def command(
    output: Output,
    systems: Sequence[System],
    full: bool,
    out: Path | None,
    seed: int,
    list_only: bool,
) -> None:
    """Run the experiments of each SYSTEM, or of all, each beside its baseline.

    The quick size takes at most a minute a system on two cores. The table shows the paper's
    figure, the baseline and ours as measured here, the ratio (above 1 is better), and whether the
    claim held. The exit code is 1 if a system failed to run, not if a claim did not hold.
    """
    chosen = [system for system in SYSTEMS if system in systems] if systems else list(SYSTEMS)
    if list_only:
        _list(output, chosen)
        return
    report = _run(output, chosen, full=full, seed=seed, out=out)
    if report.failed:
        raise click.exceptions.Exit(1)


def _list(output: Output, systems: Sequence[System]) -> None:
    if output.json:
        output.document(
            {
                "systems": {
                    system.name: {
                        "available": system.available,
                        "paper": system.paper,
                        "subject": system.subject,
                    }
                    for system in systems
                }
            }
        )
        return
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("system", no_wrap=True)
    table.add_column("what it does")
    table.add_column("paper")
    table.add_column("status", no_wrap=True)
    for system in systems:
        status = "[green]ready[/]" if system.available else "[dim]not available[/]"
        table.add_row(system.name, system.subject, system.paper, status)
    output.print(table)


def _run(
    output: Output, systems: Sequence[System], *, full: bool, seed: int, out: Path | None
) -> Report:
    from trimtab.hardware import provenance
    from trimtab.reproduce.report import Report, now
    from trimtab.reproduce.runner import run_isolated

    date, outcomes = now(), []
    try:
        with output.progress() as progress:
            for system in systems:
                with progress.stage(system.name) as stage:
                    outcome = run_isolated(system.name, progress=stage, seed=seed, full=full)
                outcomes.append(outcome)
                _note(progress, outcome)
    finally:
        # After an interruption, what has been measured is still shown and written.
        devices = any(outcome.status == "ok" for outcome in outcomes)
        report = Report(provenance(devices=devices), outcomes, seed, full, date)
        if outcomes:
            _show(output, report, out)
    return report


def _note(progress: TerminalProgress, outcome: SystemOutcome) -> None:
    from rich.markup import escape

    from trimtab.reproduce.numbers import duration

    if outcome.status == "ok":
        progress.note(f"[green]✓[/] {outcome.system} [dim]{duration(outcome.seconds)}[/]")
    elif outcome.status == "failed":
        progress.note(f"[red]✗[/] {outcome.system} {escape(outcome.error)}")


def _show(output: Output, report: Report, out: Path | None) -> None:
    from rich.markup import escape

    page = report.write(out) if out else None
    if output.json:
        output.document(report.to_json())
        return
    for outcome in report.outcomes:
        if outcome.rows:
            output.print(*_section(outcome))
    if any(outcome.rows for outcome in report.outcomes):
        size = "full" if report.full else "quick"
        output.print(
            f"Measured on {escape(report.machine['summary'])}; {size} size, first seed "
            f"{report.seed}. A ratio above 1 means that ours is better.\n"
        )
    for outcome in report.outcomes:
        if outcome.status == "failed":
            output.print(f"[red]{outcome.system} failed:[/] {escape(outcome.error)}")
    absent = [outcome for outcome in report.outcomes if outcome.status == "unavailable"]
    for reason in dict.fromkeys(outcome.error for outcome in absent):
        names = ", ".join(outcome.system for outcome in absent if outcome.error == reason)
        output.print(f"[dim]not available:[/] {names}. {escape(reason)}")
    if page:
        output.print(f"report: {escape(str(page))}")


def _section(outcome: SystemOutcome) -> list[Any]:
    """Lay one system out: a heading, its table, and the rows' notes below it."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from trimtab.reproduce.numbers import duration

    heading = f"\n[bold cyan]{outcome.system}[/]  {escape(outcome.about.get('title', ''))}"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", style="dim")
    table.add_column("metric")
    table.add_column("paper", justify="right", max_width=24)
    for name in ("baseline", "ours", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("claim", no_wrap=True)
    notes = []
    for number, row in enumerate(outcome.rows, start=1):
        table.add_row(str(number), *_cells(row))
        facts = [row.note.rstrip(".")] if row.note else []
        facts += [f"seeds {', '.join(map(str, row.seeds))}"] if len(row.seeds) > 1 else []
        facts += [f"measured on {row.where}"] if row.where else []
        if facts:
            notes.append(f"[dim]{number}  {escape('; '.join(facts))}[/]")
    return [f"{heading} [dim]{duration(outcome.seconds)}[/]", table, *notes, ""]


def _cells(row: Row) -> tuple[str, ...]:
    from rich.markup import escape

    from trimtab.reproduce.numbers import readable, times

    return (
        escape(row.metric) + (f" [dim]({escape(row.unit)})[/]" if row.unit else ""),
        *(escape(readable(value)) for value in (row.paper, row.baseline, row.ours)),
        times(row.ratio),
        _VERDICTS[row.holds],
    )
