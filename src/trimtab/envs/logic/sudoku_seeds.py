"""The puzzles from which Sudoku instances are derived, and the command that made them.

A seed is a full grid and an order in which its cells can be emptied, one after another, so that
the puzzle keeps a single solution all along. Any prefix of the order gives a puzzle; relabelling
digits, permuting rows and columns within and among bands, and transposing give
``9! * 6**8 * 2`` variants of it. Run ``python -m trimtab.envs.logic.sudoku_seeds FILE`` to make
the file anew.
"""

from __future__ import annotations

import random
import sys
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np

from trimtab.files import atomic_file

FEWEST_GIVENS = 25
_ALL = 0b111111111
_BOX = [row // 3 * 3 + column // 3 for row in range(9) for column in range(9)]


@cache
def load_seeds() -> tuple[np.ndarray, np.ndarray]:
    """The committed seeds.

    Returns:
        Grids with digits 0 to 8, int8 of shape ``(seeds, 81)``, and for each cell how many cells
        are emptied before it, same shape; cells that always stay have 81.
    """
    lines = files("trimtab.envs.logic").joinpath("sudoku_seeds.txt").read_text().split()
    grids = np.array([[int(digit) - 1 for digit in line] for line in lines[::2]], np.int8)
    ranks = np.full_like(grids, 81)
    for seed, line in enumerate(lines[1::2]):
        order = [int(line[start : start + 2]) for start in range(0, len(line), 2)]
        ranks[seed, order] = np.arange(len(order))
    return grids, ranks


def count_solutions(cells: list[int], limit: int = 2, rng: random.Random | None = None) -> int:
    """Number of solutions of a puzzle, at most ``limit``; the last one is left in ``cells``.

    Args:
        cells: 81 digits 1 to 9, 0 where empty.
        limit: where to stop counting.
        rng: tries digits in random order, to draw a random grid.
    """
    rows, columns, boxes = [_ALL] * 9, [_ALL] * 9, [_ALL] * 9
    for cell, digit in enumerate(cells):
        if digit:
            bit = 1 << (digit - 1)
            rows[cell // 9] &= ~bit
            columns[cell % 9] &= ~bit
            boxes[_BOX[cell]] &= ~bit
    empty = [cell for cell in range(81) if not cells[cell]]

    def search() -> int:
        if not empty:
            return 1
        best, best_free, best_count = 0, 0, 10
        for position, cell in enumerate(empty):
            free = rows[cell // 9] & columns[cell % 9] & boxes[_BOX[cell]]
            count = free.bit_count()
            if count < best_count:
                best, best_free, best_count = position, free, count
                if count <= 1:
                    break
        if not best_free:
            return 0
        cell = empty.pop(best)
        digits = [digit for digit in range(1, 10) if best_free >> (digit - 1) & 1]
        if rng is not None:
            rng.shuffle(digits)
        found = 0
        for digit in digits:
            bit = 1 << (digit - 1)
            rows[cell // 9] ^= bit
            columns[cell % 9] ^= bit
            boxes[_BOX[cell]] ^= bit
            cells[cell] = digit
            found += search()
            rows[cell // 9] ^= bit
            columns[cell % 9] ^= bit
            boxes[_BOX[cell]] ^= bit
            if found >= limit:
                break
        if found < limit:
            cells[cell] = 0
        empty.insert(best, cell)
        return found

    return search()


def make_seed(rng: random.Random) -> tuple[list[int], list[int]]:
    """Draw a full grid and empty as many of its cells as uniqueness allows."""
    grid = [0] * 81
    count_solutions(grid, 1, rng)
    puzzle, order = list(grid), []
    cells = list(range(81))
    rng.shuffle(cells)
    for cell in cells:
        digit, puzzle[cell] = puzzle[cell], 0
        if count_solutions(list(puzzle)) == 1:
            order.append(cell)
        else:
            puzzle[cell] = digit
    return grid, order


def main(path: str, count: int = 96, seed: int = 0) -> None:
    """Write ``count`` seeds that reach :data:`FEWEST_GIVENS` givens or fewer."""
    rng = random.Random(seed)
    lines: list[str] = []
    while len(lines) < 2 * count:
        grid, order = make_seed(rng)
        if len(order) >= 81 - FEWEST_GIVENS:
            lines.append("".join(map(str, grid)))
            lines.append("".join(f"{cell:02d}" for cell in order))
    with atomic_file(Path(path)) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
