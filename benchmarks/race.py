"""Races: contestants interleaved in one process, with median, spread, ratio and the machine.

A benchmark file reads::

    def race(quick: bool) -> Iterator[Outcome]:
        for length in (512, 2048):
            contest = Race(f"forward, length {length}", unit="ms")
            contest.enter("ours", lambda: ours(x))
            contest.enter("torch, compiled", lambda: theirs(y))
            yield contest.run(quick=quick)

    if __name__ == "__main__":
        command(__doc__, "fourier_mixing", race)
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.table import Table

from trimtab.errors import TrimtabError
from trimtab.files import atomic_file
from trimtab.hardware import provenance
from trimtab.reproduce.race import Contestant as Contestant
from trimtab.reproduce.race import Outcome as Outcome
from trimtab.reproduce.race import Race as Race


def command(
    description: str | None, name: str, race: Callable[[bool], Iterable[Outcome]]
) -> Sequence[Outcome]:
    """Run a benchmark file: ``--json PATH`` writes the results, ``--quick`` only tries it.

    Args:
        description: the file's docstring, for ``--help``.
        name: the benchmark's name, that of its file.
        race: yields outcomes; it is told whether the run is a quick one.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="PATH", help="write the results there, atomically")
    parser.add_argument("--quick", action="store_true", help="few rounds, to see that it runs")
    options = parser.parse_args()
    console = Console()
    outcomes = []
    started = time.time()
    try:
        for outcome in race(options.quick):
            console.print(as_table(outcome))
            outcomes.append(outcome)
    except TrimtabError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(1)
    if options.json:
        document = {
            "benchmark": name,
            "command": f"python benchmarks/{name}.py" + (" --quick" if options.quick else ""),
            "date": time.strftime("%Y-%m-%d", time.gmtime(started)),
            "quick": options.quick,
            "machine": provenance(devices="jax" in sys.modules),
            "races": [dataclasses.asdict(outcome) for outcome in outcomes],
        }
        with atomic_file(options.json) as temporary:
            temporary.write_text(json.dumps(document, indent=1) + "\n")
    return outcomes


def as_table(outcome: Outcome) -> Table:
    """Lay an outcome out for the terminal."""
    loads = (outcome.load_before, outcome.load_after)
    load = "load " + " to ".join("unknown" if load is None else f"{load:.1f}" for load in loads)
    table = Table(title=outcome.race, title_justify="left", caption=load, caption_justify="left")
    table.add_column("contestant")
    table.add_column(outcome.unit, justify="right")
    table.add_column("spread", justify="right")
    table.add_column("ours is", justify="right")
    table.add_column("samples", justify="right")
    for position, entry in enumerate(outcome.contestants):
        ratio = f"{entry.ratio:.2f}x ({entry.ratio_low:.2f}-{entry.ratio_high:.2f})"
        table.add_row(
            f"{entry.name} [dim]{entry.note}[/dim]" if entry.note else entry.name,
            f"{entry.median:.4g}",
            f"{entry.spread:.1%}",
            ratio if position else "",
            f"{entry.samples} x {entry.calls}",
        )
    return table
