"""Actor-critic networks, one for each form of observation.

All take an unbatched observation and return the policy head and the value. Grids go through
convolutions, sets through attention with a pointer to the chosen member, pairs of sets through
self and cross attention with a product of the two, agents through a shared perceptron.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from trimtab.envs import Environment
from trimtab.envs.specs import DiscreteArray, MultiDiscreteArray
from trimtab.errors import UnsupportedError
from trimtab.train.reinforcement.features import VIEWS, AgentsView, GridView, PairView, SetView
from trimtab.train.reinforcement.layers import Attention, Convolutions, Perceptron

_PER_CELL = ("Minesweeper", "Sudoku")
_SMALL = 0.01


class GridNetwork(eqx.Module):
    """Convolutions, then a perceptron over everything or over each cell."""

    torso: Convolutions
    policy: Perceptron
    value: Perceptron
    per_cell: bool = eqx.field(static=True)
    logits: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self, view: GridView, logits: tuple[int, ...], per_cell: bool, width: int, *, key: Array
    ):
        torso_key, policy_key, value_key = jax.random.split(key, 3)
        rows, columns, channels = view.planes.shape
        facts = view.facts.shape[0]
        self.torso = Convolutions((channels, width, width), key=torso_key)
        whole = rows * columns * width + facts
        hidden = 4 * width
        if per_cell:
            each = width + facts + width
            outputs = int(np.prod(logits)) // (rows * columns)
            self.policy = Perceptron((each, 2 * width, outputs), key=policy_key, scale=_SMALL)
        else:
            sizes = (whole, hidden, int(np.prod(logits)))
            self.policy = Perceptron(sizes, key=policy_key, scale=_SMALL)
        self.value = Perceptron((whole, hidden, 1), key=value_key)
        self.per_cell, self.logits = per_cell, logits

    def __call__(self, view: GridView) -> tuple[Array, Array]:
        """Logits and value."""
        cells = self.torso(view.planes)
        flat = jnp.concatenate([cells.reshape(-1), view.facts])
        value = self.value(flat)[0]
        if not self.per_cell:
            return self.policy(flat).reshape(self.logits), value
        rows, columns, _width = cells.shape
        around = jnp.concatenate([cells.mean(axis=(0, 1)), view.facts])
        around = jnp.broadcast_to(around, (rows, columns, around.shape[0]))
        each = jnp.concatenate([cells, around], axis=-1).reshape(rows * columns, -1)
        return jax.vmap(self.policy)(each).reshape(self.logits), value


class SetNetwork(eqx.Module):
    """Self attention, then a pointer: how well each member answers the facts."""

    embed: Perceptron
    question: Perceptron
    blocks: tuple[Attention, ...]
    value: Perceptron

    def __init__(self, view: SetView, width: int, depth: int, *, key: Array):
        keys = jax.random.split(key, depth + 3)
        self.embed = Perceptron((view.tokens.shape[1], width), key=keys[0])
        self.question = Perceptron((view.facts.shape[0] + width, width, width), key=keys[1])
        self.blocks = tuple(Attention(width, 4, key=each) for each in keys[3:])
        self.value = Perceptron((2 * width, width, 1), key=keys[2])

    def __call__(self, view: SetView) -> tuple[Array, Array]:
        """A logit for each member, and the value."""
        tokens = jax.vmap(self.embed)(view.tokens)
        for block in self.blocks:
            tokens = block(tokens, tokens, view.present[None, :])
        weight = view.present / jnp.maximum(view.present.sum(), 1)
        mean = weight @ tokens
        question = self.question(jnp.concatenate([view.facts, mean]))
        logits = 10.0 * jnp.tanh(tokens @ question / question.shape[0] ** 0.5 / 4)
        value = self.value(jnp.concatenate([mean, jax.nn.relu(question)]))[0]
        return logits, value


class PairNetwork(eqx.Module):
    """Self and cross attention of two sets; the product of their members gives the logits."""

    embed: tuple[Perceptron, Perceptron]
    blocks: tuple[tuple[Attention, Attention], ...]
    heads: tuple[Perceptron, Perceptron]
    value: Perceptron
    logits: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self, view: PairView, logits: tuple[int, ...], width: int, depth: int, *, key: Array
    ):
        keys = jax.random.split(key, 5 + 2 * depth)
        facts = view.facts.shape[0]
        left, right = view.left.shape[1] + facts, view.right.shape[1] + facts
        self.embed = (
            Perceptron((left, width, width), key=keys[0]),
            Perceptron((right, width, width), key=keys[1]),
        )
        self.blocks = tuple(
            (Attention(width, 4, key=keys[5 + 2 * i]), Attention(width, 4, key=keys[6 + 2 * i]))
            for i in range(depth)
        )
        self.heads = (
            Perceptron((width, width), key=keys[2]),
            Perceptron((width, width), key=keys[3], scale=_SMALL),
        )
        self.value = Perceptron((2 * width + facts, width, 1), key=keys[4])
        self.logits = logits

    def __call__(self, view: PairView) -> tuple[Array, Array]:
        """A logit for each pair, and the value."""

        def prepare(embed: Perceptron, tokens: Array) -> Array:
            facts = jnp.broadcast_to(view.facts, (tokens.shape[0], view.facts.shape[0]))
            return jax.vmap(embed)(jnp.concatenate([tokens, facts], axis=1))

        left, right = prepare(self.embed[0], view.left), prepare(self.embed[1], view.right)
        for to_left, to_right in self.blocks:
            both = jnp.concatenate([left, right]) if left.shape[0] * right.shape[0] < 4096 else left
            linked = None
            if both.shape[0] != left.shape[0]:
                own = jnp.ones((left.shape[0], left.shape[0]), bool)
                linked = jnp.concatenate([own, view.linked], axis=1)
            left = to_left(left, both, linked)
            right = to_right(right, left)
        head_left, head_right = jax.vmap(self.heads[0])(left), jax.vmap(self.heads[1])(right)
        logits = (head_left @ head_right.T).reshape(self.logits)
        pooled = jnp.concatenate([left.mean(axis=0), right.mean(axis=0), view.facts])
        return logits, self.value(pooled)[0]


class AgentsNetwork(eqx.Module):
    """A perceptron for each agent with shared weights; the value sees the mean of all agents."""

    torso: Perceptron
    policy: Perceptron
    value: Perceptron
    log_deviation: Array | None
    logits: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self, view: AgentsView, logits: tuple[int, ...], real: bool, width: int, *, key: Array
    ):
        torso_key, policy_key, value_key = jax.random.split(key, 3)
        agents, features = view.agents.shape
        hidden = 4 * width
        self.torso = Perceptron((features, hidden, hidden), key=torso_key, active=True)
        each = int(np.prod(logits)) // agents
        self.policy = Perceptron((2 * hidden, hidden, each), key=policy_key, scale=_SMALL)
        self.value = Perceptron((hidden, hidden, 1), key=value_key)
        self.log_deviation = jnp.full(logits, -0.5) if real else None
        self.logits = logits

    def __call__(self, view: AgentsView) -> tuple[Any, Array]:
        """Logits (or mean and deviation) of every agent, and the value."""
        agents = jax.vmap(self.torso)(view.agents)
        mean = agents.mean(axis=0)
        both = jnp.concatenate([agents, jnp.broadcast_to(mean, agents.shape)], axis=1)
        head = jax.vmap(self.policy)(both).reshape(self.logits)
        value = self.value(mean)[0]
        if self.log_deviation is None:
            return head, value
        return (head, self.log_deviation), value


class ActorCritic(eqx.Module):
    """The view of an environment's observations, and the network for it."""

    network: GridNetwork | SetNetwork | PairNetwork | AgentsNetwork
    env: Environment = eqx.field(static=True)

    def __call__(self, observation: Any) -> tuple[Any, Array]:
        """Policy head and value of one observation."""
        inner = self.env.unwrapped
        return self.network(VIEWS[type(inner).__name__](inner, observation))  # pyright: ignore


