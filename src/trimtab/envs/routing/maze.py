"""Walk through a maze to a target."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

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
from trimtab.envs.sampling import choose_true_from
from trimtab.errors import InputError


class Position(NamedTuple):
    """A cell."""

    row: Int[Array, ""]
    col: Int[Array, ""]


class Observation(NamedTuple):
    """Where the agent and the target are, the walls, and the free directions."""

    agent_position: Position
    target_position: Position
    walls: Bool[Array, "rows columns"]
    action_mask: Bool[Array, " 4"]
    step_count: Int[Array, ""]


class State(NamedTuple):
    """The maze, the agent and the target; cells are ``(row, column)``."""

    agent: Int[Array, " 2"]
    target: Int[Array, " 2"]
    walls: Bool[Array, "rows columns"]
    action_mask: Bool[Array, " 4"]
    step_count: Int[Array, ""]
    key: Array


class Instance(NamedTuple):
    """Walls and the two cells."""

    walls: Bool[Array, "rows columns"]
    agent: Int[Array, " 2"]
    target: Int[Array, " 2"]


@dataclasses.dataclass(frozen=True)
class RandomMaze:
    """A maze by recursive division with two distinct uniform free cells."""

    num_rows: int = 10
    num_cols: int = 10

    def __post_init__(self) -> None:
        if self.num_rows < 1 or self.num_cols < 1 or self.num_rows * self.num_cols < 2:
            raise InputError(
                f"A maze of {self.num_rows} x {self.num_cols} cells has no room for an agent "
                "and a target."
            )

    def __call__(self, key: Array) -> Instance:
        """Draw a maze."""
        walls_key, cells_key = jax.random.split(key)
        walls = divide(walls_key, self.num_rows, self.num_cols)
        free = ~walls.reshape(-1)
        uniforms = jax.random.uniform(cells_key, (2,))
        agent = choose_true_from(uniforms[0], free)
        target = choose_true_from(uniforms[1], free.at[agent].set(False))
        return Instance(
            walls, grid.unflat(agent, self.num_cols), grid.unflat(target, self.num_cols)
        )


@dataclasses.dataclass(frozen=True)
class DrawnMaze:
    """Always the maze of a drawing.

    Args:
        drawing: lines of ``#`` (wall), space or ``.`` (free), ``A`` (agent) and ``T`` (target).
    """

    drawing: tuple[str, ...] = ("A..#.", ".#..#", ".##..", "...#.", "#..#T")

    def __post_init__(self) -> None:
        text = "".join(self.drawing)
        same = len({len(line) for line in self.drawing}) == 1
        if not same or text.count("A") != 1 or text.count("T") != 1:
            raise InputError("A drawn maze needs lines of equal length with one A and one T.")

    @property
    def num_rows(self) -> int:
        """Lines."""
        return len(self.drawing)

    @property
    def num_cols(self) -> int:
        """Characters a line."""
        return len(self.drawing[0])

    def __call__(self, key: Array) -> Instance:
        """The maze; the key is ignored."""
        cells = np.array([list(line) for line in self.drawing])
        agent, target = (np.argwhere(cells == letter)[0] for letter in "AT")
        return Instance(
            jnp.asarray(cells == "#"), jnp.asarray(agent, jnp.int32), jnp.asarray(target, jnp.int32)
        )


@dataclasses.dataclass(frozen=True)
class Maze(Environment):
    """Move up, right, down or left (actions 0 to 3); a blocked move does nothing.

    Reaching the target gives 1 and terminates the episode.

    Args:
        generator: makes an :class:`Instance` from a key and knows the sizes.
        time_limit: steps of the longest episode; the number of cells when None.
        time_limit_mode: whether the limit truncates or terminates.
    """

    generator: Generator = RandomMaze()
    time_limit: int | None = None
    time_limit_mode: TimeLimitMode = "truncate"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.generator.num_rows, self.generator.num_cols  # pyright: ignore

    @property
    def limit(self) -> int:
        """Steps of the longest episode."""
        return self.time_limit or self.shape[0] * self.shape[1]

    @cached_property
    def observation_spec(self) -> specs.Spec:
        """Positions, walls, mask and clock."""
        rows, columns = self.shape
        cell = specs.nest(
            Position, row=specs.integers((), 0, rows - 1), col=specs.integers((), 0, columns - 1)
        )
        return specs.nest(
            Observation,
            agent_position=cell,
            target_position=cell,
            walls=specs.booleans(rows, columns),
            action_mask=specs.booleans(4),
            step_count=specs.integers((), 0, self.limit),
        )

    @cached_property
    def action_spec(self) -> specs.DiscreteArray:
        """Direction."""
        return specs.DiscreteArray(4, name="action")

    def reset(self, key: Array) -> tuple[State, TimeStep]:
        """Start in a maze."""
        key, maze_key = jax.random.split(key)
        maze: Instance = self.generator(maze_key)
        mask = open_directions(maze.walls, maze.agent)
        state = State(maze.agent, maze.target, maze.walls, mask, jnp.int32(0), key)
        return state, restart(_observe(state))

    def step(self, state: State, action: Array) -> tuple[State, TimeStep]:
        """Move the agent."""
        legal = state.action_mask[action]
        agent = jnp.where(legal, grid.moved(state.agent, action), state.agent)
        mask = open_directions(state.walls, agent)
        state = state._replace(agent=agent, action_mask=mask, step_count=state.step_count + 1)
        reached = (agent == state.target).all()
        return state, transition(
            _observe(state),
            reached,
            terminated=reached | ~mask.any(),
            at_limit=state.step_count >= self.limit,
            mode=self.time_limit_mode,
        )


def open_directions(walls: Bool[Array, "rows columns"], cell: Int[Array, "*any 2"]) -> Array:
    """Which of the four neighbours are inside and free."""
    rows, columns = walls.shape
    around = cell[..., None, :] + jnp.asarray(grid.MOVES)
    return grid.inside(around, rows, columns) & ~walls[around[..., 0], around[..., 1]]


def _observe(state: State) -> Observation:
    return Observation(
        Position(state.agent[0], state.agent[1]),
        Position(state.target[0], state.target[1]),
        state.walls,
        state.action_mask,
        state.step_count,
    )
