"""Serve all customers with one vehicle of limited capacity that refills at a depot."""

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
from trimtab.envs.routing.tsp import distance
from trimtab.errors import InputError

DEPOT = 0


class Observation(NamedTuple):
    """Nodes (0 is the depot), demands and capacity as shares of the full load, and the route."""

    coordinates: Float[Array, "nodes 2"]
    demands: Float[Array, " nodes"]
    unvisited_nodes: Bool[Array, " nodes"]
    position: Int[Array, ""]
    trajectory: Int[Array, " visits"]
    capacity: Float[Array, ""]
    action_mask: Bool[Array, " nodes"]


class State(NamedTuple):
    """Nodes, the load left, and the route (padded with the depot)."""

    coordinates: Float[Array, "nodes 2"]
    demands: Int[Array, " nodes"]
    position: Int[Array, ""]
    capacity: Int[Array, ""]
    visited_mask: Bool[Array, " nodes"]
    trajectory: Int[Array, " visits"]
    num_total_visits: Int[Array, ""]
    key: Array


@dataclasses.dataclass(frozen=True)
class UniformCustomers:
    """Nodes uniform on the unit square; integer demands uniform on ``1 .. max_demand - 1``.

    Args:
        num_nodes: customers.
        max_capacity: load of the full vehicle.
        max_demand: bound of the demands, excluded; at most the capacity.
    """

    num_nodes: int = 20
    max_capacity: int = 30
    max_demand: int = 10

    def __post_init__(self) -> None:
        if self.num_nodes < 1 or not 1 < self.max_demand <= self.max_capacity:
            raise InputError(
                f"num_nodes={self.num_nodes}, max_capacity={self.max_capacity}, max_demand="
                f"{self.max_demand}: expected customers and 1 < max_demand <= max_capacity."
            )

    def __call__(self, key: Array) -> tuple[Array, Array]:
        """Draw coordinates and demands; node 0 is the depot, without demand."""
        place_key, demand_key = jax.random.split(key)
        coordinates = jax.random.uniform(place_key, (self.num_nodes + 1, 2))
        demands = jax.random.randint(demand_key, (self.num_nodes + 1,), 1, self.max_demand)
        return coordinates, demands.at[DEPOT].set(0)


def dense_reward(state: State, following: State, action: Array, legal: Array) -> Array:
    """Minus the length of the move."""
    there = state.coordinates[action]
    move = -distance(state.coordinates[state.position], there)
    return jnp.where(legal, move, penalty(state))


def sparse_reward(state: State, following: State, action: Array, legal: Array) -> Array:
    """Minus the length of the whole route at the end, else 0."""
    route = following.coordinates[following.trajectory]
    length = distance(route, jnp.roll(route, -1, axis=0)).sum()
    reward = jnp.where(following.visited_mask.all(), -length, 0.0)
    return jnp.where(legal, reward, penalty(state))


def penalty(state: State) -> float:
    """Reward of an illegal action: below that of any route."""
    return -2.0 * (state.visited_mask.shape[0] - 1) * 2**0.5


@dataclasses.dataclass(frozen=True)
class CVRP(Environment):
    """The action is the next node, 0 being the depot.

    A customer can be served once and only if the load left covers its demand. The episode
    terminates when all are served and the vehicle is back, and on an illegal action.

    Args:
        generator: draws coordinates and demands from a key; knows ``num_nodes``,
            ``max_capacity`` and ``max_demand``.
        reward_fn: ``(state, next_state, action, legal) -> reward``.
    """

    generator: Generator = UniformCustomers()
    reward_fn: Callable[[State, State, Array, Array], Array] = dense_reward

    @property
    def num_nodes(self) -> int:
        """Customers, without the depot."""
        return self.generator.num_nodes  # pyright: ignore[reportFunctionMemberAccess]

    @property
    def max_capacity(self) -> int:
        """Load of the full vehicle."""
        return self.generator.max_capacity  # pyright: ignore[reportFunctionMemberAccess]

    @cached_property
    def observation_spec(self) -> specs.Spec:
        """Nodes, route, capacity and mask."""
        nodes = self.num_nodes + 1
        return specs.nest(
            Observation,
            coordinates=specs.reals((nodes, 2)),
            demands=specs.reals((nodes,)),
            unvisited_nodes=specs.booleans(nodes),
            position=specs.integers((), 0, nodes - 1),
            trajectory=specs.integers((2 * self.num_nodes,), 0, nodes - 1),
            capacity=specs.reals(()),
            action_mask=specs.booleans(nodes),
        )

    @cached_property
    def action_spec(self) -> specs.DiscreteArray:
        """A node."""
        return specs.DiscreteArray(self.num_nodes + 1, name="action")

    def reset(self, key: Array) -> tuple[State, TimeStep]:
        """Start at the depot with a full load."""
        key, instance_key = jax.random.split(key)
        coordinates, demands = self.generator(instance_key)
        state = State(
            coordinates=coordinates,
            demands=demands,
            position=jnp.int32(DEPOT),
            capacity=jnp.int32(self.max_capacity),
            visited_mask=jnp.arange(self.num_nodes + 1) == DEPOT,
            trajectory=jnp.full(2 * self.num_nodes, DEPOT, jnp.int32),
            num_total_visits=jnp.int32(1),
            key=key,
        )
        return state, restart(self._observe(state))

    def step(self, state: State, action: Array) -> tuple[State, TimeStep]:
        """Go to a node."""
        demand = state.demands[action]
        legal = ~state.visited_mask[action] & (state.capacity >= demand)
        node = action.astype(jnp.int32)
        left = jnp.where(node == DEPOT, self.max_capacity, state.capacity - demand)
        visited = state.visited_mask.at[DEPOT].set(False).at[action].set(True)
        end = jnp.where(legal, state.num_total_visits, 2 * self.num_nodes)
        following = state._replace(
            position=jnp.where(legal, node, state.position),
            capacity=jnp.where(legal, left, state.capacity),
            visited_mask=jnp.where(legal, visited, state.visited_mask),
            trajectory=state.trajectory.at[end].set(node, mode="drop"),
            num_total_visits=state.num_total_visits + legal,
        )
        reward = self.reward_fn(state, following, action, legal)
        done = following.visited_mask.all() | ~legal
        return following, transition(self._observe(following), reward, terminated=done)

    def _observe(self, state: State) -> Observation:
        mask = ~state.visited_mask & (state.demands <= state.capacity)
        mask = mask.at[DEPOT].set(state.position != DEPOT)
        return Observation(
            coordinates=state.coordinates,
            demands=state.demands / jnp.float32(self.max_capacity),
            unvisited_nodes=~state.visited_mask,
            position=state.position,
            trajectory=state.trajectory,
            capacity=state.capacity / jnp.float32(self.max_capacity),
            action_mask=mask,
        )
