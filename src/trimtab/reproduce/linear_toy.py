"""Linear regression on which signal-to-noise scaling is said to halve the steps.

Weights 1 to 10 are learned from zero by squared error. Inputs are uniform on [0, 1): the order in
which the paper sees weights settle appears only then (the paper does not say; with standard normal
inputs all settle together). Every method's learning rate is chosen among the same 150.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from trimtab.train.optimizers import gradient_ratios
from trimtab.train.statistics import statistics_of_stacked

FEATURES, BATCH, STEPS = 10, 2048, 100
RATES = np.geomspace(0.15, 0.9, 150)


class ToyResult(NamedTuple):
    """Outcome of one seed.

    Attributes:
        target: test loss of plain descent at its best rate after all steps.
        steps: first step at which the scaled method, at its own best rate, is at or below it.
        final: test loss of the scaled method at its best rate after all steps.
        plain_curve: plain descent's test loss at its best rate, a value a step.
        curve: the scaled method's.
    """

    target: float
    steps: int | None
    final: float
    plain_curve: list[float]
    curve: list[float]


def test_losses(
    key: Array, groups: int, clip: Literal["paper", "symmetric", "renormalised"] | None
) -> Float[Array, "rates steps"]:
    """Return the test loss after each step, for all rates at once.

    Args:
        key: randomness of the data; the same key gives every method the same batches.
        groups: groups a batch is cut into.
        clip: the scaling's clip, or None for plain descent.
    """
    truth = jnp.arange(1.0, FEATURES + 1)
    test_key, train_key = jax.random.split(key)
    test = jax.random.uniform(test_key, (BATCH, FEATURES))

    def one_rate(rate: Array) -> Array:
        def step(weights: Array, step_key: Array) -> tuple[Array, Array]:
            inputs = jax.random.uniform(step_key, (groups, BATCH // groups, FEATURES))
            errors = inputs @ (weights - truth)
            gradients = 2.0 * jnp.einsum("gbf,gb->gf", inputs, errors) * groups / BATCH
            stats = statistics_of_stacked({"w": gradients})
            update = stats.mean["w"]
            if clip is not None:
                update *= gradient_ratios(
                    stats.mean, stats.squared_deviations, stats.count, clip=clip
                )["w"]
            weights = weights - rate * update
            return weights, jnp.mean(jnp.square(test @ (weights - truth)))

        keys = jax.random.split(train_key, STEPS)
        return jax.lax.scan(step, jnp.zeros(FEATURES), keys)[1]

    return jax.lax.map(one_rate, jnp.asarray(RATES, jnp.float32), batch_size=25)


_compiled = jax.jit(test_losses, static_argnums=(1, 2))


def toy(seed: int, clip: Literal["paper", "symmetric", "renormalised"], groups: int) -> ToyResult:
    """Race a clip rule against plain descent, both at their best rates.

    Args:
        seed: of the data.
        clip: the rule.
        groups: number of gradient groups K.
    """
    key = jax.random.key(seed)
    plain = np.nan_to_num(np.asarray(_compiled(key, groups, None)), nan=np.inf)
    scaled = np.nan_to_num(np.asarray(_compiled(key, groups, clip)), nan=np.inf)
    best_plain = plain[plain[:, -1].argmin()]
    target = float(best_plain[-1])
    reached = scaled <= target
    first = np.where(reached.any(1), reached.argmax(1), STEPS)
    best = scaled[first.argmin()] if reached.any() else scaled[scaled[:, -1].argmin()]
    return ToyResult(
        target,
        int(first.min()) + 1 if reached.any() else None,
        float(scaled[:, -1].min()),
        best_plain.tolist(),
        best.tolist(),
    )
