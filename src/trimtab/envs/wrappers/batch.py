"""Many copies of an environment stepped together, with exact automatic resets at little cost."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from trimtab.envs.protocol import Environment, TimeStep
from trimtab.envs.wrappers.auto_reset import reset_key, with_final_observation
from trimtab.envs.wrappers.base import Wrapper

AutoResetMode = Literal["lazy", "eager", "none"]


@dataclasses.dataclass(frozen=True)
class Batch(Wrapper):
    """Lanes of independent episodes with a leading axis on states, actions and time steps.

    Under ``vmap`` a conditional runs both of its branches, so a vmapped automatic reset pays a
    whole reset for every lane at every step. ``"lazy"`` instead steps all lanes, then takes the
    finished ones a few at a time, resets only those and writes them back. Each lane draws from
    its own key, so states and time steps equal those of ``"eager"`` bit for bit.

    Args:
        env: the environment; its states must have a ``key``.
        auto_reset: ``"lazy"``, ``"eager"`` (every lane, every step), or ``"none"``.
        lanes_at_once: lanes that a lazy reset serves together; an eighth of the batch when None.
        final_observation: also give the observation before the reset, at every step, as
            ``extras["final_observation"]``.
    """

    env: Environment
    auto_reset: AutoResetMode = "lazy"
    lanes_at_once: int | None = None
    final_observation: bool = False

    def reset(self, key: Array) -> tuple[Any, TimeStep]:
        """Start an episode in every lane.

        Args:
            key: one key per lane, shape ``(lanes,)``.
        """
        state, timestep = jax.vmap(self.env.reset)(key)
        return state, with_final_observation(timestep) if self.final_observation else timestep

    def step(self, state: Any, action: Array) -> tuple[Any, TimeStep]:
        """Step every lane; finished lanes start their next episode unless told otherwise."""
        state, timestep = jax.vmap(self.env.step)(state, action)
        if self.final_observation:
            timestep = with_final_observation(timestep)
        if self.auto_reset == "none":
            return state, timestep
        renew = self._renew_eagerly if self.auto_reset == "eager" else self._renew_lazily
        state, observation = renew(state, timestep.observation, timestep.last)
        return state, timestep._replace(observation=observation)

    def _fresh(self, state: Any) -> tuple[Any, Any]:
        fresh, first = jax.vmap(lambda old: self.env.reset(reset_key(old)))(state)
        return fresh, first.observation

    def _renew_eagerly(self, state: Any, observation: Any, last: Array) -> tuple[Any, Any]:
        def select(new: Array, old: Array) -> Array:
            return jnp.where(last.reshape(last.shape + (1,) * (old.ndim - 1)), new, old)

        return jax.tree.map(select, self._fresh(state), (state, observation))

    def _renew_lazily(self, state: Any, observation: Any, last: Array) -> tuple[Any, Any]:
        lanes = last.shape[0]
        at_once = self.lanes_at_once or max(1, lanes // 8)

        def serve(carry: tuple[Any, Any, Array]) -> tuple[Any, Any, Array]:
            state, observation, waiting = carry
            (served,) = jnp.nonzero(waiting, size=at_once, fill_value=lanes)
            keys = state.key.at[served].get(mode="clip")
            keys = jax.vmap(lambda key: jax.random.split(key)[0])(keys)
            fresh, first = jax.vmap(self.env.reset)(keys)
            state, observation = jax.tree.map(
                lambda old, new: old.at[served].set(new, mode="drop"),
                (state, observation),
                (fresh, first.observation),
            )
            return state, observation, waiting.at[served].set(False, mode="drop")

        state, observation, _ = jax.lax.while_loop(
            lambda carry: carry[2].any(), serve, (state, observation, last)
        )
        return state, observation

    def picture(self, state: Any) -> Any:
        """The first lanes (up to sixteen) as a mosaic."""
        from trimtab.envs.viewers import mosaic

        lanes = jax.tree.leaves(state)[0].shape[0]

        def pick(lane: int) -> Any:
            return self.inner_state(jax.tree.map(lambda leaf: leaf[lane], state))

        return mosaic([self.env.picture(pick(lane)) for lane in range(min(lanes, 16))])
