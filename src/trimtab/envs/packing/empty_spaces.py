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
    covers = _pack((reach >= cut[:, None]) & kept)[:, None] & contains
    in_first, in_others = covers[0], _union(covers[1:]) if slots > 1 else jnp.zeros_like(covers[0])
    equal = contains & contains.T
    inside_larger = _union(contains & ~contains.T & valid[:, None])
    index = np.arange(slots)
    has_earlier_twin = _union(jnp.where(index[:, None] < index[None, :], equal & valid[:, None], 0))

    maximal = valid & ~inside_larger & ~in_others
    fresh = _unpack(maximal & ~in_first & ~has_earlier_twin)
    order = _ranks(fresh)
    free = ~kept
    free_rank = _ranks(free[None])[0]
    number = np.arange(6 * slots, dtype=np.int32)
    taken = jnp.where(fresh, order, -1).reshape(-1)
    matches = (taken[None, :] == free_rank[:, None]) & free[:, None]
    source = jnp.where(matches, number[None, :] + 1, 0).sum(axis=1, dtype=jnp.int32) - 1

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
    """Six flags as the bits of an integer."""
    bits = _BITS.reshape((6,) + (1,) * (flags.ndim - 1))
    return jnp.where(flags, bits, 0).sum(axis=0, dtype=jnp.int32)


def _unpack(bits: Int[Array, " slots"]) -> Bool[Array, "6 slots"]:
    return bits[None, :] & _BITS[:, None] != 0


def _union(bits: Int[Array, slots * rest]) -> Array:
    return jax.lax.reduce(bits, np.int32(0), jax.lax.bitwise_or, (0,))


def _ranks(flags: Bool[Array, "rows slots"]) -> Array:
    """How many true entries come before each, row after row."""
    slots = flags.shape[1]
    before = np.tri(slots, k=-1, dtype=bool).T
    within = (flags[:, :, None] & before[None]).sum(axis=1, dtype=jnp.int32)
    counts = flags.sum(axis=1, dtype=jnp.int32)
    return within + (jnp.cumsum(counts) - counts)[:, None]
