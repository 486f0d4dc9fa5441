"""Items for a container: random splits of it, a fixed instance, or a CSV file."""

from __future__ import annotations

import csv
import dataclasses
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from trimtab.envs.protocol import Table
from trimtab.envs.sampling import below, spend_uniforms
from trimtab.errors import FileFormatError, InputError
from trimtab.files import atomic_file

TWENTY_FOOT = (5870, 2330, 2200)
"""Inner length, width and height of a twenty-foot container in millimetres."""

COLUMNS = ["Item_Name", "Length", "Width", "Height", "Quantity"]


class Instance(NamedTuple):
    """What is to be packed, and where the items lie in a perfect packing if that is known."""

    container: Int[Array, " 3"]
    items: Int[Array, "3 items"]
    items_mask: Bool[Array, " items"]
    solution: Int[Array, "3 items"]


@dataclasses.dataclass(frozen=True)
class RandomSplits:
    """Cut the container again and again; the pieces are the items, so they fill it exactly.

    A cut takes a uniform axis and a piece with chance proportional to its length along it. With
    probability ``prob_split_one_item`` the piece is cut in two, else into up to
    ``split_num_same_items`` equal parts.

    Args:
        max_num_items: length of the item list.
        max_num_ems: length of the buffer of empty spaces.
        split_eps: share of a length, at either end, in which no cut is made.
        prob_split_one_item: chance of one cut instead of equal parts.
        split_num_same_items: most equal parts.
        container: length, width and height in millimetres.
    """

    max_num_items: int = 20
    max_num_ems: int = 40
    split_eps: float = 0.3
    prob_split_one_item: float = 0.7
    split_num_same_items: int = 2
    container: tuple[int, int, int] = TWENTY_FOOT

    def __post_init__(self) -> None:
        if not 1 <= self.split_num_same_items <= self.max_num_items or self.max_num_ems < 1:
            raise InputError(
                f"max_num_items={self.max_num_items}, split_num_same_items="
                f"{self.split_num_same_items}, max_num_ems={self.max_num_ems}: expected "
                "1 <= split_num_same_items <= max_num_items and at least one space."
            )
        if not 0.0 <= self.split_eps < 0.5:
            raise InputError(f"split_eps is {self.split_eps}; expected a share in [0, 0.5).")

    def __call__(self, key: Array) -> Instance:
        """Draw an instance with its perfect packing."""
        wanted = self.max_num_items - self.split_num_same_items + 1
        sides = jnp.array(self.container, jnp.int32)
        lower = jnp.zeros((3, self.max_num_items), jnp.int32)
        upper = jnp.broadcast_to(sides[:, None], lower.shape)
        alive = jnp.arange(self.max_num_items) == 0

        def more(carry: tuple[Array, ...]) -> Array:
            return carry[2].sum() < wanted

        def cut(carry: tuple[Array, ...]) -> tuple[Array, ...]:
            lower, upper, alive, key = carry
            key, uniforms = spend_uniforms(key, 4)
            return *self._cut(lower, upper, alive, uniforms), key

        lower, upper, alive, _ = jax.lax.while_loop(more, cut, (lower, upper, alive, key))
        return Instance(sides, upper - lower, alive, jnp.where(alive, lower, 0))

    def _cut(self, lower: Array, upper: Array, alive: Array, uniforms: Array) -> tuple[Array, ...]:
        """Cut one piece along one axis."""
        axis = below(uniforms[0], 3)
        starts, ends = lower[axis], upper[axis]
        weights = jnp.where(alive, ends - starts, 0).astype(jnp.float32)
        slot = np.arange(self.max_num_items)
        until = slot[None, :] <= slot[:, None]
        reach = jnp.where(until, weights[None, :], 0.0).sum(axis=1)
        piece = jnp.argmax(reach > uniforms[1] * reach[-1])
        start, end = starts[piece], ends[piece]
        length = end - start
        margin = (jnp.float32(self.split_eps) * length).astype(jnp.int32)
        position = start + margin + below(uniforms[3], jnp.maximum(end - start - 2 * margin, 1))
        once = uniforms[2] < self.prob_split_one_item
        parts = jnp.where(once, 2, 1 + below(uniforms[3], self.split_num_same_items))

        def edge(number: Array) -> Array:
            equal = start + (number * length / parts).astype(jnp.int32)
            middle = jnp.where(number == 1, position, end)
            return jnp.where(once, jnp.where(number == 0, start, middle), equal)

        # The piece keeps part 0; parts 1, 2, ... go to the first free slots.
        free = ~alive
        slot_part = jnp.where(free, (until & free[None, :]).sum(axis=1, dtype=jnp.int32), 0)
        slot_part = jnp.where(slot_part < parts, slot_part, 0)
        is_new = free & (slot_part > 0)
        touched = is_new | (jnp.arange(alive.shape[0]) == piece)
        lower = jnp.where(is_new, lower[:, piece][:, None], lower)
        upper = jnp.where(is_new, upper[:, piece][:, None], upper)
        along = (jnp.arange(3) == axis)[:, None] & touched
        lower = jnp.where(along, edge(slot_part), lower)
        upper = jnp.where(along, edge(slot_part + 1), upper)
        return lower, upper, (alive | is_new) & (upper > lower).all(axis=0)


