"""Several agents: one scalar reward for all, or dictionaries keyed by agent."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array

from trimtab.envs.protocol import Environment, TimeStep, compiled_reset, compiled_step
from trimtab.envs.specs import MultiDiscreteArray, observation_to_numpy
from trimtab.envs.wrappers.base import Wrapper
from trimtab.errors import InputError

_AGGREGATES = {"sum": "sum", "mean": "mean", "max": "max", "min": "min"}


@dataclasses.dataclass(frozen=True)
class ScalarReward(Wrapper):
    """One reward and one discount for all agents together.

    Args:
        env: an environment with per-agent rewards; others pass through unchanged.
        reward: how rewards are combined.
        discount: how discounts are combined.
    """

    env: Environment
    reward: Literal["sum", "mean", "max", "min"] = "sum"
    discount: Literal["sum", "mean", "max", "min"] = "max"

    @property
    def num_agents(self) -> int | None:
        """None: the reward is a scalar."""
        return None

    def reset(self, key: Array) -> tuple[Any, TimeStep]:
        """Start an episode."""
        state, timestep = self.env.reset(key)
        return state, self._combined(timestep)

    def step(self, state: Any, action: Array) -> tuple[Any, TimeStep]:
        """Step and combine the agents' rewards and discounts."""
        state, timestep = self.env.step(state, action)
        return state, self._combined(timestep)

    def _combined(self, timestep: TimeStep) -> TimeStep:
        if self.env.num_agents is None:
            return timestep
        return timestep._replace(
            reward=getattr(timestep.reward, _AGGREGATES[self.reward])(),
            discount=getattr(timestep.discount, _AGGREGATES[self.discount])(),
        )


class ParallelAgents:
    """PettingZoo's parallel interface: dictionaries keyed by agent name.

    Fields of the observation whose leading axis has an entry per agent are split among the
    agents; every other field is given to all of them.

    Args:
        env: an environment whose actions have one entry per agent.
        seed: seed of the first episode when ``reset`` gets none.
    """

    def __init__(self, env: Environment, seed: int = 0):
        spec = env.action_spec
        if len(spec.shape) == 0:
            raise InputError(
                "This environment takes one action, not one per agent; use GymnasiumEnv instead."
            )
        self.env = env
        self.possible_agents = [f"agent_{index}" for index in range(spec.shape[0])]
        self.agents: list[str] = []
        self._key = jax.random.key(seed)
        self._state: Any = None

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        """Start an episode: observations and (empty) infos by agent."""
        if seed is not None:
            self._key = jax.random.key(seed)
        self._key, episode_key = jax.random.split(self._key)
        self._state, timestep = compiled_reset(self.env, episode_key)
        self.agents = list(self.possible_agents)
        return self._split(timestep.observation), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        """Step: observations, rewards, terminations, truncations and infos by agent."""
        joint = np.stack([np.asarray(actions[agent]) for agent in self.agents])
        joint = joint.astype(self.env.action_spec.dtype)
        self._state, timestep = compiled_step(self.env, self._state, joint)
        agents = self.agents
        rewards = np.broadcast_to(np.asarray(timestep.reward), (len(agents),))
        infos = {agent: {} for agent in agents}
        observations = self._split(timestep.observation)
        terminated, truncated = bool(timestep.terminated), bool(timestep.truncated)
        if terminated or truncated:
            self.agents = []
        return (
            observations,
            dict(zip(agents, rewards.tolist())),
            dict.fromkeys(agents, terminated),
            dict.fromkeys(agents, truncated),
            infos,
        )

    def action_space(self, agent: str) -> Any:
        """The Gymnasium space of one agent's action."""
        from trimtab.envs.specs import BoundedArray, DiscreteArray

        spec = self.env.action_spec
        if isinstance(spec, MultiDiscreteArray):
            index = self.possible_agents.index(agent)
            return DiscreteArray(spec.num_values[index]).to_gymnasium()
        low, high = np.min(spec.minimum), np.max(spec.maximum)
        return BoundedArray(spec.shape[1:], spec.dtype, low, high).to_gymnasium()

    def _split(self, observation: Any) -> dict[str, dict[str, Any]]:
        fields = observation_to_numpy(observation)
        count = len(self.possible_agents)

        def share(value: Any, index: int) -> Any:
            if isinstance(value, dict):
                return {name: share(inner, index) for name, inner in value.items()}
            return value[index] if value.ndim > 0 and value.shape[0] == count else value

        return {
            agent: {name: share(value, index) for name, value in fields.items()}
            for index, agent in enumerate(self.possible_agents)
        }


def to_agent_dictionary(values: Array, names: list[str]) -> dict[str, Array]:
    """JaxMARL's form: an array with an agent axis as a dictionary with ``__all__`` left out.

    Args:
        values: array with a leading agent axis.
        names: a name per agent.
    """
    if values.shape[0] != len(names):
        raise InputError(f"{len(names)} names were given for {values.shape[0]} agents.")
    return {name: values[index] for index, name in enumerate(names)}
