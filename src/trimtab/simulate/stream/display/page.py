"""A report as one self-contained HTML page: figures, graph, tables and a timeline."""

from __future__ import annotations

import html
from collections import defaultdict

import numpy as np

from trimtab.simulate.stream.display.timeline import busy_spans
from trimtab.simulate.stream.network import Network
from trimtab.simulate.stream.reporting import Report

_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#6a737d;--line:#d0d7de;--paper:#fff;
--mark:#0b62c4;--long:#b3261e;--fill:#eef3f9}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ed;--soft:#9aa4af;--line:#3a424b;--paper:#14181c;
--mark:#6cb0ff;--long:#ff8a80;--fill:#1f262d}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:2rem auto;
max-width:72rem;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}
.figures{display:flex;flex-wrap:wrap;gap:.75rem}.figures div{border:1px solid var(--line);
border-radius:6px;padding:.5rem .9rem}.figures b{display:block;font-size:1.25rem}
.figures span{color:var(--soft);font-size:.85rem}
table{border-collapse:collapse;font-size:.9rem}td,th{padding:.2rem .7rem;text-align:left;
border-bottom:1px solid var(--line)}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto}svg{font:12px system-ui,sans-serif}svg text{fill:var(--ink)}
.box{fill:var(--fill);stroke:var(--line)}.wire{stroke:var(--soft);fill:none}
.wire.long{stroke:var(--long);stroke-width:2.5}.depth{fill:var(--soft)!important}
.busy{fill:var(--mark)}pre{white-space:pre-wrap;background:var(--fill);padding:.8rem}
"""


def as_page(report: Report) -> str:
    """Build the page."""
    title = html.escape(f"{report.name} as a streaming network")
    parts = [
        f"<h1>{title}</h1>",
        _figures(report),
        _notes(report),
        "<h2>Network</h2>",
        "<p>One box a unit, one line a FIFO with its depth; from 32 places on it is red.</p>",
        f'<div class="scroll">{network_drawing(report.network)}</div>',
        "<h2>FIFOs</h2>",
        _fifo_table(report),
        "<h2>Units</h2>",
        _unit_table(report),
    ]
    if report.run.visible_at is not None and report.run.cycles:
        parts += [
            "<h2>Timeline</h2>",
            "<p>When each unit fired without a pause.</p>",
            f'<div class="scroll">{_timeline(report)}</div>',
        ]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _figures(report: Report) -> str:
    network, run = report.network, report.run
    throughput = "yes" if report.full_throughput else "no"
    figures = [
        (f"{run.cycles:,}", "cycles"),
        (f"{report.unbounded_cycles:,}", "with unlimited FIFOs"),
        (throughput, "full throughput"),
        (f"{run.efficiency:.1%}", "of the ideal"),
        (f"{network.total_depth:,}", "FIFO places"),
        (f"{network.fifo_bits:,}", "FIFO bits"),
        (f"{network.memory_bits - network.fifo_bits:,}", "bits inside units"),
    ]
    cells = "".join(f"<div><b>{value}</b><span>{label}</span></div>" for value, label in figures)
    return f'<div class="figures">{cells}</div>'


def _notes(report: Report) -> str:
    notes = []
    if report.rewrites:
        steps = "".join(f"<li>{html.escape(step)}</li>" for step in report.rewrites)
        notes.append(
            f"<h2>Rewrites</h2><ol>{steps}</ol><p>FIFO bits {report.original_bits:,} "
            f"&rarr; {report.network.fifo_bits:,}</p>"
        )
    if report.deadlock is not None:
        text = str(report.deadlock)
        if report.deadlock.full_fifos:
            text += f"\n{report.deadlock.fix()}"
        notes.append(f"<h2>Deadlock</h2><pre>{html.escape(text)}</pre>")
    if report.critical is not None:
        steps = "".join(f"<li>{html.escape(step)}</li>" for step in report.critical.steps)
        shares = sorted(report.critical.shares.items(), key=lambda item: -item[1])[:5]
        rows = "".join(
            f'<tr><td>{html.escape(cause)}</td><td class="n">{share:.1%}</td></tr>'
            for cause, share in shares
        )
        notes.append(
            f"<h2>What sets the pace</h2><p>{report.critical.cycles} cycles for "
            f"{report.critical.firings} firings:</p><ol>{steps}</ol>"
            "<table><tr><th>along the critical path</th>"
            f'<th class="n">share</th></tr>{rows}</table>'
        )
    return "\n".join(notes)


def _table(header: list[tuple[str, bool]], rows: list[list[str]]) -> str:
    head = "".join(f"<th{' class=n' if number else ''}>{name}</th>" for name, number in header)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=n' if number else ''}>{html.escape(cell)}</td>"
            for cell, (_, number) in zip(row, header)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _fifo_table(report: Report) -> str:
    header = [("FIFO", False), ("depth", True), ("bits a token", True), ("most held", True)]
    header += [("tokens", True), ("reader starved", True), ("writer blocked", True)]
    rows = []
    for index, fifo in enumerate(report.network.fifos):
        held = "" if report.occupancy is None else f"{report.occupancy[index]:,}"
        rows.append(
            [
                fifo.name,
                "unlimited" if fifo.depth is None else f"{fifo.depth:,}",
                f"{fifo.bits:,}",
                held,
                f"{report.run.sent[index]:,}",
                f"{report.run.starved[index]:,}",
                f"{report.run.blocked[index]:,}",
            ]
        )
    return _table(header, rows)


def _unit_table(report: Report) -> str:
    header = [("unit", False), ("kind", False), ("firings", True), ("busy", True)]
    rows = [
        [unit.name, unit.kind, f"{unit.firings:,}", f"{unit.utilisation:.1%}"]
        for unit in report.units
    ]
    return _table(header, rows)


# ------------------------------------------------------------------------------- drawings
def network_drawing(network: Network) -> str:
    """Draw a network as layered SVG, streams running from left to right."""
    layer = _layers(network)
    columns: dict[int, list[int]] = defaultdict(list)
    for unit, column in enumerate(layer):
        columns[column].append(unit)
    width, height, across, down = 150, 34, 210, 58
    place = {}
    tallest = max((len(units) for units in columns.values()), default=1)
    for column, units in columns.items():
        offset = (tallest - len(units)) * down / 2
        for row, unit in enumerate(units):
            place[unit] = (column * across + 10, offset + row * down + 24)
    wires, boxes = [], []
    between: dict[tuple[int, int], int] = defaultdict(int)
    for fifo in network.fifos:
        between[fifo.producer, fifo.consumer] += 1
        shift = 11 * (between[fifo.producer, fifo.consumer] - 1)
        x1, y1 = place[fifo.producer][0] + width, place[fifo.producer][1] + height / 2 + shift
        x2, y2 = place[fifo.consumer][0], place[fifo.consumer][1] + height / 2 + shift
        bend = max(30, (x2 - x1) / 2)
        long = " long" if fifo.depth is None or fifo.depth >= 32 else ""
        depth = "∞" if fifo.depth is None else str(fifo.depth)
        wires.append(
            f'<path class="wire{long}" d="M{x1:.0f},{y1:.0f} C{x1 + bend:.0f},{y1:.0f} '
            f'{x2 - bend:.0f},{y2:.0f} {x2:.0f},{y2:.0f}"><title>{html.escape(fifo.name)}</title>'
            f'</path><text class="depth" x="{(x1 + x2) / 2:.0f}" y="{(y1 + y2) / 2 - 4:.0f}" '
            f'text-anchor="middle">{depth}</text>'
        )
    for unit, (x, y) in place.items():
        name = network.units[unit].name
        short = name if len(name) <= 22 else name[:21] + "…"
        boxes.append(
            f'<rect class="box" x="{x}" y="{y:.0f}" width="{width}" height="{height}" rx="5">'
            f"<title>{html.escape(name)} ({network.units[unit].kind})</title></rect>"
            f'<text x="{x + width / 2}" y="{y + height / 2 + 4:.0f}" text-anchor="middle">'
            f"{html.escape(short)}</text>"
        )
    total_width = (max(columns, default=0) + 1) * across
    total_height = tallest * down + 40
    return (
        f'<svg width="{total_width}" height="{total_height}" role="img" '
        f'aria-label="network of {len(network.units)} units">{"".join(wires + boxes)}</svg>'
    )


def _layers(network: Network) -> list[int]:
    """Longest path from the sources; feedback FIFOs (with initial tokens) do not count."""
    layer = [0] * len(network.units)
    for _ in network.units:
        changed = False
        for fifo in network.fifos:
            if fifo.initial or fifo.producer == fifo.consumer:
                continue
            if layer[fifo.consumer] <= layer[fifo.producer]:
                layer[fifo.consumer] = layer[fifo.producer] + 1
                changed = True
        if not changed:
            break
    return layer


def _timeline(report: Report) -> str:
    cycles = report.run.cycles
    width, row, left = 900, 18, 170
    bars = []
    for index, (unit, spans) in enumerate(zip(report.network.units, busy_spans(report.run))):
        y = index * row
        bars.append(
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">'
            f"{html.escape(unit.name[:24])}</text>"
        )
        for start, end in _visible(spans, cycles, width):
            x, length = left + start / cycles * width, max(0.5, (end - start) / cycles * width)
            bars.append(
                f'<rect class="busy" x="{x:.1f}" y="{y + 3}" width="{length:.1f}" '
                f'height="{row - 6}"/>'
            )
    height = len(report.network.units) * row + 20
    axis = f'<text x="{left}" y="{height - 4}">0</text><text x="{left + width}" y="{height - 4}" '
    axis += f'text-anchor="end">{cycles:,} cycles</text>'
    return f'<svg width="{left + width + 20}" height="{height}">{"".join(bars)}{axis}</svg>'


def _visible(spans: np.ndarray, cycles: int, pixels: int) -> np.ndarray:
    """Join spans that would share a pixel."""
    if len(spans) <= 1:
        return spans
    gap = cycles / pixels / 2
    breaks = np.flatnonzero(spans[1:, 0] - spans[:-1, 1] > gap)
    starts = spans[np.concatenate([[0], breaks + 1]), 0]
    ends = spans[np.concatenate([breaks, [len(spans) - 1]]), 1]
    return np.stack([starts, ends], axis=1)
