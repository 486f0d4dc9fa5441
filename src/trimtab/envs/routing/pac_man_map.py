"""Maps of the Pac-Man environment."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from trimtab.errors import InputError

Cell = tuple[int, int]


class MapTables(NamedTuple):
    """A map as arrays; cells are ``(row, column)``, pellets in row-major order.

    ``pellet_number`` has the index of the pellet of each cell, -1 in walls.
    """

    open: np.ndarray
    pellets: np.ndarray
    pellet_number: np.ndarray
    power_ups: np.ndarray
    player: np.ndarray
    ghosts: np.ndarray
    scatter: np.ndarray


@dataclasses.dataclass(frozen=True)
class PacManMap:
    """Where the walls are and where everything starts.

    Args:
        lines: ``#`` is a wall, any other character open; every open cell gets a pellet.
        player: where the player starts.
        ghosts: where the four ghosts start and return to.
        power_ups: where power-ups lie.
        scatter: where the four frightened ghosts flee to.
    """

    lines: tuple[str, ...]
    player: Cell
    ghosts: tuple[Cell, Cell, Cell, Cell]
    power_ups: tuple[Cell, ...]
    scatter: tuple[Cell, Cell, Cell, Cell]

    def __post_init__(self) -> None:
        if len({len(line) for line in self.lines}) != 1:
            raise InputError("All lines of a map must have the same length.")
        for row, column in (self.player, *self.ghosts, *self.power_ups):
            inside = 0 <= row < len(self.lines) and 0 <= column < len(self.lines[0])
            if not inside or self.lines[row][column] == "#":
                raise InputError(f"The cell ({row}, {column}) is not an open cell of the map.")

    def tables(self) -> MapTables:
        """The map as arrays."""
        cells = np.array([list(line) for line in self.lines]) != "#"
        number = np.where(cells, np.cumsum(cells).reshape(cells.shape) - 1, -1)
        return MapTables(
            open=cells,
            pellets=np.argwhere(cells).astype(np.int32),
            pellet_number=number.astype(np.int32),
            power_ups=np.array(self.power_ups, np.int32).reshape(-1, 2),
            player=np.array(self.player, np.int32),
            ghosts=np.array(self.ghosts, np.int32),
            scatter=np.array(self.scatter, np.int32),
        )


# Open cells of the arcade maze, a 28-bit number a row with column 0 in the highest bit.
_OPEN = """
0000000 7ff9ffe 4209042 4209042 4209042 7fffffe 4240242 4240242 7e79e7e 0209040 0209040 027fe40
0244240 025fa40 fff0fff 025fa40 0244240 027fe40 0240240 0240240 7ff9ffe 4209042 4209042 73fffce
1240248 1240248 7e79e7e 4009002 4009002 7fffffe 0000000
"""


def _unpack(rows: str, columns: int) -> tuple[str, ...]:
    bits = (f"{int(row, 16):0{columns}b}" for row in rows.split())
    return tuple(line.replace("0", "#").replace("1", ".") for line in bits)


DEFAULT_MAP = PacManMap(
    lines=_unpack(_OPEN, 28),
    player=(23, 13),
    ghosts=((13, 13), (14, 11), (14, 16), (15, 13)),
    power_ups=((3, 6), (3, 21), (29, 8), (29, 22)),
    scatter=((1, 3), (1, 24), (23, 7), (23, 19)),
)
