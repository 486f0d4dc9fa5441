"""Playing a policy in many lanes at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from trimtab.envs import Batch, Environment, EpisodeStatistics, ScalarReward
from trimtab.train.reinforcement.distributions import action_distribution
from trimtab.train.reinforcement.networks import ActorCritic


class Experience(NamedTuple):
    """What happened, with leading axes ``(steps, lanes)``."""

    observation: Any
    action: Array
    log_prob: Array
    value: Array
    next_value: Array
    reward: Array
    discount: Array
    ended: Array
    episode_return: Array
    episode_length: Array


def training_batch(env: Environment) -> Batch:
    """The environment as training sees it: scalar rewards, totals, lazy resets."""
    return Batch(EpisodeStatistics(ScalarReward(env)), final_observation=True)


def policy(network: ActorCritic, env: Environment, observation: Any) -> tuple[Any, Array]:
    """Action distribution and value of one observation."""
    head, value = network(observation)
    mask = getattr(observation, "action_mask", None)
    return action_distribution(env.action_spec, head, mask), value


def collect(
    network: ActorCritic, batch: Batch, state: Any, observation: Any, key: Array, steps: int
) -> tuple[Any, Any, Experience]:
    """Play ``steps`` steps in every lane.

    Args:
        network: policy and values.
        batch: from :func:`training_batch`.
        state: states of the lanes.
        observation: what they show now.
        key: a typed random key.
        steps: number of steps.

    Returns:
        The states and observations after the last step, and the experience.
    """
    lanes = jax.tree.leaves(observation)[0].shape[0]

    def act(observation: Any, key: Array) -> tuple[Array, Array, Array]:
        distribution, value = policy(network, batch, observation)
        action = distribution.sample(key)
        return action, distribution.log_prob(action), value

    def advance(carry: tuple[Any, Any], key: Array) -> tuple[tuple[Any, Any], Any]:
        state, observation = carry
        action, log_prob, value = jax.vmap(act)(observation, jax.random.split(key, lanes))
        state, timestep = batch.step(state, action.astype(batch.action_spec.dtype))
        # Only truncated lanes need the value of their last observation, and they are rare.
        last_value = jax.lax.cond(
            timestep.truncated.any(),
            lambda seen: jax.vmap(lambda o: network(o)[1])(seen),
            lambda seen: jnp.zeros(lanes),
            timestep.extras["final_observation"],
        )
        record = (observation, action, log_prob, value, timestep, last_value)
        record = (*record[:4], timestep._replace(observation=None, extras={}), last_value)
        totals = timestep.extras["episode_return"], timestep.extras["episode_length"]
        return (state, timestep.observation), (*record, *totals)

    carry, played = jax.lax.scan(advance, (state, observation), jax.random.split(key, steps))
    state, observation = carry
    seen, action, log_prob, value, timestep, last_value, total, length = played
    end_value = jax.vmap(lambda o: network(o)[1])(observation)
    following = jnp.concatenate([value[1:], end_value[None]])
    return (
        state,
        observation,
        Experience(
            observation=seen,
            action=action,
            log_prob=log_prob,
            value=value,
            next_value=jnp.where(timestep.truncated, last_value, following),
            reward=timestep.reward,
            discount=timestep.discount,
            ended=timestep.last,
            episode_return=total,
            episode_length=length,
        ),
    )
