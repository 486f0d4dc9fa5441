"""Batched random episodes of every environment, compiled once a test session."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from trimtab.envs import Batch, make, sample_action

LANES, STEPS = 6, 40

IDS = (
    "Game2048-v1",
    "GraphColoring-v1",
    "Minesweeper-v0",
    "RubiksCube-v0",
    "RubiksCube-partly-scrambled-v0",
    "SlidingTilePuzzle-v0",
    "Sudoku-v0",
    "Sudoku-very-easy-v0",
    "BinPack-v2",
    "FlatPack-v0",
    "JobShop-v0",
    "Knapsack-v1",
    "Tetris-v0",
    "Cleaner-v0",
    "Connector-v3",
    "CVRP-v1",
    "LevelBasedForaging-v0",
    "Maze-v0",
    "MMST-v0",
    "MultiCVRP-v0",
    "PacMan-v1",
    "RobotWarehouse-v0",
    "Snake-v1",
    "Sokoban-v0",
    "TSP-v1",
    "SearchAndRescue-v0",
)
"""The twenty-six published ids."""


class Rollout(NamedTuple):
    """Arrays of shape ``(steps, lanes, ...)``; ``seen`` is what each action was chosen from.

    ``before`` and ``after`` are the states around each step, ``after`` being that before a reset.
    """

    before: Any
    seen: Any
    action: Any
    after: Any
    timestep: Any


@functools.cache
def environment(id: str) -> Any:
    """The environment of an id, built once."""
    return make(id)


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def _roll(env: Any, key: Any, lanes: int, steps: int) -> Rollout:
    batch = Batch(env, auto_reset="none")
    resetting = Batch(env, lanes_at_once=2)
    start_key, action_key = jax.random.split(key)
    state, timestep = batch.reset(jax.random.split(start_key, lanes))

    def advance(carry: Any, step_key: Any) -> Any:
        state, seen = carry
        mask = getattr(seen, "action_mask", None)
        keys = jax.random.split(step_key, lanes)
        draw = functools.partial(sample_action, spec=env.action_spec)
        if mask is None:
            action = jax.vmap(draw)(keys)
        else:
            action = jax.vmap(lambda k, m: draw(k, mask=m))(keys, mask)
        after, timestep = batch.step(state, action)
        following, observation = resetting._renew_lazily(after, timestep.observation, timestep.last)
        return (following, observation), Rollout(state, seen, action, after, timestep)

    keys = jax.random.split(action_key, steps)
    return jax.lax.scan(advance, (state, timestep.observation), keys)[1]


def roll(id: str, seed: int = 0, lanes: int = LANES, steps: int = STEPS) -> Rollout:
    """Random legal play with lazy resets; the same seed gives the same arrays."""
    rollout = _roll(environment(id), jax.random.key(seed), lanes, steps)
    return jax.tree.map(_to_numpy, rollout)


def _to_numpy(leaf: Any) -> np.ndarray:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def pick(tree: Any, *index: int) -> Any:
    """One entry of stacked arrays."""
    return jax.tree.map(lambda leaf: leaf[index], tree)
