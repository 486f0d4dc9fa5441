"""Timelines for other viewers: trace events (Perfetto, chrome://tracing), VCD (GTKWave), DOT."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from trimtab.errors import require_extra
from trimtab.files import atomic_file
from trimtab.simulate.stream.analysis import firing_times, occupancy_changes
from trimtab.simulate.stream.network import Network
from trimtab.simulate.stream.run import Run


def busy_spans(run: Run, cycles: int | None = None) -> list[np.ndarray]:
    """Return per unit the spans ``[start, end)`` in which it fired without a pause.

    Args:
        run: a recorded run.
        cycles: leave out what starts later.
    """
    spans = []
    for unit, (_, fired) in zip(run.network.units, firing_times(run)):
        if cycles is not None:
            fired = fired[fired < cycles]
        if not len(fired):
            spans.append(np.zeros((0, 2), np.int64))
            continue
        breaks = np.flatnonzero(np.diff(fired) > unit.interval)
        starts = fired[np.concatenate([[0], breaks + 1])]
        ends = fired[np.concatenate([breaks, [len(fired) - 1]])] + unit.interval
        spans.append(np.stack([starts, ends], axis=1))
    return spans


def trace_events(run: Run, cycles: int | None = None) -> dict[str, Any]:
    """Return a trace-event document: units as threads, FIFO occupancy as counters.

    One cycle is shown as one microsecond.
    """
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "units"}},
        {"ph": "M", "pid": 2, "name": "process_name", "args": {"name": "FIFOs"}},
    ]
    for index, (unit, spans) in enumerate(zip(run.network.units, busy_spans(run, cycles))):
        events.append(
            {"ph": "M", "pid": 1, "tid": index, "name": "thread_name", "args": {"name": unit.name}}
        )
        events += [
            {
                "ph": "X",
                "pid": 1,
                "tid": index,
                "name": unit.kind,
                "ts": int(start),
                "dur": int(end - start),
            }
            for start, end in spans
        ]
    for index, fifo in enumerate(run.network.fifos):
        times, levels = occupancy_changes(run, index)
        events += [
            {"ph": "C", "pid": 2, "name": fifo.name, "ts": int(time), "args": {"tokens": int(n)}}
            for time, n in zip(times, levels)
            if cycles is None or time < cycles
        ]
    return {"traceEvents": events, "displayTimeUnit": "ns"}


def write_trace(run: Run, path: str | os.PathLike[str], cycles: int | None = None) -> None:
    """Write trace events as JSON."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(trace_events(run, cycles)))


def write_vcd(run: Run, path: str | os.PathLike[str], cycles: int | None = None) -> None:
    """Write a value change dump: a busy bit per unit and an occupancy word per FIFO.

    Raises:
        MissingExtraError: pyvcd is not installed.
    """
    vcd = require_extra("vcd", "hardware", "Writing a VCD file")
    changes: list[tuple[int, Any, int]] = []
    with (
        atomic_file(path) as temporary,
        temporary.open("w") as file,
        vcd.VCDWriter(file, timescale="1 ns", date="") as writer,
    ):
        for unit, spans in zip(run.network.units, busy_spans(run, cycles)):
            wire = writer.register_var("units", _identifier(unit.name), "wire", size=1, init=0)
            for start, end in spans:
                changes += [(int(start), wire, 1), (int(end), wire, 0)]
        for index, fifo in enumerate(run.network.fifos):
            word = writer.register_var(
                "fifos", _identifier(f"{index}_{fifo.name}"), "integer", size=32, init=0
            )
            changes += [
                (int(time), word, int(level))
                for time, level in zip(*occupancy_changes(run, index))
                if cycles is None or time < cycles
            ]
        for time, variable, value in sorted(changes, key=lambda change: change[0]):
            writer.change(variable, time, value)


def _identifier(name: str) -> str:
    return "".join(c if c.isalnum() or c == "_" else "_" for c in name)


def dot_graph(network: Network) -> str:
    """Return the network in the DOT language."""
    lines = ["digraph network {", "  rankdir=LR;", "  node [shape=box];"]
    for index, unit in enumerate(network.units):
        lines.append(f"  u{index} [label={json.dumps(f'{unit.name} ({unit.kind})')}];")
    for fifo in network.fifos:
        depth = "unlimited" if fifo.depth is None else str(fifo.depth)
        lines.append(f"  u{fifo.producer} -> u{fifo.consumer} [label={json.dumps(depth)}];")
    return "\n".join([*lines, "}"])
