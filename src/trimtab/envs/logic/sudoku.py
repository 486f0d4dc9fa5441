"""Fill a grid so that every row, column and box holds each digit once."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from trimtab.envs import specs
from trimtab.envs.logic.sudoku_seeds import FEWEST_GIVENS, load_seeds
from trimtab.envs.protocol import Environment, Generator, Table, TimeStep, restart, transition
from trimtab.envs.sampling import below, random_order
from trimtab.errors import InputError

_FULL = 0b111111111


class Observation(NamedTuple):
    """The board (-1 empty, digits 0 to 8) and the digits that each empty cell allows."""

    board: Int[Array, "9 9"]
    action_mask: Bool[Array, "9 9 9"]


class State(NamedTuple):
    """The board; its legal moves follow from it."""

    board: Int[Array, "9 9"]
    key: Array


@dataclasses.dataclass(frozen=True)
class UniquePuzzles:
    """Endless puzzles with one solution each, by symmetries of stored ones.

    The number of givens is drawn by linear interpolation between the five quantiles.

    Args:
        givens: numbers of givens at the quantiles 0, 5 %, 50 %, 95 % and 100 %; the defaults
            follow the published mixed set (25 to 77 givens, median 38).
    """

    givens: tuple[float, float, float, float, float] = (25, 31, 38, 50, 77)

    def __post_init__(self) -> None:
        ordered = all(low <= high for low, high in zip(self.givens, self.givens[1:]))
        if not ordered or self.givens[0] < FEWEST_GIVENS or self.givens[-1] > 80:
            raise InputError(
                f"givens={self.givens}: expected increasing numbers from {FEWEST_GIVENS} to 80."
            )

    def __call__(self, key: Array) -> Int[Array, "9 9"]:
        """Draw a board with -1 where empty."""
        puzzle, _ = self.with_solution(key)
        return puzzle

    def with_solution(self, key: Array) -> tuple[Array, Array]:
        """Draw a board and its solution."""
        uniforms = jax.random.uniform(key, (20,))
        grids, ranks = load_seeds()
        seed = below(uniforms[0], grids.shape[0])
        quantiles = np.array([0, 0.05, 0.5, 0.95, 1.0], np.float32)
        givens = jnp.interp(uniforms[1], quantiles, np.array(self.givens, np.float32))
        emptied = 81 - jnp.round(givens).astype(jnp.int32)
        digits = random_order(uniforms[2:11])
        solution = digits[jnp.asarray(grids)[seed].astype(jnp.int32)]
        puzzle = jnp.where(jnp.asarray(ranks)[seed] < emptied, -1, solution)
        rows, columns = _shuffled_lines(uniforms[11:15]), _shuffled_lines(uniforms[15:19])
        order = rows[:, None] * 9 + columns[None, :]
        order = jnp.where(uniforms[19] < 0.5, order, order.T)
        return puzzle[order].astype(jnp.int32), solution[order].astype(jnp.int32)


_OF_THREE = np.array(list(itertools.permutations(range(3))), np.int32)


def _shuffled_lines(uniforms: Array) -> Int[Array, " 9"]:
    """A permutation of nine lines that keeps the three bands together."""
    chosen = jnp.asarray(_OF_THREE)[below(uniforms, 6)]
    bands, lines = chosen[0], chosen[1:]
    return (bands[:, None] * 3 + lines).reshape(9)


@dataclasses.dataclass(frozen=True)
class Database:
    """Puzzles drawn uniformly from a table.

    Args:
        puzzles: digits 1 to 9, 0 where empty; shape ``(puzzles, 9, 9)``.
    """

    puzzles: Table

    @classmethod
    def of(cls, puzzles: Any) -> Database:
        """Build from an array of shape ``(puzzles, 9, 9)`` or ``(puzzles, 81)``."""
        boards = np.asarray(puzzles, np.int8).reshape(-1, 9, 9)
        if boards.size == 0 or boards.min() < 0 or boards.max() > 9:
            raise InputError("Puzzles must be 9 x 9 boards of digits 1 to 9, with 0 where empty.")
        return cls(Table(boards))

    def __call__(self, key: Array) -> Int[Array, "9 9"]:
        """Draw a board with -1 where empty."""
        boards = jnp.asarray(self.puzzles.values)
        chosen = below(jax.random.uniform(key), boards.shape[0])
        return boards[chosen].astype(jnp.int32) - 1


@dataclasses.dataclass(frozen=True)
class OnePuzzle:
    """Always the first stored puzzle at its fewest givens; for tests and demonstrations."""

    def __call__(self, key: Array) -> Int[Array, "9 9"]:
        """The board; the key is ignored."""
        grids, ranks = load_seeds()
        board = np.where(ranks[0] < 81, -1, grids[0]).reshape(9, 9)
        return jnp.asarray(board, jnp.int32)


def sparse_reward(complete: Array) -> Array:
    """1 when the grid is complete and valid, else 0."""
    return complete.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Sudoku(Environment):
    """The action is ``(row, column, digit)``; the digit is written even when illegal.

    The episode terminates on an illegal action and when no legal one is left, which is either
    the solution (reward 1) or a dead end.

    Args:
        generator: draws a board (-1 empty, digits 0 to 8) from a key.
        reward_fn: ``(complete) -> reward``.
    """

    generator: Generator = UniquePuzzles()
    reward_fn: Callable[[Array], Array] = sparse_reward

    @cached_property
    def observation_spec(self) -> specs.Spec:
        """Board and mask."""
        return specs.nest(
            Observation,
            board=specs.integers((9, 9), -1, 8),
            action_mask=specs.booleans(9, 9, 9),
        )

    @cached_property
    def action_spec(self) -> specs.MultiDiscreteArray:
        """Row, column and digit."""
        return specs.MultiDiscreteArray((9, 9, 9), name="action")

    def reset(self, key: Array) -> tuple[State, TimeStep]:
        """Start from a puzzle."""
        key, puzzle_key = jax.random.split(key)
        board = self.generator(puzzle_key)
        mask, _ = examine(board)
        return State(board, key), restart(Observation(board, mask))

    def step(self, state: State, action: Array) -> tuple[State, TimeStep]:
        """Write a digit."""
        row, column, digit = action[0], action[1], action[2]
        legal = is_legal(state.board, row, column, digit)
        board = state.board.at[row, column].set(digit.astype(jnp.int32))
        mask, complete = examine(board)
        return State(board, state.key), transition(
            Observation(board, mask), self.reward_fn(complete), terminated=~legal | ~mask.any()
        )


def is_legal(board: Int[Array, "9 9"], row: Array, column: Array, digit: Array) -> Array:
    """Whether a cell is empty and the digit absent from its row, column and box."""
    box = jax.lax.dynamic_slice(board, (row // 3 * 3, column // 3 * 3), (3, 3))
    taken = (board[row] == digit) | (board[:, column] == digit) | (box.reshape(9) == digit)
    return (board[row, column] < 0) & ~taken.any()


def examine(board: Int[Array, "9 9"]) -> tuple[Bool[Array, "9 9 9"], Bool[Array, ""]]:
    """The legal moves of a board and whether it is complete and valid.

    Digits are bits, so a row, column or box is the bitwise or of its cells.
    """
    bits = jnp.where(board >= 0, jnp.left_shift(1, board), 0)

    def union(values: Array, axes: tuple[int, ...]) -> Array:
        return jax.lax.reduce(values, np.int32(0), jax.lax.bitwise_or, axes)

    rows, columns = union(bits, (1,)), union(bits, (0,))
    boxes = union(bits.reshape(3, 3, 3, 3), (1, 3))
    box_of = jnp.broadcast_to(boxes[:, None, :, None], (3, 3, 3, 3)).reshape(9, 9)
    free = jnp.where(board < 0, ~(rows[:, None] | columns[None, :] | box_of), 0)
    mask = (jnp.right_shift(free[..., None], jnp.arange(9)) & 1).astype(bool)
    full = (board >= 0).all()
    complete = full & (rows == _FULL).all() & (columns == _FULL).all() & (boxes == _FULL).all()
    return mask, complete


def very_easy(**settings: Any) -> Sudoku:
    """Puzzles with 46 to 80 givens."""
    settings.setdefault("generator", UniquePuzzles((46, 47, 64, 79, 80)))
    return Sudoku(**settings)
