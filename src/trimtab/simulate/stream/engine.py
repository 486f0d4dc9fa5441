"""Running a network with whichever engine suits it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from trimtab.errors import InputError
from trimtab.kernels import stream as kernels
from trimtab.simulate.stream.network import Network
from trimtab.simulate.stream.run import Run

Fork = Literal["atomic", "sequential"]
EngineName = Literal["auto", "native", "reference"]


def simulate(
    network: Network,
    *,
    fork: Fork = "atomic",
    engine: EngineName = "auto",
    record: bool = False,
    fast_forward: bool = True,
    event_limit: int | None = None,
) -> Run:
    """Simulate a network cycle by cycle.

    Every engine gives the same times (the rules are in
    :mod:`trimtab.simulate.stream.reference`); they differ in speed and in what they can host.

    Args:
        network: the units and FIFOs.
        fork: ``"atomic"``: a firing waits for room at all outputs before any token leaves, as
            hardware does; ``"sequential"``: outputs are served one after another.
        engine: ``"native"``, ``"reference"`` (plain Python, hosts units that decide by arrival
            time), or ``"auto"``.
        record: keep the times of every token, for occupancy and timelines (16 bytes a token).
        fast_forward: let the native engine step over exact repetitions.
        event_limit: raise after about so many tokens simulated one by one.

    Returns:
        The run; a deadlock is an outcome (``run.deadlocked``), not an exception.
    """
    if fork not in ("atomic", "sequential"):
        raise InputError(f"fork is {fork!r}; pass 'atomic' or 'sequential'.")
    if engine not in ("auto", "native", "reference"):
        raise InputError(f"engine is {engine!r}; pass 'auto', 'native' or 'reference'.")
    fixed = all(unit.behaviour is None and unit.firings >= 0 for unit in network.units)
    if engine == "reference" or (engine == "auto" and not (fixed and _native())):
        from trimtab.simulate.stream.reference import simulate_reference

        return simulate_reference(network, fork=fork)
    from trimtab.simulate.stream.native import simulate_native

    return simulate_native(
        network, fork=fork, record=record, fast_forward=fast_forward, event_limit=event_limit
    )


def sweep(
    network: Network,
    depths: np.ndarray | Sequence[Sequence[int | None]],
    *,
    latencies: np.ndarray | None = None,
    intervals: np.ndarray | None = None,
    fork: Fork = "atomic",
    fast_forward: bool | None = None,
) -> np.ndarray:
    """Simulate many configurations of one network, eight at a time in vector lanes.

    Args:
        network: units of fixed rates.
        depths: ``[configuration, fifo]``; ``None`` or negative for no limit.
        latencies: ``[configuration, fifo]`` cycles from a firing to its visible token.
        intervals: ``[configuration, unit]`` cycles between firings.
        fork: see :func:`simulate`.
        fast_forward: step over exact repetitions in place of using vector lanes; by default where
            a run moves more than 100,000 tokens.

    Returns:
        Cycles of each configuration, -1 for a deadlock.
    """
    table = np.array(
        [[-1 if depth is None else depth for depth in row] for row in depths], np.int64
    ).reshape(-1, len(network.fifos))
    for array, width in ((latencies, len(network.fifos)), (intervals, len(network.units))):
        if array is not None and np.shape(array) != (len(table), width):
            raise InputError(
                f"A sweep over {len(table)} configurations needs an array of shape "
                f"{(len(table), width)}, not {np.shape(array)}."
            )
    if _native():
        from trimtab.simulate.stream.native import sweep_native

        if fast_forward is None:
            fast_forward = sum(network.tokens(fifo) for fifo in network.fifos) > 100_000
        return sweep_native(
            network, table, latencies, intervals, fork=fork, fast_forward=fast_forward
        )
    return np.array(
        [
            _cycles(_configured(network, row, latencies, intervals, index), fork)
            for index, row in enumerate(table)
        ],
        np.int64,
    )


def _native() -> bool:
    return kernels.stream_engine_available()


def _cycles(network: Network, fork: Fork) -> int:
    run = simulate(network, fork=fork, engine="reference")
    return run.cycles if run.completed else -1


def _configured(
    network: Network,
    depths: np.ndarray,
    latencies: np.ndarray | None,
    intervals: np.ndarray | None,
    index: int,
) -> Network:
    import dataclasses

    fifos = tuple(
        dataclasses.replace(
            fifo,
            depth=None if depths[f] < 0 else int(depths[f]),
            latency=fifo.latency if latencies is None else int(latencies[index, f]),
        )
        for f, fifo in enumerate(network.fifos)
    )
    units = tuple(
        dataclasses.replace(
            unit, interval=unit.interval if intervals is None else int(intervals[index, u])
        )
        for u, unit in enumerate(network.units)
    )
    return Network(units, fifos)