@dataclasses.dataclass(frozen=True)
class FixedInstance:
    """Always the same items, to search for the best packing of one instance.

    Args:
        sides: item sides in millimetres, shape ``(items, 3)``.
        max_num_ems: length of the buffer of empty spaces.
        container: length, width and height in millimetres.
        corners: lower corners in a known perfect packing, if any.
    """

    sides: Table
    max_num_ems: int = 60
    container: tuple[int, int, int] = TWENTY_FOOT
    corners: Table | None = None

    @property
    def max_num_items(self) -> int:
        """Number of items."""
        return self.sides.values.shape[0]

    def __call__(self, key: Array) -> Instance:
        """The instance; the key is ignored."""
        items = jnp.asarray(self.sides.values.T, jnp.int32)
        corners = np.zeros_like(self.sides.values) if self.corners is None else self.corners.values
        return Instance(
            container=jnp.array(self.container, jnp.int32),
            items=items,
            items_mask=jnp.ones(items.shape[1], bool),
            solution=jnp.asarray(corners.T, jnp.int32),
        )


def toy_instance(seed: int = 0, num_items: int = 20) -> FixedInstance:
    """One perfect tiling of a twenty-foot container by ``num_items`` boxes."""
    generator = RandomSplits(num_items + 1)
    instance = jax.jit(generator)(jax.random.key(seed))
    real = np.asarray(instance.items_mask)
    sides, corners = np.asarray(instance.items).T[real], np.asarray(instance.solution).T[real]
    return FixedInstance(Table(sides), corners=Table(corners))


def read_csv(
    path: str | Path, max_num_ems: int = 60, container: tuple[int, int, int] = TWENTY_FOOT
) -> FixedInstance:
    """Read items from a file with columns ``Item_Name,Length,Width,Height,Quantity``.

    Raises:
        FileFormatError: the header or a row has another form.
    """
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    if not rows or rows[0] != COLUMNS:
        raise FileFormatError(f"{path} should begin with the line {','.join(COLUMNS)!r}.")
    sides: list[tuple[int, ...]] = []
    for number, row in enumerate(rows[1:], start=2):
        try:
            *lengths, quantity = (int(field) for field in row[1:])
        except ValueError as error:
            raise FileFormatError(f"{path}, line {number}: lengths must be integers.") from error
        if len(lengths) != 3 or min(lengths) < 1 or quantity < 1:
            raise FileFormatError(
                f"{path}, line {number}: expected a name, three positive lengths and a quantity."
            )
        sides += [tuple(lengths)] * quantity
    if not sides:
        raise FileFormatError(f"{path} lists no items.")
    return FixedInstance(Table(sides, np.int32), max_num_ems, container)


def write_csv(path: str | Path, instance: Instance) -> None:
    """Write the real items of an unbatched instance, equal ones grouped, most frequent first."""
    real = np.asarray(instance.items_mask)
    groups = Counter(tuple(sides.tolist()) for sides in np.asarray(instance.items).T[real])
    with atomic_file(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for number, (sides, quantity) in enumerate(groups.most_common(), start=1):
            writer.writerow([f"shape_{number}", *sides, quantity])
