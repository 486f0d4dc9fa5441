"""Colour the nodes of a graph one after another with few colours."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from trimtab.envs import specs
from trimtab.envs.protocol import Environment, Generator, TimeStep, restart, transition
from trimtab.errors import InputError


class Observation(NamedTuple):
    """The graph, the colours so far (-1: none) and the colours allowed for the current node."""

    adj_matrix: Bool[Array, "nodes nodes"]
    colors: Int[Array, " nodes"]
    current_node_index: Int[Array, ""]
    action_mask: Bool[Array, " nodes"]


class State(NamedTuple):
    """The graph and its partial colouring."""

    adj_matrix: Bool[Array, "nodes nodes"]
    colors: Int[Array, " nodes"]
    current_node_index: Int[Array, ""]
    action_mask: Bool[Array, " nodes"]
    key: Array


@dataclasses.dataclass(frozen=True)
class RandomGraph:
    """Each pair of nodes is joined independently (the Erdős-Rényi model).

    Args:
        num_nodes: nodes of the graph, which is also the number of colours.
        edge_probability: chance of each edge, strictly between 0 and 1.
    """

    num_nodes: int = 20
    edge_probability: float = 0.8

    def __post_init__(self) -> None:
        if not 0.0 < self.edge_probability < 1.0 or self.num_nodes < 1:
            raise InputError(
                f"num_nodes={self.num_nodes}, edge_probability={self.edge_probability}: expected "
                "at least one node and a probability strictly between 0 and 1."
            )

    def __call__(self, key: Array) -> Bool[Array, "nodes nodes"]:
        """Draw a symmetric adjacency matrix without loops."""
        below, left = np.tril_indices(self.num_nodes, -1)
        edges = jax.random.bernoulli(key, self.edge_probability, below.shape)
        position = np.zeros((self.num_nodes, self.num_nodes), np.int32)
        position[below, left] = position[left, below] = np.arange(below.size)
        loops = np.eye(self.num_nodes, dtype=bool)
        return edges[position] & ~loops if below.size else jnp.zeros((1, 1), bool)


@dataclasses.dataclass(frozen=True)
class GraphColoring(Environment):
    """The action is the colour of the current node; nodes are taken in order.

    The reward is 0 until all nodes are coloured, then minus the number of distinct colours.
    A colour that a neighbour already has terminates the episode with reward ``-num_nodes``.

    Args:
        generator: makes the adjacency matrix from a key and knows ``num_nodes``.
    """

    generator: Generator = RandomGraph()

    @property
    def num_nodes(self) -> int:
        """Nodes of the graph, and colours."""
        return self.generator.num_nodes  # pyright: ignore[reportFunctionMemberAccess]

    @cached_property
    def observation_spec(self) -> specs.Spec:
        """Graph, colours, current node and mask."""
        nodes = self.num_nodes
        return specs.nest(
            Observation,
            adj_matrix=specs.booleans(nodes, nodes),
            colors=specs.integers((nodes,), -1, nodes - 1),
            current_node_index=specs.integers((), 0, nodes - 1),
            action_mask=specs.booleans(nodes),
        )

    @cached_property
    def action_spec(self) -> specs.DiscreteArray:
        """A colour."""
        return specs.DiscreteArray(self.num_nodes, name="action")

    def reset(self, key: Array) -> tuple[State, TimeStep]:
        """Start with an uncoloured graph at node 0."""
        key, graph_key = jax.random.split(key)
        nodes = self.num_nodes
        colors = jnp.full(nodes, -1, jnp.int32)
        graph = self.generator(graph_key)
        state = State(graph, colors, jnp.int32(0), jnp.ones(nodes, bool), key)
        return state, restart(_observe(state))

    def step(self, state: State, action: Array) -> tuple[State, TimeStep]:
        """Colour the current node and go to the next."""
        nodes = self.num_nodes
        legal = state.action_mask[action]
        colors = state.colors.at[state.current_node_index].set(action.astype(jnp.int32))
        following = (state.current_node_index + 1) % nodes
        palette = jnp.arange(nodes)
        wears = colors[:, None] == palette[None, :]
        mask = ~(wears & state.adj_matrix[following][:, None]).any(axis=0)
        finished = (colors >= 0).all()
        distinct = wears.any(axis=0).sum().astype(jnp.float32)
        reward = jnp.where(finished, -distinct, 0.0)
        reward = jnp.where(legal, reward, -float(nodes))
        state = State(state.adj_matrix, colors, following, mask, state.key)
        return state, transition(_observe(state), reward, terminated=finished | ~legal)


def _observe(state: State) -> Observation:
    return Observation(state.adj_matrix, state.colors, state.current_node_index, state.action_mask)
