"""Visit all cities once and return: the travelling salesman."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from trimtab.envs import specs
from trimtab.envs.protocol import Environment, Generator, TimeStep, restart, transition
from trimtab.errors import InputError


class Observation(NamedTuple):
    """The cities, the current one (-1 at first), the tour so far (-1 padding), the unvisited."""

    coordinates: Float[Array, "cities 2"]
    position: Int[Array, ""]
    trajectory: Int[Array, " cities"]
    action_mask: Bool[Array, " cities"]


class State(NamedTuple):
    """The cities and the tour so far."""

    coordinates: Float[Array, "cities 2"]
    position: Int[Array, ""]
    visited_mask: Bool[Array, " cities"]
    trajectory: Int[Array, " cities"]
    num_visited: Int[Array, ""]
    key: Array


@dataclasses.dataclass(frozen=True)
class UniformCities:
    """Independent cities, uniform on the unit square."""

    num_cities: int = 20

    def __post_init__(self) -> None:
        if self.num_cities < 1:
            raise InputError(f"num_cities is {self.num_cities}; expected at least 1.")

    def __call__(self, key: Array) -> Float[Array, "cities 2"]:
        """Draw the coordinates."""
        return jax.random.uniform(key, (self.num_cities, 2))


def dense_reward(state: State, following: State, action: Array, legal: Array) -> Array:
    """Minus the length of the move, and at the end also of the way back to the first city."""
    here = state.coordinates[jnp.maximum(state.position, 0)]
    there = state.coordinates[action]
    first = state.coordinates[following.trajectory[0]]
    move = jnp.where(state.num_visited > 0, distance(here, there), 0.0)
    back = jnp.where(following.visited_mask.all(), distance(there, first), 0.0)
    return jnp.where(legal, -(move + back), penalty(state))


def sparse_reward(state: State, following: State, action: Array, legal: Array) -> Array:
    """Minus the length of the closed tour at the end, else 0."""
    tour = following.coordinates[following.trajectory]
    length = distance(tour, jnp.roll(tour, -1, axis=0)).sum()
    reward = jnp.where(following.visited_mask.all(), -length, 0.0)
    return jnp.where(legal, reward, penalty(state))


def penalty(state: State) -> float:
    """Reward of an illegal action: below that of any tour."""
    return -float(state.visited_mask.shape[0] * 2**0.5)


def distance(first: Array, second: Array) -> Array:
    """Euclidean distance along the last axis; the other axes broadcast."""
    return jnp.sqrt(jnp.square(first - second).sum(axis=-1))


@dataclasses.dataclass(frozen=True)
class TSP(Environment):
    """The action is the next city; a visited one terminates the episode with a penalty.

    Args:
        generator: draws coordinates from a key and knows ``num_cities``.
        reward_fn: ``(state, next_state, action, legal) -> reward``.
    """

    generator: Generator = UniformCities()
    reward_fn: Callable[[State, State, Array, Array], Array] = dense_reward

    @property
    def num_cities(self) -> int:
        """Number of cities."""
        return self.generator.num_cities  # pyright: ignore[reportFunctionMemberAccess]

    @cached_property
    def observation_spec(self) -> specs.Spec:
        """Cities, tour and mask."""
        cities = self.num_cities
        return specs.nest(
            Observation,
            coordinates=specs.reals((cities, 2)),
            position=specs.integers((), -1, cities - 1),
            trajectory=specs.integers((cities,), -1, cities - 1),
            action_mask=specs.booleans(cities),
        )

    @cached_property
    def action_spec(self) -> specs.DiscreteArray:
        """A city."""
        return specs.DiscreteArray(self.num_cities, name="action")

    def reset(self, key: Array) -> tuple[State, TimeStep]:
        """Start with no city visited."""
        key, cities_key = jax.random.split(key)
        cities = self.num_cities
        state = State(
            coordinates=self.generator(cities_key),
            position=jnp.int32(-1),
            visited_mask=jnp.zeros(cities, bool),
            trajectory=jnp.full(cities, -1, jnp.int32),
            num_visited=jnp.int32(0),
            key=key,
        )
        return state, restart(_observe(state))

    def step(self, state: State, action: Array) -> tuple[State, TimeStep]:
        """Go to a city."""
        legal = ~state.visited_mask[action]
        city = action.astype(jnp.int32)
        end = jnp.where(legal, state.num_visited, self.num_cities)
        following = state._replace(
            position=jnp.where(legal, city, state.position),
            visited_mask=state.visited_mask.at[action].set(True),
            trajectory=state.trajectory.at[end].set(city, mode="drop"),
            num_visited=state.num_visited + legal,
        )
        reward = self.reward_fn(state, following, action, legal)
        done = following.visited_mask.all() | ~legal
        return following, transition(_observe(following), reward, terminated=done)


def _observe(state: State) -> Observation:
    return Observation(state.coordinates, state.position, state.trajectory, ~state.visited_mask)
