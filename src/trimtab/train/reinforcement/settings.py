"""What a training run is made of, and good values for each environment."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from trimtab.envs import Environment
from trimtab.errors import InputError


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of actor-critic training.

    Args:
        algorithm: ``"ppo"`` (clipped, several passes) or ``"a2c"`` (one pass).
        lanes: environments stepped together, over all devices.
        steps: steps of a rollout.
        gamma: discount of future rewards.
        trace: decay of advantage estimates (lambda).
        entropy: weight of the entropy bonus.
        value_weight: weight of the value loss.
        learning_rate: of Adam; it falls linearly to 0 over the run if ``anneal``.
        anneal: see above.
        clip: greatest relative change of an action's probability (PPO).
        passes: times that PPO goes through a rollout.
        minibatches: parts of a pass (PPO).
        max_norm: gradients are scaled down to this norm.
        normalize_advantage: scale advantages to deviation 1.
        reward_scale: rewards are multiplied by this for learning.
        width: of the network; see :func:`make_network`.
        depth: attention blocks.
    """

    algorithm: Literal["ppo", "a2c"] = "ppo"
    lanes: int = 128
    steps: int = 32
    gamma: float = 0.99
    trace: float = 0.95
    entropy: float = 0.01
    value_weight: float = 0.5
    learning_rate: float = 1e-3
    anneal: bool = True
    clip: float = 0.2
    passes: int = 3
    minibatches: int = 4
    max_norm: float = 0.5
    normalize_advantage: bool = True
    reward_scale: float = 1.0
    width: int = 32
    depth: int = 2

    def __post_init__(self) -> None:
        if min(self.lanes, self.steps, self.passes, self.minibatches) < 1:
            raise InputError("lanes, steps, passes and minibatches must be at least 1.")
        if self.lanes * self.steps % self.minibatches:
            raise InputError(
                f"{self.lanes} lanes x {self.steps} steps cannot be split into "
                f"{self.minibatches} equal minibatches."
            )
        if not 0 <= self.gamma <= 1 or not 0 <= self.trace <= 1:
            raise InputError(f"gamma={self.gamma}, trace={self.trace}: expected values in [0, 1].")

    def replace(self, **changes: Any) -> Settings:
        """A copy with some values changed."""
        return dataclasses.replace(self, **changes)


_TUNED: dict[str, dict[str, Any]] = {
    "BinPack": {"gamma": 1.0, "entropy": 0.005, "steps": 20, "lanes": 64, "depth": 1},
    "CVRP": {"gamma": 1.0, "steps": 40, "entropy": 0.005, "depth": 1},
    "Cleaner": {"reward_scale": 0.2, "steps": 50},
    "Connector": {"gamma": 1.0, "steps": 25},
    "FlatPack": {"gamma": 1.0, "steps": 25, "lanes": 64, "depth": 1},
    "Game2048": {"reward_scale": 0.01, "width": 48, "steps": 64},
    "GraphColoring": {"gamma": 1.0, "reward_scale": 0.1, "steps": 20, "depth": 1},
    "JobShop": {"reward_scale": 0.01, "lanes": 64, "steps": 64, "depth": 1, "gamma": 1.0},
    "Knapsack": {"gamma": 1.0, "steps": 30, "depth": 1},
    "Maze": {"steps": 50, "width": 24, "entropy": 0.02},
    "Minesweeper": {"steps": 20, "gamma": 0.99, "width": 24},
    "MMST": {"reward_scale": 0.1, "depth": 1, "steps": 35},
    "MultiCVRP": {"gamma": 1.0, "reward_scale": 0.02, "steps": 20, "depth": 1},
    "PacMan": {"reward_scale": 0.02, "steps": 64},
    "RobotWarehouse": {"steps": 64},
    "RubiksCube": {"steps": 20, "width": 64},
    "SlidingTilePuzzle": {"steps": 64, "entropy": 0.005},
    "Snake": {"steps": 64, "entropy": 0.005, "width": 24},
    "Sokoban": {"steps": 60, "reward_scale": 0.5},
    "Sudoku": {"gamma": 1.0, "width": 48},
    "TSP": {"gamma": 1.0, "steps": 20, "entropy": 0.003, "depth": 1},
    "Tetris": {"reward_scale": 0.02, "steps": 32, "depth": 1, "gamma": 0.97},
}


def settings_for(env: Environment, **changes: Any) -> Settings:
    """Tuned settings of an environment, with ``changes`` on top."""
    tuned = _TUNED.get(type(env.unwrapped).__name__, {})
    return Settings(**{**tuned, **changes})
