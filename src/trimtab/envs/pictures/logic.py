"""Drawings of the puzzles of logic."""

from __future__ import annotations

from typing import Any

import numpy as np

from trimtab.envs.pictures.shapes import ink, labels, on_circle, path, tiles
from trimtab.envs.viewers.scene import Circle, Line, Picture, Rectangle, Shape, Text, blend, hue

_CUBE = ("#ffffff", "#2e9e4f", "#d13c3c", "#2f62c9", "#f08c2e", "#f2d545")
_NUMBERS = (
    "",
    "#2f62c9",
    "#2e9e4f",
    "#d13c3c",
    "#31317a",
    "#7a3131",
    "#2a8a8a",
    "#222222",
    "#777777",
)


def game2048(env: Any, state: Any) -> Picture:
    """Tiles shaded by value."""
    board = state.board

    def fill(exponent: int) -> str:
        return blend("#eee4da", "#c03a1a", exponent / 11) if exponent else "#cdc1b4"

    def number(exponent: int) -> str:
        return str(2**exponent) if exponent else ""

    shapes = tiles(board, fill)
    for (row, column), entry in np.ndenumerate(board):
        exponent = entry.item()
        size = 0.3 if exponent < 10 else 0.2
        text = Text(column + 0.5, row + 0.5, number(exponent), size, ink(fill(exponent)))
        shapes.append(text)
    side = board.shape[0]
    return Picture(side, side, tuple(shapes), f"score {int(state.score)}", "#bbada0")


def graph_coloring(env: Any, state: Any) -> Picture:
    """Nodes on a circle, filled by colour; the current one is ringed."""
    count = len(state.colors)
    points = on_circle(count, 4.3, 5)
    shapes: list[Shape] = [
        Line(points[i], points[j], "#c4c4c4", 0.03)
        for i, j in np.argwhere(np.triu(state.adj_matrix))
    ]
    for node, (x, y) in enumerate(points):
        color = int(state.colors[node])
        if node == int(state.current_node_index):
            shapes.append(Circle(x, y, 0.48, "#222222"))
        fill = hue(color, count) if color >= 0 else "#ffffff"
        shapes += [Circle(x, y, 0.4, "#555555"), Circle(x, y, 0.36, fill)]
        shapes.append(Text(x, y, str(node), 0.25, ink(fill)))
    used = len(set(state.colors[state.colors >= 0].tolist()))
    return Picture(10, 10, tuple(shapes), f"{used} colours")


def minesweeper(env: Any, state: Any) -> Picture:
    """Open cells with their numbers; an opened mine is black."""
    board, mines = state.board, state.mines

    def fill(index: int) -> str:
        opened, mine = board.flat[index] >= 0, mines.flat[index]
        return ("#222222" if mine else "#f4f4f4") if opened else "#9aa7b5"

    cells = np.arange(board.size).reshape(board.shape)
    shapes = tiles(cells, fill)
    shapes += labels(
        np.where(mines, 0, board),
        lambda value: str(value) if value > 0 else "",
        color=lambda value: _NUMBERS[value],
    )
    rows, columns = board.shape
    return Picture(columns, rows, tuple(shapes), f"{int((board >= 0).sum())} open", "#7c8894")


def rubiks_cube(env: Any, state: Any) -> Picture:
    """The six faces unfolded: up on top, left, front, right and back in a row, down below."""
    size = state.cube.shape[-1]
    corner = {0: (1, 0), 4: (0, 1), 1: (1, 1), 2: (2, 1), 3: (3, 1), 5: (1, 2)}
    shapes: list[Shape] = []
    for face, (right, down) in corner.items():
        x, y = right * (size + 0.2), down * (size + 0.2)
        for (row, column), color in np.ndenumerate(state.cube[face]):
            fill = _CUBE[color.item()]
            shapes.append(Rectangle(x + column + 0.05, y + row + 0.05, 0.9, 0.9, fill))
    wide, high = 4 * size + 0.6, 3 * size + 0.4
    return Picture(wide, high, tuple(shapes), f"step {int(state.step_count)}", "#333333")


def sliding_tile_puzzle(env: Any, state: Any) -> Picture:
    """Numbered tiles, the darker the higher."""
    puzzle = state.puzzle

    def fill(tile: int) -> str | None:
        return blend("#ffffff", "#3a6fb0", tile / puzzle.size) if tile else None

    shapes = tiles(puzzle, fill)
    shapes += labels(
        puzzle,
        lambda tile: str(tile) if tile else "",
        color=lambda tile: ink(fill(tile) or "#ffffff"),
    )
    side = puzzle.shape[0]
    return Picture(side, side, tuple(shapes), f"step {int(state.step_count)}", "#e4e4e4")


def sudoku(env: Any, state: Any) -> Picture:
    """The board with thick lines around boxes."""
    shapes: list[Shape] = []
    for line in range(10):
        width = 0.08 if line % 3 == 0 else 0.02
        shapes += path([(line, 0), (line, 9)], "#444444", width)
        shapes += path([(0, line), (9, line)], "#444444", width)
    shapes += labels(state.board, lambda digit: str(digit + 1) if digit >= 0 else "", 0.4)
    return Picture(9, 9, tuple(shapes), f"{int((state.board >= 0).sum())} of 81 cells")


DRAWINGS = {
    "Game2048": game2048,
    "GraphColoring": graph_coloring,
    "Minesweeper": minesweeper,
    "RubiksCube": rubiks_cube,
    "SlidingTilePuzzle": sliding_tile_puzzle,
    "Sudoku": sudoku,
}
