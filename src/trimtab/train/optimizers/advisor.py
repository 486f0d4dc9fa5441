"""Which batch size and how many groups the gradient noise recommends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trimtab.errors import InputError


@dataclass(frozen=True)
class BatchAdvice:
    """Consequences of the gradient noise scale (McCandlish et al. 2018, arXiv 1812.06162).

    Attributes:
        noise_scale: batch size in examples at which noise and signal are equal; infinite when the
            records show no signal.
        batch_size: nearest power of two: it costs twice the fewest steps and twice the fewest
            examples, beyond it more examples buy ever fewer steps.
    """

    noise_scale: float
    batch_size: int | None

    def steps_factor(self, batch_size: int) -> float:
        """Return steps needed at ``batch_size`` relative to an infinite batch."""
        return 1.0 + self.noise_scale / batch_size

    def examples_factor(self, batch_size: int) -> float:
        """Return examples needed at ``batch_size`` relative to the smallest batch."""
        return 1.0 + batch_size / self.noise_scale


def advise(records: Iterable[Mapping[str, float]]) -> BatchAdvice:
    """Estimate the noise scale from recorded metrics.

    Variance and signal are averaged apart before dividing, since a single step's signal estimate
    may even be negative.

    >>> advise([{"noise/variance": 640.0, "noise/signal": 10.0}]).batch_size
    64

    Args:
        records: metrics with ``noise/variance`` and ``noise/signal`` (with or without ``train/``),
            as :func:`trimtab.train.read_metrics` gives them; others are skipped.

    Raises:
        InputError: no record has them.
    """
    pairs = []
    for record in records:
        found = [
            record.get(f"train/noise/{name}", record.get(f"noise/{name}"))
            for name in ("variance", "signal")
        ]
        if None not in found:
            pairs.append(found)
    if not pairs:
        raise InputError(
            "No record has noise/variance and noise/signal. Train with groups= and telemetry on."
        )
    variance, signal = (sum(column) / len(pairs) for column in zip(*pairs))
    if signal <= 0:
        return BatchAdvice(math.inf, None)
    scale = variance / signal
    return BatchAdvice(scale, 2 ** max(0, round(math.log2(scale))) if scale > 0 else 1)


def choose_groups(batch_size: int, devices: int = 1) -> int:
    """Choose the number of groups K for a batch.

    Between 32 and 256 groups of 8 to 64 examples work best (Jiang et al. 2023, sensitivity study);
    memory and traffic do not depend on K, and fewer, larger groups compute faster. So: the smallest
    count of at least 32 that divides batch and devices, else the largest below with at least 2.

    >>> choose_groups(8192)
    32
    >>> choose_groups(64)
    8

    Args:
        batch_size: examples a step.
        devices: devices the batch is cut over; K is a multiple.

    Raises:
        InputError: no number of groups divides the batch over the devices.
    """
    fitting = [
        groups
        for groups in range(devices, batch_size + 1, devices)
        if groups >= 2 and batch_size % groups == 0
    ]
    if not fitting:
        raise InputError(
            f"A batch of {batch_size} cannot be cut into equal groups on {devices} devices. "
            "Choose a batch size that is a multiple of twice the device count."
        )
    roomy = [groups for groups in fitting if batch_size // groups >= 8] or fitting[:1]
    enough = [groups for groups in roomy if groups >= 32]
    return enough[0] if enough else roomy[-1]
