"""Two programs side by side: what is predicted, what is measured, and how far answers differ."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from trimtab.errors import InputError
from trimtab.graph.cost import si
from trimtab.graph.program import Program


@dataclass(frozen=True)
class Measurement:
    """What one program costs.

    Args:
        name: the program's name.
        parameter_bytes: size of the parameters.
        flops: predicted operations of one call; None where they cannot be known.
        predicted_seconds: roofline time of one call on this machine; None where unknown.
        predicted_peak_bytes: predicted live memory; None where unknown.
        seconds: median measured time of one call.
        spread: interquartile range of the times, divided by the median.
        peak_bytes: live memory of the compiled program: arguments, results and temporaries.
    """

    name: str
    parameter_bytes: int
    flops: float | None
    predicted_seconds: float | None
    predicted_peak_bytes: int | None
    seconds: float
    spread: float
    peak_bytes: int


@dataclass(frozen=True)
class Comparison:
    """Two programs measured in turn on the same inputs.

    Args:
        first: the program compared with.
        second: the program compared.
        max_difference: largest absolute difference between the outputs.
        relative_difference: norm of the difference divided by the norm of the first outputs.
        repetitions: timed calls of each program.
    """

    first: Measurement
    second: Measurement
    max_difference: float
    relative_difference: float
    repetitions: int

    @property
    def speedup(self) -> float:
        """How many times faster the second program is."""
        return self.first.seconds / self.second.seconds

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        return {**dataclasses.asdict(self), "speedup": self.speedup}

    def __str__(self) -> str:
        rows = [
            ("parameters", "parameter_bytes", "B"),
            ("FLOPs, predicted", "flops", ""),
            ("time, predicted", "predicted_seconds", "s"),
            ("time, measured", "seconds", "s"),
            ("memory, predicted", "predicted_peak_bytes", "B"),
            ("memory, compiled", "peak_bytes", "B"),
        ]
        lines = [f"{'':<20} {self.first.name[:18]:>18} {self.second.name[:18]:>18} {'ratio':>8}"]
        for label, field, unit in rows:
            before, after = getattr(self.first, field), getattr(self.second, field)
            ratio = f"{before / after:.2f}x" if before and after else "-"
            lines.append(
                f"{label:<20} {_amount(before, unit):>18} {_amount(after, unit):>18} {ratio:>8}"
            )
        lines.append(
            f"output difference: largest {self.max_difference:.3g}, "
            f"relative {self.relative_difference:.3g}"
        )
        return "\n".join(lines)


def compare(
    first: Program,
    second: Program,
    batches: Iterable[Any],
    *,
    repetitions: int = 10,
) -> Comparison:
    """Measure two programs in turn on the same inputs.

    Args:
        first: the program to compare with.
        second: the program to compare.
        batches: input tuples (or single inputs); all are used for the output difference, the
            first for the times.
        repetitions: timed calls of each program, interleaved, after one warm-up.

    Returns:
        Sizes, predicted and measured time and memory, and the output difference.

    Raises:
        InputError: no batch is given, or the outputs have different structures.
    """
    given = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
    if not given:
        raise InputError("compare needs at least one batch of inputs.")
    largest, error, norm = 0.0, 0.0, 0.0
    for batch in given:
        left, right = first(*batch), second(*batch)
        if jax.tree.structure(left) != jax.tree.structure(right):
            raise InputError(
                f"{first.name} returns {jax.tree.structure(left)} but {second.name} returns "
                f"{jax.tree.structure(right)}."
            )
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right)):
            difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
            largest = max(largest, float(np.max(np.abs(difference), initial=0.0)))
            error += float(np.sum(difference**2))
            norm += float(np.sum(np.asarray(a, np.float64) ** 2))
    calls = [_compiled(program, given[0]) for program in (first, second)]
    times: list[list[float]] = [[], []]
    for _ in range(repetitions):
        for which, (call, _) in enumerate(calls):
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[which].append(time.perf_counter() - start)
    measured = [
        _measurement(program, seconds, peak)
        for program, seconds, (_, peak) in zip((first, second), times, calls)
    ]
    relative = (error / norm) ** 0.5 if norm else error**0.5
    return Comparison(measured[0], measured[1], largest, relative, repetitions)


def _compiled(program: Program, batch: tuple[Any, ...]) -> tuple[Callable[[], Any], int]:
    compiled = jax.jit(lambda p, inputs: p(*inputs)).lower(program, batch).compile()
    memory = compiled.memory_analysis()
    peak = (
        memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        if memory is not None
        else 0
    )
    jax.block_until_ready(compiled(program, batch))
    return lambda: compiled(program, batch), int(peak)


def _measurement(program: Program, seconds: list[float], peak: int) -> Measurement:
    quartiles = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    median = statistics.median(seconds)
    priced = program.exported is None and not program.is_symbolic
    cost = program.cost() if priced else None
    return Measurement(
        name=program.name,
        parameter_bytes=sum(int(array.nbytes) for array in program.parameters.values()),
        flops=cost.flops if cost else None,
        predicted_seconds=cost.seconds() if cost else None,
        predicted_peak_bytes=cost.peak_bytes if cost else None,
        seconds=median,
        spread=(quartiles[2] - quartiles[0]) / median,
        peak_bytes=peak,
    )


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return "unknown"
    if unit == "s":
        return f"{value * 1e3:.3g} ms"
    return f"{si(value)}{unit}"
