"""Means of per-example metrics over a whole data set, and when to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from trimtab.errors import InputError, ShapeError


def evaluate(
    metrics: Callable[[Any, Any], Mapping[str, Any]],
    model: Any,
    batches: Iterable[tuple[Any, int]],
    *,
    prefix: str = "validation/",
) -> dict[str, float]:
    """Average per-example metrics over all examples, each counted once.

    Args:
        metrics: ``(model, batch)`` to arrays of one value an example; compiled on first use.
        model: what to evaluate.
        batches: pairs of a batch and how many of its leading examples count, as
            :func:`trimtab.train.data.evaluation_batches` yields.
        prefix: put before every metric's name.
    """
    return evaluator(metrics, prefix=prefix)(model, batches)


def evaluator(
    metrics: Callable[[Any, Any], Mapping[str, Any]], *, prefix: str = "validation/"
) -> Callable[[Any, Iterable[tuple[Any, int]]], dict[str, float]]:
    """Return :func:`evaluate` with its compiled part kept between calls."""

    @eqx.filter_jit
    def sums(model: Any, batch: Any, count: Any) -> dict[str, Any]:
        values = metrics(model, batch)
        return {name: _masked_sum(name, value, count) for name, value in values.items()}

    def run(model: Any, batches: Iterable[tuple[Any, int]]) -> dict[str, float]:
        totals: dict[str, float] = {}
        examples = 0
        for batch, count in batches:
            part = sums(model, batch, np.int32(count))
            examples += count
            for name, value in part.items():
                totals[name] = totals.get(name, 0.0) + float(value)
        if not examples:
            raise InputError("There is nothing to evaluate: the data set has no examples.")
        return {f"{prefix}{name}": total / examples for name, total in totals.items()}

    return run


def _masked_sum(name: str, value: Any, count: Any) -> Any:
    if value.ndim != 1:
        raise ShapeError(
            f"The evaluation metric {name!r} must have one value an example, got shape "
            f"{value.shape}. Return the values before averaging."
        )
    counted = jnp.arange(value.shape[0]) < count
    return jnp.sum(jnp.where(counted, value.astype(jnp.float32), 0.0))


@dataclass(frozen=True)
class EarlyStop:
    """Stop when a metric has not improved for a while.

    Args:
        metric: name among the evaluation's results.
        patience: evaluations without improvement to allow.
        mode: whether small or large is good.
        margin: smallest change that counts as an improvement.
    """

    metric: str = "validation/loss"
    patience: int = 5
    mode: Literal["min", "max"] = "min"
    margin: float = 0.0

    def updated(
        self, memory: Mapping[str, Any], metrics: Mapping[str, float]
    ) -> tuple[dict[str, Any], bool]:
        """Return the new memory (a JSON object, empty at first) and whether to stop now."""
        if self.metric not in metrics:
            raise InputError(
                f"Early stop watches {self.metric!r}, but the evaluation gave "
                f"{', '.join(sorted(metrics))}."
            )
        value = metrics[self.metric]
        sign = 1.0 if self.mode == "min" else -1.0
        best = memory.get("best")
        if best is None or sign * value < sign * best - self.margin:
            return {"best": value, "waited": 0}, False
        waited = memory["waited"] + 1
        return {"best": best, "waited": waited}, waited > self.patience
