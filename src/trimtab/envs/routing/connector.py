"""Connect pairs of cells by wires that do not cross."""

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
from trimtab.envs.routing.connector_generators import Board, RandomWalks

PATH, HEAD, TARGET = 1, 2, 3
"""Codes of agent 0; those of agent ``a`` are larger by ``3 * a``."""
DIRECTIONS = np.array([(0, 0), (-1, 0), (0, 1), (1, 0), (0, -1)], np.int32)
"""Row and column steps of the actions none, up, right, down, left."""


class Observation(NamedTuple):
    """The board and each agent's legal actions."""

    grid: Int[Array, "size size"]
    action_mask: Bool[Array, "agents 5"]
    step_count: Int[Array, ""]


class State(NamedTuple):
    """The board and, by agent, where its wire starts, should end and has got to."""

    grid: Int[Array, "size size"]
    start: Int[Array, "agents 2"]
    target: Int[Array, "agents 2"]
    position: Int[Array, "agents 2"]
    action_mask: Bool[Array, "agents 5"]
    step_count: Int[Array, ""]
    key: Array


@dataclasses.dataclass(frozen=True)
class DenseReward:
    """A bonus for connecting and a cost of each step before.

    Args:
        connected_reward: bonus of the step in which an agent connects.
        timestep_reward: reward of each step that an agent begins unconnected.
        shared: give all agents the sum.
    """

    connected_reward: float = 1.0
    timestep_reward: float = -0.03
    shared: bool = False

    def __call__(self, before: Array, after: Array) -> Array:
        """Rewards by agent.

        Args:
            before: which agents were connected before the step.
            after: which are now.
        """
        bonus = self.connected_reward * (after & ~before)
        rewards = (bonus + self.timestep_reward * ~before).astype(jnp.float32)
        return jnp.broadcast_to(rewards.sum(), rewards.shape) if self.shared else rewards


def sparse_reward(shared: bool = False) -> DenseReward:
    """The bonus alone."""
    return DenseReward(timestep_reward=0.0, shared=shared)


@dataclasses.dataclass(frozen=True)
class Connector(Environment):
    """Each agent lengthens its wire up, right, down or left (1 to 4), or waits (0).

    Of several agents that want the same cell the one with the highest index gets it. Rewards and
    discounts have an entry per agent. The episode terminates when every agent is connected or
    blocked.

    Args:
        generator: makes a :class:`Board` from a key; knows ``grid_size`` and ``num_agents``.
        reward_fn: ``(connected before, after) -> rewards``.
        time_limit: steps of the longest episode.
        time_limit_mode: whether the limit truncates or terminates.
    """

    generator: Generator = RandomWalks()
    reward_fn: Callable[[Array, Array], Array] = DenseReward()
    time_limit: int = 50
    time_limit_mode: TimeLimitMode = "truncate"

    @property
    def num_agents(self) -> int:
        """Wires."""
        return self.generator.num_agents  # pyright: ignore[reportFunctionMemberAccess]

    @property
    def size(self) -> int:
        """Cells per side."""
        return self.generator.grid_size  # pyright: ignore[reportFunctionMemberAccess]

    @cached_property
    def observation_spec(self) -> specs.Spec:
        """Board, mask and clock."""
        return specs.nest(
            Observation,
            grid=specs.integers((self.size, self.size), 0, 3 * self.num_agents),
            action_mask=specs.booleans(self.num_agents, 5),
            step_count=specs.integers((), 0, self.time_limit),
        )

    @cached_property
    def action_spec(self) -> specs.MultiDiscreteArray:
        """A direction for each agent."""
        return specs.MultiDiscreteArray((5,) * self.num_agents, name="action")

    def reset(self, key: Array) -> tuple[State, TimeStep]:
        """Start with a board without wires."""
        key, board_key = jax.random.split(key)
        board: Board = self.generator(board_key)
        codes = 3 * np.arange(self.num_agents, dtype=np.int32)
        cells = jnp.zeros((self.size, self.size), jnp.int32)
        cells = cells.at[board.start[:, 0], board.start[:, 1]].set(codes + HEAD)
        cells = cells.at[board.target[:, 0], board.target[:, 1]].set(codes + TARGET)
        mask = legal_actions(cells, board.start, board.target)
        state = State(cells, board.start, board.target, board.start, mask, jnp.int32(0), key)
        return state, restart(_observe(state), _extras(state), (self.num_agents,))

    def step(self, state: State, action: Array) -> tuple[State, TimeStep]:
        """Lengthen the wires."""
        agents = np.arange(self.num_agents, dtype=np.int32)
        before = connected(state)
        legal = jnp.take_along_axis(state.action_mask, action[:, None], axis=1)[:, 0]
        moves = legal & (action != 0)
        wanted = state.position + jnp.asarray(DIRECTIONS)[action]
        position = jnp.where(wins(wanted, moves)[:, None], wanted, state.position)
        moved = (position != state.position).any(axis=1)
        old_row = jnp.where(moved, state.position[:, 0], self.size)
        new_row = jnp.where(moved, position[:, 0], self.size)
        cells = state.grid.at[old_row, state.position[:, 1]].set(3 * agents + PATH, mode="drop")
        cells = cells.at[new_row, position[:, 1]].set(3 * agents + HEAD, mode="drop")
        mask = legal_actions(cells, position, state.target)
        state = state._replace(
            grid=cells, position=position, action_mask=mask, step_count=state.step_count + 1
        )
        after = connected(state)
        done = after | ~mask[:, 1:].any(axis=1)
        return state, transition(
            _observe(state),
            self.reward_fn(before, after),
            terminated=done.all(),
            at_limit=state.step_count >= self.time_limit,
            mode=self.time_limit_mode,
            discount=(~done).astype(jnp.float32),
            extras=_extras(state),
        )


def connected(state: State) -> Bool[Array, " agents"]:
    """Which wires have reached their targets."""
    return (state.position == state.target).all(axis=-1)


def wins(wanted: Int[Array, "agents 2"], moves: Bool[Array, " agents"]) -> Bool[Array, " agents"]:
    """Which moving agents get the cell that they want: those without a later rival."""
    count = moves.shape[0]
    same = (wanted[:, None] == wanted[None, :]).all(axis=-1)
    later = np.arange(count)[None, :] > np.arange(count)[:, None]
    return moves & ~(same & later & moves[None, :]).any(axis=1)


def legal_actions(
    cells: Int[Array, "size size"], position: Int[Array, "agents 2"], target: Int[Array, "agents 2"]
) -> Bool[Array, "agents 5"]:
    """Waiting is legal; a move is if it leads to an empty cell or the agent's own target."""
    size = cells.shape[0]
    codes = 3 * np.arange(position.shape[0], dtype=np.int32) + TARGET
    around = position[:, None, :] + jnp.asarray(DIRECTIONS[1:])
    content = cells[around[..., 0], around[..., 1]]
    free = (content == 0) | (content == codes[:, None])
    done = (position == target).all(axis=-1)
    moves = free & grid.inside(around, size, size) & ~done[:, None]
    return jnp.concatenate([jnp.ones((position.shape[0], 1), bool), moves], axis=1)


def _observe(state: State) -> Observation:
    return Observation(state.grid, state.action_mask, state.step_count)


def _extras(state: State) -> dict[str, Array]:
    done = connected(state)
    is_path = (state.grid > 0) & (state.grid % 3 == PATH)
    return {
        "num_connections": done.sum(),
        "ratio_connections": done.mean(dtype=jnp.float32),
        "total_path_length": is_path.sum() + done.shape[0],
    }
