"""How states of the published suite translate into ours, one row per environment."""

from __future__ import annotations

from typing import Any

import jax
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


def _bin_pack(state: Any) -> dict[str, Any]:
    space, items, corners = state.ems, state.items, state.items_location
    return {
        "container": jnp.stack([state.container.x2, state.container.y2, state.container.z2]),
        "spaces": jnp.stack([space.x1, space.x2, space.y1, space.y2, space.z1, space.z2]),
        "spaces_mask": state.ems_mask,
        "items": jnp.stack([items.x_len, items.y_len, items.z_len]),
        "items_mask": state.items_mask,
        "items_placed": state.items_placed,
        "items_location": jnp.stack([corners.x, corners.y, corners.z]),
        "order": state.sorted_ems_indexes,
        "action_mask": state.action_mask,
    }


def _flat_pack(state: Any) -> dict[str, Any]:
    from trimtab.envs.packing.flat_pack import _CELL_BITS, rotations

    turned = jax.vmap(rotations)(state.blocks)
    return {
        "grid": state.grid,
        "blocks": state.blocks,
        "shapes": jnp.where(turned > 0, _CELL_BITS, 0).sum(axis=(2, 3)),
        "placed_blocks": state.placed_blocks,
        "step_count": state.step_count,
    }


def _tetris(state: Any) -> dict[str, Any]:
    return {
        "grid": jnp.minimum(state.grid_padded[:-3, :-3], 1),
        "tetromino_index": state.tetromino_index,
        "action_mask": state.action_mask,
        "score": state.score,
        "step_count": state.step_count,
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
    Peer("BinPack-v2", _bin_pack, tolerance=2e-6, lanes=16, steps=32),
    Peer("FlatPack-v0", _flat_pack, lanes=8, steps=25),
    Peer(
        "JobShop-v0",
        fields(
            "ops_machine_ids",
            "ops_durations",
            "ops_mask",
            "machines_job_ids",
            "machines_remaining_times",
            "action_mask",
            "step_count",
            "scheduled_times",
        ),
        illegal=0.01,
    ),
    Peer("Knapsack-v1", fields("weights", "values", "packed_items", "remaining_budget")),
    Peer(
        "Tetris-v0",
        _tetris,
        TERMINATE,
        draw=lambda state, action, following: following.tetromino_index,
        # Where a piece cannot enter, the published board is undefined; the episode ends there.
        legal_only=("next_state", "observation", "reward"),
        ignore=("next_state/grid",),
    ),
)
