"""Directions and cell arithmetic that the grid environments share."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

MOVES = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)], np.int32)
"""Row and column steps of up, right, down, left."""


def moved(cell: Array, direction: Array) -> Array:
    """The neighbour of a ``(row, column)`` cell in a direction (0 up, 1 right, 2 down, 3 left)."""
    return cell + jnp.asarray(MOVES)[direction]


def inside(cells: Array, rows: int, columns: int) -> Array:
    """Whether ``(..., 2)`` cells lie on a grid."""
    row, column = cells[..., 0], cells[..., 1]
    return (row >= 0) & (row < rows) & (column >= 0) & (column < columns)


def neighbours(cell: Array) -> Array:
    """The four neighbours of a cell, in the order up, right, down, left; shape ``(4, 2)``."""
    return cell + jnp.asarray(MOVES)


def flat(cell: Array, columns: int) -> Array:
    """Row-major index of a cell."""
    return cell[..., 0] * columns + cell[..., 1]


def unflat(index: Array, columns: int) -> Array:
    """Cell of a row-major index, shape ``(..., 2)``."""
    return jnp.stack([index // columns, index % columns], axis=-1).astype(jnp.int32)