def make_network(env: Environment, *, key: Array, width: int = 32, depth: int = 2) -> ActorCritic:
    """Build the network that fits an environment.

    Args:
        env: one of the environments of :mod:`trimtab.envs`, wrapped or not.
        key: a typed random key.
        width: channels and token width; perceptrons are four times as wide.
        depth: attention blocks.

    Raises:
        UnsupportedError: there is no view of this environment.
    """
    inner = env.unwrapped
    name = type(inner).__name__
    if name not in VIEWS:
        raise UnsupportedError(
            f"There is no view of {name} for networks; add one to "
            "trimtab.train.reinforcement.features.VIEWS."
        )
    _, timestep = jax.eval_shape(inner.reset, jax.random.key(0))
    view = jax.eval_shape(lambda o: VIEWS[name](inner, o), timestep.observation)
    logits = _logits_shape(env.action_spec, getattr(timestep.observation, "action_mask", None))
    if isinstance(view, GridView):
        network = GridNetwork(view, logits, name in _PER_CELL, width, key=key)
    elif isinstance(view, SetView):
        network = SetNetwork(view, 2 * width, depth, key=key)
    elif isinstance(view, PairView):
        network = PairNetwork(view, logits, 2 * width, depth, key=key)
    else:
        real = not isinstance(env.action_spec, DiscreteArray | MultiDiscreteArray)
        network = AgentsNetwork(view, logits, real, width, key=key)
    return ActorCritic(network, inner)


def _logits_shape(spec: Any, mask: Any) -> tuple[int, ...]:
    if mask is not None:
        return tuple(mask.shape)
    if isinstance(spec, DiscreteArray):
        return (spec.num_values,)
    if isinstance(spec, MultiDiscreteArray):
        return spec.num_values
    return tuple(spec.shape)
