"""How states of the published suite translate into ours, one row per environment."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from oracle import Peer, fields

TERMINATE = {"time_limit_mode": "terminate"}


def _game2048_draw(state: Any, action: Any, following: Any) -> dict[str, Any]:
    from trimtab.envs.logic.game2048 import slide

    moved, _ = slide(state.board, action)
    changed = (moved != following.board).reshape(-1)
    cell = jnp.argmax(changed)
    return {"cell": cell.astype(jnp.int32), "exponent": following.board.reshape(-1)[cell]}


def _minesweeper(state: Any) -> dict[str, Any]:
    from trimtab.envs.logic.minesweeper import count_around

    rows, columns = state.board.shape
    flags = jnp.zeros(rows * columns, bool).at[state.flat_mine_locations].set(True)
    mines = flags.reshape(rows, columns)
    return {
        "board": state.board,
        "step_count": state.step_count,
        "mines": mines,
        "counts": count_around(mines),
    }


PEERS: tuple[Peer, ...] = (
    Peer(
        "Game2048-v1",
        fields("board", "step_count", "action_mask", "score"),
        draw=_game2048_draw,
    ),
    Peer("GraphColoring-v1", fields("adj_matrix", "colors", "current_node_index", "action_mask")),
    Peer("Minesweeper-v0", _minesweeper),
    Peer("RubiksCube-v0", fields("cube", "step_count"), TERMINATE),
    Peer("RubiksCube-partly-scrambled-v0", fields("cube", "step_count"), TERMINATE),
    Peer(
        "SlidingTilePuzzle-v0", fields("puzzle", "empty_tile_position", "step_count"), TERMINATE
    ),
    Peer("Sudoku-v0", fields("board", "action_mask")),
    Peer("Sudoku-very-easy-v0", fields("board", "action_mask")),
)
