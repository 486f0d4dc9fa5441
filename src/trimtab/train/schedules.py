"""Learning rates by step: linear warm-up, then a named shape; and how rates scale with batches."""

from __future__ import annotations

import math
from typing import Any, Literal

import jax.numpy as jnp
import optax

from trimtab.errors import InputError, unknown_name

SHAPES = ("constant", "linear", "cosine", "inverse-root", "warmup-stable-decay")


def schedule_named(
    shape: str, peak: float, steps: int, *, warmup: float = 0.0, end: float = 0.0
) -> optax.Schedule:
    """Return a learning-rate schedule of optimizer steps.

    >>> [round(float(schedule_named("linear", 1.0, 10, warmup=2)(s)), 3) for s in (0, 2, 6, 10)]
    [0.0, 1.0, 0.5, 0.0]

    Args:
        shape: one of ``SHAPES``; the last keeps the peak and decays over the last fifth.
        peak: largest rate.
        steps: length of the whole schedule.
        warmup: steps of linear warm-up from zero, or a share of ``steps`` if below 1.
        end: last rate as a share of the peak.
    """
    if shape not in SHAPES:
        raise unknown_name("schedule", shape, SHAPES)
    if peak <= 0 or steps < 1 or warmup < 0 or not 0 <= end <= 1:
        raise InputError(
            f"A schedule needs a positive peak and steps, no negative warmup and end in [0, 1]; "
            f"got {peak}, {steps}, {warmup} and {end}."
        )
    warm = round(warmup * steps) if warmup < 1 else round(warmup)
    rest = max(steps - warm, 1)
    if shape == "constant":
        after = optax.constant_schedule(peak)
    elif shape == "linear":
        after = optax.linear_schedule(peak, peak * end, rest)
    elif shape == "cosine":
        after = optax.cosine_decay_schedule(peak, rest, end)
    elif shape == "inverse-root":
        start = max(warm, 1)

        def after_root(step: Any) -> Any:
            return peak * jnp.sqrt(start / (start + jnp.asarray(step, jnp.float32)))

        after = after_root

    else:
        decay = max(steps // 5, 1)
        after = optax.join_schedules(
            [optax.constant_schedule(peak), optax.linear_schedule(peak, peak * end, decay)],
            [max(rest - decay, 0)],
        )
    if not warm:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warm), after], [warm])


def scaled_rate(
    rate: float, batch_size: int, base_batch_size: int, rule: Literal["root", "linear"] = "root"
) -> float:
    """Carry a learning rate over to another batch size.

    >>> scaled_rate(0.1, 8192, 512)
    0.4

    Args:
        rate: good at ``base_batch_size``.
        batch_size: new examples a step.
        base_batch_size: old examples a step.
        rule: ``"root"`` (square root, as Jiang et al. 2023 use throughout) or ``"linear"``.
    """
    if rule not in ("root", "linear"):
        raise unknown_name("scaling rule", rule, ("root", "linear"))
    factor = batch_size / base_batch_size
    return rate * (math.sqrt(factor) if rule == "root" else factor)
