"""What stays true in random play, whatever the seed."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rollouts import IDS, environment, roll

INVARIANTS = {}


def holds_for(*ids):
    def register(check):
        INVARIANTS.update(dict.fromkeys(ids, check))
        return check

    return register


def every(rollout):
    """States before and after each step, and the step, one at a time."""
    steps, lanes = rollout.timestep.terminated.shape
    return itertools.product(range(steps), range(lanes))


@holds_for("Game2048-v1")
def tiles_only_gain_the_new_one(env, r):
    total = lambda board: np.where(board > 0, 2**board, 0).sum(axis=(2, 3))  # noqa: E731
    assert set(np.unique(total(r.after.board) - total(r.before.board))) <= {2, 4}
    assert (r.after.board[~r.timestep.terminated].reshape(-1, 16) >= 0).all()


@holds_for("GraphColoring-v1")
def neighbours_never_share_a_colour(env, r):
    colors = r.after.colors
    same = (colors[..., :, None] == colors[..., None, :]) & (colors[..., None] >= 0)
    assert not (same & r.after.adj_matrix).any()


@holds_for("Minesweeper-v0")
def open_cells_show_the_mines_around_them(env, r):
    opened = r.after.board >= 0
    assert (r.after.board == r.after.counts)[opened].all()
    assert (r.after.mines.sum(axis=(2, 3)) == env.num_mines).all()
    hit = (opened & r.after.mines).any(axis=(2, 3))
    assert (r.timestep.terminated == hit).all()


@holds_for("RubiksCube-v0", "RubiksCube-partly-scrambled-v0")
def every_colour_keeps_nine_stickers(env, r):
    for color in range(6):
        assert ((r.after.cube == color).sum(axis=(2, 3, 4)) == env.size**2).all()


@holds_for("SlidingTilePuzzle-v0")
def tiles_stay_a_permutation(env, r):
    flat = np.sort(r.after.puzzle.reshape(*r.after.puzzle.shape[:2], -1), axis=-1)
    assert (flat == np.arange(env.size**2)).all()
    row, column = np.moveaxis(r.after.empty_tile_position, -1, 0)
    lanes = np.indices(row.shape)
    assert (r.after.puzzle[lanes[0], lanes[1], row, column] == 0).all()


@holds_for("Sudoku-v0", "Sudoku-very-easy-v0")
def legal_play_repeats_no_digit_in_a_line(env, r):
    board = r.after.board
    for digit in range(9):
        assert ((board == digit).sum(axis=2) <= 1).all()
        assert ((board == digit).sum(axis=3) <= 1).all()


@holds_for("BinPack-v2")
def boxes_lie_inside_and_do_not_overlap(env, r):
    for step, lane in every(r):
        placed = r.after.items_placed[step, lane]
        low = r.after.items_location[step, lane][:, placed]
        high = low + r.after.items[step, lane][:, placed]
        assert (low >= 0).all()
        assert (high <= r.after.container[step, lane][:, None]).all()
        overlap = (low[:, :, None] < high[:, None, :]) & (low[:, None, :] < high[:, :, None])
        assert overlap.all(axis=0).sum() == placed.sum()


@holds_for("FlatPack-v0")
def filled_cells_are_those_of_the_placed_blocks(env, r):
    cells = (r.after.blocks > 0).sum(axis=(3, 4))
    expected = (cells * r.after.placed_blocks).sum(axis=2)
    assert ((r.after.grid > 0).sum(axis=(2, 3)) == expected).all()


@holds_for("JobShop-v0")
def machines_do_one_operation_at_a_time(env, r):
    _jobs, machines, _operations, _ = env.sizes
    for step, lane in every(r):
        if r.timestep.terminated[step, lane]:
            continue  # the last step may have been an illegal joint choice
        start = r.after.scheduled_times[step, lane].ravel()
        end = start + r.after.ops_durations[step, lane].ravel()
        where = r.after.ops_machine_ids[step, lane].ravel()
        for machine in range(machines):
            mine = np.flatnonzero((where == machine) & (start >= 0))
            order = mine[np.argsort(start[mine])]
            assert (start[order[1:]] >= end[order[:-1]]).all()


@holds_for("Knapsack-v1")
def the_sack_never_exceeds_its_budget(env, r):
    load = (r.after.weights * r.after.packed_items).sum(axis=2)
    assert (load <= env.generator.total_budget + 1e-4).all()


@holds_for("Tetris-v0")
def full_rows_vanish(env, r):
    assert not (r.after.grid > 0).all(axis=3).any()


@holds_for("Cleaner-v0")
def walls_stay_and_nothing_gets_dirty(env, r):
    assert ((r.after.grid == 2) == (r.before.grid == 2)).all()
    assert not ((r.after.grid == 0) & (r.before.grid != 0)).any()


@holds_for("Connector-v3")
def heads_are_where_agents_are(env, r):
    for agent in range(env.num_agents):
        cell = r.after.position[:, :, agent]
        at = np.indices(cell.shape[:2])
        assert (r.after.grid[at[0], at[1], cell[..., 0], cell[..., 1]] == 3 * agent + 2).all()
        assert ((r.after.grid == 3 * agent + 2).sum(axis=(2, 3)) == 1).all()


@holds_for("CVRP-v1")
def the_vehicle_never_owes_load(env, r):
    assert (r.after.capacity >= 0).all()
    assert (r.after.num_total_visits <= 2 * env.num_nodes + 1).all()


@holds_for("LevelBasedForaging-v0")
def agents_never_meet(env, r):
    cells = r.after.agent_positions
    assert (cells[:, :, 0] != cells[:, :, 1]).any(axis=-1).all()
    assert ((cells >= 0) & (cells < env.size)).all()


@holds_for("Maze-v0")
def the_agent_never_stands_in_a_wall(env, r):
    at = np.indices(r.after.agent.shape[:2])
    assert not r.after.walls[at[0], at[1], r.after.agent[..., 0], r.after.agent[..., 1]].any()


@holds_for("MMST-v0")
def agents_walk_along_edges_of_open_nodes(env, r):
    before, after = r.before.positions, r.after.positions
    for step, lane in every(r):
        moved = before[step, lane] != after[step, lane]
        edges = r.before.adj_matrix[step, lane][before[step, lane], after[step, lane]]
        assert (edges[moved] > 0).all()
        agents = np.arange(env.agents)
        assert not r.before.closed[step, lane][agents, after[step, lane]][moved].any()


@holds_for("MultiCVRP-v0")
def demands_and_loads_stay_positive(env, r):
    assert (r.after.nodes.demands >= 0).all()
    assert (r.after.capacities >= 0).all()
    assert (r.after.distances >= r.before.distances - 1e-5).all()


@holds_for("PacMan-v1")
def pellets_are_counted_and_the_player_stays_in_the_open(env, r):
    assert (r.after.pellets.sum(axis=2) == r.after.pellets_left).all()
    cell = r.after.player
    assert env.tables.open[cell[..., 0], cell[..., 1]].all()


@holds_for("RobotWarehouse-v0")
def no_shelf_is_lost(env, r):
    going = ~r.timestep.terminated
    assert ((r.after.shelves > 0).sum(axis=(2, 3))[going] == env.layout.num_shelves).all()


@holds_for("Snake-v1")
def the_body_is_as_long_as_it_says(env, r):
    going = ~r.timestep.terminated
    assert ((r.after.body_state > 0).sum(axis=(2, 3)) == r.after.length)[going].all()


@holds_for("Sokoban-v0")
def four_boxes_and_one_agent_stay_out_of_walls(env, r):
    assert ((r.after.variable_grid == 4).sum(axis=(2, 3)) == 4).all()
    assert ((r.after.variable_grid == 3).sum(axis=(2, 3)) == 1).all()
    assert (r.after.variable_grid[r.after.fixed_grid == 1] == 0).all()


@holds_for("TSP-v1")
def tours_visit_no_city_twice(env, r):
    for step, lane in every(r):
        tour = r.after.trajectory[step, lane]
        visited = tour[tour >= 0]
        assert len(set(visited.tolist())) == len(visited) == r.after.num_visited[step, lane]


@holds_for("SearchAndRescue-v0")
def searchers_keep_their_limits_and_targets_stay_found(env, r):
    assert ((r.after.positions >= 0) & (r.after.positions <= 1)).all()
    assert (r.after.speeds >= env.searcher_min_speed - 1e-7).all()
    assert (r.after.speeds <= env.searcher_max_speed + 1e-7).all()
    assert (r.after.found >= r.before.found).all()


@pytest.mark.parametrize("id", IDS)
@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**31 - 1))
def test_invariants_hold_in_random_play(id, seed):
    INVARIANTS[id](environment(id), roll(id, seed=seed))


def test_every_environment_has_an_invariant():
    assert set(INVARIANTS) == set(IDS)
