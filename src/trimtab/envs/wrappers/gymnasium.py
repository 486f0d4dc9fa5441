"""Gymnasium's single and vector interfaces, and a vector interface of PyTorch tensors."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from trimtab.envs.protocol import Environment, compiled_reset, compiled_step
from trimtab.envs.specs import observation_to_numpy
from trimtab.envs.wrappers.agents import ScalarReward
from trimtab.envs.wrappers.batch import Batch
from trimtab.errors import require_extra

VectorAutoReset = Literal["next_step", "same_step", "disabled"]


def gymnasium_env(env: Environment, *, seed: int = 0, render_mode: str | None = None) -> Any:
    """Wrap an environment as a ``gymnasium.Env``.

    Observations become dictionaries of NumPy arrays (booleans as int8), ``terminated`` and
    ``truncated`` are reported apart, and per-agent rewards are summed with the vector kept in
    ``info["agent_rewards"]``.

    Args:
        env: the environment.
        seed: seed of the first episode when ``reset`` gets none.
        render_mode: None, ``"rgb_array"``, ``"ansi"`` or ``"svg"``.
    """
    gymnasium = require_extra("gymnasium", "rl", "The Gymnasium interface")

    class GymnasiumEnv(gymnasium.Env):
        """The environment behind Gymnasium's five-value interface."""

        metadata = {"render_modes": ["rgb_array", "ansi", "svg"], "render_fps": 5}

        def __init__(self) -> None:
            self.observation_space = env.observation_spec.to_gymnasium()
            self.action_space = env.action_spec.to_gymnasium()
            self.render_mode = render_mode
            self._key = jax.random.key(seed)
            self._state: Any = None

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
            super().reset(seed=seed)
            if seed is not None:
                self._key = jax.random.key(seed)
            self._key, episode_key = jax.random.split(self._key)
            self._state, timestep = compiled_reset(env, episode_key)
            return observation_to_numpy(timestep.observation), _info(timestep)

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            action = np.asarray(action, env.action_spec.dtype)
            self._state, timestep = compiled_step(env, self._state, action)
            return (
                observation_to_numpy(timestep.observation),
                float(np.sum(timestep.reward)),
                bool(timestep.terminated),
                bool(timestep.truncated),
                _info(timestep),
            )

        def render(self) -> Any:
            return None if render_mode is None else env.render(self._state, render_mode)

    return GymnasiumEnv()


def _info(timestep: Any) -> dict[str, Any]:
    info = {name: np.asarray(value) for name, value in timestep.extras.items()}
    if timestep.reward.ndim:
        info["agent_rewards"] = np.asarray(timestep.reward)
    return info


def gymnasium_vector_env(
    env: Environment,
    num_envs: int,
    *,
    seed: int = 0,
    auto_reset: VectorAutoReset = "next_step",
) -> Any:
    """Wrap a batch of an environment as a ``gymnasium.vector.VectorEnv``.

    Args:
        env: the environment.
        num_envs: number of lanes.
        seed: seed of the first episodes when ``reset`` gets none.
        auto_reset: Gymnasium's modes: ``"next_step"`` resets a finished lane at the step after
            its end (that step ignores the lane's action and has reward 0), ``"same_step"``
            resets at once and gives the true last observation in ``info["final_obs"]``.
    """
    gymnasium = require_extra("gymnasium", "rl", "The Gymnasium interface")
    vector = require_extra("gymnasium.vector", "rl", "The Gymnasium interface")
    engine = _VectorEngine(env, num_envs, auto_reset)
    mode = vector.AutoresetMode[auto_reset.upper()]

    class GymnasiumVectorEnv(vector.VectorEnv):
        """A batch of environments behind Gymnasium's vector interface."""

        metadata = {"autoreset_mode": mode}

        def __init__(self) -> None:
            self.num_envs = num_envs
            self.single_observation_space = env.observation_spec.to_gymnasium()
            self.single_action_space = env.action_spec.to_gymnasium()
            batch_space = gymnasium.vector.utils.batch_space
            self.observation_space = batch_space(self.single_observation_space, num_envs)
            self.action_space = batch_space(self.single_action_space, num_envs)
            self._key = jax.random.key(seed)

        def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict]:
            if isinstance(seed, int):
                self._key = jax.random.key(seed)
            self._key, batch_key = jax.random.split(self._key)
            return observation_to_numpy(engine.reset(batch_key)), {}

        def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict]:
            timestep = engine.step(jnp.asarray(actions, env.action_spec.dtype))
            info: dict[str, Any] = {}
            if auto_reset == "same_step":
                final = observation_to_numpy(timestep.extras["final_observation"])
                ended = np.asarray(timestep.last)
                info = {"final_obs": final, "_final_obs": ended}
            return (
                observation_to_numpy(timestep.observation),
                np.asarray(timestep.reward),
                np.asarray(timestep.terminated),
                np.asarray(timestep.truncated),
                info,
            )

    return GymnasiumVectorEnv()


