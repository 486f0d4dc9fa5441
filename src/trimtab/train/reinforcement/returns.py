"""Advantages and value targets of rollouts, correct at truncated ends."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def advantages(
    rewards: Float[Array, "steps lanes"],
    discounts: Float[Array, "steps lanes"],
    ended: Bool[Array, "steps lanes"],
    values: Float[Array, "steps lanes"],
    next_values: Float[Array, "steps lanes"],
    *,
    gamma: float,
    trace: float,
) -> Float[Array, "steps lanes"]:
    """Generalised advantage estimates (Schulman et al., 2016, equation 16).

    The value that follows a step is that of the true next observation: 0 after a termination,
    by the discount, and the value of the last observation of the episode after a truncation.
    Traces stop at both kinds of end.

    Args:
        rewards: of each step.
        discounts: 0 at terminations, else 1.
        ended: whether the episode ended with the step, either way.
        values: of the observations before the steps.
        next_values: of the observations after the steps, before any reset.
        gamma: discount of future rewards.
        trace: decay of the estimates.
    """
    deltas = rewards + gamma * discounts * next_values - values

    def back(carry: Array, step: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        delta, discount, end = step
        carry = delta + gamma * trace * discount * jnp.where(end, 0.0, carry)
        return carry, carry

    start = jnp.zeros_like(values[0])
    return jax.lax.scan(back, start, (deltas, discounts, ended), reverse=True)[1]
