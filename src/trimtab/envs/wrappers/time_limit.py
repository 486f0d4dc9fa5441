"""A time limit from outside, which truncates."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from trimtab.envs.protocol import Environment, TimeStep
from trimtab.envs.wrappers.base import Wrapper
from trimtab.errors import InputError


class TimeLimitState(NamedTuple):
    """The wrapped state and the number of steps taken."""

    inner: Any
    steps: Array
    key: Array


@dataclasses.dataclass(frozen=True)
class TimeLimit(Wrapper):
    """Truncate episodes after ``steps`` steps, keeping the discount.

    Args:
        env: the environment.
        steps: length of the longest episode.
    """

    env: Environment
    steps: int = 1000

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"The time limit is {self.steps} steps; give at least 1.")

    def reset(self, key: Array) -> tuple[Any, TimeStep]:
        """Start an episode and its clock."""
        inner, timestep = self.env.reset(key)
        return TimeLimitState(inner, jnp.int32(0), inner.key), timestep

    def step(self, state: Any, action: Array) -> tuple[Any, TimeStep]:
        """Step and truncate at the limit."""
        inner, timestep = self.env.step(state.inner, action)
        steps = state.steps + 1
        truncated = timestep.truncated | ((steps >= self.steps) & ~timestep.terminated)
        return TimeLimitState(inner, steps, inner.key), timestep._replace(truncated=truncated)

    def inner_state(self, state: Any) -> Any:
        """The wrapped environment's part of the state."""
        return state.inner
