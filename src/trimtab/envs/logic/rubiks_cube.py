"""Turn the layers of a cube until every face has one colour."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache, cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int8

from trimtab.envs import specs
from trimtab.envs.protocol import (
    Environment,
    Generator,
    TimeLimitMode,
    TimeStep,
    restart,
    transition,
)
from trimtab.envs.sampling import below
from trimtab.errors import InputError

FACES = ("up", "front", "right", "back", "left", "down")


class Observation(NamedTuple):
    """Sticker colours (0 to 5) by face, row and column, and the clock."""

    cube: Int8[Array, "6 size size"]
    step_count: Int[Array, ""]


class State(NamedTuple):
    """The stickers."""

    cube: Int8[Array, "6 size size"]
    step_count: Int[Array, ""]
    key: Array


def solved_cube(size: int) -> np.ndarray:
    """Face ``f`` filled with colour ``f``."""
    return np.broadcast_to(np.arange(6, dtype=np.int8)[:, None, None], (6, size, size)).copy()


@cache
def turn_table(size: int) -> np.ndarray:
    """Every turn as a permutation of flat stickers, shape ``(turns, 6 * size**2)``.

    Stickers become points of space; a turn rotates those of one layer by a quarter about the
    axis of its face. Row ``t`` gives, for each sticker, where its colour comes from.
    """
    points = _sticker_points(size)
    index = {tuple(point): number for number, point in enumerate(points)}
    turns = []
    for face in range(6):
        axis, sign = int(np.flatnonzero(_NORMALS[face])[0]), int(_NORMALS[face].sum())
        for depth in range(size // 2):
            layer = size - 1 - 2 * depth
            in_layer = points[:, axis] * sign == layer
            if depth == 0:
                in_layer |= points[:, axis] * sign == size
            quarter = np.arange(points.shape[0])
            for source in np.flatnonzero(in_layer):
                quarter[index[tuple(_clockwise(points[source], axis, sign))]] = source
            half = quarter[quarter]
            turns += [quarter, half[quarter], half]
    return np.array(turns, np.int32)


# Outward normals of up, front, right, back, left, down; x to the right, y to the back, z up.
_NORMALS = np.array([(0, 0, 1), (0, -1, 0), (1, 0, 0), (0, 1, 0), (-1, 0, 0), (0, 0, -1)])
# Directions in space of increasing column and of increasing row on each face seen from outside.
_COLUMNS = np.array([(1, 0, 0), (1, 0, 0), (0, 1, 0), (-1, 0, 0), (0, -1, 0), (1, 0, 0)])
_ROWS = np.array([(0, -1, 0), (0, 0, -1), (0, 0, -1), (0, 0, -1), (0, 0, -1), (0, 1, 0)])


def _sticker_points(size: int) -> np.ndarray:
    """Doubled coordinates of sticker centres: the surface lies at ``size``."""
    offsets = 2 * np.arange(size) - (size - 1)
    points = [
        _NORMALS[face] * size + _ROWS[face] * row + _COLUMNS[face] * column
        for face in range(6)
        for row in offsets
        for column in offsets
    ]
    return np.array(points)


def _clockwise(point: np.ndarray, axis: int, sign: int) -> np.ndarray:
    """Rotate by a quarter turn that looks clockwise from outside the face ``sign * axis``."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    turned = point.copy()
    turned[first], turned[second] = sign * point[second], -sign * point[first]
    return turned


