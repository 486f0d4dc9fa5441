"""Drawings of packing and scheduling."""

from __future__ import annotations

from typing import Any

import numpy as np

from trimtab.envs.pictures.shapes import ink, labels, tiles
from trimtab.envs.viewers.scene import Picture, Polygon, Rectangle, Shape, Text, blend, hue


def bin_pack(env: Any, state: Any) -> Picture:
    """The packed boxes in an oblique view, the farthest first."""
    length, depth, height = (state.container / state.container.max()).tolist()
    slant = 0.45

    def project(x: float, y: float, z: float) -> tuple[float, float]:
        return 0.1 + x + slant * (depth - y), 0.15 + slant * (depth - y) + height - z

    def face(corners: list[tuple[float, float, float]], fill: str) -> Polygon:
        return Polygon(tuple(project(*corner) for corner in corners), fill)

    scale = float(state.container.max())
    placed = np.flatnonzero(state.items_placed)
    order = sorted(
        placed, key=lambda i: (-state.items_location[1, i], *state.items_location[::2, i])
    )
    floor = [(0, 0, 0), (length, 0, 0), (length, depth, 0), (0, depth, 0)]
    shapes: list[Shape] = [face(floor, "#e9e9e9")]
    for item in order:
        x, y, z = (state.items_location[:, item] / scale).tolist()
        w, d, h = (state.items[:, item] / scale).tolist()
        color = hue(int(item), state.items.shape[1])
        top = [(x, y, z + h), (x + w, y, z + h), (x + w, y + d, z + h), (x, y + d, z + h)]
        front = [(x, y, z), (x + w, y, z), (x + w, y, z + h), (x, y, z + h)]
        side = [(x, y, z), (x, y + d, z), (x, y + d, z + h), (x, y, z + h)]
        shapes.append(face(top, blend(color, "#ffffff", 0.3)))
        shapes.append(face(side, blend(color, "#000000", 0.35)))
        shapes.append(face(front, color))
    used = (np.prod(state.items[:, placed] / scale, axis=0)).sum() / (length * depth * height)
    wide, high = length + slant * depth + 0.2, height + slant * depth + 0.3
    return Picture(wide, high, tuple(shapes), f"{len(placed)} items, {used:.0%} of the volume")


def flat_pack(env: Any, state: Any) -> Picture:
    """Cells coloured by block, with its number."""
    count = len(state.placed_blocks)

    def fill(block: int) -> str:
        return hue(int(block), count + 1) if block else "#f0f0f0"

    shapes = tiles(state.grid, fill)
    shapes += labels(state.grid, lambda block: str(block) if block else "", 0.25)
    rows, columns = state.grid.shape
    placed = int(state.placed_blocks.sum())
    return Picture(columns, rows, tuple(shapes), f"{placed} of {count} blocks")


def job_shop(env: Any, state: Any) -> Picture:
    """The schedule so far: a row for each machine, a bar for each operation."""
    jobs = state.ops_machine_ids.shape[0]
    machines = len(state.machines_job_ids)
    ends = state.scheduled_times + state.ops_durations
    horizon = max(int(ends.max(initial=0)), 10)
    shapes: list[Shape] = []
    for machine in range(machines):
        shade = "#f4f4f4" if machine % 2 else "#e9e9e9"
        shapes.append(Rectangle(0, machine, 20, 1, shade))
    for job, op in np.argwhere(state.scheduled_times >= 0):
        start = state.scheduled_times[job, op] / horizon * 20
        width = state.ops_durations[job, op] / horizon * 20
        row = float(state.ops_machine_ids[job, op])
        color = hue(int(job), jobs)
        shapes.append(Rectangle(float(start), row + 0.1, float(width) - 0.04, 0.8, color))
        shapes.append(Text(float(start + width / 2), row + 0.5, str(job), 0.3, ink(color)))
    return Picture(20, machines, tuple(shapes), f"time {int(state.step_count)}")


def knapsack(env: Any, state: Any) -> Picture:
    """The packed items stacked by weight, the darker the more valuable."""
    budget = float(env.generator.total_budget)
    shapes: list[Shape] = [Rectangle(2, 0.5, 6, 9, "#ecdcc4")]
    level = 9.5
    for item in np.flatnonzero(state.packed_items):
        height = float(state.weights[item]) / budget * 9
        color = blend("#fff3d6", "#a05a12", float(state.values[item]))
        shapes.append(Rectangle(2.1, level - height, 5.8, max(height - 0.03, 0.01), color))
        level -= height
    value = float(state.values[state.packed_items].sum())
    load = budget - float(state.remaining_budget)
    return Picture(10, 10, tuple(shapes), f"value {value:.2f}, weight {load:.2f} of {budget:g}")


def tetris(env: Any, state: Any) -> Picture:
    """The grid, and the piece to place at its right."""
    from trimtab.envs.packing.tetris import SHAPES

    rows, columns = state.grid.shape
    shapes = tiles(state.grid, lambda kind: hue(int(kind), 8) if kind else "#f0f0f0")
    piece = SHAPES[int(state.tetromino_index), 0]
    color = hue(int(state.tetromino_index) + 1, 8)
    for row, column in np.argwhere(piece):
        shapes.append(Rectangle(columns + 0.6 + column, 0.5 + row, 0.92, 0.92, color))
    return Picture(columns + 5, rows, tuple(shapes), f"score {int(state.score)}", "#dcdcdc")


DRAWINGS = {
    "BinPack": bin_pack,
    "FlatPack": flat_pack,
    "JobShop": job_shop,
    "Knapsack": knapsack,
    "Tetris": tetris,
}
