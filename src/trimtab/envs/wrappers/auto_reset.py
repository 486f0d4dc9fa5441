"""Start the next episode by itself when one ends; for a single environment."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array

from trimtab.envs.protocol import Environment, TimeStep
from trimtab.envs.wrappers.base import Wrapper


def reset_key(state: Any) -> Array:
    """The key of the episode that follows a finished one."""
    return jax.random.split(state.key)[0]


def with_final_observation(timestep: TimeStep) -> TimeStep:
    """Keep the observation in ``extras["final_observation"]`` before a reset replaces it."""
    extras = {**timestep.extras, "final_observation": timestep.observation}
    return timestep._replace(extras=extras)


@dataclasses.dataclass(frozen=True)
class AutoReset(Wrapper):
    """Reset in the step that ends an episode.

    The time step keeps the reward, discount, end flags and extras of the end, while its
    observation is the first one of the next episode. Outside ``vmap`` a reset runs only when
    an episode ends; for many environments use :class:`trimtab.envs.Batch`, which keeps that.

    Args:
        env: the environment; its states must have a ``key``.
        final_observation: also give the true last observation, at every step, as
            ``extras["final_observation"]``, which learners need to bootstrap truncated episodes.
    """

    env: Environment
    final_observation: bool = False

    def reset(self, key: Array) -> tuple[Any, TimeStep]:
        """Start the first episode."""
        state, timestep = self.env.reset(key)
        return state, with_final_observation(timestep) if self.final_observation else timestep

    def step(self, state: Any, action: Array) -> tuple[Any, TimeStep]:
        """Step, then start the next episode if this one ended."""
        state, timestep = self.env.step(state, action)
        if self.final_observation:
            timestep = with_final_observation(timestep)

        def renew(state: Any, timestep: TimeStep) -> tuple[Any, TimeStep]:
            fresh, first = self.env.reset(reset_key(state))
            return fresh, timestep._replace(observation=first.observation)

        return jax.lax.cond(timestep.last, renew, lambda *kept: kept, state, timestep)
