"""Boards of pairs to connect: from random walks, hence solvable, or uniform."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from trimtab.envs import grid
from trimtab.envs.sampling import choose_distinct, choose_true_from
from trimtab.errors import InputError


class Board(NamedTuple):
    """Where each wire starts and should end."""

    start: Int[Array, "agents 2"]
    target: Int[Array, "agents 2"]


def _check(grid_size: int, num_agents: int, cells_per_agent: int) -> None:
    if num_agents < 1 or num_agents * cells_per_agent > grid_size * grid_size:
        raise InputError(
            f"{num_agents} wires do not fit on a board of {grid_size} x {grid_size} cells."
        )


@dataclasses.dataclass(frozen=True)
class RandomWalks:
    """All wires walk together, away from their starts; where they stop are the targets.

    Args:
        grid_size: cells per side.
        num_agents: wires.
        temperature: low values make the walks straighter.
        max_steps: bound of a walk's length; ``1.5 * grid_size`` when None.
    """

    grid_size: int = 10
    num_agents: int = 10
    temperature: float = 1.0
    max_steps: int | None = None

    def __post_init__(self) -> None:
        _check(self.grid_size, self.num_agents, 2)

    def __call__(self, key: Array) -> Board:
        """Draw a board."""
        return self.with_solution(key)[0]

    def with_solution(self, key: Array) -> tuple[Board, Int[Array, "steps agents 2"]]:
        """Draw a board and the positions of the walks that connect it, step by step."""
        start_key, walk_key = jax.random.split(key)
        occupied, start, position = _first_moves(start_key, self.grid_size, self.num_agents)
        most = int(1.5 * self.grid_size) if self.max_steps is None else self.max_steps
        uniforms = jax.random.uniform(walk_key, (max(most - 1, 0), self.num_agents))
        trail = jnp.broadcast_to(position, (max(most, 1), *position.shape))

        def more(carry: tuple[Array, ...]) -> Array:
            occupied, position, _, count = carry
            return _free_around(occupied, position).any() & (count < most)

        def walk(carry: tuple[Array, ...]) -> tuple[Array, ...]:
            occupied, position, trail, count = carry
            free = _free_around(occupied, position)
            away = (position - start).astype(jnp.float32) @ grid.MOVES.T.astype(np.float32)
            weights = jnp.where(free, jax.nn.softmax(away / self.temperature, axis=1), 0.0)
            reach = jnp.cumsum(weights, axis=1)
            direction = jnp.argmax(
                (reach > uniforms[count - 1][:, None] * reach[:, -1:]) & free, axis=1
            )
            occupied, position = _advance(occupied, position, direction, free.any(axis=1))
            later = np.arange(trail.shape[0])[:, None, None] >= count
            return occupied, position, jnp.where(later, position, trail), count + 1

        carry = (occupied, position, trail, jnp.int32(1))
        _, position, trail, _ = jax.lax.while_loop(more, walk, carry)
        return Board(start, position), trail


@dataclasses.dataclass(frozen=True)
class SelfAvoidingWalks:
    """Unbiased walks that touch their own wire in at most one cell, until none can go on.

    Args:
        grid_size: cells per side.
        num_agents: wires.
    """

    grid_size: int = 10
    num_agents: int = 10

    def __post_init__(self) -> None:
        _check(self.grid_size, self.num_agents, 2)

    def __call__(self, key: Array) -> Board:
        """Draw a board."""
        start_key, walk_key = jax.random.split(key)
        _occupied, start, position = _first_moves(start_key, self.grid_size, self.num_agents)
        agents = np.arange(self.num_agents, dtype=np.int32)
        size = self.grid_size
        # Which wire a cell belongs to, from 1, in a frame of zeros.
        owner = jnp.zeros((size, size), jnp.int32)
        owner = owner.at[start[:, 0], start[:, 1]].set(agents + 1)
        owner = owner.at[position[:, 0], position[:, 1]].set(agents + 1)

        def allowed(owner: Array, position: Array) -> Array:
            cells = position[:, None] + jnp.asarray(grid.MOVES)
            framed = jnp.pad(owner, 2)
            beyond = cells[:, :, None] + jnp.asarray(grid.MOVES) + 2
            own = framed[beyond[..., 0], beyond[..., 1]] == agents[:, None, None] + 1
            return _free_around(owner > 0, position) & (own.sum(axis=-1) <= 1)

        def more(carry: tuple[Array, ...]) -> Array:
            return allowed(carry[0], carry[1]).any()

        def walk(carry: tuple[Array, ...]) -> tuple[Array, ...]:
            owner, position, key = carry
            key, step_key = jax.random.split(key)
            free = allowed(owner, position)
            uniforms = jax.random.uniform(step_key, (self.num_agents,))
            direction = jax.vmap(choose_true_from)(uniforms, free)
            _, position = _advance(owner > 0, position, direction, free.any(axis=1))
            owner = owner.at[position[:, 0], position[:, 1]].set(agents + 1)
            return owner, position, key

        _, position, _ = jax.lax.while_loop(more, walk, (owner, position, walk_key))
        return Board(start, position)


@dataclasses.dataclass(frozen=True)
class UniformPairs:
    """Distinct uniform cells; some boards cannot be solved.

    Args:
        grid_size: cells per side.
        num_agents: wires.
    """

    grid_size: int = 10
    num_agents: int = 10

    def __post_init__(self) -> None:
        _check(self.grid_size, self.num_agents, 2)

    def __call__(self, key: Array) -> Board:
        """Draw a board."""
        cells = choose_distinct(key, self.grid_size**2, 2 * self.num_agents)
        cells = grid.unflat(cells, self.grid_size).reshape(self.num_agents, 2, 2)
        return Board(cells[:, 0], cells[:, 1])


def _free_around(occupied: Bool[Array, "size size"], position: Int[Array, "agents 2"]) -> Array:
    """Which neighbours are inside and empty."""
    size = occupied.shape[0]
    around = position[:, None] + jnp.asarray(grid.MOVES)
    return grid.inside(around, size, size) & ~occupied[around[..., 0], around[..., 1]]


def _first_moves(key: Array, size: int, agents: int) -> tuple[Array, Array, Array]:
    """Start each wire in turn on a cell with a free neighbour, and move it there."""
    uniforms = jax.random.uniform(key, (agents, 2))

    def place(index: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        occupied, start, position = carry
        free = jnp.pad(~occupied, 1)
        roomy = free[:-2, 1:-1] | free[2:, 1:-1] | free[1:-1, :-2] | free[1:-1, 2:]
        cell = choose_true_from(uniforms[index, 0], (roomy & ~occupied).reshape(-1))
        cell = grid.unflat(cell, size)
        occupied = occupied.at[cell[0], cell[1]].set(True)
        open_directions = _free_around(occupied, cell[None])[0]
        direction = choose_true_from(uniforms[index, 1], open_directions)
        first = jnp.where(open_directions.any(), grid.moved(cell, direction), cell)
        occupied = occupied.at[first[0], first[1]].set(True)
        return occupied, start.at[index].set(cell), position.at[index].set(first)

    none = jnp.zeros((agents, 2), jnp.int32)
    return jax.lax.fori_loop(0, agents, place, (jnp.zeros((size, size), bool), none, none))


def _advance(
    occupied: Array, position: Array, direction: Array, moves: Array
) -> tuple[Array, Array]:
    """Move all agents; of several that want one cell the last gets it."""
    wanted = position + jnp.asarray(grid.MOVES)[direction]
    same = (wanted[:, None] == wanted[None, :]).all(axis=-1)
    index = np.arange(position.shape[0])
    rival = same & (index[None, :] > index[:, None]) & moves[None, :]
    position = jnp.where((moves & ~rival.any(axis=1))[:, None], wanted, position)
    return occupied.at[position[:, 0], position[:, 1]].set(True), position
