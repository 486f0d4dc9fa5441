"""How states of the published suite translate into ours, one row per environment."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from oracle import Peer, fields, to_dictionary

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
        "shapes": jnp.where(turned > 0, _CELL_BITS, 0).sum(axis=(2, 3), dtype=jnp.int16),
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


def _maze(state: Any) -> dict[str, Any]:
    return {
        "agent": jnp.stack(state.agent_position),
        "target": jnp.stack(state.target_position),
        "walls": state.walls,
        "action_mask": state.action_mask,
        "step_count": state.step_count,
    }


def _snake(state: Any) -> dict[str, Any]:
    return {
        "body_state": state.body_state,
        "head": jnp.stack(state.head_position),
        "fruit": jnp.stack(state.fruit_position),
        "length": state.length,
        "step_count": state.step_count,
        "action_mask": state.action_mask,
    }


def _connector(state: Any) -> dict[str, Any]:
    return {
        "grid": state.grid,
        "start": state.agents.start,
        "target": state.agents.target,
        "position": state.agents.position,
        "action_mask": state.action_mask,
        "step_count": state.step_count,
    }


def _foraging(state: Any) -> dict[str, Any]:
    return {
        "agent_positions": state.agents.position,
        "agent_levels": state.agents.level,
        "loading": state.agents.loading,
        "food_positions": state.food_items.position,
        "food_levels": state.food_items.level,
        "eaten": state.food_items.eaten,
        "step_count": state.step_count,
    }


def _mmst(state: Any) -> dict[str, Any]:
    connected = state.adj_matrix > 0
    lost = connected[None] & (state.node_edges == -1)
    return {
        "node_types": state.node_types,
        "adj_matrix": state.adj_matrix,
        "terminals": state.nodes_to_connect,
        "visited": state.connected_nodes_index >= 0,
        "closed": lost.any(axis=1),
        "walks": state.connected_nodes,
        "walk_end": state.position_index,
        "positions": state.positions,
        "action_mask": state.action_mask,
        "finished_agents": state.finished_agents,
        "step_count": state.step_count,
    }


def _multi_cvrp(state: Any) -> dict[str, Any]:
    names = ("positions", "local_times", "capacities", "distances", "time_penalties")
    return {
        "nodes": to_dictionary(state.nodes),
        "windows": to_dictionary(state.windows),
        "coeffs": to_dictionary(state.coeffs),
        **{name: getattr(state.vehicles, name) for name in names},
        "order": state.order,
        "action_mask": state.action_mask,
        "step_count": state.step_count,
    }


def _pac_man(state: Any) -> dict[str, Any]:
    def flip(cells: Any) -> Any:
        return jnp.asarray(cells)[:, ::-1]

    return {
        "player": jnp.stack(state.player_locations),
        "ghosts": flip(state.ghost_locations),
        "previous_ghosts": flip(state.old_ghost_locations),
        "ghost_actions": state.ghost_actions,
        "ghost_starts": state.ghost_starts,
        "ghost_eaten": ~state.ghost_eaten,
        "pellets": (state.pellet_locations != 0).any(axis=1),
        "power_ups": (state.power_up_locations != 0).any(axis=1),
        "pellets_left": state.pellets,
        "frightened_state_time": state.frightened_state_time,
        "dead": jnp.asarray(state.dead) == 1,
        "score": state.score,
        "step_count": state.step_count,
    }


def _ghost_choices_are_allowed(env: Any, state: Any, action: Any, draw: Any) -> Any:
    options = jax.vmap(env.ghost_options)(state, action)
    chosen = jnp.take_along_axis(options, draw[..., None], axis=-1)[..., 0]
    return chosen.all(axis=-1)


def _warehouse(state: Any) -> dict[str, Any]:
    return {
        "positions": jnp.stack(state.agents.position, axis=-1),
        "directions": state.agents.direction,
        "carrying": state.agents.is_carrying == 1,
        "shelves": state.grid[_shelf_channel],
        "request_queue": state.request_queue,
        "action_mask": state.action_mask,
        "step_count": state.step_count,
    }


_shelf_channel = 0


def _warehouse_draw(state: Any, action: Any, following: Any) -> Any:
    """The new entry of the queue's slot that the shelf on each goal had."""
    rows, columns = state.grid.shape[1:]
    goals = ((rows - 1, columns // 2 - 1), (rows - 1, columns // 2))
    draws = []
    for goal in goals:
        shelf = following.grid[_shelf_channel, goal[0], goal[1]] - 1
        slot = jnp.argmax(state.request_queue == shelf)
        draws.append(following.request_queue[slot])
    return jnp.stack(draws).astype(jnp.int32)


def _sokoban_peer() -> Any:
    """The published rules on levels of our generator, since its own are downloaded."""
    from jumanji.environments import Sokoban
    from jumanji.environments.routing.sokoban.generator import Generator
    from jumanji.environments.routing.sokoban.types import State

    from trimtab.envs.routing.sokoban_levels import ReversePlay

    class OurLevels(Generator):
        def __call__(self, rng_key: Any) -> Any:
            level = ReversePlay()(jax.random.wrap_key_data(rng_key))
            return State(
                key=rng_key,
                fixed_grid=level.fixed,
                variable_grid=level.movable,
                agent_location=level.agent,
                step_count=jnp.array(0, jnp.int32),
            )

    return Sokoban(generator=OurLevels())


def _search(state: Any) -> dict[str, Any]:
    return {
        "positions": state.searchers.pos,
        "headings": state.searchers.heading,
        "speeds": state.searchers.speed,
        "target_positions": state.targets.pos,
        "target_velocities": state.targets.vel,
        "found": state.targets.found,
        "step": state.step,
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
    Peer("SlidingTilePuzzle-v0", fields("puzzle", "empty_tile_position", "step_count"), TERMINATE),
    Peer("Sudoku-v0", fields("board")),
    Peer("Sudoku-very-easy-v0", fields("board")),
    Peer("BinPack-v2", _bin_pack, tolerance=2e-6, lanes=8, steps=32),
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
    Peer("Maze-v0", _maze, TERMINATE),
    Peer(
        "Cleaner-v0",
        fields("grid", "agents_locations", "action_mask", "step_count"),
        TERMINATE,
        illegal=0.02,
    ),
    Peer("Connector-v3", _connector),
    Peer(
        "CVRP-v1",
        fields(
            "coordinates",
            "demands",
            "position",
            "capacity",
            "visited_mask",
            "trajectory",
            "num_total_visits",
        ),
        # What an illegal action leaves behind is not used: the episode ends there.
        legal_only=("next_state", "observation"),
    ),
    Peer("LevelBasedForaging-v0", _foraging, illegal=0.2),
    Peer(
        "MMST-v0",
        _mmst,
        TERMINATE,
        draw=lambda state, action, following: jax.random.permutation(
            jax.random.split(state.key)[1], action.shape[0]
        ),
    ),
    Peer("MultiCVRP-v0", _multi_cvrp, TERMINATE, tolerance=1e-5),
    Peer(
        "PacMan-v1",
        _pac_man,
        TERMINATE,
        draw=lambda state, action, following: following.ghost_actions,
        check=_ghost_choices_are_allowed,
    ),
    Peer("RobotWarehouse-v0", _warehouse, TERMINATE, draw=_warehouse_draw, skip_last=True),
    Peer("Snake-v1", _snake, TERMINATE, draw=lambda s, a, n: jnp.stack(n.fruit_position)),
    Peer(
        "Sokoban-v0",
        fields("fixed_grid", "variable_grid", "agent_location", "step_count"),
        TERMINATE,
        make_peer=_sokoban_peer,
    ),
    Peer(
        "TSP-v1",
        fields("coordinates", "position", "visited_mask", "trajectory", "num_visited"),
        legal_only=("next_state", "observation"),
    ),
    Peer(
        "SearchAndRescue-v0",
        _search,
        TERMINATE,
        draw=lambda s, a, n: {"positions": n.targets.pos, "velocities": n.targets.vel},
        tolerance=2e-6,
        lanes=4,
        steps=40,
    ),
)
