"""Pack boxes into a container through its empty maximal spaces."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from trimtab.envs import specs
from trimtab.envs.packing.bin_pack_generators import Instance, RandomSplits
from trimtab.envs.packing.empty_spaces import place_box
from trimtab.envs.protocol import Environment, Generator, TimeStep, restart, transition


class Space(NamedTuple):
    """Corners of boxes, in container sides (or millimetres when not normalised)."""

    x1: Array
    x2: Array
    y1: Array
    y2: Array
    z1: Array
    z2: Array


class Item(NamedTuple):
    """Side lengths of boxes, in container sides (or millimetres when not normalised)."""

    x_len: Array
    y_len: Array
    z_len: Array


class Observation(NamedTuple):
    """Empty maximal spaces, the largest first, the items, and which item fits where."""

    ems: Space
    ems_mask: Bool[Array, " spaces"]
    items: Item
    items_mask: Bool[Array, " items"]
    items_placed: Bool[Array, " items"]
    action_mask: Bool[Array, "spaces items"]


class State(NamedTuple):
    """The container's content; coordinates are integers (millimetres).

    ``spaces`` has rows x1, x2, y1, y2, z1, z2; ``order`` lists buffer slots by falling volume.
    """

    container: Int[Array, " 3"]
    spaces: Int[Array, "6 slots"]
    spaces_mask: Bool[Array, " slots"]
    items: Int[Array, "3 items"]
    items_mask: Bool[Array, " items"]
    items_placed: Bool[Array, " items"]
    items_location: Int[Array, "3 items"]
    order: Int[Array, " slots"]
    action_mask: Bool[Array, "spaces items"]
    key: Array


def dense_reward(state: State, item: Array, following: State, legal: Array, done: Array) -> Array:
    """The packed item's share of the container's volume; 0 for an illegal action."""
    return jnp.where(legal, volume(state.items[:, item]) / volume(state.container), 0.0)


def sparse_reward(state: State, item: Array, following: State, legal: Array, done: Array) -> Array:
    """The packed share of the container's volume at the end of the episode, else 0."""
    return jnp.where(done, utilization(following), 0.0)