@dataclasses.dataclass(frozen=True)
class Scramble:
    """Independent uniform turns of a solved cube.

    Args:
        cube_size: stickers per edge, at least 2.
        num_scrambles_on_reset: number of turns.
    """

    cube_size: int = 3
    num_scrambles_on_reset: int = 100

    def __post_init__(self) -> None:
        if self.cube_size < 2 or self.num_scrambles_on_reset < 0:
            raise InputError(
                f"cube_size={self.cube_size}, num_scrambles_on_reset="
                f"{self.num_scrambles_on_reset}: expected a size of at least 2 and no negative "
                "number of turns."
            )

    def __call__(self, key: Array) -> Int8[Array, "6 size size"]:
        """Draw a cube."""
        table = jnp.asarray(turn_table(self.cube_size))
        uniforms = jax.random.uniform(key, (self.num_scrambles_on_reset,))
        turns = below(uniforms, table.shape[0])
        start = jnp.asarray(solved_cube(self.cube_size)).reshape(-1)
        scrambled = jax.lax.fori_loop(
            0,
            self.num_scrambles_on_reset,
            lambda index, stickers: _gather(stickers, _gather(table, turns[index])),
            start,
        )
        return scrambled.reshape(6, self.cube_size, self.cube_size)


def sparse_reward(solved: Array) -> Array:
    """1 when the cube is solved, else 0."""
    return solved.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class RubiksCube(Environment):
    """The action is ``(face, depth, amount)``: turn the slice at ``depth`` below a face.

    Amount 0 is a clockwise quarter seen from outside the face, 1 counter-clockwise, 2 a half
    turn. The reward is 1 when the cube is solved, which terminates the episode.

    Args:
        generator: draws a cube from a key and knows ``cube_size``.
        time_limit: steps of the longest episode.
        reward_fn: ``(solved) -> reward``.
        time_limit_mode: whether the limit truncates or terminates.
    """

    generator: Generator = Scramble()
    time_limit: int = 200
    reward_fn: Callable[[Array], Array] = sparse_reward
    time_limit_mode: TimeLimitMode = "truncate"

    @property
    def size(self) -> int:
        """Stickers per edge."""
        return self.generator.cube_size  # pyright: ignore[reportFunctionMemberAccess]

    @cached_property
    def observation_spec(self) -> specs.Spec:
        """Stickers and clock."""
        return specs.nest(
            Observation,
            cube=specs.integers((6, self.size, self.size), 0, 5, np.int8),
            step_count=specs.integers((), 0, self.time_limit),
        )

    @cached_property
    def action_spec(self) -> specs.MultiDiscreteArray:
        """Face, depth and amount."""
        return specs.MultiDiscreteArray((6, self.size // 2, 3), name="action")

    def reset(self, key: Array) -> tuple[State, TimeStep]:
        """Start from a scrambled cube."""
        key, cube_key = jax.random.split(key)
        state = State(self.generator(cube_key), jnp.int32(0), key)
        return state, restart(Observation(state.cube, state.step_count))

    def step(self, state: State, action: Array) -> tuple[State, TimeStep]:
        """Turn a slice."""
        cube = turn(state.cube, action)
        solved = (cube == cube[:, :1, :1]).all()
        state = State(cube, state.step_count + 1, state.key)
        return state, transition(
            Observation(cube, state.step_count),
            self.reward_fn(solved),
            terminated=solved,
            at_limit=state.step_count >= self.time_limit,
            mode=self.time_limit_mode,
        )


def turn(cube: Int8[Array, "6 size size"], action: Int[Array, " 3"]) -> Array:
    """Apply one ``(face, depth, amount)`` turn."""
    size = cube.shape[-1]
    number = (action[0] * (size // 2) + action[1]) * 3 + action[2]
    sources = _gather(jnp.asarray(turn_table(size)), number)
    return _gather(cube.reshape(-1), sources).reshape(cube.shape)


def _gather(values: Array, index: Array) -> Array:
    return values.at[index].get(mode="promise_in_bounds")


def partly_scrambled(
    num_scrambles_on_reset: int = 7, time_limit: int = 20, **settings: object
) -> RubiksCube:
    """The easier task: seven turns away from solved, twenty steps."""
    generator = settings.pop("generator", Scramble(3, num_scrambles_on_reset))
    return RubiksCube(generator=generator, time_limit=time_limit, **settings)  # pyright: ignore