def torch_vector_env(env: Environment, num_envs: int, *, seed: int = 0) -> Any:
    """A batch of an environment whose observations, rewards and flags are PyTorch tensors.

    Tensors share memory with JAX's arrays through DLPack (booleans are copied as uint8).
    Finished lanes are reset in the same step; ``final_observation`` is in the info.
    """
    torch = require_extra("torch", "torch", "The PyTorch interface")
    engine = _VectorEngine(env, num_envs, "same_step")

    def to_torch(value: Any) -> Any:
        if hasattr(value, "_asdict"):
            return {name: to_torch(each) for name, each in value._asdict().items()}
        if value.dtype == jnp.bool_:
            return torch.from_dlpack(value.astype(jnp.uint8)).bool()
        return torch.from_dlpack(value)

    class TorchVectorEnv:
        """A batch of environments as PyTorch tensors."""

        def __init__(self) -> None:
            self.num_envs = num_envs
            self._key = jax.random.key(seed)

        def reset(self, seed: int | None = None) -> tuple[Any, dict]:
            if seed is not None:
                self._key = jax.random.key(seed)
            self._key, batch_key = jax.random.split(self._key)
            return to_torch(engine.reset(batch_key)), {}

        def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict]:
            joint = jnp.from_dlpack(actions.contiguous()).astype(env.action_spec.dtype)
            timestep = engine.step(joint)
            final = to_torch(timestep.extras["final_observation"])
            return (
                to_torch(timestep.observation),
                to_torch(timestep.reward),
                to_torch(timestep.terminated),
                to_torch(timestep.truncated),
                {"final_observation": final},
            )

    return TorchVectorEnv()


class _VectorEngine:
    """The state of a batch and the compiled functions that advance it."""

    def __init__(self, env: Environment, num_envs: int, auto_reset: VectorAutoReset):
        scalar = ScalarReward(env)
        same_step = auto_reset == "same_step"
        self.num_envs = num_envs
        self.auto_reset = auto_reset
        self.batch = Batch(
            scalar,
            auto_reset="lazy" if same_step else "none",
            final_observation=same_step,
        )
        self.state: Any = None
        self.ended: Any = None

    def reset(self, key: Any) -> Any:
        self.state, timestep = compiled_reset(self.batch, jax.random.split(key, self.num_envs))
        self.ended = jnp.zeros(self.num_envs, bool)
        return timestep.observation

    def step(self, actions: Any) -> Any:
        if self.auto_reset == "next_step":
            self.state, timestep = _step_or_renew(self.batch, self.state, actions, self.ended)
            self.ended = timestep.last
        else:
            self.state, timestep = compiled_step(self.batch, self.state, actions)
        return timestep


@jax.jit(static_argnums=0)
def _step_or_renew(batch: Batch, state: Any, actions: Any, ended: Any) -> Any:
    """Lanes that ended before start anew and ignore their action; the others step."""
    stepped, timestep = batch.step(state, actions)

    def kept(old: Any, new: Any) -> Any:
        return jnp.where(ended.reshape(ended.shape + (1,) * (new.ndim - 1)), old, new)

    held = jax.tree.map(kept, state, stepped)
    state, observation = batch._renew_lazily(held, timestep.observation, ended)
    return state, timestep._replace(
        observation=observation,
        reward=jnp.where(ended, 0.0, timestep.reward),
        discount=jnp.where(ended, 1.0, timestep.discount),
        terminated=timestep.terminated & ~ended,
        truncated=timestep.truncated & ~ended,
    )
