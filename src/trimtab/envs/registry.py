"""Environments by versioned name, such as ``Snake-v1``."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable
from typing import Any

from trimtab.envs.protocol import Environment
from trimtab.errors import InputError, unknown_name

_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9-]*-v\d+(-fixed)?$")


@dataclasses.dataclass(frozen=True)
class Entry:
    """How to build a registered environment: ``module:Class`` and its settings."""

    id: str
    entry_point: str
    settings: dict[str, Any]

    def build(self, **changes: Any) -> Environment:
        """Build the environment; ``changes`` override the registered settings."""
        module, _, name = self.entry_point.partition(":")
        factory: Callable[..., Environment] = getattr(importlib.import_module(module), name)
        return factory(**{**self.settings, **changes})


def _entry(id: str, path: str, **settings: Any) -> Entry:
    return Entry(id, f"trimtab.envs.{path}", settings)


BUILT_IN: tuple[Entry, ...] = (
    _entry("Game2048-v1", "logic.game2048:Game2048"),
    _entry("GraphColoring-v1", "logic.graph_coloring:GraphColoring"),
    _entry("Minesweeper-v0", "logic.minesweeper:Minesweeper"),
    _entry("RubiksCube-v0", "logic.rubiks_cube:RubiksCube"),
    _entry("RubiksCube-partly-scrambled-v0", "logic.rubiks_cube:partly_scrambled"),
    _entry("SlidingTilePuzzle-v0", "logic.sliding_tile_puzzle:SlidingTilePuzzle"),
    _entry("Sudoku-v0", "logic.sudoku:Sudoku"),
    _entry("Sudoku-very-easy-v0", "logic.sudoku:very_easy"),
    _entry("BinPack-v2", "packing.bin_pack:BinPack"),
    _entry("BinPack-v2-fixed", "packing.bin_pack:BinPack", faithful=False),
    _entry("FlatPack-v0", "packing.flat_pack:FlatPack"),
    _entry("JobShop-v0", "packing.job_shop:JobShop"),
    _entry("Knapsack-v1", "packing.knapsack:Knapsack"),
    _entry("Tetris-v0", "packing.tetris:Tetris"),
    _entry("Tetris-v0-fixed", "packing.tetris:Tetris", faithful=False),
    _entry("Cleaner-v0", "routing.cleaner:Cleaner"),
    _entry("Connector-v3", "routing.connector:Connector"),
    _entry("CVRP-v1", "routing.cvrp:CVRP"),
    _entry("LevelBasedForaging-v0", "routing.level_based_foraging:LevelBasedForaging"),
    _entry("Maze-v0", "routing.maze:Maze"),
    _entry("MMST-v0", "routing.mmst:MMST"),
    _entry("MultiCVRP-v0", "routing.multi_cvrp:MultiCVRP"),
    _entry("PacMan-v1", "routing.pac_man:PacMan"),
    _entry("PacMan-v1-fixed", "routing.pac_man:PacMan", faithful=False),
    _entry("RobotWarehouse-v0", "routing.robot_warehouse:RobotWarehouse"),
    _entry("RobotWarehouse-v0-fixed", "routing.robot_warehouse:RobotWarehouse", faithful=False),
    _entry("Snake-v1", "routing.snake:Snake"),
    _entry("Sokoban-v0", "routing.sokoban:Sokoban"),
    _entry("TSP-v1", "routing.tsp:TSP"),
    _entry("SearchAndRescue-v0", "swarm.search_and_rescue:SearchAndRescue"),
)

_registered: dict[str, Entry] = {entry.id: entry for entry in BUILT_IN}


def register(id: str, entry_point: str, settings: dict[str, Any] | None = None) -> None:
    """Add an environment under a new name for this process.

    Args:
        id: a name, ``-v`` and an integer, such as ``"MySnake-v0"``.
        entry_point: ``"module:Class"``; the module is imported by :func:`make` only.
        settings: keyword arguments of the class.

    Raises:
        InputError: the id has another form or is taken.
    """
    if not _ID.match(id):
        raise InputError(f"The id {id!r} should be a name, '-v' and an integer, like 'Snake-v1'.")
    if id in _registered:
        raise InputError(f"The id {id!r} is already registered; choose another version number.")
    _registered[id] = Entry(id, entry_point, dict(settings or {}))


def make(id: str, **settings: Any) -> Environment:
    """Build a registered environment.

    Args:
        id: a registered name, such as ``"Snake-v1"``.
        settings: keyword arguments that override the registered ones.

    Raises:
        UnknownNameError: no environment has this id; the message lists those that exist.
    """
    if id not in _registered:
        raise unknown_name("environment", id, _registered)
    return _registered[id].build(**settings)


def registered_environments() -> list[str]:
    """Names that :func:`make` accepts, sorted."""
    return sorted(_registered)
