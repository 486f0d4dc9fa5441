"""Agents to evaluate: random, greedy by one step of look-ahead, and learned."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from trimtab.envs import Environment, sample_action
from trimtab.envs.specs import DiscreteArray
from trimtab.train.reinforcement.networks import ActorCritic
from trimtab.train.reinforcement.rollouts import policy

Agent = Callable[[Any, Any, Array], Array]
"""``(state, observation, key) -> action`` of one environment."""


def random_agent(env: Environment) -> Agent:
    """Uniform over legal actions."""

    def act(state: Any, observation: Any, key: Array) -> Array:
        return sample_action(key, env.action_spec, getattr(observation, "action_mask", None))

    return act


def greedy_agent(env: Environment, candidates: int = 16) -> Agent:
    """The best immediate reward among all actions, or among random legal ones.

    Every action of a discrete space is tried; of other spaces, ``candidates`` random legal
    actions. Ties, and illegal actions, are left to chance and the mask.

    Args:
        env: the environment.
        candidates: actions tried where there are too many.
    """
    spec = env.action_spec

    def act(state: Any, observation: Any, key: Array) -> Array:
        mask = getattr(observation, "action_mask", None)
        draw_key, tie_key = jax.random.split(key)
        if isinstance(spec, DiscreteArray):
            actions = jnp.arange(spec.num_values, dtype=spec.dtype)
            legal = jnp.ones(spec.num_values, bool) if mask is None else mask
        else:
            keys = jax.random.split(draw_key, candidates)
            actions = jax.vmap(functools.partial(sample_action, spec=spec, mask=mask))(keys)
            legal = jnp.ones(candidates, bool)
        rewards = jax.vmap(lambda action: env.step(state, action)[1].reward.sum())(actions)
        noise = 1e-4 * jax.random.uniform(tie_key, rewards.shape)
        return actions[jnp.argmax(jnp.where(legal, rewards + noise, -jnp.inf))]

    return act


def learned_agent(network: ActorCritic, env: Environment, *, sample: bool = False) -> Agent:
    """A trained policy: its most likely action, or a sampled one."""

    def act(state: Any, observation: Any, key: Array) -> Array:
        distribution, _ = policy(network, env, observation)
        action = distribution.sample(key) if sample else distribution.mode()
        return action.astype(env.action_spec.dtype)

    return act
