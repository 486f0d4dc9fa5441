"""Slide numbered tiles into order through one blank."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
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
from trimtab.envs.sampling import choose_true_from
from trimtab.errors import InputError


class Observation(NamedTuple):
    """The tiles (0: blank), where the blank is, where it can go, and the clock."""

    puzzle: Int[Array, "size size"]
    empty_tile_position: Int[Array, " 2"]
    action_mask: Bool[Array, " 4"]
    step_count: Int[Array, ""]


class State(NamedTuple):
    """The tiles and the blank."""

    puzzle: Int[Array, "size size"]
    empty_tile_position: Int[Array, " 2"]
    step_count: Int[Array, ""]
    key: Array


def solved_puzzle(size: int) -> np.ndarray:
    """Tiles 1, 2, 3, ... row by row, with the blank in the last cell."""
    return np.roll(np.arange(size * size, dtype=np.int32), -1).reshape(size, size)


@dataclasses.dataclass(frozen=True)
class RandomWalk:
    """The blank walks from the solved puzzle, uniformly among its legal moves.

    Args:
        grid_size: cells per side.
        num_random_moves: steps of the walk; it may step back.
    """

    grid_size: int = 5
    num_random_moves: int = 200

    def __post_init__(self) -> None:
        if self.grid_size < 2 or self.num_random_moves < 0:
            raise InputError(
                f"grid_size={self.grid_size}, num_random_moves={self.num_random_moves}: expected "
                "at least 2 cells per side and no negative number of moves."
            )

    def __call__(self, key: Array) -> tuple[Array, Array]:
        """Draw a solvable puzzle; returns the tiles and the cell of the blank."""
        uniforms = jax.random.uniform(key, (self.num_random_moves,))

        def walk(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            puzzle, blank = carry
            move = choose_true_from(uniforms[index], legal_moves(blank, self.grid_size))
            return swap(puzzle, blank, grid.moved(blank, move))

        size = self.grid_size
        start = (jnp.asarray(solved_puzzle(size)), jnp.full(2, size - 1, jnp.int32))
        return jax.lax.fori_loop(0, self.num_random_moves, walk, start)


def dense_reward(before: Array, after: Array, goal: Array, solved: Array) -> Array:
    """Cells that became right minus cells that became wrong."""
    return ((after == goal).sum() - (before == goal).sum()).astype(jnp.float32)


def sparse_reward(before: Array, after: Array, goal: Array, solved: Array) -> Array:
    """1 when the puzzle is solved, else 0."""
    return solved.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class SlidingTilePuzzle(Environment):
    """Move the blank up, right, down or left (actions 0 to 3); a move off the grid does nothing.

    Args:
        generator: draws a puzzle from a key and knows ``grid_size``.
        reward_fn: ``(before, after, goal, solved) -> reward``.
        time_limit: steps of the longest episode.
        time_limit_mode: whether the limit truncates or terminates.
    """

    generator: Generator = RandomWalk()
    reward_fn: Callable[[Array, Array, Array, Array], Array] = dense_reward
    time_limit: int = 500
    time_limit_mode: TimeLimitMode = "truncate"

    @property
    def size(self) -> int:
        """Cells per side."""
        return self.generator.grid_size  # pyright: ignore[reportFunctionMemberAccess]

    @cached_property
    def observation_spec(self) -> specs.Spec:
        """Tiles, blank, mask and clock."""
        size = self.size
        return specs.nest(
            Observation,
            puzzle=specs.integers((size, size), 0, size * size - 1),
            empty_tile_position=specs.integers((2,), 0, size - 1),
            action_mask=specs.booleans(4),
            step_count=specs.integers((), 0, self.time_limit),
        )

    @cached_property
    def action_spec(self) -> specs.DiscreteArray:
        """Direction of the blank."""
        return specs.DiscreteArray(4, name="action")

    def reset(self, key: Array) -> tuple[State, TimeStep]:
        """Start from a random solvable puzzle."""
        key, puzzle_key = jax.random.split(key)
        puzzle, blank = self.generator(puzzle_key)
        state = State(puzzle, blank, jnp.int32(0), key)
        return state, restart(self._observe(state), self._extras(puzzle))

    def step(self, state: State, action: Array) -> tuple[State, TimeStep]:
        """Move the blank."""
        target = grid.moved(state.empty_tile_position, action)
        legal = grid.inside(target, self.size, self.size)
        target = jnp.where(legal, target, state.empty_tile_position)
        puzzle, blank = swap(state.puzzle, state.empty_tile_position, target)
        goal = jnp.asarray(solved_puzzle(self.size))
        solved = (puzzle == goal).all()
        reward = self.reward_fn(state.puzzle, puzzle, goal, solved)
        state = State(puzzle, blank, state.step_count + 1, state.key)
        return state, transition(
            self._observe(state),
            reward,
            terminated=solved,
            at_limit=state.step_count >= self.time_limit,
            mode=self.time_limit_mode,
            extras=self._extras(puzzle),
        )

    def _observe(self, state: State) -> Observation:
        mask = legal_moves(state.empty_tile_position, self.size)
        return Observation(state.puzzle, state.empty_tile_position, mask, state.step_count)

    def _extras(self, puzzle: Array) -> dict[str, Array]:
        correct = puzzle == jnp.asarray(solved_puzzle(self.size))
        return {"prop_correctly_placed": correct.mean(dtype=jnp.float32)}


def legal_moves(blank: Int[Array, " 2"], size: int) -> Bool[Array, " 4"]:
    """Directions in which the blank stays on the grid."""
    return grid.inside(grid.neighbours(blank), size, size)


def swap(puzzle: Array, blank: Array, target: Array) -> tuple[Array, Array]:
    """Exchange the blank with the tile of a cell."""
    tile = puzzle[target[0], target[1]]
    puzzle = puzzle.at[blank[0], blank[1]].set(tile).at[target[0], target[1]].set(0)
    return puzzle, target
