"""Return and length of episodes, kept beside the state."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from trimtab.envs.protocol import TimeStep
from trimtab.envs.wrappers.base import Wrapper


class StatisticsState(NamedTuple):
    """The wrapped state, the return so far (summed over agents) and the length so far."""

    inner: Any
    episode_return: Array
    episode_length: Array
    key: Array


@dataclasses.dataclass(frozen=True)
class EpisodeStatistics(Wrapper):
    """Add ``episode_return`` and ``episode_length`` to the extras of every step.

    At the last step of an episode they are the episode's totals. Wrap the environment with this
    before :class:`trimtab.envs.AutoReset` or :class:`trimtab.envs.Batch`.
    """

    def reset(self, key: Array) -> tuple[Any, TimeStep]:
        """Start an episode with zero totals."""
        inner, timestep = self.env.reset(key)
        state = StatisticsState(inner, jnp.float32(0), jnp.int32(0), inner.key)
        return state, _with_totals(timestep, state)

    def step(self, state: Any, action: Array) -> tuple[Any, TimeStep]:
        """Step and add to the totals."""
        inner, timestep = self.env.step(state.inner, action)
        state = StatisticsState(
            inner,
            state.episode_return + timestep.reward.sum(),
            state.episode_length + 1,
            inner.key,
        )
        return state, _with_totals(timestep, state)

    def inner_state(self, state: Any) -> Any:
        """The wrapped environment's part of the state."""
        return state.inner


def _with_totals(timestep: TimeStep, state: StatisticsState) -> TimeStep:
    totals = {"episode_return": state.episode_return, "episode_length": state.episode_length}
    return timestep._replace(extras={**timestep.extras, **totals})
