"""Drawings of environments on grids."""

from __future__ import annotations

from typing import Any

import numpy as np

from trimtab.envs.pictures.shapes import disc, square, tiles
from trimtab.envs.viewers.scene import Circle, Line, Picture, Rectangle, Shape, Text, blend, hue

_WALL, _FLOOR = "#3b3b3b", "#f4f1ea"


def _picture(grid: np.ndarray, shapes: list[Shape], title: str, background: str) -> Picture:
    rows, columns = grid.shape[:2]
    return Picture(columns, rows, tuple(shapes), title, background)


def cleaner(env: Any, state: Any) -> Picture:
    """Walls dark, dirty tiles brown, agents blue."""
    fills = ("#c9b48f", "#f7f7f7", _WALL)
    shapes = tiles(state.grid, lambda tile: fills[tile])
    shapes += [disc(cell, "#2f62c9", 0.3) for cell in state.agents_locations]
    return _picture(state.grid, shapes, f"{int((state.grid == 0).sum())} dirty", "#dddddd")


def connector(env: Any, state: Any) -> Picture:
    """Wires by colour; heads are discs, targets rings."""
    count = len(state.start)
    shapes = tiles(state.grid, lambda code: hue((code - 1) // 3, count) if code % 3 == 1 else None)
    for agent in range(count):
        color = hue(agent, count)
        shapes += [disc(state.target[agent], color), disc(state.target[agent], "#ffffff", 0.2)]
        shapes += [disc(state.start[agent], color, 0.2), disc(state.position[agent], color)]
    joined = int((state.position == state.target).all(axis=1).sum())
    return _picture(state.grid, shapes, f"{joined} of {count} connected", "#f2f2f2")


def level_based_foraging(env: Any, state: Any) -> Picture:
    """Agents blue, food red, each with its level."""
    side = env.size
    shapes = tiles(np.zeros((side, side)), lambda _: "#20242b")
    for cell, level, eaten in zip(state.food_positions, state.food_levels, state.eaten):
        if not eaten:
            shapes.append(disc(cell, "#d13c3c"))
            shapes.append(Text(cell[1] + 0.5, cell[0] + 0.5, str(level), 0.3, "#ffffff"))
    for cell, level in zip(state.agent_positions, state.agent_levels):
        shapes.append(square(cell, "#5aa2f0"))
        shapes.append(Text(cell[1] + 0.5, cell[0] + 0.5, str(level), 0.3, "#111111"))
    return Picture(side, side, tuple(shapes), f"step {int(state.step_count)}", "#3a404a")


def maze(env: Any, state: Any) -> Picture:
    """Walls dark, the agent blue, the target green."""
    shapes = tiles(state.walls, lambda wall: _WALL if wall else _FLOOR)
    shapes += [square(state.target, "#2e9e4f"), disc(state.agent, "#2f62c9")]
    return _picture(state.walls, shapes, f"step {int(state.step_count)}", "#dddddd")


def pac_man(env: Any, state: Any) -> Picture:
    """The maze with pellets, power-ups, ghosts and the player."""
    tables = env.tables
    shapes = tiles(tables.open, lambda free: "#101018" if free else "#2434b0", 0.0)
    for cell in tables.pellets[state.pellets]:
        shapes.append(disc(cell, "#f5d7a1", 0.12))
    for cell in tables.power_ups[state.power_ups]:
        shapes.append(disc(cell, "#ffffff", 0.3))
    frightened = int(state.frightened_state_time) > 0
    for cell, color in zip(state.ghosts, ("#e03030", "#f5a5c8", "#40c8e0", "#f0a030")):
        shapes.append(disc(cell, "#3050ff" if frightened else color, 0.45))
    shapes.append(disc(state.player, "#ffe030", 0.48))
    return _picture(tables.open, shapes, f"score {int(state.score)}", "#101018")


def robot_warehouse(env: Any, state: Any) -> Picture:
    """Shelves (requested ones orange), goals, and robots with a bar in their direction."""
    requested = set((state.request_queue + 1).tolist())

    def fill(shelf: int) -> str:
        return ("#e88b2d" if shelf in requested else "#7a6a9a") if shelf else "#f2f2f2"

    shapes = tiles(state.shelves, fill)
    for row, column in env.goals.tolist():
        goal = Rectangle(column + 0.04, row + 0.04, 0.92, 0.92, "#444444")
        shapes += [goal, Text(column + 0.5, row + 0.5, "G", 0.4, "#ffffff")]
    steps = ((0, -0.4), (0.4, 0), (0, 0.4), (-0.4, 0))
    for cell, facing, carries in zip(state.positions, state.directions, state.carrying):
        x, y = cell[1] + 0.5, cell[0] + 0.5
        shapes.append(Circle(x, y, 0.34, "#d13c3c" if carries else "#2f62c9"))
        dx, dy = steps[facing]
        shapes.append(Line((x, y), (x + dx, y + dy), "#111111", 0.1))
    return _picture(state.shelves, shapes, f"step {int(state.step_count)}", "#d8d8d8")


def snake(env: Any, state: Any) -> Picture:
    """The body shaded from head to tail, and the fruit."""
    length = max(int(state.length), 1)

    def fill(order: int) -> str:
        return blend("#cfe8cf", "#1d7a3a", order / length) if order else "#f6f6f6"

    shapes = tiles(state.body_state, fill)
    shapes += [disc(state.fruit, "#d13c3c"), disc(state.head, "#0f4a22", 0.25)]
    return _picture(state.body_state, shapes, f"length {length}", "#e2e2e2")


def sokoban(env: Any, state: Any) -> Picture:
    """Walls, targets as rings, boxes (darker on targets) and the agent."""
    shapes = tiles(state.fixed_grid, lambda thing: _WALL if thing == 1 else _FLOOR, 0.0)
    for cell in np.argwhere(state.fixed_grid == 2):
        shapes += [disc(cell, "#c94f4f", 0.25), disc(cell, _FLOOR, 0.15)]
    for cell in np.argwhere(state.variable_grid == 4):
        done = state.fixed_grid[tuple(cell)] == 2
        shapes.append(square(cell, "#2e9e4f" if done else "#b07a3a", 0.76))
    shapes.append(disc(state.agent_location, "#2f62c9", 0.32))
    return _picture(state.fixed_grid, shapes, f"step {int(state.step_count)}", _FLOOR)


DRAWINGS = {
    "Cleaner": cleaner,
    "Connector": connector,
    "LevelBasedForaging": level_based_foraging,
    "Maze": maze,
    "PacMan": pac_man,
    "RobotWarehouse": robot_warehouse,
    "Snake": snake,
    "Sokoban": sokoban,
}
