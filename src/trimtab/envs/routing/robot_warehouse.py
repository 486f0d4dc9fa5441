"""Robots carry requested shelves to goals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from trimtab.envs import grid, specs
from trimtab.envs.protocol import (
    Environment,
    Generator,
    TimeLimitMode,
    TimeStep,
    restart,
    transition,
)
from trimtab.envs.sampling import below, choose_distinct, choose_true_from, spend_uniforms
from trimtab.errors import InputError

NONE, FORWARD, LEFT, RIGHT, TOGGLE = range(5)


class Observation(NamedTuple):
    """What each robot sees, its legal actions and the clock."""

    agents_view: Int[Array, "agents features"]
    action_mask: Bool[Array, "agents 5"]
    step_count: Int[Array, ""]


class State(NamedTuple):
    """Robots and shelves; ``shelves`` has 0 where none, else 1 + the shelf's number."""

    positions: Int[Array, "agents 2"]
    directions: Int[Array, " agents"]
    carrying: Bool[Array, " agents"]
    shelves: Int[Array, "rows columns"]
    request_queue: Int[Array, " requests"]
    action_mask: Bool[Array, "agents 5"]
    step_count: Int[Array, ""]
    key: Array


class Instance(NamedTuple):
    """Robots and requests at the start."""

    positions: Int[Array, "agents 2"]
    directions: Int[Array, " agents"]
    request_queue: Int[Array, " requests"]


