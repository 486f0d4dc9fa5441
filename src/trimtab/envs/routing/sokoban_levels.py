"""Levels of Sokoban: made by playing backwards from a solved room, or read from Boxoban text."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from trimtab.envs import grid
from trimtab.envs.protocol import Table
from trimtab.envs.sampling import below, choose_true_from
from trimtab.errors import FileFormatError, InputError

SIDE = 10
NUM_BOXES = 4
EMPTY, WALL, TARGET, AGENT, BOX = 0, 1, 2, 3, 4


class Level(NamedTuple):
    """Fixed things (0 floor, 1 wall, 2 target), movable ones (0, 3 agent, 4 box), the agent."""

    fixed: UInt8[Array, "10 10"]
    movable: UInt8[Array, "10 10"]
    agent: Int[Array, " 2"]


@dataclasses.dataclass(frozen=True)
class ReversePlay:
    """Carve a room by a random walk, put boxes on the targets, and pull them away.

    Every level can be solved in at most ``num_moves`` moves, namely by the pulls in reverse.

    Args:
        num_carved: steps of the walk that carves the room.
        num_moves: moves of the backward game.
        pull_probability: chance that the agent pulls a box when it can.
    """

    num_carved: int = 60
    num_moves: int = 100
    pull_probability: float = 0.8

    def __post_init__(self) -> None:
        if self.num_carved < 10 or self.num_moves < 1 or not 0 <= self.pull_probability <= 1:
            raise InputError(
                f"num_carved={self.num_carved}, num_moves={self.num_moves}, pull_probability="
                f"{self.pull_probability}: expected at least 10 carved steps, a move, and a "
                "probability."
            )

    def __call__(self, key: Array) -> Level:
        """Draw a level."""
        return self.with_solution(key)[0]

    def with_solution(self, key: Array) -> tuple[Level, Int[Array, " moves"]]:
        """Draw a level and actions that solve it, in order; -1 where the move is skipped."""
        carve_key, place_key, play_key = jax.random.split(key, 3)
        floor = self._carve(carve_key)
        cells = self._choose_cells(place_key, floor)
        targets = jnp.zeros(SIDE * SIDE, bool).at[cells[:NUM_BOXES]].set(True)
        targets = targets.reshape(SIDE, SIDE)
        agent = grid.unflat(cells[NUM_BOXES], SIDE)
        boxes, agent, undone = self._pull(play_key, floor, targets, agent)
        fixed = jnp.where(floor, jnp.where(targets, TARGET, EMPTY), WALL)
        movable = jnp.where(boxes, BOX, EMPTY).at[agent[0], agent[1]].set(AGENT)
        level = Level(fixed.astype(jnp.uint8), movable.astype(jnp.uint8), agent)
        return level, undone[::-1]

    def _carve(self, key: Array) -> Array:
        """Free the 2 x 2 squares that a walk over the interior passes."""
        uniforms = jax.random.uniform(key, (self.num_carved + 2,))
        start = 1 + below(uniforms[:2], SIDE - 4)

        def walk(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            floor, cell = carry
            direction = below(uniforms[index + 2], 4)
            cell = jnp.clip(grid.moved(cell, direction), 1, SIDE - 3)
            row, column = np.arange(SIDE)[:, None] - cell[0], np.arange(SIDE)[None, :] - cell[1]
            square = (row >= 0) & (row < 2) & (column >= 0) & (column < 2)
            return floor | square, cell

        # A 3 x 3 square at the start leaves room for boxes and agent in every case.
        row = np.arange(SIDE)[:, None] - start[0]
        column = np.arange(SIDE)[None, :] - start[1]
        first = (row >= 0) & (row < 3) & (column >= 0) & (column < 3)
        return jax.lax.fori_loop(0, self.num_carved, walk, (first, start))[0]

    def _choose_cells(self, key: Array, floor: Array) -> Array:
        """Distinct floor cells for the targets and the agent."""
        uniforms = jax.random.uniform(key, (NUM_BOXES + 1,))

        def take(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            free, cells = carry
            cell = choose_true_from(uniforms[index], free)
            return free.at[cell].set(False), cells.at[index].set(cell)

        none = jnp.zeros(NUM_BOXES + 1, jnp.int32)
        return jax.lax.fori_loop(0, NUM_BOXES + 1, take, (floor.reshape(-1), none))[1]

    def _pull(self, key: Array, floor: Array, boxes: Array, agent: Array) -> tuple[Array, ...]:
        """Play backwards: the agent steps away and may drag the box that it turns its back on."""
        uniforms = jax.random.uniform(key, (self.num_moves, 2))
        moves = jnp.asarray(grid.MOVES)

        def play(index: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            boxes, agent, undone = carry
            around = agent + moves
            free = floor[around[:, 0], around[:, 1]] & ~boxes[around[:, 0], around[:, 1]]
            away = choose_true_from(uniforms[index, 0], free)
            can_move = free.any()
            pushed = (away + 2) % 4
            behind = agent + moves[pushed]
            pulls = boxes[behind[0], behind[1]] & (uniforms[index, 1] < self.pull_probability)
            pulls &= can_move
            off = jnp.where(pulls, behind, SIDE)
            on = jnp.where(pulls, agent, SIDE)
            boxes = boxes.at[off[0], off[1]].set(False, mode="drop")
            boxes = boxes.at[on[0], on[1]].set(True, mode="drop")
            agent = jnp.where(can_move, agent + moves[away], agent)
            return boxes, agent, undone.at[index].set(jnp.where(can_move, pushed, -1))

        nothing = jnp.full(self.num_moves, -1, jnp.int32)
        return jax.lax.fori_loop(0, self.num_moves, play, (boxes, agent, nothing))


@dataclasses.dataclass(frozen=True)
class LevelBank:
    """Levels drawn uniformly from a table.

    Args:
        fixed: fixed things, uint8 of shape ``(levels, 10, 10)``.
        movable: movable things, same shape.
    """

    fixed: Table
    movable: Table

    def __call__(self, key: Array) -> Level:
        """Draw a level."""
        fixed, movable = jnp.asarray(self.fixed.values), jnp.asarray(self.movable.values)
        chosen = below(jax.random.uniform(key), fixed.shape[0])
        agent = grid.unflat(jnp.argmax(movable[chosen].reshape(-1) == AGENT), SIDE)
        return Level(fixed[chosen], movable[chosen], agent)


_FIXED = {"#": WALL, ".": TARGET, "*": TARGET, "+": TARGET}
_MOVABLE = {"@": AGENT, "$": BOX, "*": BOX, "+": AGENT}


def parse_levels(text: str, source: str = "The text") -> LevelBank:
    """Read levels in Boxoban's form: a line ``; n``, then ten lines of ``#``, ``@``, ``$``, ``.``.

    Raises:
        FileFormatError: a level has another size, or not one agent and four boxes and targets.
    """
    levels: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith(";"):
            levels.append([])
        elif line.strip():
            if not levels:
                levels.append([])
            levels[-1].append(line)
    if not levels:
        raise FileFormatError(f"{source} has no levels.")
    fixed = np.zeros((len(levels), SIDE, SIDE), np.uint8)
    movable = np.zeros_like(fixed)
    for number, lines in enumerate(levels):
        if len(lines) != SIDE or any(len(line) != SIDE for line in lines):
            raise FileFormatError(f"{source}, level {number}: expected ten lines of ten cells.")
        for row, line in enumerate(lines):
            fixed[number, row] = [_FIXED.get(cell, EMPTY) for cell in line]
            movable[number, row] = [_MOVABLE.get(cell, EMPTY) for cell in line]
        counts = [(movable[number] == thing).sum() for thing in (AGENT, BOX)]
        if counts != [1, NUM_BOXES] or (fixed[number] == TARGET).sum() != NUM_BOXES:
            raise FileFormatError(
                f"{source}, level {number}: expected one agent, {NUM_BOXES} boxes and targets."
            )
    return LevelBank(Table(fixed), Table(movable))


def read_levels(path: str | Path, proportion_of_files: float = 1.0) -> LevelBank:
    """Read a Boxoban file, or the given share of the ``*.txt`` files of a folder."""
    path = Path(path)
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise FileFormatError(f"{path} holds no .txt files.")
    kept = files[: max(1, round(proportion_of_files * len(files)))]
    banks = [parse_levels(file.read_text(), str(file)) for file in kept]
    return LevelBank(
        Table(np.concatenate([bank.fixed.values for bank in banks])),
        Table(np.concatenate([bank.movable.values for bank in banks])),
    )


def format_level(level: Level) -> str:
    """One level as Boxoban text, without its heading."""
    marks = {(TARGET, BOX): "*", (TARGET, AGENT): "+", (TARGET, EMPTY): "."}
    marks |= {(EMPTY, BOX): "$", (EMPTY, AGENT): "@", (EMPTY, EMPTY): " "}
    fixed, movable = np.asarray(level.fixed), np.asarray(level.movable)
    return "\n".join(
        "".join(marks.get((int(f), int(m)), "#") for f, m in zip(*rows))
        for rows in zip(fixed, movable)
    )
