"""Fit rotated jigsaw blocks into a grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from trimtab.envs import specs
from trimtab.envs.protocol import Environment, Generator, TimeStep, restart, transition
from trimtab.envs.sampling import random_order
from trimtab.errors import InputError

SIDE = 3
"""Blocks are square arrays of this many cells."""
# Nine bits fit 16-bit integers, of which a vector register holds twice as many.
_CELL_BITS = (1 << np.arange(SIDE * SIDE)).astype(np.int16).reshape(SIDE, SIDE)


class Observation(NamedTuple):
    """The grid (0 empty, else a block's id), the blocks, and where each fits."""

    grid: Int[Array, "rows columns"]
    blocks: Int[Array, "blocks 3 3"]
    action_mask: Bool[Array, "blocks 4 row_offsets column_offsets"]


class State(NamedTuple):
    """The grid and the blocks; ``shapes`` has the four rotations of each block as 9-bit masks."""

    grid: Int[Array, "rows columns"]
    blocks: Int[Array, "blocks 3 3"]
    shapes: Int[Array, "blocks 4"]
    placed_blocks: Bool[Array, " blocks"]
    step_count: Int[Array, ""]
    key: Array


@dataclasses.dataclass(frozen=True)
class Interlocking:
    """Partition a grid into interlocking blocks, so that a full packing exists.

    Blocks overlap in one line of cells with each neighbour; every cell of such a line goes to
    either side with equal chance, first along columns, then along rows.

    Args:
        num_row_blocks: blocks from top to bottom.
        num_col_blocks: blocks from left to right.
        rotate: turn each block by a random quarter.
        shuffle: permute the list of blocks.
    """

    num_row_blocks: int = 5
    num_col_blocks: int = 5
    rotate: bool = True
    shuffle: bool = True

    def __post_init__(self) -> None:
        if min(self.num_row_blocks, self.num_col_blocks) < 1:
            raise InputError(
                f"{self.num_row_blocks} x {self.num_col_blocks} blocks: expected at least 1 x 1."
            )

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return 2 * self.num_row_blocks + 1, 2 * self.num_col_blocks + 1

    def partition(self, key: Array) -> Int[Array, "rows columns"]:
        """Draw the solved grid: the id (from 1) of the block that owns each cell."""
        column_key, row_key = jax.random.split(key)
        rows, columns = self.grid_shape
        own_column, shared_column = _owners(self.num_col_blocks)
        own_row, shared_row = _owners(self.num_row_blocks)
        left = jax.random.bernoulli(column_key, shape=(rows, columns)) & shared_column
        column_block = own_column[None, :] - left
        above = jax.random.bernoulli(row_key, shape=(rows, columns))
        source = np.arange(rows)[:, None] + jnp.where(above, -1, 1) * shared_row[:, None]
        column_block = jnp.take_along_axis(column_block, source, axis=0)
        row_block = own_row[:, None] - (above & shared_row[:, None])
        return jnp.asarray(row_block * self.num_col_blocks + column_block + 1, jnp.int32)

    def __call__(self, key: Array) -> Int[Array, "blocks 3 3"]:
        """Draw the blocks."""
        grid_key, turn_key, order_key = jax.random.split(key, 3)
        grid = self.partition(grid_key)
        count = self.num_row_blocks * self.num_col_blocks
        block_row, block_column = np.divmod(np.arange(count), self.num_col_blocks)
        offset = np.arange(SIDE)
        row = (2 * block_row)[:, None, None] + offset[None, :, None]
        column = (2 * block_column)[:, None, None] + offset[None, None, :]
        ids = np.arange(1, count + 1, dtype=np.int32)
        cells = jax.vmap(_to_corner)(grid[row, column] == ids[:, None, None])
        if self.rotate:
            turns = jax.random.randint(turn_key, (count,), 0, 4)
            cells = jax.vmap(lambda block, k: rotations(block)[k])(cells, turns)
        blocks = jnp.asarray(cells * ids[:, None, None])
        if not self.shuffle:
            return blocks
        return blocks[random_order(jax.random.uniform(order_key, (count,)))]


def _owners(count: int) -> tuple[np.ndarray, np.ndarray]:
    """For each line of cells: the block that owns it (the later one if shared), and if shared."""
    line = np.arange(2 * count + 1)
    shared = (line % 2 == 0) & (line > 0) & (line < 2 * count)
    return np.minimum(line // 2, count - 1).astype(np.int32), shared


def _to_corner(cells: Bool[Array, "3 3"]) -> Array:
    """Shift a block so that its first row and column are not empty."""
    cells = jnp.roll(cells, -jnp.argmax(cells.any(axis=1)), axis=0)
    return jnp.roll(cells, -jnp.argmax(cells.any(axis=0)), axis=1)


def rotations(block: Array) -> Array:
    """A square block turned clockwise by 0, 1, 2 and 3 quarters."""
    return jnp.stack([jnp.rot90(block, -quarters) for quarters in range(4)])


def cell_dense_reward(block: Array, grid: Array, num_blocks: int) -> Array:
    """The placed cells' share of the grid."""
    return (block > 0).sum() / grid.size


def block_dense_reward(block: Array, grid: Array, num_blocks: int) -> Array:
    """The placed block's share of all blocks."""
    return jnp.float32(1.0 / num_blocks)


@dataclasses.dataclass(frozen=True)
class FlatPack(Environment):
    """The action is ``(block, quarter turns, row, column)`` of the block's upper left corner.

    An illegal action changes nothing and uses up its step. The episode terminates after as many
    steps as there are blocks.

    Args:
        generator: makes the blocks from a key and knows the sizes.
        reward_fn: ``(block, grid, num_blocks) -> reward`` of a legal placement.
    """

    generator: Generator = Interlocking()
    reward_fn: Callable[..., Array] = cell_dense_reward

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return self.generator.grid_shape  # pyright: ignore[reportFunctionMemberAccess]

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return self.generator.num_row_blocks * self.generator.num_col_blocks  # pyright: ignore

    @cached_property
    def mask_shape(self) -> tuple[int, int, int, int]:
        """Blocks, quarter turns and offsets."""
        rows, columns = self.grid_shape
        return self.num_blocks, 4, rows - SIDE + 1, columns - SIDE + 1

    @cached_property
    def observation_spec(self) -> specs.Spec:
        """Grid, blocks and mask."""
        return specs.nest(
            Observation,
            grid=specs.integers(self.grid_shape, 0, self.num_blocks),
            blocks=specs.integers((self.num_blocks, SIDE, SIDE), 0, self.num_blocks),
            action_mask=specs.booleans(*self.mask_shape),
        )

    @cached_property
    def action_spec(self) -> specs.MultiDiscreteArray:
        """Block, quarter turns, row and column."""
        return specs.MultiDiscreteArray(self.mask_shape, name="action")

    def reset(self, key: Array) -> tuple[State, TimeStep]:
        """Start with an empty grid."""
        key, blocks_key = jax.random.split(key)
        blocks = self.generator(blocks_key)
        turned = jax.vmap(rotations)(blocks)
        state = State(
            grid=jnp.zeros(self.grid_shape, jnp.int32),
            blocks=blocks,
            shapes=jnp.where(turned > 0, _CELL_BITS, 0).sum(axis=(2, 3), dtype=jnp.int16),
            placed_blocks=jnp.zeros(self.num_blocks, bool),
            step_count=jnp.int32(0),
            key=key,
        )
        return state, restart(self._observe(state))

    def step(self, state: State, action: Array) -> tuple[State, TimeStep]:
        """Place a block."""
        number, quarters, row, column = action[0], action[1], action[2], action[3]
        shape = state.shapes[number, quarters]
        window = jax.lax.dynamic_slice(state.grid, (row, column), (SIDE, SIDE))
        cells = shape & _CELL_BITS != 0
        legal = ~state.placed_blocks[number] & ~(cells & (window > 0)).any()
        block = state.blocks[number]
        cells = cells & legal
        window = jnp.where(cells, block.max(), window)
        state = state._replace(
            grid=jax.lax.dynamic_update_slice(state.grid, window, (row, column)),
            placed_blocks=state.placed_blocks.at[number].set(state.placed_blocks[number] | legal),
            step_count=state.step_count + 1,
        )
        reward = jnp.where(legal, self.reward_fn(block, state.grid, self.num_blocks), 0.0)
        return state, transition(
            self._observe(state), reward, terminated=state.step_count >= self.num_blocks
        )

    def _observe(self, state: State) -> Observation:
        """A block fits where the nine bits under it and its own have none in common."""
        _, _, rows, columns = self.mask_shape
        filled = state.grid > 0
        windows = jnp.zeros((rows, columns), jnp.int16)
        for down in range(SIDE):
            for right in range(SIDE):
                under = filled[down : down + rows, right : right + columns]
                windows |= jnp.where(under, _CELL_BITS[down, right], jnp.int16(0))
        fits = state.shapes[:, :, None, None] & windows[None, None] == 0
        mask = fits & ~state.placed_blocks[:, None, None, None]
        return Observation(state.grid, state.blocks, mask)
