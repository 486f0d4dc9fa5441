"""Agents of different levels load food together."""

from __future__ import annotations

import dataclasses
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
from trimtab.envs.sampling import below, choose_true_from
from trimtab.errors import InputError

LOAD = 5
DIRECTIONS = np.array([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1), (0, 0)], np.int32)
"""Row and column steps of the actions none, up, down, left, right, load."""


class Observation(NamedTuple):
    """What each agent sees (a vector or three planes), its legal actions and the clock."""

    agents_view: Int[Array, agents * view]
    action_mask: Bool[Array, "agents 6"]
    step_count: Int[Array, ""]


class State(NamedTuple):
    """Agents and food."""

    agent_positions: Int[Array, "agents 2"]
    agent_levels: Int[Array, " agents"]
    loading: Bool[Array, " agents"]
    food_positions: Int[Array, "food 2"]
    food_levels: Int[Array, " food"]
    eaten: Bool[Array, " food"]
    step_count: Int[Array, ""]
    key: Array


class Instance(NamedTuple):
    """Positions and levels at the start."""

    agent_positions: Int[Array, "agents 2"]
    agent_levels: Int[Array, " agents"]
    food_positions: Int[Array, "food 2"]
    food_levels: Int[Array, " food"]


@dataclasses.dataclass(frozen=True)
class RandomField:
    """Food on interior cells that do not touch; agents on other cells.

    Args:
        grid_size: cells per side, at least 5.
        num_agents: agents.
        num_food: food items.
        fov: how far agents see, in cells.
        max_agent_level: agent levels are uniform on ``1 .. max_agent_level``.
        force_coop: each food needs as much as the three weakest agents (or all) together;
            otherwise its level is uniform up to that.
        faithful: keep agents out of every row whose number is any coordinate of a food, as the
            published suite does; otherwise out of the cells with food.
    """

    grid_size: int = 8
    num_agents: int = 2
    num_food: int = 2
    fov: int = 8
    max_agent_level: int = 2
    force_coop: bool = True
    faithful: bool = True

    def __post_init__(self) -> None:
        if self.grid_size < 5 or not 1 <= self.fov <= self.grid_size or self.num_food < 1:
            raise InputError(
                f"grid_size={self.grid_size}, fov={self.fov}, num_food={self.num_food}: expected "
                "at least 5 cells per side, 1 <= fov <= grid_size and some food."
            )
        if (self.grid_size - 2) ** 2 - self.num_agents <= 5 * self.num_food:
            raise InputError(
                f"{self.num_food} food items and {self.num_agents} agents need a larger grid than "
                f"{self.grid_size} x {self.grid_size}."
            )

    def __call__(self, key: Array) -> Instance:
        """Draw positions and levels."""
        food_key, agent_key, level_key = jax.random.split(key, 3)
        size = self.grid_size
        food = self._place_food(food_key)
        if self.faithful:
            lines = (np.arange(size)[:, None] == food.reshape(-1)[None, :]).any(axis=1)
            free = jnp.broadcast_to(~lines[:, None], (size, size))
            free = jnp.where(free.sum() >= self.num_agents, free, ~_marks(food, size))
        else:
            free = ~_marks(food, size)
        agents = self._place_agents(agent_key, free.reshape(-1))
        uniforms = jax.random.uniform(level_key, (self.num_agents + self.num_food,))
        levels = 1 + below(uniforms[: self.num_agents], self.max_agent_level)
        strength = jnp.sort(levels)[:3].sum()
        food_levels = 1 + below(uniforms[self.num_agents :], jnp.maximum(strength, 1))
        if self.force_coop:
            food_levels = jnp.full(self.num_food, strength)
        return Instance(agents, levels, food, food_levels.astype(jnp.int32))

    def _place_food(self, key: Array) -> Array:
        """One after another, uniformly, not on or beside earlier food."""
        size = self.grid_size
        row, column = np.arange(size)[:, None], np.arange(size)[None, :]
        inner = (row > 0) & (row < size - 1) & (column > 0) & (column < size - 1)
        uniforms = jax.random.uniform(key, (self.num_food,))

        def place(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            free, food = carry
            cell = grid.unflat(choose_true_from(uniforms[index], free.reshape(-1)), size)
            near = jnp.abs(row - cell[0]) + jnp.abs(column - cell[1]) <= 1
            return free & ~near, food.at[index].set(cell)

        none = jnp.zeros((self.num_food, 2), jnp.int32)
        return jax.lax.fori_loop(0, self.num_food, place, (jnp.asarray(inner), none))[1]

    def _place_agents(self, key: Array, free: Array) -> Array:
        uniforms = jax.random.uniform(key, (self.num_agents,))

        def place(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            free, cells = carry
            cell = choose_true_from(uniforms[index], free)
            return free.at[cell].set(False), cells.at[index].set(cell)

        none = jnp.zeros(self.num_agents, jnp.int32)
        cells = jax.lax.fori_loop(0, self.num_agents, place, (free, none))[1]
        return grid.unflat(cells, self.grid_size)


def _marks(cells: Array, size: int) -> Array:
    return jnp.zeros((size, size), bool).at[cells[:, 0], cells[:, 1]].set(True)


@dataclasses.dataclass(frozen=True)
class LevelBasedForaging(Environment):
    """Each agent waits, moves up, down, left or right, or loads (actions 0 to 5).

    A food is eaten when the levels of the agents that load beside it add up to its level.
    Rewards and discounts have an entry per agent: an agent's share is its level's share of the
    load times the food's share of all food. The episode terminates when all food is eaten.

    Args:
        generator: makes an :class:`Instance` from a key and knows the sizes and ``fov``.
        time_limit: steps of the longest episode.
        grid_observation: observe three planes (agent levels, food levels, free cells) around
            each agent instead of a vector of positions and levels.
        normalize_reward: let all food of an episode be worth 1.
        penalty: cost, for every agent, of loading a food together without enough strength.
        time_limit_mode: whether the limit truncates or terminates.
    """

    generator: Generator = RandomField()
    time_limit: int = 100
    grid_observation: bool = False
    normalize_reward: bool = True
    penalty: float = 0.0
    time_limit_mode: TimeLimitMode = "truncate"

    @property
    def num_agents(self) -> int:
        """Agents."""
        return self.generator.num_agents  # pyright: ignore[reportFunctionMemberAccess]

    @property
    def num_food(self) -> int:
        """Food items."""
        return self.generator.num_food  # pyright: ignore[reportFunctionMemberAccess]

    @property
    def size(self) -> int:
        """Cells per side."""
        return self.generator.grid_size  # pyright: ignore[reportFunctionMemberAccess]

    @property
    def fov(self) -> int:
        """How far agents see."""
        return self.generator.fov  # pyright: ignore[reportFunctionMemberAccess]

    @cached_property
    def observation_spec(self) -> specs.Spec:
        """Views, mask and clock."""
        top = self.generator.max_agent_level  # pyright: ignore[reportFunctionMemberAccess]
        highest = max(self.size, 2 * self.fov, top * self.num_agents)
        if self.grid_observation:
            shape = (self.num_agents, 3, 2 * self.fov + 1, 2 * self.fov + 1)
        else:
            shape = (self.num_agents, 3 * (self.num_food + self.num_agents))
        return specs.nest(
            Observation,
            agents_view=specs.integers(shape, -1, highest),
            action_mask=specs.booleans(self.num_agents, 6),
            step_count=specs.integers((), 0, self.time_limit),
        )

    @cached_property
    def action_spec(self) -> specs.MultiDiscreteArray:
        """An action for each agent."""
        return specs.MultiDiscreteArray((6,) * self.num_agents, name="action")

    def reset(self, key: Array) -> tuple[State, TimeStep]:
        """Start with all food on the field."""
        key, field_key = jax.random.split(key)
        instance: Instance = self.generator(field_key)
        state = State(
            agent_positions=instance.agent_positions,
            agent_levels=instance.agent_levels,
            loading=jnp.zeros(self.num_agents, bool),
            food_positions=instance.food_positions,
            food_levels=instance.food_levels,
            eaten=jnp.zeros(self.num_food, bool),
            step_count=jnp.int32(0),
            key=key,
        )
        return state, restart(self._observe(state), _extras(state), (self.num_agents,))

    def step(self, state: State, action: Array) -> tuple[State, TimeStep]:
        """Move all agents, then load."""
        positions = self._move(state, action)
        loading = action == LOAD
        beside = _distance(positions, state.food_positions) == 1
        helps = beside & loading[:, None] & ~state.eaten
        levels = jnp.where(helps, state.agent_levels[:, None], 0)
        load = levels.sum(axis=0)
        eaten_now = ~state.eaten & (load >= state.food_levels)
        failed = (load > 0) & ~eaten_now & ~state.eaten
        share = levels * jnp.where(eaten_now, state.food_levels, 0)
        change = share.astype(jnp.float32) - jnp.where(failed, self.penalty, 0.0)
        if self.normalize_reward:
            change = change / jnp.maximum(load * state.food_levels.sum(), 1)
        rewards = jnp.where(load > 0, change, 0.0).sum(axis=1)
        state = state._replace(
            agent_positions=positions,
            loading=loading,
            eaten=state.eaten | eaten_now,
            step_count=state.step_count + 1,
        )
        return state, transition(
            self._observe(state),
            rewards,
            terminated=state.eaten.all(),
            at_limit=state.step_count >= self.time_limit,
            mode=self.time_limit_mode,
            extras=_extras(state),
        )

    def _move(self, state: State, action: Array) -> Array:
        """New cells: blocked agents stay, and so do all that would meet."""
        old = state.agent_positions
        wanted = old + jnp.asarray(DIRECTIONS)[action]
        others = ~np.eye(self.num_agents, dtype=bool)
        on_agent = ((wanted[:, None] == old[None, :]).all(axis=-1) & others).any(axis=1)
        on_food = (_distance(wanted, state.food_positions) == 0) & ~state.eaten
        blocked = ~grid.inside(wanted, self.size, self.size) | on_agent | on_food.any(axis=1)
        wanted = jnp.where(blocked[:, None], old, wanted)
        meets = ((wanted[:, None] == wanted[None, :]).all(axis=-1) & others).any(axis=1)
        return jnp.where(meets[:, None], old, wanted)

    def _observe(self, state: State) -> Observation:
        view = self._planes(state) if self.grid_observation else self._vectors(state)
        return Observation(view, self._legal(state), state.step_count)

    def _legal(self, state: State) -> Array:
        around = state.agent_positions[:, None] + jnp.asarray(DIRECTIONS[1:5])
        on_agent = (around[:, :, None] == state.agent_positions).all(axis=-1).any(axis=-1)
        on_food = (around[:, :, None] == state.food_positions).all(axis=-1) & ~state.eaten
        free = grid.inside(around, self.size, self.size) & ~on_agent & ~on_food.any(axis=-1)
        beside = (_distance(state.agent_positions, state.food_positions) == 1) & ~state.eaten
        wait = jnp.ones((self.num_agents, 1), bool)
        return jnp.concatenate([wait, free, beside.any(axis=1, keepdims=True)], axis=1)

    def _vectors(self, state: State) -> Array:
        """Food, then the agent itself, then the others: row, column and level of each."""

        def seen(cells: Array, levels: Array, here: Array) -> Array:
            offset = cells - here
            visible = (jnp.abs(offset) <= self.fov).all(axis=-1) & (levels > 0)
            place = offset + jnp.minimum(self.fov, here)
            entry = jnp.concatenate([place, levels[:, None]], axis=1)
            return jnp.where(visible[:, None], entry, jnp.array([-1, -1, 0]))

        food_levels = jnp.where(state.eaten, 0, state.food_levels)
        index = np.arange(self.num_agents)
        order = np.array([[a, *index[index != a]] for a in index])

        def view(here: Array, order: Array) -> Array:
            food = seen(state.food_positions, food_levels, here)
            agents = seen(state.agent_positions[order], state.agent_levels[order], here)
            return jnp.concatenate([food, agents]).reshape(-1).astype(jnp.int32)

        return jax.vmap(view)(state.agent_positions, jnp.asarray(order))

    def _planes(self, state: State) -> Array:
        """Agent levels, food levels and free cells in a window centred on each agent."""
        size, reach = self.size, self.fov
        empty = jnp.zeros((size, size), jnp.int32)
        rows, columns = state.agent_positions[:, 0], state.agent_positions[:, 1]
        agents = empty.at[rows, columns].set(state.agent_levels)
        food_levels = jnp.where(state.eaten, 0, state.food_levels)
        food = empty.at[state.food_positions[:, 0], state.food_positions[:, 1]].set(food_levels)
        free = ((agents == 0) & (food == 0)).astype(jnp.int32)
        planes = jnp.pad(jnp.stack([agents, food, free]), ((0, 0), (reach, reach), (reach, reach)))
        side = 2 * reach + 1

        def window(cell: Array) -> Array:
            return jax.lax.dynamic_slice(planes, (0, cell[0], cell[1]), (3, side, side))

        return jax.vmap(window)(state.agent_positions)


def _distance(first: Int[Array, "many 2"], second: Int[Array, "few 2"]) -> Int[Array, "many few"]:
    """Manhattan distances."""
    return jnp.abs(first[:, None] - second[None]).sum(axis=-1)


def _extras(state: State) -> dict[str, Array]:
    return {"percent_eaten": 100.0 * state.eaten.mean(dtype=jnp.float32)}