@dataclasses.dataclass(frozen=True)
class BinPack(Environment):
    """The action is ``(space, item)``: put an item at the lower corner of an empty space.

    Boxes are not rotated and nothing falls. Spaces are numbered by falling volume. The episode
    terminates when no item fits, and on an illegal action, which changes nothing.

    Args:
        generator: makes an :class:`Instance` from a key; knows ``max_num_items``,
            ``max_num_ems`` and ``container``.
        obs_num_ems: how many spaces are shown and can be chosen.
        reward_fn: ``(state, item, next_state, legal, done) -> reward``.
        normalize_dimensions: divide observed lengths by the container's.
        faithful: when the buffer of spaces is full, a new space overwrites slot 0, as in the
            published suite; otherwise it is dropped.
    """

    generator: Generator = RandomSplits()
    obs_num_ems: int = 40
    reward_fn: Callable[..., Array] = dense_reward
    normalize_dimensions: bool = True
    faithful: bool = True

    @property
    def num_items(self) -> int:
        """Length of the item list."""
        return self.generator.max_num_items  # pyright: ignore[reportFunctionMemberAccess]

    @property
    def num_slots(self) -> int:
        """Length of the buffer of spaces."""
        return self.generator.max_num_ems  # pyright: ignore[reportFunctionMemberAccess]

    @property
    def num_shown(self) -> int:
        """Spaces in the observation."""
        return min(self.obs_num_ems, self.num_slots)

    @cached_property
    def observation_spec(self) -> specs.Spec:
        """Spaces, items and masks."""

        def lengths(count: int) -> specs.BoundedArray:
            if self.normalize_dimensions:
                return specs.reals((count,))
            longest = max(self.generator.container)  # pyright: ignore
            return specs.integers((count,), 0, longest)

        shown, items = self.num_shown, self.num_items
        return specs.nest(
            Observation,
            ems=specs.nest(Space, **{name: lengths(shown) for name in Space._fields}),
            ems_mask=specs.booleans(shown),
            items=specs.nest(Item, **{name: lengths(items) for name in Item._fields}),
            items_mask=specs.booleans(items),
            items_placed=specs.booleans(items),
            action_mask=specs.booleans(shown, items),
        )

    @cached_property
    def action_spec(self) -> specs.MultiDiscreteArray:
        """Rank of the space and index of the item."""
        return specs.MultiDiscreteArray((self.num_shown, self.num_items), name="action")

    def reset(self, key: Array) -> tuple[State, TimeStep]:
        """Start with an empty container."""
        key, instance_key = jax.random.split(key)
        instance: Instance = self.generator(instance_key)
        slots, items = self.num_slots, self.num_items
        whole = jnp.stack([jnp.zeros(3, jnp.int32), instance.container], axis=1).reshape(6)
        state = State(
            container=instance.container,
            spaces=jnp.zeros((6, slots), jnp.int32).at[:, 0].set(whole),
            spaces_mask=jnp.arange(slots) == 0,
            items=instance.items,
            items_mask=instance.items_mask,
            items_placed=jnp.zeros(items, bool),
            items_location=jnp.zeros((3, items), jnp.int32),
            order=jnp.arange(slots, dtype=jnp.int32),
            action_mask=jnp.zeros((self.num_shown, items), bool),
            key=key,
        )
        state, observation = self._observe(state)
        return state, restart(observation, self._extras(state, jnp.array(False)))

    def step(self, state: State, action: Array) -> tuple[State, TimeStep]:
        """Pack an item."""
        slot, item = state.order[action[0]], action[1]
        legal = state.action_mask[action[0], item]
        corner = state.spaces[::2, slot]
        spaces, mask = place_box(
            state.spaces,
            state.spaces_mask,
            corner,
            corner + state.items[:, item],
            legal,
            overwrite_first=self.faithful,
        )
        chosen = (jnp.arange(self.num_items) == item) & legal
        following = state._replace(
            spaces=spaces,
            spaces_mask=mask,
            items_placed=state.items_placed | chosen,
            items_location=jnp.where(chosen, corner[:, None], state.items_location),
        )
        following, observation = self._observe(following)
        done = ~following.action_mask.any() | ~legal
        reward = self.reward_fn(state, item, following, legal, done)
        return following, transition(
            observation, reward, terminated=done, extras=self._extras(following, ~legal)
        )

    def _observe(self, state: State) -> tuple[State, Observation]:
        """Rank the spaces, test which items fit, and scale lengths."""
        sides = state.spaces[1::2] - state.spaces[::2]
        order = falling_order(jnp.where(state.spaces_mask, volume(sides), 0.0))
        shown = order[: self.num_shown]
        spaces, alive = state.spaces[:, shown], state.spaces_mask[shown]
        room = (spaces[1::2] - spaces[::2])[:, :, None]
        free = state.items_mask & ~state.items_placed
        fits = (state.items[:, None, :] <= room).all(axis=0) & alive[:, None] & free[None, :]
        items = state.items
        if self.normalize_dimensions:
            scale = state.container.astype(jnp.float32)
            spaces = spaces / jnp.repeat(scale, 2)[:, None]
            items = items / scale[:, None]
        observation = Observation(
            ems=Space(*spaces),
            ems_mask=alive,
            items=Item(*items),
            items_mask=state.items_mask,
            items_placed=state.items_placed,
            action_mask=fits,
        )
        return state._replace(order=order, action_mask=fits), observation

    def _extras(self, state: State, invalid: Array) -> dict[str, Any]:
        packed = state.items_placed.sum()
        return {
            "volume_utilization": utilization(state),
            "packed_items": packed,
            "ratio_packed_items": (packed / state.items_mask.sum()).astype(jnp.float32),
            "active_ems": state.spaces_mask.sum(),
            "invalid_action": invalid,
        }


def volume(sides: Int[Array, 3 * shape]) -> Array:
    """Volume in float32, since cubic millimetres overflow 32-bit integers."""
    x, y, z = sides.astype(jnp.float32)
    return x * y * z


def utilization(state: State) -> Array:
    """Packed share of the container's volume."""
    packed = jnp.where(state.items_placed, volume(state.items), 0.0).sum()
    return packed / volume(state.container)


def falling_order(values: Array) -> Int[Array, " length"]:
    """Stable order of falling values, by counting instead of sorting, which vectorises."""
    index = np.arange(values.shape[0], dtype=np.int32)
    larger = values[:, None] > values[None, :]
    earlier = (values[:, None] == values[None, :]) & (index[:, None] < index[None, :])
    rank = (larger | earlier).sum(axis=0, dtype=jnp.int32)
    return jnp.zeros(values.shape[0], jnp.int32).at[rank].set(index, unique_indices=True)
