"""Slide and merge tiles on a square board: the game 2048."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from trimtab.envs import specs
from trimtab.envs.protocol import Environment, TimeStep, restart, transition
from trimtab.envs.sampling import choose_true_from, spend_uniforms
from trimtab.errors import InputError


class Observation(NamedTuple):
    """What the player sees."""

    board: Int[Array, "size size"]
    """0 where empty, else the exponent ``v`` of the tile ``2**v``."""
    action_mask: Bool[Array, " 4"]


class State(NamedTuple):
    """A position and the score so far."""

    board: Int[Array, "size size"]
    step_count: Int[Array, ""]
    action_mask: Bool[Array, " 4"]
    score: Float[Array, ""]
    key: Array


class NewTile(NamedTuple):
    """The chance event of a step: the flat index of a cell and the exponent put there."""

    cell: Int[Array, ""]
    exponent: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Game2048(Environment):
    """Slide all tiles up, right, down or left (actions 0 to 3); equal neighbours merge.

    The reward of a step is the sum of the face values of merged tiles. After a legal move a
    tile 2 (probability 0.9) or 4 appears on a random empty cell. The episode terminates when no
    move changes the board; an illegal move changes nothing.

    Args:
        board_size: cells per side.
    """

    board_size: int = 4

    def __post_init__(self) -> None:
        if self.board_size < 2:
            raise InputError(f"board_size is {self.board_size}; expected at least 2.")

    @cached_property
    def observation_spec(self) -> specs.Spec:
        """Exponents and the mask of legal moves."""
        side = self.board_size
        return specs.nest(
            Observation,
            board=specs.integers((side, side), 0, side * side + 2),
            action_mask=specs.booleans(4),
        )

    @cached_property
    def action_spec(self) -> specs.DiscreteArray:
        """Up, right, down, left."""
        return specs.DiscreteArray(4, name="action")

    def reset(self, key: Array) -> tuple[State, TimeStep]:
        """Start with one tile on a uniformly random cell."""
        key, uniforms = spend_uniforms(key, 2)
        empty = jnp.zeros((self.board_size, self.board_size), jnp.int32)
        board = _place(empty, _draw_tile(uniforms, empty), True)
        state = State(board, jnp.int32(0), legal_moves(board), jnp.float32(0), key)
        return state, restart(Observation(board, state.action_mask), _extras(board))

    def step(self, state: State, action: Array) -> tuple[State, TimeStep]:
        """Slide and merge, then add a random tile."""
        key, uniforms = spend_uniforms(state.key, 2)
        return self._step(state._replace(key=key), action, lambda b: _draw_tile(uniforms, b))

    def step_with(self, state: State, action: Array, draw: NewTile) -> tuple[State, TimeStep]:
        """As :meth:`step`, with the new tile given."""
        return self._step(state, action, lambda _: draw)

    def _step(
        self, state: State, action: Array, new_tile: Callable[[Array], NewTile]
    ) -> tuple[State, TimeStep]:
        moved, reward = slide(state.board, action)
        board = _place(moved, new_tile(moved), state.action_mask[action])
        mask = legal_moves(board)
        state = State(board, state.step_count + 1, mask, state.score + reward, state.key)
        return state, transition(
            Observation(board, mask), reward, terminated=~mask.any(), extras=_extras(board)
        )


def slide(board: Int[Array, "size size"], action: Array) -> tuple[Array, Array]:
    """Slide and merge towards an edge; returns the board and the sum of merged face values."""
    vertical, backwards = action % 2 == 0, (action == 1) | (action == 2)
    turned = jnp.where(vertical, board.T, board)
    turned = jnp.where(backwards, turned[:, ::-1], turned)
    columns, reward = _slide_left([turned[:, index] for index in range(board.shape[1])])
    turned = jnp.stack(columns, axis=1)
    turned = jnp.where(backwards, turned[:, ::-1], turned)
    return jnp.where(vertical, turned.T, turned), reward


def _slide_left(columns: list[Array]) -> tuple[list[Array], Array]:
    """Slide rows given as a list of their columns; compare-and-swap passes, no branches."""
    columns = _close_gaps(columns)
    reward = jnp.float32(0)
    for index in range(len(columns) - 1):
        here, there = columns[index], columns[index + 1]
        merge = (here == there) & (here > 0)
        columns[index] = jnp.where(merge, here + 1, here)
        columns[index + 1] = jnp.where(merge, 0, there)
        reward += jnp.where(merge, jnp.left_shift(2, here), 0).sum().astype(jnp.float32)
    return _close_gaps(columns), reward


def _close_gaps(columns: list[Array]) -> list[Array]:
    columns = list(columns)
    for end in range(len(columns) - 1, 0, -1):
        for index in range(end):
            gap = columns[index] == 0
            here = jnp.where(gap, columns[index + 1], columns[index])
            columns[index + 1] = jnp.where(gap, 0, columns[index + 1])
            columns[index] = here
    return columns


def legal_moves(board: Int[Array, "size size"]) -> Bool[Array, " 4"]:
    """A move is legal if some tile has a gap or an equal tile next to it on that side."""

    def possible(ahead: Array, behind: Array) -> Array:
        return ((behind > 0) & ((ahead == 0) | (ahead == behind))).any()

    upper, lower, left, right = board[:-1], board[1:], board[:, :-1], board[:, 1:]
    return jnp.stack(
        [
            possible(upper, lower),
            possible(right, left),
            possible(lower, upper),
            possible(left, right),
        ]
    )


def _draw_tile(uniforms: Array, board: Array) -> NewTile:
    cell = choose_true_from(uniforms[0], (board == 0).reshape(-1))
    return NewTile(cell, jnp.where(uniforms[1] < 0.9, 1, 2))


def _place(board: Array, tile: NewTile, wanted: Array | bool) -> Array:
    here = jnp.arange(board.size).reshape(board.shape) == tile.cell
    return jnp.where(here & wanted, tile.exponent, board).astype(jnp.int32)


def _extras(board: Array) -> dict[str, Array]:
    return {"highest_tile": jnp.left_shift(1, board.max())}
