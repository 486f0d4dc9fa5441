"""Several agents each connect their own nodes by walking on one graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from trimtab.envs import specs
from trimtab.envs.protocol import (
    Environment,
    Generator,
    TimeLimitMode,
    TimeStep,
    restart,
    transition,
)
from trimtab.envs.routing.mmst_generator import Instance, SplitRandomGraph
from trimtab.errors import InputError

BLOCKED, TIED, REVISIT = -1, -2, -3
"""What became of a move that is not a first visit."""


class Observation(NamedTuple):
    """Node types (-1 free, ``2a + 1`` to be reached by agent ``a``, ``2a`` reached), the graph."""

    node_types: Int[Array, " nodes"]
    adj_matrix: Int[Array, "nodes nodes"]
    positions: Int[Array, " agents"]
    step_count: Int[Array, ""]
    action_mask: Bool[Array, "agents nodes"]


class State(NamedTuple):
    """The graph and the agents' walks.

    ``node_types`` is the agent that has to reach a node, or -1; ``closed`` the nodes that an
    agent may not enter because another one has been there; ``walks`` the nodes in order.
    """

    node_types: Int[Array, " nodes"]
    adj_matrix: Int[Array, "nodes nodes"]
    terminals: Int[Array, "agents terminals"]
    visited: Bool[Array, "agents nodes"]
    closed: Bool[Array, "agents nodes"]
    walks: Int[Array, "agents steps"]
    walk_end: Int[Array, " agents"]
    positions: Int[Array, " agents"]
    action_mask: Bool[Array, "agents nodes"]
    finished_agents: Bool[Array, " agents"]
    step_count: Int[Array, ""]
    key: Array


@dataclasses.dataclass(frozen=True)
class DenseReward:
    """Rewards by what became of an agent's move.

    Args:
        connected: the agent reached one of its nodes for the first time.
        move: any other move; also charged when the move is blocked.
        blocked: charged on top when the move is blocked.
    """

    connected: float = 10.0
    move: float = -1.0
    blocked: float = -1.0

    def __call__(self, outcome: Array, on_terminal: Array, active: Array) -> Array:
        """The sum over agents that had not finished.

        Args:
            outcome: the node entered, or one of the negative codes.
            on_terminal: whether the agent stands on one of its nodes.
            active: which agents had not finished before the step.
        """
        first = on_terminal & (outcome >= 0)
        other = self.move + jnp.where(outcome == BLOCKED, self.blocked, 0.0)
        reward = jnp.where(first, self.connected, jnp.where(outcome == TIED, 0.0, other))
        return jnp.where(active, reward, 0.0).sum()


@dataclasses.dataclass(frozen=True)
class MMST(Environment):
    """The action gives each agent the node to enter, one edge away.

    Of agents that want the same node one, drawn at random, enters it. A node that belongs to
    nobody is closed to all others once an agent has entered it. The episode terminates when
    every agent has visited all its nodes.

    Args:
        generator: makes an :class:`Instance` from a key and knows the sizes.
        reward_fn: ``(outcome, on_terminal, active) -> reward``.
        time_limit: steps of the longest episode.
        time_limit_mode: whether the limit truncates or terminates.
    """

    generator: Generator = SplitRandomGraph()
    reward_fn: Callable[[Array, Array, Array], Array] = DenseReward()
    time_limit: int = 70
    time_limit_mode: TimeLimitMode = "truncate"

    def __post_init__(self) -> None:
        if self.time_limit < 1:
            raise InputError(f"time_limit is {self.time_limit}; expected at least 1.")

    @property
    def agents(self) -> int:
        """Agents."""
        return self.generator.num_agents  # pyright: ignore[reportFunctionMemberAccess]

    @property
    def num_nodes(self) -> int:
        """Nodes."""
        return self.generator.num_nodes  # pyright: ignore[reportFunctionMemberAccess]

    @cached_property
    def observation_spec(self) -> specs.Spec:
        """Node types, graph, positions, clock and mask."""
        nodes = self.num_nodes
        return specs.nest(
            Observation,
            node_types=specs.integers((nodes,), -1, 2 * self.agents - 1),
            adj_matrix=specs.integers((nodes, nodes), 0, 1),
            positions=specs.integers((self.agents,), 0, nodes - 1),
            step_count=specs.integers((), 0, self.time_limit),
            action_mask=specs.booleans(self.agents, nodes),
        )

    @cached_property
    def action_spec(self) -> specs.MultiDiscreteArray:
        """A node for each agent."""
        return specs.MultiDiscreteArray((self.num_nodes,) * self.agents, name="action")

    def reset(self, key: Array) -> tuple[State, TimeStep]:
        """Start each agent on its first node."""
        key, graph_key = jax.random.split(key)
        instance: Instance = self.generator(graph_key)
        agents, nodes = np.arange(self.agents), self.num_nodes
        starts = instance.terminals[:, 0]
        types = jnp.full(nodes, -1, jnp.int32)
        types = types.at[instance.terminals].set(agents[:, None])
        walks = jnp.full((self.agents, self.time_limit), -1, jnp.int32)
        closed = jnp.zeros((self.agents, nodes), bool)
        state = State(
            node_types=types,
            adj_matrix=instance.adjacency.astype(jnp.int32),
            terminals=instance.terminals,
            visited=np.arange(nodes)[None, :] == starts[:, None],
            closed=closed,
            walks=walks.at[:, 0].set(starts),
            walk_end=jnp.zeros(self.agents, jnp.int32),
            positions=starts,
            action_mask=closed,
            finished_agents=jnp.zeros(self.agents, bool),
            step_count=jnp.int32(0),
            key=key,
        )
        state = state._replace(action_mask=_reachable(state))
        return state, restart(_observe(state), _extras(state))

    def step(self, state: State, action: Array) -> tuple[State, TimeStep]:
        """Move all agents; ties are broken in a random order."""
        key, order_key = jax.random.split(state.key)
        order = jax.random.permutation(order_key, self.agents)
        return self.step_with(state._replace(key=key), action, order)

    def step_with(self, state: State, action: Array, draw: Array) -> tuple[State, TimeStep]:
        """As :meth:`step`, with the order in which agents choose given."""
        agents = np.arange(self.agents)
        here = state.positions
        open_edge = (state.adj_matrix[here, action] > 0) & ~state.closed[agents, action]
        node = jnp.where(open_edge, action, -1).astype(jnp.int32)
        turn = jnp.argsort(draw)  # turn[a]: when agent a chooses
        rival = (node[:, None] == node[None, :]) & open_edge[None, :]
        taken = (rival & (turn[None, :] < turn[:, None])).any(axis=1) & open_edge
        outcome = jnp.where(open_edge, jnp.where(taken, TIED, node), BLOCKED)
        # A blocked agent looks up node -1, the last one, as the published suite does.
        outcome = jnp.where(state.visited[agents, node], REVISIT, outcome)
        outcome = jnp.where(state.finished_agents, BLOCKED, outcome)
        moves = (outcome != BLOCKED) & (outcome != TIED) & open_edge
        positions = jnp.where(moves, node, here)
        walk_end = state.walk_end + moves
        written = jnp.where(moves, walk_end, self.time_limit)
        entered = moves[:, None] & (np.arange(self.num_nodes)[None, :] == node[:, None])
        state = state._replace(
            visited=state.visited | entered,
            closed=_close(state, positions),
            walks=state.walks.at[agents, written].set(node, mode="drop"),
            walk_end=walk_end,
            positions=positions,
        )
        on_terminal = state.node_types[positions] == agents
        reward = self.reward_fn(outcome, on_terminal, ~state.finished_agents)
        state = state._replace(
            action_mask=_reachable(state),  # agents that finish now still show their moves
            finished_agents=_connections(state) == state.terminals.shape[1],
            step_count=state.step_count + 1,
        )
        return state, transition(
            _observe(state),
            reward,
            terminated=state.finished_agents.all(),
            at_limit=state.step_count >= self.time_limit,
            mode=self.time_limit_mode,
            extras=_extras(state),
        )


def _close(state: State, positions: Array) -> Array:
    """Close the free nodes on which agents stand to all other agents."""
    agents, nodes = state.closed.shape
    free = state.node_types[positions] == -1
    stands = (np.arange(nodes)[None, :] == positions[:, None]) & free[:, None]
    others = ~np.eye(agents, dtype=bool)
    return state.closed | (others[:, :, None] & stands[None, :, :]).any(axis=1)


def _reachable(state: State) -> Array:
    """Where each agent may go next."""
    edges = state.adj_matrix[state.positions] > 0
    return edges & ~state.closed & ~state.finished_agents[:, None]


def _connections(state: State) -> Int[Array, " agents"]:
    """How many of its nodes each agent has visited."""
    agents = np.arange(state.terminals.shape[0])[:, None]
    return state.visited[agents, state.terminals].sum(axis=1)


def _observe(state: State) -> Observation:
    types = jnp.where(state.node_types >= 0, 2 * state.node_types + 1, -1)
    for agent in range(state.visited.shape[0]):
        types = jnp.where(state.visited[agent], 2 * agent, types)
    return Observation(
        types, state.adj_matrix, state.positions, state.step_count, state.action_mask
    )


def _extras(state: State) -> dict[str, Array]:
    extra = (_connections(state) - 1).astype(jnp.float32)
    return {
        "num_connections": extra.sum(),
        "ratio_connections": (extra / (state.terminals.shape[1] - 1)).mean(),
    }
