"""How each environment's states are drawn."""

from __future__ import annotations

import importlib
from typing import Any

import jax
import numpy as np

from trimtab.errors import UnsupportedError

_DRAWINGS = {
    "logic": (
        "Game2048",
        "GraphColoring",
        "Minesweeper",
        "RubiksCube",
        "SlidingTilePuzzle",
        "Sudoku",
    ),
    "packing": ("BinPack", "FlatPack", "JobShop", "Knapsack", "Tetris"),
    "grids": (
        "Cleaner",
        "Connector",
        "LevelBasedForaging",
        "Maze",
        "PacMan",
        "RobotWarehouse",
        "Snake",
        "Sokoban",
    ),
    "maps": ("CVRP", "MMST", "MultiCVRP", "SearchAndRescue", "TSP"),
}
_MODULE_OF = {name: module for module, names in _DRAWINGS.items() for name in names}


def draw(env: Any, state: Any) -> Any:
    """The :class:`trimtab.envs.viewers.Picture` of an unbatched state.

    Raises:
        UnsupportedError: the environment has no drawing.
    """
    name = type(env.unwrapped).__name__
    if name not in _MODULE_OF:
        raise UnsupportedError(
            f"{name} has no drawing; override its 'picture' method to render it."
        )
    module = importlib.import_module(f"{__name__}.{_MODULE_OF[name]}")
    arrays = jax.tree.map(np.asarray, state._replace(key=np.zeros(0)))
    return module.DRAWINGS[name](env.unwrapped, arrays)
