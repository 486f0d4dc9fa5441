"""Pack valuable items below a weight budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from trimtab.envs import specs
from trimtab.envs.protocol import Environment, Generator, TimeStep, restart, transition
from trimtab.errors import InputError


class Observation(NamedTuple):
    """The items, which are packed, and which still fit."""

    weights: Float[Array, " items"]
    values: Float[Array, " items"]
    packed_items: Bool[Array, " items"]
    action_mask: Bool[Array, " items"]


class State(NamedTuple):
    """The items, which are packed, and the weight that may still be added."""

    weights: Float[Array, " items"]
    values: Float[Array, " items"]
    packed_items: Bool[Array, " items"]
    remaining_budget: Float[Array, ""]
    key: Array


@dataclasses.dataclass(frozen=True)
class UniformItems:
    """Independent weights and values, uniform on [0, 1].

    Args:
        num_items: number of items.
        total_budget: weight that may be packed.
    """

    num_items: int = 50
    total_budget: float = 12.5

    def __post_init__(self) -> None:
        if self.num_items < 1 or self.total_budget <= 0:
            raise InputError(
                f"num_items={self.num_items}, total_budget={self.total_budget}: expected at "
                "least one item and a positive budget."
            )

    def __call__(self, key: Array) -> tuple[Array, Array]:
        """Draw weights and values."""
        both = jax.random.uniform(key, (2, self.num_items))
        return both[0], both[1]


def dense_reward(value: Array, packed_value: Array, legal: Array, done: Array) -> Array:
    """The value of the packed item; 0 when illegal."""
    return jnp.where(legal, value, 0.0)


def sparse_reward(value: Array, packed_value: Array, legal: Array, done: Array) -> Array:
    """The value of all packed items when nothing more fits, else 0."""
    return jnp.where(done & legal, packed_value, 0.0)


@dataclasses.dataclass(frozen=True)
class Knapsack(Environment):
    """The action is the item to pack.

    The episode terminates when nothing fits, or on an illegal action, which packs nothing.

    Args:
        generator: draws weights and values from a key; knows ``num_items``, ``total_budget``.
        reward_fn: ``(value, packed value, legal, done) -> reward``.
    """

    generator: Generator = UniformItems()
    reward_fn: Callable[[Array, Array, Array, Array], Array] = dense_reward

    @property
    def num_items(self) -> int:
        """Number of items."""
        return self.generator.num_items  # pyright: ignore[reportFunctionMemberAccess]

    @cached_property
    def observation_spec(self) -> specs.Spec:
        """Items, packing and mask."""
        items = self.num_items
        return specs.nest(
            Observation,
            weights=specs.reals((items,)),
            values=specs.reals((items,)),
            packed_items=specs.booleans(items),
            action_mask=specs.booleans(items),
        )

    @cached_property
    def action_spec(self) -> specs.DiscreteArray:
        """An item."""
        return specs.DiscreteArray(self.num_items, name="action")

    def reset(self, key: Array) -> tuple[State, TimeStep]:
        """Start with an empty sack."""
        key, items_key = jax.random.split(key)
        weights, values = self.generator(items_key)
        budget = jnp.float32(self.generator.total_budget)  # pyright: ignore
        state = State(weights, values, jnp.zeros(self.num_items, bool), budget, key)
        return state, restart(_observe(state))

    def step(self, state: State, action: Array) -> tuple[State, TimeStep]:
        """Pack an item."""
        weight = state.weights[action]
        legal = ~state.packed_items[action] & (weight <= state.remaining_budget)
        state = state._replace(
            packed_items=state.packed_items.at[action].set(state.packed_items[action] | legal),
            remaining_budget=jnp.where(
                legal, state.remaining_budget - weight, state.remaining_budget
            ),
        )
        observation = _observe(state)
        done = ~observation.action_mask.any() | ~legal
        packed_value = jnp.where(state.packed_items, state.values, 0.0).sum()
        reward = self.reward_fn(state.values[action], packed_value, legal, done)
        return state, transition(observation, reward, terminated=done)


def _observe(state: State) -> Observation:
    mask = ~state.packed_items & (state.weights <= state.remaining_budget)
    return Observation(state.weights, state.values, state.packed_items, mask)
