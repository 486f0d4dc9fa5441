"""Whole episodes of an agent, one in each lane."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from trimtab.envs import Batch, Environment, EpisodeStatistics
from trimtab.train.reinforcement.agents import Agent


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Means over episodes.

    Args:
        mean_return: summed over agents.
        standard_error: of that mean.
        mean_length: steps.
        extras: means of the metrics at the ends.
        episodes: how many.
    """

    mean_return: float
    standard_error: float
    mean_length: float
    extras: dict[str, float]
    episodes: int


def evaluate(env: Environment, agent: Agent, *, key: Array, episodes: int = 256) -> Evaluation:
    """Play one episode in each of ``episodes`` lanes.

    Args:
        env: the environment.
        agent: chooses actions.
        key: a typed random key.
        episodes: how many.
    """
    totals = _play(env, agent, key, episodes)
    extras = {name: np.asarray(value, np.float64) for name, value in totals.items()}
    returns, lengths = extras.pop("episode_return"), extras.pop("episode_length")
    return Evaluation(
        mean_return=float(returns.mean()),
        standard_error=float(returns.std(ddof=1) / np.sqrt(episodes)) if episodes > 1 else 0.0,
        mean_length=float(lengths.mean()),
        extras={name: float(value.mean()) for name, value in extras.items()},
        episodes=episodes,
    )


@eqx.filter_jit
def _play(env: Environment, agent: Agent, key: Array, episodes: int) -> dict[str, Any]:
    batch = Batch(EpisodeStatistics(env), auto_reset="none")
    start_key, key = jax.random.split(key)
    state, timestep = batch.reset(jax.random.split(start_key, episodes))
    done = jnp.zeros(episodes, bool)

    def going(carry: tuple) -> Array:
        return ~carry[2].all()

    def advance(carry: tuple) -> tuple:
        state, observation, done, totals, key = carry
        key, act_key = jax.random.split(key)
        keys = jax.random.split(act_key, episodes)
        action = jax.vmap(agent)(state.inner, observation, keys)
        state, timestep = batch.step(state, action)
        ends = timestep.last & ~done
        totals = jax.tree.map(lambda old, new: jnp.where(ends, new, old), totals, timestep.extras)
        return state, timestep.observation, done | ends, totals, key

    carry = (state, timestep.observation, done, timestep.extras, key)
    return jax.lax.while_loop(going, advance, carry)[3]