@dataclasses.dataclass(frozen=True)
class RandomStart:
    """The layout of the warehouse; robots and requests are uniform.

    Args:
        shelf_rows: blocks of shelves from top to bottom.
        shelf_columns: blocks from left to right, odd.
        column_height: shelves from top to bottom in a block.
        num_agents: robots.
        sensor_range: how far robots see, in cells.
        request_queue_size: requested shelves at any time.
    """

    shelf_rows: int = 2
    shelf_columns: int = 3
    column_height: int = 8
    num_agents: int = 4
    sensor_range: int = 1
    request_queue_size: int = 8

    def __post_init__(self) -> None:
        if self.shelf_columns % 2 == 0 or min(dataclasses.astuple(self)) < 1:
            raise InputError(f"{self}: expected positive sizes and an odd number of shelf columns.")
        if self.request_queue_size >= self.num_shelves:
            raise InputError(
                f"{self.request_queue_size} requests need more than {self.num_shelves} shelves."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the floor."""
        return (self.column_height + 1) * self.shelf_rows + 2, 3 * self.shelf_columns + 1

    @cached_property
    def highways(self) -> np.ndarray:
        """Cells without a shelf of their own."""
        rows, columns = self.shape
        row, column = np.arange(rows)[:, None], np.arange(columns)[None, :]
        aisle = (column % 3 == 0) | (row % (self.column_height + 1) == 0) | (row == rows - 1)
        middle = (column == columns // 2 - 1) | (column == columns // 2)
        return aisle | ((row > rows - self.column_height - 3) & middle)

    @property
    def num_shelves(self) -> int:
        """Shelves."""
        return int((~self.highways).sum())

    def __call__(self, key: Array) -> Instance:
        """Draw robots and requests."""
        place_key, turn_key, queue_key = jax.random.split(key, 3)
        rows, columns = self.shape
        cells = choose_distinct(place_key, rows * columns, self.num_agents)
        directions = below(jax.random.uniform(turn_key, (self.num_agents,)), 4)
        queue = choose_distinct(queue_key, self.num_shelves, self.request_queue_size)
        return Instance(grid.unflat(cells, columns), directions, queue)


@dataclasses.dataclass(frozen=True)
class RobotWarehouse(Environment):
    """Each robot waits, drives forward, turns left or right, or lifts or drops (actions 0 to 4).

    Each delivery of a requested shelf to a goal gives 1 and is replaced by a random request. The
    episode terminates when robots collide.

    Args:
        generator: makes an :class:`Instance` from a key and knows the layout.
        time_limit: steps of the longest episode.
        time_limit_mode: whether the limit truncates or terminates.
        faithful: a waiting robot drops its shelf where shelves may stand, as in the published
            suite; otherwise only the toggle action drops it.
    """

    generator: Generator = RandomStart()
    time_limit: int = 500
    time_limit_mode: TimeLimitMode = "truncate"
    faithful: bool = True

    @property
    def layout(self) -> RandomStart:
        """The generator with its sizes."""
        return self.generator  # pyright: ignore[reportReturnType]

    @property
    def agents(self) -> int:
        """Robots."""
        return self.layout.num_agents

    @cached_property
    def goals(self) -> np.ndarray:
        """The two goal cells."""
        rows, columns = self.layout.shape
        return np.array([(rows - 1, columns // 2 - 1), (rows - 1, columns // 2)], np.int32)

    @cached_property
    def observation_spec(self) -> specs.Spec:
        """Views, mask and clock."""
        window = (2 * self.layout.sensor_range + 1) ** 2
        features = 8 + (window - 1) * 5 + window * 2
        return specs.nest(
            Observation,
            agents_view=specs.integers((self.agents, features), 0, max(self.layout.shape)),
            action_mask=specs.booleans(self.agents, 5),
            step_count=specs.integers((), 0, self.time_limit),
        )

    @cached_property
    def action_spec(self) -> specs.MultiDiscreteArray:
        """An action for each robot."""
        return specs.MultiDiscreteArray((5,) * self.agents, name="action")

    def reset(self, key: Array) -> tuple[State, TimeStep]:
        """Start with all shelves in place."""
        key, start_key = jax.random.split(key)
        instance: Instance = self.generator(start_key)
        places = ~self.layout.highways
        shelves = np.where(places, np.cumsum(places).reshape(places.shape), 0).astype(np.int32)
        state = State(
            positions=instance.positions,
            directions=instance.directions,
            carrying=jnp.zeros(self.agents, bool),
            shelves=jnp.asarray(shelves),
            request_queue=instance.request_queue,
            action_mask=jnp.ones((self.agents, 5), bool),
            step_count=jnp.int32(0),
            key=key,
        )
        state = state._replace(action_mask=self._legal(state))
        return state, restart(self._observe(state))

    def step(self, state: State, action: Array) -> tuple[State, TimeStep]:
        """Move all robots, then deliver."""
        key, uniforms = spend_uniforms(state.key, len(self.goals))

        def new_request(goal: int, queue: Array) -> Array:
            waiting = (np.arange(self.layout.num_shelves)[:, None] == queue[None, :]).any(axis=1)
            return choose_true_from(uniforms[goal], ~waiting)

        return self._step(state._replace(key=key), action, new_request)

    def step_with(self, state: State, action: Array, draw: Array) -> tuple[State, TimeStep]:
        """As :meth:`step`, with the shelf to request after a delivery given for each goal."""
        return self._step(state, action, lambda goal, queue: draw[goal])

    def _step(
        self, state: State, action: Array, new_request: Callable[[int, Array], Array]
    ) -> tuple[State, TimeStep]:
        legal = jnp.take_along_axis(state.action_mask, action[:, None], axis=1)[:, 0]
        action = jnp.where(legal, action, NONE)
        state, collision = self._drive(state, action)
        queue, delivered = state.request_queue, jnp.int32(0)
        for index, goal in enumerate(self.goals):
            slot = queue == state.shelves[goal[0], goal[1]] - 1
            queue = jnp.where(slot, new_request(index, queue), queue).astype(jnp.int32)
            delivered += slot.any()
        state = state._replace(request_queue=queue, step_count=state.step_count + 1)
        state = state._replace(action_mask=self._legal(state))
        return state, transition(
            self._observe(state),
            delivered,
            terminated=collision,
            at_limit=state.step_count >= self.time_limit,
            mode=self.time_limit_mode,
        )

    def _drive(self, state: State, action: Array) -> tuple[State, Array]:
        """Robots act in turn; returns the state and whether any of them collided.

        Robots mark the cells they enter and clear those they leave, one after another. Without a
        collision the order does not matter, so all marks are written together, and a collision
        is two robots on one cell or one that enters the cell a later one leaves.
        """
        rows, columns = self.layout.shape
        forward = action == FORWARD
        old = state.positions
        ahead = old + jnp.asarray(grid.MOVES)[state.directions]
        ahead = jnp.clip(ahead, 0, jnp.array([rows - 1, columns - 1]))
        positions = jnp.where(forward[:, None], ahead, old)
        index = np.arange(self.agents)
        other = index[:, None] != index[None, :]
        later = index[None, :] > index[:, None]
        meets = (positions[:, None] == positions[None, :]).all(axis=-1) & other
        erased = (positions[:, None] == old[None, :]).all(axis=-1) & later & forward[None, :]
        collision = (meets | erased).any()

        turn = jnp.where(action == RIGHT, 1, jnp.where(action == LEFT, -1, 0))
        shelf = state.shelves[old[:, 0], old[:, 1]]
        takes_along = forward & state.carrying
        row_from = jnp.where(takes_along, old[:, 0], rows)
        row_to = jnp.where(takes_along, positions[:, 0], rows)
        shelves = state.shelves.at[row_from, old[:, 1]].set(0, mode="drop")
        shelves = shelves.at[row_to, positions[:, 1]].set(shelf, mode="drop")
        on_highway = jnp.asarray(self.layout.highways)[positions[:, 0], positions[:, 1]]
        has_shelf = shelves[positions[:, 0], positions[:, 1]] > 0
        toggles = action == TOGGLE
        lets_go = toggles | (action == NONE) if self.faithful else toggles
        lifts = toggles & ~state.carrying & has_shelf
        drops = lets_go & state.carrying & ~on_highway
        return (
            state._replace(
                positions=positions,
                directions=((state.directions + turn) % 4).astype(jnp.int32),
                carrying=(state.carrying | lifts) & ~drops,
                shelves=shelves,
            ),
            collision,
        )

    def _legal(self, state: State) -> Array:
        """A robot with a shelf may not drive onto another shelf."""
        rows, columns = self.layout.shape
        ahead = state.positions + jnp.asarray(grid.MOVES)[state.directions]
        occupied = state.shelves[ahead[:, 0], ahead[:, 1]] > 0
        blocked = state.carrying & grid.inside(ahead, rows, columns) & occupied
        return ~(blocked[:, None] & (np.arange(5) == FORWARD))

    def _observe(self, state: State) -> Observation:
        reach = self.layout.sensor_range
        side = 2 * reach + 1
        rows, columns = state.shelves.shape
        facing = jnp.zeros((rows, columns), jnp.int32)
        facing = facing.at[state.positions[:, 0], state.positions[:, 1]].set(state.directions + 1)
        offset = np.arange(-reach, reach + 1, dtype=np.int32)
        around = np.stack(np.meshgrid(offset, offset, indexing="ij"), axis=-1).reshape(-1, 2)
        cells = state.positions[:, None] + around
        inside = grid.inside(cells, rows, columns)
        seen_facing = jnp.where(inside, facing[cells[..., 0], cells[..., 1]], 0)
        seen_shelf = jnp.where(inside, state.shelves[cells[..., 0], cells[..., 1]], 0)

        others = np.delete(np.arange(side * side), side * side // 2)
        robots = seen_facing[:, others]
        robot_part = jnp.stack(
            [robots > 0, *(robots == direction + 1 for direction in range(4))], axis=-1
        )
        requested = (seen_shelf[..., None] - 1 == state.request_queue).any(axis=-1)
        shelf_part = jnp.stack([seen_shelf > 0, requested & (seen_shelf > 0)], axis=-1)
        on_highway = jnp.asarray(self.layout.highways)[state.positions[:, 0], state.positions[:, 1]]
        own = [
            state.positions,
            state.carrying[:, None],
            state.directions[:, None] == np.arange(4),
            on_highway[:, None],
            robot_part.reshape(self.agents, -1),
            shelf_part.reshape(self.agents, -1),
        ]
        view = jnp.concatenate([part.astype(jnp.int32) for part in own], axis=1)
        return Observation(view, state.action_mask, state.step_count)
