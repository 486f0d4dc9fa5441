"""``trimtab machine``: measure bandwidth and arithmetic once, and show them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from trimtab.cli.output import Output, examples, output_options

if TYPE_CHECKING:
    from trimtab.graph.machine import MachineProfile


@click.command(epilog=examples("trimtab machine", "trimtab machine --again --json > machine.json"))
@click.option("--again", is_flag=True, help="Measure even if there is a cached profile.")
@output_options
def command(output: Output, again: bool) -> None:
    """Measure this machine's memory bandwidth and its FLOP rates by element type and cores.

    The profile is measured once (some twenty seconds, best on an idle machine), cached, and used
    to price programs: a program's cost on a roofline is work divided by these rates.
    """
    from trimtab.graph.machine import measure, profile_path

    with output.progress() as progress:
        profile = measure(again=again, progress=progress)
    if output.json:
        output.document(profile.to_json())
        return
    output.print(*_tables(profile))
    busy = profile.load is not None and profile.load > 0.3 * profile.cores
    if busy:
        output.print(
            f"[yellow]The load average was {profile.load:.1f} when this was measured, so the rates "
            "may be too low. Run on an idle machine: trimtab machine --again[/]"
        )
    output.print(f"[dim]measured {profile.date}, cached in {profile_path()}[/]")


def _tables(profile: MachineProfile) -> list:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    counts = sorted(profile.bandwidth)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("")
    for cores in counts:
        table.add_column(f"{cores} core{'s' * (cores != 1)}", justify="right")
    table.add_column("unit")
    table.add_column("by", style="dim")
    for name, rates in (
        ("memory, read", profile.bandwidth),
        ("memory, copy", profile.copy_bandwidth),
    ):
        table.add_row(name, *(f"{rates[cores] / 1e9:.1f}" for cores in counts), "GB/s", "")
    table.add_section()
    for dtype, rates in profile.rates.items():
        unit = "GOP/s" if dtype.startswith("int") else "GFLOP/s"
        cells = (f"{rates[cores] / 1e9:.0f}" for cores in counts)
        table.add_row(f"{dtype} products", *cells, unit, profile.engines[dtype])
    for dtype, rates in profile.peaks.items():
        unit = "GOP/s" if dtype.startswith("int") else "GFLOP/s"
        cells = (f"{rates[cores] / 1e9:.0f}" for cores in counts)
        table.add_row(f"{dtype} in registers", *cells, unit, "kernels")
    hardware = profile.hardware
    caches = ", ".join(
        f"L{cache.level} {cache.kind} {_size(cache.size_bytes)}" for cache in hardware.caches
    )
    return [
        f"[bold]{escape(hardware.summary)}[/]",
        f"[dim]caches[/]  {caches or 'unknown'}",
        f"[dim]vectors[/] {', '.join(hardware.instruction_sets) or 'unknown'}\n",
        table,
        f"\nA program is bound by memory below {profile.balance():.1f} float32 operations a byte.",
    ]


def _size(size_bytes: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:g} {unit}"
    return f"{size_bytes / 1024:g} KiB"
