"""Networks as flat arrays for the native engines, and their answers as runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.errors import InputError
from trimtab.kernels.stream import run_stream_engine
from trimtab.simulate.stream.network import Network
from trimtab.simulate.stream.rates import Rate
from trimtab.simulate.stream.run import FULL, Blocked, Run

_FINISHED, _LIMIT = 0, 2


def _flat(values: Any) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.int64).reshape(-1)


def _offsets(groups: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    sizes = [len(group) for group in groups]
    return _flat(np.cumsum([0, *sizes])), _flat([item for group in groups for item in group])


def _rates(rates: Sequence[Rate]) -> list[np.ndarray]:
    offsets = np.cumsum([0, *(len(rate.runs) for rate in rates)])
    runs = np.array([run for rate in rates for run in rate.runs], np.int64).reshape(-1, 2)
    return [_flat(offsets), _flat(runs[:, 0]), _flat(runs[:, 1])]


def encode(network: Network) -> list[np.ndarray]:
    """Return the 13 arrays that describe a network to the native engines.

    Raises:
        InputError: a unit decides by arrival time, or the number of its firings is unknown.
    """
    for unit in network.units:
        if unit.behaviour is not None or unit.firings < 0:
            raise InputError(
                f"Unit {unit.name} decides by arrival time or feeds on one that does; "
                f"pass engine='reference'."
            )
    fifos = network.fifos
    depths = [-1 if fifo.depth is None else fifo.depth for fifo in fifos]
    times = [(fifo.latency, fifo.send_latency, fifo.response_latency) for fifo in fifos]
    rates = [rate for fifo in fifos for rate in (fifo.produce, fifo.consume)]
    return [
        _flat([unit.firings for unit in network.units]),
        _flat([unit.interval for unit in network.units]),
        *_offsets([unit.inputs for unit in network.units]),
        *_offsets([unit.outputs for unit in network.units]),
        _flat(depths),
        _flat([value for entry in times for value in entry]),
        _flat([fifo.initial for fifo in fifos]),
        *_rates(rates),
        _flat([network.tokens(fifo) for fifo in fifos]),
    ]


def simulate_native(
    network: Network,
    *,
    fork: str = "atomic",
    record: bool = False,
    fast_forward: bool = True,
    event_limit: int | None = None,
) -> Run:
    """Run a network in the native worklist engine.

    Args:
        network: units of fixed rates only.
        fork: ``"atomic"`` or ``"sequential"``.
        record: keep the times of all tokens (16 bytes each); turns fast-forward off.
        fast_forward: step over exact repetitions.
        event_limit: stop after about so many tokens; raises then.
    """
    arrays = encode(network)
    totals = arrays[-1] if record else np.zeros_like(arrays[-1])
    offsets = _flat(np.cumsum([0, *totals]))
    visible, received = np.zeros((2, int(offsets[-1])), np.int64)
    units = np.zeros((len(network.units), 4), np.int64)
    fifos = np.zeros((len(network.fifos), 4), np.int64)
    summary = np.zeros(6, np.int64)
    limit = {} if event_limit is None else {"event_limit": event_limit}
    run_stream_engine(
        "stream_simulate",
        [*arrays, offsets],
        [units, fifos, summary, visible, received],
        atomic=int(fork == "atomic"),
        record=int(record),
        fast_forward=int(fast_forward),
        **limit,
    )
    status, cycles, events, skipped = summary[:4].tolist()
    if status == _LIMIT:
        raise InputError(f"The run passed {event_limit} tokens; raise event_limit to go on.")
    sent, got = fifos[:, 0], fifos[:, 1]
    waiting = tuple(
        Blocked(u, fifo, kind == FULL)
        for u, (_, _, fifo, kind) in enumerate(units.tolist())
        if kind
    )
    return Run(
        network=network,
        cycles=cycles,
        completed=status == _FINISHED,
        unit_time=units[:, 0],
        unit_firings=units[:, 1],
        sent=sent,
        received=got,
        starved=fifos[:, 2],
        blocked=fifos[:, 3],
        waiting=waiting,
        events=events,
        skipped=skipped,
        visible_at=_cut(visible, offsets, sent) if record else None,
        received_at=_cut(received, offsets, got) if record else None,
        fork=fork,
    )


def _cut(values: np.ndarray, offsets: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(values[start : start + count] for start, count in zip(offsets, counts))


@dataclass(frozen=True)
class Growth:
    """Depths that let a network complete.

    Args:
        depths: one per FIFO.
        added: places added.
        completed: False if no full FIFO could be grown any further.
    """

    depths: tuple[int | None, ...]
    added: int
    completed: bool


def grow_native(network: Network, cost: Sequence[int]) -> Growth:
    """Grow FIFOs one place at a time until the network completes, moving tokens without times.

    Args:
        cost: per place of each FIFO; negative forbids growing it. The cheapest full FIFO of a
            cycle of waiting units grows.
    """
    depths, summary = np.zeros(len(network.fifos), np.int64), np.zeros(6, np.int64)
    run_stream_engine("stream_grow", [*encode(network), _flat(cost)], [depths, summary])
    return Growth(
        tuple(None if depth < 0 else depth for depth in depths.tolist()),
        int(summary[1]),
        bool(summary[0] == _FINISHED),
    )


def sweep_native(
    network: Network,
    depths: np.ndarray,
    latencies: np.ndarray | None = None,
    intervals: np.ndarray | None = None,
    *,
    fork: str = "atomic",
    fast_forward: bool = False,
) -> np.ndarray:
    """Return the cycles of many configurations at once; -1 for a deadlock.

    Args:
        depths: ``[configuration, fifo]``, negative for no limit.
        latencies: ``[configuration, fifo]``; those of the network by default.
        intervals: ``[configuration, unit]``; those of the network by default.
        fast_forward: run one by one with exact fast-forward in place of vector lanes.
    """
    arrays = encode(network)
    count = len(depths)
    if latencies is None:
        latencies = np.tile(arrays[7].reshape(-1, 3)[:, 0], (count, 1))
    if intervals is None:
        intervals = np.tile(arrays[1], (count, 1))
    configurations = [
        np.ascontiguousarray(array, dtype=np.int64) for array in (depths, latencies, intervals)
    ]
    cycles, status = np.zeros((2, count), np.int64)
    run_stream_engine(
        "stream_sweep",
        [*arrays, *configurations],
        [cycles, status],
        atomic=int(fork == "atomic"),
        fast_forward=int(fast_forward),
    )
    return np.where(status == _FINISHED, cycles, -1)
