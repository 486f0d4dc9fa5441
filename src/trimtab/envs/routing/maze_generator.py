"""Mazes by recursive division, shared by the environments that walk in them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from trimtab.envs.sampling import below


def divide(key: Array, rows: int, columns: int) -> Bool[Array, "rows columns"]:
    """Walls of a random maze; true where a wall is.

    An empty chamber is split by a wall with one gap, across its longer side, and so on in its
    parts while both sides are longer than 1. Walls lie at odd offsets and gaps at even ones, so
    all free cells stay connected.

    Args:
        key: a typed random key.
        rows: rows of the grid.
        columns: columns of the grid.
    """
    most_walls = max(1, rows * columns // 2)
    uniforms = jax.random.uniform(key, (most_walls, 2))
    row, column = np.arange(rows)[:, None], np.arange(columns)[None, :]
    capacity = rows + columns + 2
    first = jnp.array([0, 0, columns, rows], jnp.int32)
    splittable = rows > 1 and columns > 1
    stack = jnp.zeros((capacity, 4), jnp.int32).at[0].set(first)

    def more(carry: tuple[Array, ...]) -> Array:
        return carry[1] > 0

    def split(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        stack, height, walls, count = carry
        x, y, w, h = stack[height - 1]
        across = w >= h
        length, breadth = jnp.where(across, w, h), jnp.where(across, h, w)
        offset = 2 * below(uniforms[count, 0], length // 2) + 1
        gap = 2 * below(uniforms[count, 1], (breadth + 1) // 2)
        upright = (column == x + offset) & (row >= y) & (row < y + h) & (row != y + gap)
        level = (row == y + offset) & (column >= x) & (column < x + w) & (column != x + gap)
        walls = walls | jnp.where(across, upright, level)
        rest = length - offset - 1
        near = jnp.where(across, jnp.array([x, y, offset, h]), jnp.array([x, y, w, offset]))
        far = jnp.where(
            across,
            jnp.array([x + offset + 1, y, rest, h]),
            jnp.array([x, y + offset + 1, w, rest]),
        )
        height = height - 1
        keep_near, keep_far = (near[2:] > 1).all(), (far[2:] > 1).all()
        stack = stack.at[height].set(near)
        height = height + keep_near
        stack = stack.at[height].set(far)
        return stack, height + keep_far, walls, count + 1

    walls = jnp.zeros((rows, columns), bool)
    start = (stack, jnp.int32(splittable), walls, jnp.int32(0))
    return jax.lax.while_loop(more, split, start)[2]
