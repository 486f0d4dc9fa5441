"""Eat all pellets of a maze while four ghosts hunt."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from trimtab.envs import specs
from trimtab.envs.protocol import Environment, TimeLimitMode, TimeStep, restart, transition
from trimtab.envs.routing.pac_man_map import DEFAULT_MAP, MapTables, PacManMap
from trimtab.envs.sampling import choose_true_from, spend_uniforms

UP, LEFT, DOWN, RIGHT, STAY = range(5)
PLAYER_MOVES = np.array([(-1, 0), (0, -1), (1, 0), (0, 1), (0, 0)], np.int32)
"""Row and column steps of the player's actions."""
GHOST_MOVES = np.array([(0, -1), (-1, 0), (0, 1), (1, 0), (0, 0)], np.int32)
"""Row and column steps of ghosts: left, up, right, down, none."""
PELLET, POWER_UP, GHOST = 10, 50, 200
FRIGHT_STEPS = 30


class Position(NamedTuple):
    """A cell: ``x`` is its row, ``y`` its column."""

    x: Int[Array, ""]
    y: Int[Array, ""]


class Observation(NamedTuple):
    """The maze (1 open) and everything in it; ghosts, power-ups and pellets as (column, row)."""

    grid: Int[Array, "rows columns"]
    player_locations: Position
    ghost_locations: Int[Array, "4 2"]
    power_up_locations: Int[Array, "power_ups 2"]
    frightened_state_time: Int[Array, ""]
    pellet_locations: Int[Array, "pellets 2"]
    action_mask: Bool[Array, " 5"]
    score: Int[Array, ""]


class State(NamedTuple):
    """All cells here are ``(row, column)``."""

    player: Int[Array, " 2"]
    ghosts: Int[Array, "4 2"]
    previous_ghosts: Int[Array, "4 2"]
    ghost_actions: Int[Array, " 4"]
    ghost_starts: Int[Array, " 4"]
    ghost_eaten: Bool[Array, " 4"]
    pellets: Bool[Array, " pellets"]
    power_ups: Bool[Array, " power_ups"]
    pellets_left: Int[Array, ""]
    frightened_state_time: Int[Array, ""]
    dead: Bool[Array, ""]
    score: Int[Array, ""]
    step_count: Int[Array, ""]
    key: Array


