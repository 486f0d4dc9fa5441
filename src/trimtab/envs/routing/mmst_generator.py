"""Connected random graphs whose nodes are split among agents."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from trimtab.envs.sampling import below, choose_distinct, spend_uniforms
from trimtab.errors import InputError


class Instance(NamedTuple):
    """The graph, and the nodes that each agent has to connect (it starts on the first)."""

    adjacency: Bool[Array, "nodes nodes"]
    terminals: Int[Array, "agents terminals"]


class _Growing(NamedTuple):
    """A graph under construction; ``joined`` has the ordered pairs that count as taken."""

    adjacency: Array
    joined: Array
    degree: Array
    edges: Array


@dataclasses.dataclass(frozen=True)
class SplitRandomGraph:
    """Grow a random tree and some more edges in each agent's group of nodes, then join them.

    An edge is refused if the same ordered pair is taken or an end already has more than
    ``max_degree`` edges. The reverse of a taken pair counts as new, so the graph may have a few
    edges fewer than ``num_edges``, as in the published suite.

    Args:
        num_nodes: nodes.
        num_edges: edges, counted as above.
        max_degree: see above.
        num_agents: agents, with consecutive groups of nodes of equal size (or one more).
        num_nodes_per_agent: nodes that an agent has to connect.
    """

    num_nodes: int = 36
    num_edges: int = 72
    max_degree: int = 5
    num_agents: int = 3
    num_nodes_per_agent: int = 4

    def __post_init__(self) -> None:
        smallest = self.num_nodes // max(self.num_agents, 1)
        most = self.num_nodes * (self.num_nodes - 1) // 2
        if self.num_agents < 1 or not 2 <= self.num_nodes_per_agent <= smallest:
            raise InputError(
                f"{self.num_agents} agents with {self.num_nodes_per_agent} nodes each need groups "
                f"of that size, but {self.num_nodes} nodes give groups of {smallest}."
            )
        if not self.num_nodes - 1 <= self.num_edges <= most:
            raise InputError(
                f"num_edges is {self.num_edges}; expected {self.num_nodes - 1} to {most}."
            )

    @property
    def groups(self) -> list[np.ndarray]:
        """The nodes of each agent."""
        return np.array_split(np.arange(self.num_nodes, dtype=np.int32), self.num_agents)

    def __call__(self, key: Array) -> Instance:
        """Draw a graph."""
        graph_key, terminal_key = jax.random.split(key)
        graph = self._grow(graph_key)
        terminals = [
            group[0] + choose_distinct(each, len(group), self.num_nodes_per_agent)
            for group, each in zip(self.groups, jax.random.split(terminal_key, self.num_agents))
        ]
        return Instance(graph.adjacency, jnp.stack(terminals))

    def _grow(self, key: Array) -> _Growing:
        nodes = self.num_nodes
        nothing = jnp.zeros((nodes, nodes), bool)
        graph = _Growing(nothing, nothing, jnp.zeros(nodes, jnp.int32), jnp.int32(0))
        share = [
            len(part) for part in np.array_split(np.arange(self.num_edges // 2), self.num_agents)
        ]
        sizes = [
            min(len(group) * (len(group) - 1) // 2, max(len(group) - 1, part))
            for group, part in zip(self.groups, share)
        ]
        rest = self.num_edges - sum(sizes)
        weights = np.arange(1, self.num_agents)
        cuts = np.cumsum(rest * weights / max(weights.sum(), 1)).astype(int)
        merges = np.diff([0, *cuts[:-1], rest]) if self.num_agents > 1 else np.array([], int)
        total = 0
        keys = jax.random.split(key, 3 * self.num_agents).reshape(self.num_agents, 3)
        for index, group in enumerate(self.groups):
            low, count = int(group[0]), len(group)
            graph = _random_tree(keys[index, 0], graph, low, count)
            total += sizes[index]
            graph = _random_edges(keys[index, 1], graph, low, count, total, self.max_degree)
            if index:
                graph = _bridge(keys[index, 2], graph, low, count, self.max_degree)
                total += int(merges[index - 1])
                again = jax.random.fold_in(keys[index, 2], 1)
                graph = _random_edges(again, graph, 0, low + count, total, self.max_degree)
        return graph


def _add(graph: _Growing, first: Array, second: Array, wanted: Array) -> _Growing:
    """Add an edge where wanted."""
    row, column = jnp.where(wanted, first, graph.degree.shape[0]), second
    return _Growing(
        graph.adjacency.at[row, column]
        .set(True, mode="drop")
        .at[jnp.where(wanted, second, graph.degree.shape[0]), first]
        .set(True, mode="drop"),
        graph.joined.at[row, column].set(True, mode="drop"),
        graph.degree.at[row]
        .add(1, mode="drop")
        .at[jnp.where(wanted, second, graph.degree.shape[0])]
        .add(1, mode="drop"),
        graph.edges + wanted,
    )


def _acceptable(graph: _Growing, first: Array, second: Array, max_degree: int) -> Array:
    crowded = (graph.degree[first] > max_degree) | (graph.degree[second] > max_degree)
    return ~graph.joined[first, second] & ~crowded


def _random_tree(key: Array, graph: _Growing, low: int, count: int) -> _Growing:
    """A random walk over a group; the first step to each node is an edge of the tree.

    The walk only needs its steps to new nodes: the node before such a step is uniform over the
    group, or the node just reached, which jumping uniformly at every step gives in turn.
    """
    start_key, walk_key = jax.random.split(key)
    start = jax.random.randint(start_key, (), 0, max(count - 1, 1)).astype(jnp.int32)
    index = np.arange(count)

    def more(carry: tuple) -> Array:
        return ~carry[1].all()

    def walk(carry: tuple) -> tuple:
        graph, seen, here, key = carry
        key, uniforms = spend_uniforms(key, 1)
        there = below(uniforms[0], count)
        low_end, high_end = jnp.minimum(here, there) + low, jnp.maximum(here, there) + low
        graph = _add(graph, low_end, high_end, ~seen[there])
        return graph, seen | (index == there), there, key

    return jax.lax.while_loop(more, walk, (graph, index == start, start, walk_key))[0]


def _random_edges(
    key: Array, graph: _Growing, low: int, count: int, total: int, max_degree: int
) -> _Growing:
    """Add uniform pairs of nodes until the graph has ``total`` edges."""

    def more(carry: tuple) -> Array:
        return carry[0].edges < total

    def add(carry: tuple) -> tuple:
        graph, key = carry
        key, uniforms = spend_uniforms(key, 2)
        first = below(uniforms[0], count)
        second = below(uniforms[1], count - 1)
        second = second + (second >= first)
        first, second = first + low, second + low
        return _add(graph, first, second, _acceptable(graph, first, second, max_degree)), key

    return jax.lax.while_loop(more, add, (graph, key))[0]


def _bridge(key: Array, graph: _Growing, low: int, count: int, max_degree: int) -> _Growing:
    """One edge between the nodes before a group and the group."""
    first_key, second_key = jax.random.split(key)
    first = jax.random.randint(first_key, (), 0, low)
    second = low + jax.random.randint(second_key, (), 0, count)
    return _add(graph, first, second, _acceptable(graph, first, second, max_degree))
