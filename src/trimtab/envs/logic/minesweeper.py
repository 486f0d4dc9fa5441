"""Open all cells of a grid that hide no mine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from trimtab.envs import specs
from trimtab.envs.protocol import Environment, Generator, TimeStep, restart, transition
from trimtab.envs.sampling import choose_subset
from trimtab.errors import InputError


class Observation(NamedTuple):
    """The board (-1 unexplored, else mines around), the legal cells and two counts."""

    board: Int[Array, "rows columns"]
    action_mask: Bool[Array, "rows columns"]
    num_mines: Int[Array, ""]
    step_count: Int[Array, ""]


class State(NamedTuple):
    """What is open, where the mines are, and how many mines surround each cell."""

    board: Int[Array, "rows columns"]
    step_count: Int[Array, ""]
    mines: Bool[Array, "rows columns"]
    counts: Int[Array, "rows columns"]
    key: Array


@dataclasses.dataclass(frozen=True)
class UniformMines:
    """Mines on distinct cells, every placement equally likely, fixed before the first move."""

    num_rows: int = 10
    num_cols: int = 10
    num_mines: int = 10

    def __post_init__(self) -> None:
        cells = self.num_rows * self.num_cols
        if self.num_rows < 2 or self.num_cols < 2 or not 0 <= self.num_mines < cells:
            raise InputError(
                f"A {self.num_rows} x {self.num_cols} board with {self.num_mines} mines cannot be "
                "played; give at least 2 rows and columns and fewer mines than cells."
            )

    def __call__(self, key: Array) -> Bool[Array, "rows columns"]:
        """Draw the mines."""
        cells = self.num_rows * self.num_cols
        return choose_subset(key, cells, self.num_mines).reshape(self.num_rows, self.num_cols)


@dataclasses.dataclass(frozen=True)
class RevealReward:
    """A reward for each of the three things that an action can do."""

    revealed_empty_square: float = 1.0
    revealed_mine: float = 0.0
    invalid_action: float = 0.0

    def __call__(self, explored: Array, mine: Array) -> Array:
        """Reward of opening a cell.

        Args:
            explored: the cell was already open.
            mine: the cell hides a mine.
        """
        fresh = jnp.where(mine, self.revealed_mine, self.revealed_empty_square)
        return jnp.where(explored, self.invalid_action, fresh)


def default_end(explored: Array, mine: Array, solved: Array) -> Array:
    """Whether the episode terminates: a mine, an open cell chosen again, or all cells open."""
    return explored | mine | solved


@dataclasses.dataclass(frozen=True)
class Minesweeper(Environment):
    """The action is the ``(row, column)`` of a cell to open; there is no flood fill.

    Opening a safe unexplored cell gives 1, anything else 0. A mine, an already open cell, or
    the last safe cell terminates the episode.

    Args:
        generator: draws the mines from a key and knows the sizes.
        reward_function: ``(explored, mine) -> reward``.
        done_function: ``(explored, mine, solved) -> terminated``.
    """

    generator: Generator = UniformMines()
    reward_function: Callable[[Array, Array], Array] = RevealReward()
    done_function: Callable[[Array, Array, Array], Array] = default_end

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.generator.num_rows, self.generator.num_cols  # pyright: ignore

    @property
    def num_mines(self) -> int:
        """Mines on the board."""
        return self.generator.num_mines  # pyright: ignore[reportFunctionMemberAccess]

    @cached_property
    def observation_spec(self) -> specs.Spec:
        """Board, mask, number of mines and of steps."""
        cells = self.shape[0] * self.shape[1]
        return specs.nest(
            Observation,
            board=specs.integers(self.shape, -1, 8),
            action_mask=specs.booleans(*self.shape),
            num_mines=specs.integers((), 0, cells - 1),
            step_count=specs.integers((), 0, cells - self.num_mines),
        )

    @cached_property
    def action_spec(self) -> specs.MultiDiscreteArray:
        """Row and column."""
        return specs.MultiDiscreteArray(self.shape, name="action")

    def reset(self, key: Array) -> tuple[State, TimeStep]:
        """Start with all cells unexplored."""
        key, mines_key = jax.random.split(key)
        mines = self.generator(mines_key)
        board = jnp.full(self.shape, -1, jnp.int32)
        state = State(board, jnp.int32(0), mines, count_around(mines), key)
        return state, restart(self._observe(state))

    def step(self, state: State, action: Array) -> tuple[State, TimeStep]:
        """Open a cell."""
        row, column = action[0], action[1]
        explored = state.board[row, column] >= 0
        mine = state.mines[row, column]
        board = state.board.at[row, column].set(state.counts[row, column])
        state = state._replace(board=board, step_count=state.step_count + 1)
        solved = (board >= 0).sum() == board.size - self.num_mines
        return state, transition(
            self._observe(state),
            self.reward_function(explored, mine),
            terminated=self.done_function(explored, mine, solved),
        )

    def _observe(self, state: State) -> Observation:
        return Observation(
            state.board, state.board == -1, jnp.int32(self.num_mines), state.step_count
        )


def count_around(mines: Bool[Array, "rows columns"]) -> Int[Array, "rows columns"]:
    """Number of mines among the eight neighbours of each cell."""
    rows, columns = mines.shape
    padded = jnp.pad(mines.astype(jnp.int32), 1)
    across = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    around = across[:-2] + across[1:-1] + across[2:]
    return (around - padded[1 : rows + 1, 1 : columns + 1]).astype(jnp.int32)
