"""What an environment is: pure ``reset`` and ``step`` functions over arrays, and the time step."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from trimtab.envs.specs import BoundedArray, Spec

TimeLimitMode = Literal["truncate", "terminate"]
"""Whether a time limit truncates (default) or, as in the published suite, terminates."""

FIRST, MID, LAST = 0, 1, 2
"""Step types of dm_env."""


class TimeStep(NamedTuple):
    """What an environment tells an agent after ``reset`` or ``step``.

    ``reward`` and ``discount`` are scalars, or vectors with an entry per agent. ``terminated``
    says that the episode ended by its own rules (every discount is then 0) and ``truncated``
    that only the clock stopped it (the value of the last observation still counts).
    """

    observation: Any
    reward: Array
    discount: Array
    terminated: Array
    truncated: Array
    first: Array
    extras: dict[str, Any]

    @property
    def last(self) -> Array:
        """True where the episode ended with this step."""
        return self.terminated | self.truncated

    @property
    def step_type(self) -> Array:
        """The step type of dm_env: 0 first, 1 in between, 2 last."""
        middle = jnp.where(self.first, FIRST, MID)
        return jnp.where(self.last, LAST, middle).astype(jnp.int8)


def restart(
    observation: Any, extras: dict[str, Any] | None = None, shape: tuple[int, ...] = ()
) -> TimeStep:
    """Build the first time step of an episode.

    Args:
        observation: what the agent sees.
        extras: metrics; the same keys, shapes and dtypes as ``step`` returns.
        shape: ``()`` or ``(agents,)``, the shape of reward and discount.
    """
    return TimeStep(
        observation=observation,
        reward=jnp.zeros(shape, jnp.float32),
        discount=jnp.ones(shape, jnp.float32),
        terminated=jnp.array(False),
        truncated=jnp.array(False),
        first=jnp.array(True),
        extras=extras or {},
    )


def transition(
    observation: Any,
    reward: Array | float,
    *,
    terminated: Array,
    at_limit: Array | bool = False,
    mode: TimeLimitMode = "truncate",
    discount: Array | None = None,
    extras: dict[str, Any] | None = None,
) -> TimeStep:
    """Build the time step that follows an action.

    Args:
        observation: what the agent sees now.
        reward: scalar or one entry per agent.
        terminated: the episode ended by its own rules.
        at_limit: the time limit is reached.
        mode: whether reaching the limit truncates or terminates.
        discount: discount of a step that does not terminate; 1 when absent.
        extras: metrics.
    """
    reward = jnp.asarray(reward, jnp.float32)
    at_limit = jnp.asarray(at_limit)
    if mode == "terminate":
        terminated, at_limit = terminated | at_limit, jnp.zeros_like(at_limit)
    going = jnp.ones(reward.shape, jnp.float32) if discount is None else discount
    return TimeStep(
        observation=observation,
        reward=reward,
        discount=jnp.where(terminated, jnp.zeros_like(going), going),
        terminated=terminated,
        truncated=at_limit & ~terminated,
        first=jnp.array(False),
        extras=extras or {},
    )


@dataclasses.dataclass(frozen=True)
class Environment(abc.ABC):
    """Base of all environments: frozen settings, and pure functions of states.

    Two environments with equal settings are equal and hash alike, so functions compiled with
    the environment as a static argument (:func:`compiled_step`) serve both without recompiling.
    """

    @abc.abstractmethod
    def reset(self, key: Array) -> tuple[Any, TimeStep]:
        """Start an episode.

        Args:
            key: a typed random key; the same key gives the same episode.
        """

    @abc.abstractmethod
    def step(self, state: Any, action: Array) -> tuple[Any, TimeStep]:
        """Apply one action."""

    @property
    @abc.abstractmethod
    def observation_spec(self) -> Spec:
        """Shapes, dtypes and bounds of observations."""

    @property
    @abc.abstractmethod
    def action_spec(self) -> Any:
        """Shape, dtype and bounds of actions."""

    @property
    def num_agents(self) -> int | None:
        """Number of agents with a reward each; None for scalar rewards."""
        return None

    @cached_property
    def reward_spec(self) -> BoundedArray:
        """Shape of rewards."""
        shape = () if self.num_agents is None else (self.num_agents,)
        return BoundedArray(shape, np.float32, -np.inf, np.inf, "reward")

    @cached_property
    def discount_spec(self) -> BoundedArray:
        """Shape of discounts, each in [0, 1]."""
        return BoundedArray(self.reward_spec.shape, np.float32, 0.0, 1.0, "discount")

    @property
    def unwrapped(self) -> Environment:
        """The innermost environment."""
        return self

    def render(self, state: Any, mode: str = "rgb_array") -> Any:
        """Draw one state.

        Args:
            state: an unbatched state.
            mode: ``rgb_array`` (uint8 rows x columns x 3), ``svg`` (text), ``ansi`` (text for a
                terminal) or ``matplotlib`` (a figure).
        """
        from trimtab.envs.viewers import render_picture

        return render_picture(self.picture(state), mode)

    def picture(self, state: Any) -> Any:
        """The drawing of a state, as a :class:`trimtab.envs.viewers.Picture`."""
        from trimtab.envs.pictures import draw

        return draw(self, state)

    def animate(
        self, states: Sequence[Any], path: str | Path | None = None, interval_ms: int = 200
    ) -> Any:
        """Animate states: HTML text, or a file by suffix (``.html``, ``.svg``, ``.gif``)."""
        from trimtab.envs.viewers import animate_pictures

        return animate_pictures([self.picture(state) for state in states], path, interval_ms)


@jax.jit(static_argnums=0)
def compiled_reset(environment: Environment, key: Array) -> tuple[Any, TimeStep]:
    """``environment.reset`` compiled; equal environments share the compiled code."""
    return environment.reset(key)


@jax.jit(static_argnums=0)
def compiled_step(environment: Environment, state: Any, action: Array) -> tuple[Any, TimeStep]:
    """``environment.step`` compiled; equal environments share the compiled code."""
    return environment.step(state, action)


class Table:
    """A constant array that compares and hashes by content, for settings of environments."""

    def __init__(self, values: Any, dtype: Any = None):
        self.values = np.ascontiguousarray(values, dtype)
        self.values.setflags(write=False)
        self._hash = hash((self.values.shape, self.values.dtype.str, self.values.tobytes()))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Table)
            and self._hash == other._hash
            and np.array_equal(self.values, other.values)
        )

    def __repr__(self) -> str:
        return f"Table(shape={self.values.shape}, dtype={self.values.dtype})"


Generator = Callable[[Array], Any]
"""A maker of instances: a pure function of a random key, with frozen settings."""
