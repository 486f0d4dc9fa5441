"""Push boxes onto targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from trimtab.envs import grid, specs
from trimtab.envs.protocol import (
    Environment,
    Generator,
    TimeLimitMode,
    TimeStep,
    restart,
    transition,
)
from trimtab.envs.routing.sokoban_levels import (
    AGENT,
    BOX,
    EMPTY,
    NUM_BOXES,
    SIDE,
    TARGET,
    WALL,
    Level,
    ReversePlay,
)


class Observation(NamedTuple):
    """Channel 0: 0 empty, 3 agent, 4 box; channel 1: 0 floor, 1 wall, 2 target."""

    grid: UInt8[Array, "10 10 2"]
    step_count: Int[Array, ""]


class State(NamedTuple):
    """Movable and fixed things by cell, and the agent."""

    fixed_grid: UInt8[Array, "10 10"]
    variable_grid: UInt8[Array, "10 10"]
    agent_location: Int[Array, " 2"]
    step_count: Int[Array, ""]
    key: Array


def dense_reward(before: Array, after: Array) -> Array:
    """Change of the number of boxes on targets, 10 when all are, and -0.1 a step.

    Args:
        before: boxes on targets before the step.
        after: boxes on targets after it.
    """
    return after - before + jnp.where(after == NUM_BOXES, 10.0, 0.0) - 0.1


def sparse_reward(before: Array, after: Array) -> Array:
    """10 when all boxes are on targets, else 0."""
    return jnp.where(after == NUM_BOXES, 10.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Sokoban(Environment):
    """Move up, right, down or left (actions 0 to 3); a box ahead is pushed if there is room.

    A blocked move does nothing. The episode terminates when all boxes are on targets.

    Args:
        generator: makes a :class:`Level` from a key.
        reward_fn: ``(on targets before, after) -> reward``.
        time_limit: steps of the longest episode.
        time_limit_mode: whether the limit truncates or terminates.
    """

    generator: Generator = ReversePlay()
    reward_fn: Callable[[Array, Array], Array] = dense_reward
    time_limit: int = 120
    time_limit_mode: TimeLimitMode = "truncate"

    @cached_property
    def observation_spec(self) -> specs.Spec:
        """Grid and clock."""
        return specs.nest(
            Observation,
            grid=specs.integers((SIDE, SIDE, 2), 0, 4, np.uint8),
            step_count=specs.integers((), 0, self.time_limit),
        )

    @cached_property
    def action_spec(self) -> specs.DiscreteArray:
        """Direction."""
        return specs.DiscreteArray(4, name="action")

    def reset(self, key: Array) -> tuple[State, TimeStep]:
        """Start a level."""
        key, level_key = jax.random.split(key)
        level: Level = self.generator(level_key)
        state = State(level.fixed, level.movable, level.agent, jnp.int32(0), key)
        return state, restart(_observe(state), _extras(_on_targets(state)))

    def step(self, state: State, action: Array) -> tuple[State, TimeStep]:
        """Move, and push a box if one is ahead."""
        before = _on_targets(state)
        agent = state.agent_location
        ahead = grid.moved(agent, action)
        beyond = grid.moved(ahead, action)
        pushes = state.variable_grid[ahead[0], ahead[1]] == BOX
        free_ahead = _is_floor(state.fixed_grid, ahead)
        room = _is_floor(state.fixed_grid, beyond) & (
            state.variable_grid[beyond[0], beyond[1]] != BOX
        )
        moves = free_ahead & (~pushes | room)
        target = jnp.where(moves, ahead, agent)
        box = jnp.where(moves & pushes, beyond, SIDE)
        movable = (
            state.variable_grid.at[agent[0], agent[1]]
            .set(EMPTY)
            .at[target[0], target[1]]
            .set(AGENT)
            .at[box[0], box[1]]
            .set(BOX, mode="drop")
        )
        state = State(state.fixed_grid, movable, target, state.step_count + 1, state.key)
        after = _on_targets(state)
        return state, transition(
            _observe(state),
            self.reward_fn(before, after),
            terminated=after == NUM_BOXES,
            at_limit=state.step_count >= self.time_limit,
            mode=self.time_limit_mode,
            extras=_extras(after),
        )


def _is_floor(fixed: Array, cell: Array) -> Array:
    return grid.inside(cell, SIDE, SIDE) & (fixed[cell[0], cell[1]] != WALL)


def _on_targets(state: State) -> Array:
    return ((state.variable_grid == BOX) & (state.fixed_grid == TARGET)).sum()


def _observe(state: State) -> Observation:
    return Observation(
        jnp.stack([state.variable_grid, state.fixed_grid], axis=-1), state.step_count
    )


def _extras(on_targets: Array) -> dict[str, Array]:
    return {
        "prop_correct_boxes": on_targets / jnp.float32(NUM_BOXES),
        "solved": on_targets == NUM_BOXES,
    }
