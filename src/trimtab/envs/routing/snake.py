"""Grow a snake by eating fruit without biting itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from trimtab.envs import grid, specs
from trimtab.envs.protocol import Environment, TimeLimitMode, TimeStep, restart, transition
from trimtab.envs.sampling import below, choose_true_from, spend_uniforms
from trimtab.errors import InputError


class Observation(NamedTuple):
    """Planes body, head, tail, fruit and order of the body; the clock; the safe directions."""

    grid: Float[Array, "rows columns 5"]
    step_count: Int[Array, ""]
    action_mask: Bool[Array, " 4"]


class State(NamedTuple):
    """``body_state`` is the length at the head, falls to 1 at the tail, and is 0 elsewhere."""

    body_state: Int[Array, "rows columns"]
    head: Int[Array, " 2"]
    fruit: Int[Array, " 2"]
    length: Int[Array, ""]
    step_count: Int[Array, ""]
    action_mask: Bool[Array, " 4"]
    key: Array


@dataclasses.dataclass(frozen=True)
class Snake(Environment):
    """Move the head up, right, down or left (actions 0 to 3).

    Eating the fruit gives 1, lengthens the snake and puts a fruit on a random free cell. The
    episode terminates on a bite, at a wall, and when the board is full.

    Args:
        num_rows: rows.
        num_cols: columns.
        time_limit: steps of the longest episode.
        time_limit_mode: whether the limit truncates or terminates.
    """

    num_rows: int = 12
    num_cols: int = 12
    time_limit: int = 4000
    time_limit_mode: TimeLimitMode = "truncate"

    def __post_init__(self) -> None:
        if self.num_rows * self.num_cols < 2 or self.num_rows < 1:
            raise InputError(
                f"A board of {self.num_rows} x {self.num_cols} has no room for a fruit."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.num_rows, self.num_cols

    @cached_property
    def observation_spec(self) -> specs.Spec:
        """Planes, clock and mask."""
        return specs.nest(
            Observation,
            grid=specs.reals((*self.shape, 5)),
            step_count=specs.integers((), 0, self.time_limit),
            action_mask=specs.booleans(4),
        )

    @cached_property
    def action_spec(self) -> specs.DiscreteArray:
        """Direction of the head."""
        return specs.DiscreteArray(4, name="action")

    def reset(self, key: Array) -> tuple[State, TimeStep]:
        """Start with a snake of one cell and a fruit elsewhere."""
        key, uniforms = spend_uniforms(key, 2)
        head = grid.unflat(below(uniforms[0], self.num_rows * self.num_cols), self.num_cols)
        body = jnp.zeros(self.shape, jnp.int32).at[head[0], head[1]].set(1)
        fruit = grid.unflat(choose_true_from(uniforms[1], body.reshape(-1) == 0), self.num_cols)
        mask = self._safe(body, head)
        state = State(body, head, fruit, jnp.int32(1), jnp.int32(0), mask, key)
        return state, restart(self._observe(state))

    def step(self, state: State, action: Array) -> tuple[State, TimeStep]:
        """Move, and eat if there is a fruit."""
        key, uniforms = spend_uniforms(state.key, 1)

        def new_fruit(body: Array) -> Array:
            cell = choose_true_from(uniforms[0], body.reshape(-1) == 0)
            return grid.unflat(cell, self.num_cols)

        return self._step(state._replace(key=key), action, new_fruit)

    def step_with(self, state: State, action: Array, draw: Array) -> tuple[State, TimeStep]:
        """As :meth:`step`, with the cell of the next fruit given."""
        return self._step(state, action, lambda _: draw)

    def _step(
        self, state: State, action: Array, new_fruit: Callable[[Array], Array]
    ) -> tuple[State, TimeStep]:
        legal = state.action_mask[action]
        head = grid.moved(state.head, action)
        eats = (head == state.fruit).all()
        length = state.length + eats
        shorter = jnp.maximum(state.body_state - 1, 0)
        body = jnp.where(eats, state.body_state, shorter)
        body = body.at[head[0], head[1]].set(length)
        state = State(
            body_state=body,
            head=head,
            fruit=jnp.where(eats, new_fruit(body), state.fruit),
            length=length,
            step_count=state.step_count + 1,
            action_mask=self._safe(body, head),
            key=state.key,
        )
        full = (body > 0).all()
        return state, transition(
            self._observe(state),
            eats,
            terminated=~legal | full,
            at_limit=state.step_count >= self.time_limit,
            mode=self.time_limit_mode,
        )

    def _safe(self, body: Array, head: Array) -> Array:
        """Directions to a cell that is inside and will be free once the tail has moved on."""
        around = grid.neighbours(head)
        return grid.inside(around, *self.shape) & (body[around[:, 0], around[:, 1]] <= 1)

    def _observe(self, state: State) -> Observation:
        body = state.body_state
        row, column = np.arange(self.num_rows)[:, None], np.arange(self.num_cols)[None, :]

        def only(cell: Array) -> Array:
            # A head that has left the board at the top or left shows at the other side.
            wrapped = jnp.where(cell < 0, cell + jnp.array(self.shape), cell)
            return (row == wrapped[0]) & (column == wrapped[1])

        planes = [
            body > 0,
            only(state.head),
            body == 1,
            only(state.fruit),
            body / jnp.maximum(body.max(), 1),
        ]
        stacked = jnp.stack([plane.astype(jnp.float32) for plane in planes], axis=-1)
        return Observation(stacked, state.step_count, state.action_mask)
