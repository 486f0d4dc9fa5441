"""Drop falling pieces so that full rows vanish."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from trimtab.envs import specs
from trimtab.envs.protocol import Environment, TimeLimitMode, TimeStep, restart, transition
from trimtab.envs.sampling import below, spend_uniforms
from trimtab.errors import InputError

PIECES = "ISZOTLJ"
_DRAWINGS = {
    "I": (["1", "1", "1", "1"], ["1111"]) * 2,
    "S": (["011", "110"], ["10", "11", "01"]) * 2,
    "Z": (["110", "011"], ["01", "11", "10"]) * 2,
    "O": (["11", "11"],) * 4,
    "T": (["111", "010"], ["01", "11", "01"], ["010", "111"], ["10", "11", "10"]),
    "L": (["10", "10", "11"], ["111", "100"], ["11", "01", "01"], ["001", "111"]),
    "J": (["01", "01", "11"], ["100", "111"], ["11", "10", "10"], ["111", "001"]),
}
REWARDS = np.array([0, 40, 100, 300, 1200], np.float32)
"""Reward by the number of rows that vanish together."""


def _shapes() -> np.ndarray:
    shapes = np.zeros((len(PIECES), 4, 4, 4), np.int32)
    for piece, name in enumerate(PIECES):
        for turn, rows in enumerate(_DRAWINGS[name]):
            for row, cells in enumerate(rows):
                shapes[piece, turn, row, : len(cells)] = [int(cell) for cell in cells]
    return shapes


SHAPES = _shapes()
"""Cells of each piece and rotation, pushed to the upper left of a 4 x 4 window."""
# Bit x of a row stands for column x.
_ROW_BITS = (SHAPES << np.arange(4)).sum(axis=-1).astype(np.int32)
_WIDTHS = SHAPES.any(axis=2).sum(axis=-1).astype(np.int32)
# What must be free at the top: each of the rows 0 to 2 together with the rows below it.
_ENTRY_BITS = _ROW_BITS.copy()
_ENTRY_BITS[..., 1] |= _ROW_BITS[..., 2]
_ENTRY_BITS[..., 0] |= _ENTRY_BITS[..., 1]


class Observation(NamedTuple):
    """Filled cells, the piece to place, and where it can enter."""

    grid: Int[Array, "rows columns"]
    tetromino: Int[Array, "4 4"]
    action_mask: Bool[Array, "4 columns"]
    step_count: Int[Array, ""]


class State(NamedTuple):
    """Cells (0 empty, else 1 + the kind of piece) and the piece to place."""

    grid: Int[Array, "rows columns"]
    tetromino_index: Int[Array, ""]
    action_mask: Bool[Array, "4 columns"]
    score: Float[Array, ""]
    step_count: Int[Array, ""]
    key: Array


@dataclasses.dataclass(frozen=True)
class Tetris(Environment):
    """The action is ``(quarter turns, column)`` of the left edge of the piece.

    The piece falls straight down. Rows that become full vanish together and give 40, 100, 300 or
    1200. The episode terminates on an illegal action, and when the next piece cannot enter.

    Args:
        num_rows: rows, at least 4.
        num_cols: columns, at least 4.
        time_limit: steps of the longest episode.
        time_limit_mode: whether the limit truncates or terminates.
        faithful: observe a step count that is always 0, as in the published suite.
    """

    num_rows: int = 10
    num_cols: int = 10
    time_limit: int = 400
    time_limit_mode: TimeLimitMode = "truncate"
    faithful: bool = True

    def __post_init__(self) -> None:
        if min(self.num_rows, self.num_cols) < 4 or self.num_cols > 27:
            raise InputError(
                f"A grid of {self.num_rows} x {self.num_cols} cannot be used; give at least 4 "
                "rows and 4 to 27 columns."
            )

    @cached_property
    def observation_spec(self) -> specs.Spec:
        """Grid, piece, mask and clock."""
        return specs.nest(
            Observation,
            grid=specs.integers((self.num_rows, self.num_cols), 0, 1),
            tetromino=specs.integers((4, 4), 0, 1),
            action_mask=specs.booleans(4, self.num_cols),
            step_count=specs.integers((), 0, self.time_limit),
        )

    @cached_property
    def action_spec(self) -> specs.MultiDiscreteArray:
        """Quarter turns and column."""
        return specs.MultiDiscreteArray((4, self.num_cols), name="action")

    def reset(self, key: Array) -> tuple[State, TimeStep]:
        """Start with an empty grid and a random piece."""
        key, uniforms = spend_uniforms(key, 1)
        grid = jnp.zeros((self.num_rows, self.num_cols), jnp.int32)
        piece = below(uniforms[0], len(PIECES))
        mask = entries(_filled_bits(grid), piece, self.num_cols)
        state = State(grid, piece, mask, jnp.float32(0), jnp.int32(0), key)
        return state, restart(self._observe(state))

    def step(self, state: State, action: Array) -> tuple[State, TimeStep]:
        """Drop the piece, then draw the next one."""
        key, uniforms = spend_uniforms(state.key, 1)
        return self._step(state._replace(key=key), action, lambda: below(uniforms[0], len(PIECES)))

    def step_with(self, state: State, action: Array, draw: Array) -> tuple[State, TimeStep]:
        """As :meth:`step`, with the index of the next piece given."""
        return self._step(state, action, lambda: draw)

    def _step(
        self, state: State, action: Array, next_piece: Callable[[], Array]
    ) -> tuple[State, TimeStep]:
        turn, column = action[0], action[1]
        legal = state.action_mask[turn, column]
        grid = drop(state.grid, state.tetromino_index, turn, column, legal)
        grid, lines = clear_lines(grid)
        piece = next_piece()
        mask = entries(_filled_bits(grid), piece, self.num_cols)
        reward = jnp.where(legal, jnp.asarray(REWARDS)[lines], 0.0)
        state = State(grid, piece, mask, state.score + reward, state.step_count + 1, state.key)
        return state, transition(
            self._observe(state),
            reward,
            terminated=~legal | ~mask.any(),
            at_limit=state.step_count >= self.time_limit,
            mode=self.time_limit_mode,
        )

    def _observe(self, state: State) -> Observation:
        return Observation(
            grid=(state.grid > 0).astype(jnp.int32),
            tetromino=jnp.asarray(SHAPES[:, 0])[state.tetromino_index],
            action_mask=state.action_mask,
            step_count=jnp.int32(0) if self.faithful else state.step_count,
        )


def _filled_bits(grid: Int[Array, "rows columns"]) -> Int[Array, " rows"]:
    columns = np.int32(1) << np.arange(grid.shape[1], dtype=np.int32)
    return jnp.where(grid > 0, columns, 0).sum(axis=1, dtype=jnp.int32)


def entries(rows: Int[Array, " rows"], piece: Array, columns: int) -> Bool[Array, "4 columns"]:
    """Where the piece can enter at the top."""
    needed = jnp.asarray(_ENTRY_BITS)[piece]  # turn x window row
    offset = np.arange(columns, dtype=np.int32)
    blocked = jnp.left_shift(needed[:, :, None], offset) & rows[None, :4, None]
    inside = jnp.asarray(offset) + jnp.asarray(_WIDTHS)[piece][:, None] <= columns
    return inside & (blocked == 0).all(axis=1)


def drop(
    grid: Int[Array, "rows columns"], piece: Array, turn: Array, column: Array, legal: Array
) -> Array:
    """Let a piece fall until it would not fit one row lower."""
    rows, columns = grid.shape
    bits = jnp.asarray(_ROW_BITS)[piece, turn] << column
    floor = jnp.full(4, -1, jnp.int32)
    padded = jnp.concatenate([_filled_bits(grid), floor])
    windows = jnp.stack([padded[row : row + rows + 1] for row in range(4)], axis=1)
    blocked = ((windows & bits) != 0).any(axis=1)
    top = jnp.maximum(jnp.argmax(blocked) - 1, 0)
    offset = np.arange(rows)[:, None] - top
    row_bits = jnp.where(offset == np.arange(4), bits, 0).sum(axis=1, dtype=jnp.int32)
    cells = (row_bits[:, None] >> np.arange(columns) & 1).astype(bool)
    return jnp.where(cells & legal, piece + 1, grid).astype(jnp.int32)


def clear_lines(grid: Int[Array, "rows columns"]) -> tuple[Array, Array]:
    """Remove full rows, letting those above fall; returns the grid and the number removed."""
    rows = grid.shape[0]
    full = (grid > 0).all(axis=1)
    index = np.arange(rows, dtype=np.int32)
    fall = (full[None, :] & (index[None, :] > index[:, None])).sum(axis=1, dtype=jnp.int32)
    target = jnp.where(full, -1, index + fall)
    moves = target[None, :] == index[:, None]
    fallen = jnp.where(moves[:, :, None], grid[None], 0).sum(axis=1, dtype=jnp.int32)
    return fallen, full.sum(dtype=jnp.int32)
