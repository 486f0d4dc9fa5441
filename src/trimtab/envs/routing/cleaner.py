"""Clean all tiles of a maze with several agents."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int8

from trimtab.envs import grid, specs
from trimtab.envs.protocol import (
    Environment,
    Generator,
    TimeLimitMode,
    TimeStep,
    restart,
    transition,
)
from trimtab.envs.routing.maze_generator import divide
from trimtab.errors import InputError

DIRTY, CLEAN, WALL = 0, 1, 2


class Observation(NamedTuple):
    """Tiles (0 dirty, 1 clean, 2 wall), agents, and their free directions."""

    grid: Int8[Array, "rows columns"]
    agents_locations: Int[Array, "agents 2"]
    action_mask: Bool[Array, "agents 4"]
    step_count: Int[Array, ""]


class State(NamedTuple):
    """Tiles and agents."""

    grid: Int8[Array, "rows columns"]
    agents_locations: Int[Array, "agents 2"]
    action_mask: Bool[Array, "agents 4"]
    step_count: Int[Array, ""]
    key: Array


@dataclasses.dataclass(frozen=True)
class RandomRooms:
    """A dirty maze by recursive division, with all agents in the upper left cell."""

    num_rows: int = 10
    num_cols: int = 10
    num_agents: int = 3

    def __post_init__(self) -> None:
        if min(self.num_rows, self.num_cols, self.num_agents) < 1:
            raise InputError(
                f"A grid of {self.num_rows} x {self.num_cols} with {self.num_agents} agents "
                "cannot be used; give at least one of each."
            )

    def __call__(self, key: Array) -> Int8[Array, "rows columns"]:
        """Draw the tiles, all dirty."""
        walls = divide(key, self.num_rows, self.num_cols)
        return jnp.where(walls, WALL, DIRTY).astype(jnp.int8)


@dataclasses.dataclass(frozen=True)
class Cleaner(Environment):
    """Each agent moves up, right, down or left (actions 0 to 3) and cleans the tile it enters.

    The shared reward is the number of tiles cleaned minus ``penalty_per_timestep``. The episode
    terminates when nothing is dirty, or when any agent makes an illegal move.

    Args:
        generator: makes the tiles from a key; knows the sizes and ``num_agents``.
        time_limit: steps of the longest episode; the number of tiles when None.
        penalty_per_timestep: cost of a step.
        time_limit_mode: whether the limit truncates or terminates.
        faithful: test rows against the number of columns and columns against that of rows, as
            the published suite does; it matters on grids that are not square.
    """

    generator: Generator = RandomRooms()
    time_limit: int | None = None
    penalty_per_timestep: float = 0.5
    time_limit_mode: TimeLimitMode = "truncate"
    faithful: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.generator.num_rows, self.generator.num_cols  # pyright: ignore

    @property
    def agents(self) -> int:
        """Number of agents."""
        return self.generator.num_agents  # pyright: ignore[reportFunctionMemberAccess]

    @property
    def limit(self) -> int:
        """Steps of the longest episode."""
        return self.time_limit or self.shape[0] * self.shape[1]

    @cached_property
    def observation_spec(self) -> specs.Spec:
        """Tiles, agents, mask and clock."""
        return specs.nest(
            Observation,
            grid=specs.integers(self.shape, 0, 2, np.int8),
            agents_locations=specs.integers((self.agents, 2), 0, max(self.shape) - 1),
            action_mask=specs.booleans(self.agents, 4),
            step_count=specs.integers((), 0, self.limit),
        )

    @cached_property
    def action_spec(self) -> specs.MultiDiscreteArray:
        """A direction for each agent."""
        return specs.MultiDiscreteArray((4,) * self.agents, name="action")

    def reset(self, key: Array) -> tuple[State, TimeStep]:
        """Start with all agents in the upper left tile, which is clean."""
        key, rooms_key = jax.random.split(key)
        tiles = self.generator(rooms_key).at[0, 0].set(CLEAN)
        agents = jnp.zeros((self.agents, 2), jnp.int32)
        state = State(tiles, agents, self._free(tiles, agents), jnp.int32(0), key)
        return state, restart(_observe(state), _extras(tiles))

    def step(self, state: State, action: Array) -> tuple[State, TimeStep]:
        """Move all agents."""
        legal = jnp.take_along_axis(state.action_mask, action[:, None], axis=1)[:, 0]
        moved = state.agents_locations + jnp.asarray(grid.MOVES)[action]
        agents = jnp.where(legal[:, None], moved, state.agents_locations)
        tiles = state.grid.at[agents[:, 0], agents[:, 1]].set(CLEAN)
        cleaned = (tiles != state.grid).sum()
        state = State(tiles, agents, self._free(tiles, agents), state.step_count + 1, state.key)
        return state, transition(
            _observe(state),
            cleaned - self.penalty_per_timestep,
            terminated=~legal.all() | ~(tiles == DIRTY).any(),
            at_limit=state.step_count >= self.limit,
            mode=self.time_limit_mode,
            extras=_extras(tiles),
        )

    def _free(self, tiles: Array, agents: Array) -> Array:
        around = agents[:, None, :] + jnp.asarray(grid.MOVES)
        bounds = self.shape[::-1] if self.faithful else self.shape
        wall = tiles[around[..., 0], around[..., 1]] == WALL
        return grid.inside(around, *bounds) & ~wall


def _extras(tiles: Array) -> dict[str, Array]:
    dirty = (tiles == DIRTY).sum()
    return {
        "ratio_dirty_tiles": (dirty / (tiles != WALL).sum()).astype(jnp.float32),
        "num_dirty_tiles": dirty,
    }


def _observe(state: State) -> Observation:
    return Observation(state.grid, state.agents_locations, state.action_mask, state.step_count)
