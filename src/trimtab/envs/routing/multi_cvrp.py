"""Serve customers in time windows with several vehicles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int16

from trimtab.envs import specs
from trimtab.envs.protocol import (
    Environment,
    Generator,
    TimeLimitMode,
    TimeStep,
    restart,
    transition,
)
from trimtab.envs.routing.tsp import distance
from trimtab.errors import InputError

DEPOT = 0


class Nodes(NamedTuple):
    """Places (0 is the depot) and what they need."""

    coordinates: Float[Array, "nodes 2"]
    demands: Int16[Array, " nodes"]


class Windows(NamedTuple):
    """When service may begin without cost."""

    start: Float[Array, " nodes"]
    end: Float[Array, " nodes"]


class Coefficients(NamedTuple):
    """Cost of a unit of time before and after the window."""

    early: Float[Array, " nodes"]
    late: Float[Array, " nodes"]


class Vehicles(NamedTuple):
    """Where vehicles are, their clocks, and the load left."""

    coordinates: Float[Array, "vehicles 2"]
    local_times: Float[Array, " vehicles"]
    capacities: Int16[Array, " vehicles"]


class Observation(NamedTuple):
    """Customers, windows, costs, vehicles, and where each may go."""

    nodes: Nodes
    windows: Windows
    coeffs: Coefficients
    vehicles: Vehicles
    action_mask: Bool[Array, "vehicles nodes"]


class State(NamedTuple):
    """Customers, vehicles and their routes (``order``, whose first column is the depot)."""

    nodes: Nodes
    windows: Windows
    coeffs: Coefficients
    positions: Int16[Array, " vehicles"]
    local_times: Float[Array, " vehicles"]
    capacities: Int16[Array, " vehicles"]
    distances: Float[Array, " vehicles"]
    time_penalties: Float[Array, " vehicles"]
    order: Int16[Array, "vehicles visits"]
    action_mask: Bool[Array, "vehicles nodes"]
    step_count: Int16[Array, ""]
    key: Array


class Instance(NamedTuple):
    """Customers, windows and costs."""

    nodes: Nodes
    windows: Windows
    coeffs: Coefficients


# By customers: map side, capacity, latest window start, greatest demand by vehicles.
_PRESETS = {
    6: (10, 20, 10, {2: 10, 3: 20}),
    20: (10, 60, 10, {2: 10, 3: 15}),
    50: (20, 150, 20, {2: 10, 3: 15, 4: 20, 5: 25}),
    100: (20, 300, 40, {2: 10, 3: 15, 4: 20, 5: 25}),
    150: (20, 180, 60, {5: 10}),
}


@dataclasses.dataclass(frozen=True)
class UniformProblem:
    """Uniform places, demands, windows and costs on a square map.

    Demands are scaled so that they fill all vehicles once, rounded down and capped.

    Args:
        num_customers: customers; 6, 20, 50, 100 and 150 have published settings for the rest.
        num_vehicles: vehicles.
        map_side: side of the map, in units of distance; a vehicle moves one a unit of time.
        capacity: load of a full vehicle.
        max_start: latest start of a window.
        window_length: length of each window.
        max_demand: greatest demand.
        early: range of the cost of a unit of time before the window.
        late: range of the cost of a unit of time after it.
    """

    num_customers: int = 20
    num_vehicles: int = 2
    map_side: float = 0.0
    capacity: int = 0
    max_start: float = 0.0
    window_length: float = 20.0
    max_demand: int = 0
    early: tuple[float, float] | None = None
    late: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        preset = _PRESETS.get(self.num_customers)
        demand = preset[3].get(self.num_vehicles) if preset else None
        values = (self.map_side, self.capacity, self.max_start, self.max_demand)
        if (preset is None or demand is None) and min(values) <= 0:
            raise InputError(
                f"There are no published settings for {self.num_customers} customers and "
                f"{self.num_vehicles} vehicles; give map_side, capacity, max_start, max_demand."
            )
        if preset is not None:
            fixed = self.num_customers == 150
            defaults = {
                "map_side": preset[0],
                "capacity": preset[1],
                "max_start": preset[2],
                "max_demand": demand or 0,
                "early": (0.1, 0.1) if fixed else (0.0, 0.2),
                "late": (0.5, 0.5) if fixed else (0.0, 1.0),
            }
        else:
            defaults = {"early": (0.0, 0.2), "late": (0.0, 1.0)}
        for name, value in defaults.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)

    def __call__(self, key: Array) -> Instance:
        """Draw an instance."""
        place_key, demand_key, window_key, early_key, late_key = jax.random.split(key, 5)
        count = self.num_customers + 1
        coordinates = jax.random.uniform(place_key, (count, 2), maxval=float(self.map_side))
        demands = jax.random.randint(demand_key, (count,), 0, self.max_demand).at[DEPOT].set(0)
        total = float(self.capacity * self.num_vehicles)
        scaled = demands * (total / jnp.maximum(demands.sum(), 1))
        demands = jnp.minimum(scaled.astype(jnp.int16), self.max_demand).astype(jnp.int16)
        start = jax.random.uniform(window_key, (count,), maxval=float(self.max_start))

        def costs(key: Array, bounds: tuple[float, float] | None) -> Array:
            low, high = bounds or (0.0, 0.0)
            drawn = jax.random.uniform(key, (count,), minval=low, maxval=high)
            return drawn.at[DEPOT].set(0.0)

        return Instance(
            Nodes(coordinates, demands),
            Windows(start, start + self.window_length),
            Coefficients(costs(early_key, self.early), costs(late_key, self.late)),
        )


def dense_reward(state: State, following: State, at_limit: Array, done: Array) -> Array:
    """Minus distance and time cost of the step; at the step limit the worst case of the rest."""
    before = state.distances.sum() + state.time_penalties.sum()
    after = following.distances.sum() + following.time_penalties.sum()
    return jnp.where(at_limit, worst_case(following), before - after)


def sparse_reward(state: State, following: State, at_limit: Array, done: Array) -> Array:
    """Minus all distances and time costs at the end; at the step limit the worst case."""
    total = following.distances.sum() + following.time_penalties.sum()
    return jnp.where(done, jnp.where(at_limit, worst_case(following), -total), 0.0)


def worst_case(state: State) -> Array:
    """Minus the cost of serving each remaining customer by a trip of its own, and late."""
    remaining = state.nodes.demands > 0
    coordinates = state.nodes.coordinates
    detour = 2 * jnp.where(remaining, distance(coordinates[DEPOT], coordinates), 0.0).sum()
    time = state.local_times.mean() + detour
    cost = time_cost(jnp.broadcast_to(time, remaining.shape), state.windows, state.coeffs)
    return -detour - jnp.where(remaining, cost, 0.0).sum()


def time_cost(times: Array, windows: Windows, coefficients: Coefficients) -> Array:
    """Cost of being early or late."""
    early = jnp.where(times < windows.start, (windows.start - times) * coefficients.early, 0.0)
    late = jnp.where(times > windows.end, (times - windows.end) * coefficients.late, 0.0)
    return early + late


@dataclasses.dataclass(frozen=True)
class MultiCVRP(Environment):
    """The action gives each vehicle its next node; 0, the depot, refills it.

    A vehicle that cannot serve its customer, or that shares it with one of lower index, goes to
    the depot instead. The episode terminates when all is served and all vehicles are back.

    Args:
        generator: makes an :class:`Instance` from a key; see :class:`UniformProblem`.
        reward_fn: ``(state, next_state, at_limit, done) -> reward``.
        time_limit_mode: whether the limit of ``2 * customers`` steps truncates or terminates.
    """

    generator: Generator = UniformProblem()
    reward_fn: Callable[[State, State, Array, Array], Array] = dense_reward
    time_limit_mode: TimeLimitMode = "truncate"

    @property
    def problem(self) -> UniformProblem:
        """The generator with its sizes."""
        return self.generator  # pyright: ignore[reportReturnType]

    @cached_property
    def observation_spec(self) -> specs.Spec:
        """Customers, windows, costs, vehicles and mask."""
        problem = self.problem
        nodes, vehicles = problem.num_customers + 1, problem.num_vehicles
        side, latest = float(problem.map_side), float(problem.max_start + problem.window_length)
        early, late = problem.early or (0.0, 0.0), problem.late or (0.0, 0.0)
        longest = 2.0 * side * 2**0.5 * (problem.num_customers + 1)
        return specs.nest(
            Observation,
            nodes=specs.nest(
                Nodes,
                coordinates=specs.reals((nodes, 2), 0, side),
                demands=specs.integers((nodes,), 0, problem.capacity, np.int16),
            ),
            windows=specs.nest(
                Windows,
                start=specs.reals((nodes,), 0, latest),
                end=specs.reals((nodes,), 0, latest),
            ),
            coeffs=specs.nest(
                Coefficients,
                early=specs.reals((nodes,), 0, max(early[1], late[1])),
                late=specs.reals((nodes,), 0, max(early[1], late[1])),
            ),
            vehicles=specs.nest(
                Vehicles,
                coordinates=specs.reals((vehicles, 2), 0, side),
                local_times=specs.reals((vehicles,), 0, longest),
                capacities=specs.integers((vehicles,), 0, problem.capacity, np.int16),
            ),
            action_mask=specs.booleans(vehicles, nodes),
        )

    @cached_property
    def action_spec(self) -> specs.MultiDiscreteArray:
        """A node for each vehicle."""
        sizes = (self.problem.num_customers + 1,) * self.problem.num_vehicles
        return specs.MultiDiscreteArray(sizes, np.int16, name="action")

    def reset(self, key: Array) -> tuple[State, TimeStep]:
        """Start all vehicles, full, at the depot."""
        key, instance_key = jax.random.split(key)
        instance: Instance = self.generator(instance_key)
        vehicles, customers = self.problem.num_vehicles, self.problem.num_customers
        capacities = jnp.full(vehicles, self.problem.capacity, jnp.int16)
        zeros = jnp.zeros(vehicles, jnp.float32)
        state = State(
            nodes=instance.nodes,
            windows=instance.windows,
            coeffs=instance.coeffs,
            positions=jnp.full(vehicles, DEPOT, jnp.int16),
            local_times=zeros,
            capacities=capacities,
            distances=zeros,
            time_penalties=zeros,
            order=jnp.full((vehicles, 2 * customers), DEPOT, jnp.int16),
            action_mask=_servable(instance.nodes.demands, capacities),
            step_count=jnp.int16(1),
            key=key,
        )
        return state, restart(_observe(state))

    def step(self, state: State, action: Array) -> tuple[State, TimeStep]:
        """Drive all vehicles to their next nodes."""
        vehicles = np.arange(self.problem.num_vehicles)
        demand = state.nodes.demands[action]
        node = jnp.where((state.capacities >= demand) & (demand > 0), action, DEPOT)
        earlier = vehicles[None, :] < vehicles[:, None]
        node = jnp.where(((node[:, None] == node[None, :]) & earlier).any(axis=1), DEPOT, node)
        node = node.astype(jnp.int16)
        coordinates = state.nodes.coordinates
        travelled = distance(coordinates[state.positions], coordinates[node])
        times = state.local_times + travelled
        windows, coeffs = jax.tree.map(lambda leaf: leaf[node], (state.windows, state.coeffs))
        left = state.capacities - state.nodes.demands[node]
        left = jnp.where(node == DEPOT, self.problem.capacity, left).astype(jnp.int16)
        demands = state.nodes.demands.at[node].set(0)
        following = state._replace(
            nodes=state.nodes._replace(demands=demands),
            positions=node,
            local_times=times,
            capacities=left,
            distances=state.distances + travelled,
            time_penalties=state.time_penalties + time_cost(times, windows, coeffs),
            order=state.order.at[:, state.step_count].set(node, mode="drop"),
            action_mask=_servable(demands, left),
            step_count=(state.step_count + 1).astype(jnp.int16),
        )
        served = (demands == 0).all() & (node == DEPOT).all()
        at_limit = following.step_count > 2 * self.problem.num_customers
        reward = self.reward_fn(state, following, at_limit, served | at_limit)
        return following, transition(
            _observe(following),
            reward,
            terminated=served,
            at_limit=at_limit,
            mode=self.time_limit_mode,
        )


def _servable(demands: Array, capacities: Array) -> Bool[Array, "vehicles nodes"]:
    mask = (capacities[:, None] >= demands[None, :]) & (demands > 0)[None, :]
    return mask | (np.arange(demands.shape[0]) == DEPOT)


def _observe(state: State) -> Observation:
    place = state.nodes.coordinates[state.positions]
    vehicles = Vehicles(place, state.local_times, state.capacities)
    return Observation(state.nodes, state.windows, state.coeffs, vehicles, state.action_mask)
