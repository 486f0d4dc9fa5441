"""Empty maximal spaces: how placing a box cuts them, exactly and without loops.

A space is kept unless the box cuts into it; a cut space leaves up to six candidates, one per
side of the box, and those that no other space contains survive. (Difference process of Lai and
Chan, Computers & Industrial Engineering 32(1), 1997.)

Written as ``(-x1, x2, -y1, y2, -z1, z2)``, a box contains another one if and only if all six of
its numbers are at least as large. A candidate changes one of the six, to the same value for all
spaces; hence candidates of different sides never contain each other (in the other's changed
number each is strictly larger), and those of one side are compared on the other five numbers.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

_SIGNS = np.array([-1, 1, -1, 1, -1, 1], np.int32)
# The number that each direction changes: x-lower cuts x2, x-upper cuts x1, and so on.
_CHANGED = np.array([1, 0, 3, 2, 5, 4])
_BITS = np.int32(1) << np.arange(6, dtype=np.int32)
_ALL = np.int32(63)


def place_box(
    spaces: Int[Array, "6 slots"],
    mask: Bool[Array, " slots"],
    lower: Int[Array, " 3"],
    upper: Int[Array, " 3"],
    wanted: Bool[Array, ""],
    *,
    overwrite_first: bool,
) -> tuple[Array, Array]:
    """The buffer of empty spaces after a box is placed.

    New spaces take the first free slots in the order of directions, then of the spaces they come
    from. When no slot is free they are dropped, or each overwrites slot 0.

    Args:
        spaces: rows x1, x2, y1, y2, z1, z2.
        mask: which slots hold a space.
        lower: lower corner of the box.
        upper: upper corner of the box.
        wanted: nothing changes unless true.
        overwrite_first: what happens when the buffer is full.
    """
    slots = mask.shape[0]
    extent = spaces * _SIGNS[:, None]
    cut = jnp.stack([lower, -upper], axis=1).reshape(6)  # in the order of directions
    reach = extent[_CHANGED]
    hit = mask & (reach > cut[:, None]).all(axis=0) & wanted
    kept = mask & ~hit
    opposite = extent[_CHANGED ^ 1]
    valid = _pack((cut[:, None] + opposite > 0) & hit)

    # Bit d of contains[b, a]: b is at least as large as a in all numbers but that of direction d.
    short = _pack(reach[:, :, None] < reach[:, None, :])
    single = jnp.where(short & (short - 1) == 0, short, 0)
    contains = jnp.where(short == 0, _ALL, single)
    equal = contains & contains.T
    index = np.arange(slots)
    covers = _pack((reach >= cut[:, None]) & kept)[:, None] & contains
    by_others = jnp.where(index[:, None] > 0, covers, 0)
    larger = contains & ~contains.T & valid[:, None]
    earlier_twin = jnp.where(index[:, None] < index[None, :], equal & valid[:, None], 0)
    # Three unions of six bits each in one pass.
    unions = _union(by_others | larger | earlier_twin << 6)
    in_first, has_earlier_twin = covers[0], unions >> 6

    maximal = valid & ~unions
    fresh = _unpack(maximal & ~in_first & ~has_earlier_twin)
    count = jnp.cumsum(fresh.reshape(-1), dtype=jnp.int32).reshape(6, slots)
    order = count - fresh
    free = ~kept
    free_rank = jnp.where(free, jnp.cumsum(free, dtype=jnp.int32) - 1, slots)
    free_slots = (
        jnp.full(slots, slots, jnp.int32).at[free_rank].set(index.astype(np.int32), mode="drop")
    )
    number = np.arange(6 * slots, dtype=np.int32).reshape(6, slots)
    found = fresh & (order < slots)
    target = jnp.where(found, free_slots[jnp.minimum(order, slots - 1)], slots)
    source = jnp.full(slots, -1, jnp.int32).at[target].set(number, mode="drop")

    if overwrite_first:
        last = _last_overflowing(maximal, equal, fresh, order, free)
        source = source.at[0].set(jnp.where(last >= 0, last, source[0]))
    filled = source >= 0
    direction, parent = jnp.maximum(source, 0) // slots, jnp.maximum(source, 0) % slots
    changed = jnp.asarray(_CHANGED)[direction]
    inherited = extent[:, parent]
    new = jnp.where(np.arange(6)[:, None] == changed[None, :], cut[direction][None, :], inherited)
    return jnp.where(filled, new * _SIGNS[:, None], spaces), kept | filled


def _last_overflowing(
    maximal: Array, equal: Array, fresh: Array, order: Array, free: Array
) -> Int[Array, ""]:
    """Number of the candidate that ends in slot 0 of a full buffer, or -1.

    From the first candidate that finds no free slot on, slot 0 holds the last candidate that
    none of the other slots contains; what slot 0 itself contained before no longer counts.
    """
    slots = free.shape[0]
    room = free.sum()
    stored = fresh & (order < room)
    in_slot_zero = stored & (order == 0) & free[0]
    blocked = _union(equal & _pack(stored & ~in_slot_zero)[:, None])
    number = np.arange(6 * slots, dtype=np.int32).reshape(6, slots)
    first = jnp.where(fresh & (order == room), number, 6 * slots).min()
    eligible = _unpack(maximal & ~blocked) & (number >= first)
    return jnp.where(eligible, number, -1).max()


def _pack(flags: Bool[Array, 6 * rest]) -> Array:
    """Six flags as the bits of an integer; written out, so that it fuses with what makes them."""
    bits = [jnp.where(flags[number], _BITS[number], np.int32(0)) for number in range(6)]
    return functools.reduce(jnp.bitwise_or, bits)


def _unpack(bits: Int[Array, " slots"]) -> Bool[Array, "6 slots"]:
    return bits[None, :] & _BITS[:, None] != 0


def _union(bits: Int[Array, slots * rest]) -> Array:
    return jax.lax.reduce(bits, np.int32(0), jax.lax.bitwise_or, (0,))