@dataclasses.dataclass(frozen=True)
class PacMan(Environment):
    """Move up, left, down or right (actions 0 to 3), or stay (4).

    A pellet gives 10, a power-up 50, and each ghost, the first time it is caught while
    frightened, 200. The episode terminates when a ghost catches the player and when all pellets
    are eaten.

    Args:
        map: the maze and where everything starts.
        time_limit: steps of the longest episode.
        time_limit_mode: whether the limit truncates or terminates.
        faithful: aim the second ghost and the frightened ones at cells whose row and column are
            exchanged, and let a caught ghost count once an episode, as the published suite
            does; otherwise aim at the cells meant, and let ghosts count again after each
            power-up.
    """

    map: PacManMap = DEFAULT_MAP
    time_limit: int = 1000
    time_limit_mode: TimeLimitMode = "truncate"
    faithful: bool = True

    @cached_property
    def tables(self) -> MapTables:
        """The map as arrays."""
        return self.map.tables()

    @cached_property
    def observation_spec(self) -> specs.Spec:
        """Maze, locations, clocks and mask."""
        rows, columns = self.tables.open.shape
        side = max(rows, columns) - 1
        most = PELLET * len(self.tables.pellets) + POWER_UP * len(self.tables.power_ups)
        most += 4 * GHOST * (1 if self.faithful else len(self.tables.power_ups))
        return specs.nest(
            Observation,
            grid=specs.integers((rows, columns), 0, 1),
            player_locations=specs.nest(
                Position,
                x=specs.integers((), 0, rows - 1),
                y=specs.integers((), 0, columns - 1),
            ),
            ghost_locations=specs.integers((4, 2), 0, side),
            power_up_locations=specs.integers((len(self.tables.power_ups), 2), 0, side),
            frightened_state_time=specs.integers((), -self.time_limit, FRIGHT_STEPS),
            pellet_locations=specs.integers((len(self.tables.pellets), 2), 0, side),
            action_mask=specs.booleans(5),
            score=specs.integers((), 0, most),
        )

    @cached_property
    def action_spec(self) -> specs.DiscreteArray:
        """Up, left, down, right, stay."""
        return specs.DiscreteArray(5, name="action")

    def reset(self, key: Array) -> tuple[State, TimeStep]:
        """Start the map; only the ghosts' choices depend on the key."""
        tables = self.tables
        state = State(
            player=jnp.asarray(tables.player),
            ghosts=jnp.asarray(tables.ghosts),
            previous_ghosts=jnp.asarray(tables.ghosts),
            ghost_actions=jnp.ones(4, jnp.int32),
            ghost_starts=jnp.array([1, 5, 10, 15], jnp.int32),
            ghost_eaten=jnp.zeros(4, bool),
            pellets=jnp.ones(len(tables.pellets), bool),
            power_ups=jnp.ones(len(tables.power_ups), bool),
            pellets_left=jnp.int32(len(tables.pellets)),
            frightened_state_time=jnp.int32(0),
            dead=jnp.array(False),
            score=jnp.int32(0),
            step_count=jnp.int32(0),
            key=key,
        )
        return state, restart(self._observe(state))

    def step(self, state: State, action: Array) -> tuple[State, TimeStep]:
        """Move the player, then the ghosts."""
        key, uniforms = spend_uniforms(state.key, 4)
        options = self.ghost_options(state, action)
        draw = jax.vmap(choose_true_from)(uniforms, options)
        return self.step_with(state._replace(key=key), action, draw)

    def step_with(self, state: State, action: Array, draw: Array) -> tuple[State, TimeStep]:
        """As :meth:`step`, with each ghost's choice (an index of :data:`GHOST_MOVES`) given."""
        tables = self.tables
        rows, columns = tables.open.shape
        wanted = (state.player + jnp.asarray(PLAYER_MOVES)[action]) % jnp.array([rows, columns])
        open_cells = jnp.asarray(tables.open)
        player = jnp.where(open_cells[wanted[0], wanted[1]], wanted, state.player)
        moves = jnp.asarray(GHOST_MOVES)[draw]
        ghosts = (state.ghosts + moves) % jnp.array([rows, columns])
        ghosts = jnp.where((state.ghost_starts < 0)[:, None], ghosts, state.ghosts)

        same = (ghosts == player).all(axis=1)
        swapped = (ghosts == state.player).all(axis=1)
        crossed = (state.previous_ghosts == player).all(axis=1)
        hit = same | swapped | crossed
        frightened = state.frightened_state_time > 0
        caught = hit & frightened
        reward = GHOST * (caught & ~state.ghost_eaten).sum()
        ghosts = jnp.where(caught[:, None], jnp.asarray(tables.ghosts), ghosts)
        eaten = state.ghost_eaten | caught

        on_power_up = state.power_ups & (jnp.asarray(tables.power_ups) == player).all(axis=1)
        powered = on_power_up.any()
        number = jnp.asarray(tables.pellet_number)[player[0], player[1]]
        eats = (number >= 0) & state.pellets[number]
        reward = reward + POWER_UP * powered + PELLET * eats
        if not self.faithful:
            eaten = eaten & ~powered
        state = State(
            player=player,
            ghosts=ghosts,
            previous_ghosts=state.ghosts,
            ghost_actions=jnp.where(state.ghost_starts < 0, draw, STAY).astype(jnp.int32),
            ghost_starts=state.ghost_starts - 1,
            ghost_eaten=eaten,
            pellets=state.pellets.at[number].set(state.pellets[number] & ~eats),
            power_ups=state.power_ups & ~on_power_up,
            pellets_left=state.pellets_left - eats,
            frightened_state_time=jnp.where(
                powered, FRIGHT_STEPS, state.frightened_state_time - 1
            ).astype(jnp.int32),
            dead=(hit & ~frightened).any(),
            score=state.score + reward.astype(jnp.int32),
            step_count=state.step_count + 1,
            key=state.key,
        )
        return state, transition(
            self._observe(state),
            reward,
            terminated=state.dead | (state.pellets_left == 0),
            at_limit=state.step_count >= self.time_limit,
            mode=self.time_limit_mode,
        )

    def ghost_options(self, state: State, action: Array) -> Bool[Array, "4 5"]:
        """What each ghost may do, as flags over left, up, right, down and staying.

        In a corridor it goes on; elsewhere it takes an open neighbour nearest to its target, not
        the one it comes from.
        """
        tables = self.tables
        rows, columns = tables.open.shape
        around = state.ghosts[:, None] + jnp.asarray(GHOST_MOVES[:4])
        # A neighbour beyond the border is looked up as JAX does: -1 wraps, the end clamps.
        row = jnp.where(around[..., 0] < 0, around[..., 0] + rows, around[..., 0])
        column = jnp.where(around[..., 1] < 0, around[..., 1] + columns, around[..., 1])
        open_cells = jnp.asarray(tables.open)
        free = open_cells[jnp.minimum(row, rows - 1), jnp.minimum(column, columns - 1)]
        level = free == jnp.array([True, False, True, False])
        upright = free == jnp.array([False, True, False, True])
        corridor = level.all(axis=1) | upright.all(axis=1)
        goes_on = state.ghost_actions[:, None] == np.arange(5)

        cost = self._target_costs(state, action, around)
        back = (around == state.previous_ghosts[:, None]).all(axis=-1)
        allowed = free & ~back
        cost = jnp.where(allowed, cost, jnp.iinfo(jnp.int32).max)
        best = cost == cost.min(axis=1, keepdims=True)
        never = jnp.zeros((4, 1), bool)
        chosen = jnp.where(corridor[:, None], goes_on, jnp.concatenate([best, never], axis=1))
        waits = np.arange(5) == STAY
        return jnp.where((state.ghost_starts < 0)[:, None], chosen, waits)

    def _target_costs(self, state: State, action: Array, around: Array) -> Int[Array, "4 4"]:
        """Squared distances from the neighbours of each ghost to its target."""
        tables = self.tables
        size = jnp.array(tables.open.shape)
        chase = state.player - around
        ahead = (state.player + 4 * jnp.asarray(PLAYER_MOVES)[action]) % size
        scatter = jnp.asarray(tables.scatter)
        if self.faithful:
            ahead, scatter = ahead[::-1], scatter[:, ::-1]
        ambush = ahead - around
        retreat = scatter[:, None] - around
        near = jnp.square(state.ghosts[3] - state.player).sum() <= 64
        vectors = jnp.stack(
            [
                chase[0],
                ambush[1],
                chase[2] + ambush[2],
                jnp.where(near, retreat[3], chase[3]),
            ]
        )
        vectors = jnp.where(state.frightened_state_time > 0, retreat, vectors)
        return jnp.square(vectors).sum(axis=-1)

    def _observe(self, state: State) -> Observation:
        tables = self.tables
        rows, columns = tables.open.shape
        around = state.player + jnp.asarray(PLAYER_MOVES[:4])
        around = jnp.where(around < 0, around + jnp.array([rows, columns]), around)
        around = jnp.minimum(around, jnp.array([rows - 1, columns - 1]))
        free = jnp.asarray(tables.open)[around[:, 0], around[:, 1]]
        return Observation(
            grid=jnp.asarray(tables.open, jnp.int32),
            player_locations=Position(state.player[0], state.player[1]),
            ghost_locations=state.ghosts[:, ::-1],
            power_up_locations=jnp.where(
                state.power_ups[:, None], jnp.asarray(tables.power_ups[:, ::-1]), 0
            ),
            frightened_state_time=state.frightened_state_time,
            pellet_locations=jnp.where(
                state.pellets[:, None], jnp.asarray(tables.pellets[:, ::-1]), 0
            ),
            action_mask=jnp.concatenate([free, jnp.zeros(1, bool)]),
            score=state.score,
        )
