"""A report as plain text, and as plain data."""

from __future__ import annotations

from typing import Any

from trimtab.simulate.stream.reporting import Report


def as_text(report: Report) -> str:
    """Lay out throughput, units, FIFOs and the critical cycle in columns."""
    network, run = report.network, report.run
    lines = [
        f"{report.name}: {len(network.units)} units, {len(network.fifos)} FIFOs",
        "",
        f"  cycles            {run.cycles:>14,}",
        f"  unlimited FIFOs   {report.unbounded_cycles:>14,}"
        f"   {'full throughput' if report.full_throughput else 'NOT full throughput'}",
        f"  ideal             {network.ideal_cycles:>14,}   efficiency {run.efficiency:.1%}",
    ]
    if report.fill_cycles is not None:
        lines.append(f"  first result at   {report.fill_cycles:>14,}")
    lines += [
        f"  FIFO places       {network.total_depth:>14,}   {network.fifo_bits:,} bits",
        f"  memory in units   {network.memory_bits - network.fifo_bits:>14,} bits",
    ]
    if report.rewrites:
        lines += ["", "Rewrites:", *(f"  - {step}" for step in report.rewrites)]
        lines.append(f"  FIFO bits {report.original_bits:,} -> {network.fifo_bits:,}")
    if report.deadlock is not None:
        lines += ["", str(report.deadlock)]
        if report.deadlock.full_fifos:
            lines.append(str(report.deadlock.fix()))
    if report.critical is not None:
        pace = report.critical.pace
        lines += [
            "",
            f"Critical cycle: {report.critical.cycles} cycles for {report.critical.firings} "
            f"firings ({float(pace):.4g} per firing)",
            *(f"  - {step}" for step in report.critical.steps),
        ]
    lines += ["", "Units", *_unit_table(report), "", "FIFOs", *_fifo_table(report)]
    return "\n".join(lines)


def _unit_table(report: Report) -> list[str]:
    rows = [("unit", "kind", "firings", "busy", "waits for tokens", "waits for room")]
    for unit in report.units:
        rows.append(
            (
                unit.name,
                unit.kind,
                f"{unit.firings:,}",
                f"{unit.utilisation:.1%}",
                _causes(unit.starved),
                _causes(unit.blocked),
            )
        )
    return _columns(rows, numbers={2, 3})


def _causes(cycles: dict[str, int]) -> str:
    worst = sorted(cycles.items(), key=lambda item: -item[1])[:2]
    return "; ".join(f"{count:,} on {name}" for name, count in worst)


def _fifo_table(report: Report) -> list[str]:
    rows = [("FIFO", "depth", "bits", "most held", "tokens")]
    for index, fifo in enumerate(report.network.fifos):
        held = "" if report.occupancy is None else f"{report.occupancy[index]:,}"
        depth = "unlimited" if fifo.depth is None else f"{fifo.depth:,}"
        tokens = f"{report.run.sent[index]:,}"
        rows.append((fifo.name, depth, f"{fifo.bits:,}", held, tokens))
    return _columns(rows, numbers={1, 2, 3, 4})


def _columns(rows: list[tuple[str, ...]], numbers: set[int]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if i in numbers else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]


def as_data(report: Report) -> dict[str, Any]:
    """The figures of a report as JSON-ready data."""
    network, run = report.network, report.run
    critical = report.critical
    return {
        "name": report.name,
        "cycles": run.cycles,
        "unbounded_cycles": report.unbounded_cycles,
        "ideal_cycles": network.ideal_cycles,
        "efficiency": run.efficiency,
        "full_throughput": report.full_throughput,
        "fill_cycles": report.fill_cycles,
        "fifo_places": network.total_depth,
        "fifo_bits": network.fifo_bits,
        "unit_memory_bits": network.memory_bits - network.fifo_bits,
        "rewrites": list(report.rewrites),
        "original_fifo_bits": report.original_bits,
        "deadlock": None if report.deadlock is None else str(report.deadlock),
        "critical_cycle": critical
        and {"steps": list(critical.steps), "cycles": critical.cycles, "firings": critical.firings},
        "units": [
            {
                "name": unit.name,
                "kind": unit.kind,
                "firings": unit.firings,
                "utilisation": unit.utilisation,
                "starved": unit.starved,
                "blocked": unit.blocked,
            }
            for unit in report.units
        ],
        "fifos": [
            {
                "name": fifo.name,
                "depth": fifo.depth,
                "bits": fifo.bits,
                "most_held": None if report.occupancy is None else int(report.occupancy[index]),
                "tokens": int(run.sent[index]),
            }
            for index, fifo in enumerate(network.fifos)
        ],
    }
