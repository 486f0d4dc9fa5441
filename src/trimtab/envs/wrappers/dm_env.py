"""dm_env's interface."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from trimtab.envs.protocol import Environment, compiled_reset, compiled_step
from trimtab.errors import require_extra


def dm_env_environment(env: Environment, *, seed: int = 0) -> Any:
    """Wrap an environment as a ``dm_env.Environment``.

    Observations are dictionaries of NumPy arrays; the discount is 0 only at true ends.

    Args:
        env: the environment.
        seed: seed of the sequence of episodes.
    """
    dm_env = require_extra("dm_env", "rl", "The dm_env interface")

    class DmEnv(dm_env.Environment):
        """The environment behind dm_env's interface."""

        def __init__(self) -> None:
            self._key = jax.random.key(seed)
            self._state: Any = None
            self._ended = True

        def reset(self) -> Any:
            self._key, episode_key = jax.random.split(self._key)
            self._state, timestep = compiled_reset(env, episode_key)
            self._ended = False
            return dm_env.restart(_arrays(timestep.observation))

        def step(self, action: Any) -> Any:
            if self._ended:
                return self.reset()
            action = np.asarray(action, env.action_spec.dtype)
            self._state, timestep = compiled_step(env, self._state, action)
            self._ended = bool(timestep.last)
            return dm_env.TimeStep(
                dm_env.StepType.LAST if self._ended else dm_env.StepType.MID,
                _scalar(timestep.reward),
                _scalar(timestep.discount),
                _arrays(timestep.observation),
            )

        def observation_spec(self) -> Any:
            return env.observation_spec.to_dm_env()

        def action_spec(self) -> Any:
            return env.action_spec.to_dm_env()

        def reward_spec(self) -> Any:
            return env.reward_spec.to_dm_env()

        def discount_spec(self) -> Any:
            return env.discount_spec.to_dm_env()

    return DmEnv()


def _arrays(observation: Any) -> Any:
    if hasattr(observation, "_asdict"):
        return {name: _arrays(value) for name, value in observation._asdict().items()}
    return np.asarray(observation)


def _scalar(value: Any) -> Any:
    array = np.asarray(value)
    return array if array.ndim else array.astype(np.float32)
