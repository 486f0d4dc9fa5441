"""An environment around another one."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxtyping import Array

from trimtab.envs.protocol import Environment, TimeStep


@dataclasses.dataclass(frozen=True)
class Wrapper(Environment):
    """Forwards everything to ``env``; subclasses change a part."""

    env: Environment

    def reset(self, key: Array) -> tuple[Any, TimeStep]:
        """Start an episode of the wrapped environment."""
        return self.env.reset(key)

    def step(self, state: Any, action: Array) -> tuple[Any, TimeStep]:
        """Step the wrapped environment."""
        return self.env.step(state, action)

    @property
    def observation_spec(self) -> Any:
        """The wrapped environment's."""
        return self.env.observation_spec

    @property
    def action_spec(self) -> Any:
        """The wrapped environment's."""
        return self.env.action_spec

    @property
    def num_agents(self) -> int | None:
        """The wrapped environment's."""
        return self.env.num_agents

    @property
    def unwrapped(self) -> Environment:
        """The innermost environment."""
        return self.env.unwrapped

    def inner_state(self, state: Any) -> Any:
        """The wrapped environment's part of the state."""
        return state

    def picture(self, state: Any) -> Any:
        """The wrapped environment's drawing."""
        return self.env.picture(self.inner_state(state))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)
