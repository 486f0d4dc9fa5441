"""What networks see of each environment: a grid, one set of tokens, or two.

Every function takes an unbatched observation. Numbers are scaled to about [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


class GridView(NamedTuple):
    """Planes over a grid, and facts about all of it."""

    planes: Float[Array, "rows columns channels"]
    facts: Float[Array, " facts"]


class SetView(NamedTuple):
    """A set of which one member is chosen, and facts about all of it."""

    tokens: Float[Array, "tokens features"]
    present: Bool[Array, " tokens"]
    facts: Float[Array, " facts"]


class PairView(NamedTuple):
    """Two sets; each pair of members has a logit. ``linked`` says which pairs matter."""

    left: Float[Array, "left left_features"]
    right: Float[Array, "right right_features"]
    linked: Bool[Array, "left right"]
    facts: Float[Array, " facts"]


class AgentsView(NamedTuple):
    """A vector for each agent."""

    agents: Float[Array, "agents features"]


View = GridView | SetView | PairView | AgentsView


def _facts(*values: Any) -> Array:
    return jnp.stack([jnp.asarray(value, jnp.float32).reshape(()) for value in values])


def _planes(*planes: Any) -> Array:
    return jnp.stack([jnp.asarray(plane, jnp.float32) for plane in planes], axis=-1)


def _one_hot(values: Array, count: int) -> Array:
    return jax.nn.one_hot(values, count, dtype=jnp.float32)


def _marks(cells: Array, shape: tuple[int, ...]) -> Array:
    """Number of cells of a list at each place of a grid."""
    return jnp.zeros(shape, jnp.float32).at[cells[..., 0], cells[..., 1]].add(1.0)


def game2048(env: Any, o: Any) -> View:
    """Exponents, one-hot."""
    return GridView(_one_hot(jnp.minimum(o.board, 15), 16), _facts(0.0))


def graph_coloring(env: Any, o: Any) -> View:
    """Colours as tokens: used anywhere, by neighbours of the current node, and how often."""
    count = env.num_nodes
    wears = _one_hot(o.colors, count)
    near = wears * o.adj_matrix[o.current_node_index][:, None]
    degree = o.adj_matrix.sum(axis=1)
    tokens = jnp.stack(
        [wears.max(axis=0), near.max(axis=0), wears.sum(axis=0) / 4, jnp.arange(count) / count],
        axis=1,
    )
    facts = _facts(o.current_node_index / count, degree[o.current_node_index] / count)
    return SetView(tokens, jnp.ones(count, bool), facts)


def minesweeper(env: Any, o: Any) -> View:
    """Counts, one-hot, with a plane for unexplored cells."""
    return GridView(_one_hot(o.board + 1, 10), _facts(o.num_mines / o.board.size))


def rubiks_cube(env: Any, o: Any) -> View:
    """All stickers, one-hot, as one vector."""
    stickers = _one_hot(o.cube.astype(jnp.int32), 6).reshape(-1)
    clock = _facts(o.step_count / env.time_limit)
    return AgentsView(jnp.concatenate([stickers, clock])[None])


def sliding_tile_puzzle(env: Any, o: Any) -> View:
    """Where each tile is and should be."""
    size = o.puzzle.shape[0]
    home = (o.puzzle - 1) % (size * size)
    row, column = np.arange(size)[:, None], np.arange(size)[None, :]
    planes = [o.puzzle == 0, (home // size - row) / size, (home % size - column) / size]
    grid = jnp.concatenate([_planes(*planes), _one_hot(o.puzzle, size * size)], axis=-1)
    return GridView(grid, _facts(o.step_count / env.time_limit))


def sudoku(env: Any, o: Any) -> View:
    """Digits and what each cell allows."""
    digits = _one_hot(o.board, 9)
    return GridView(jnp.concatenate([digits, o.action_mask], axis=-1), _facts(0.0))


def bin_pack(env: Any, o: Any) -> View:
    """Spaces and items."""
    left = jnp.stack([*o.ems, o.ems_mask], axis=1).astype(jnp.float32)
    right = jnp.stack([*o.items, o.items_mask & ~o.items_placed], axis=1).astype(jnp.float32)
    return PairView(left, right, o.action_mask, _facts(o.items_placed.mean()))


def flat_pack(env: Any, o: Any) -> View:
    """Blocks in all rotations, and the windows of the grid that they may fill."""
    cells = (o.blocks > 0).astype(jnp.float32)
    turned = jnp.stack([jnp.rot90(cells, -k, axes=(1, 2)) for k in range(4)], axis=1)
    placed = ~o.action_mask.any(axis=(2, 3))
    left = jnp.concatenate([turned.reshape(-1, 9), placed.reshape(-1, 1)], axis=1)
    filled = (o.grid > 0).astype(jnp.float32)
    rows, columns = o.action_mask.shape[2:]
    windows = [
        filled[r : r + rows, c : c + columns].reshape(-1) for r in range(3) for c in range(3)
    ]
    place = np.stack(
        np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    )
    right = jnp.concatenate([jnp.stack(windows, axis=1), place.reshape(2, -1).T], axis=1)
    linked = o.action_mask.reshape(left.shape[0], right.shape[0])
    return PairView(left, right, linked, _facts(filled.mean()))


def job_shop(env: Any, o: Any) -> View:
    """Machines, and jobs with their next operation (and one for doing nothing)."""
    jobs, machines, operations, longest = env.sizes
    time = o.machines_remaining_times / longest
    idle = o.machines_job_ids == jobs
    waiting = (o.action_mask[:, :-1]).sum(axis=1) / jobs
    ids = _one_hot(jnp.arange(machines), machines)
    left = jnp.concatenate([jnp.stack([time, idle, waiting], axis=1), ids], axis=1)
    upcoming = jnp.argmax(o.ops_mask, axis=1)
    row = jnp.arange(jobs)
    machine = _one_hot(o.ops_machine_ids[row, upcoming], machines)
    rest = (o.ops_mask * o.ops_durations).sum(axis=1) / (operations * longest)
    count = o.ops_mask.sum(axis=1) / operations
    duration = o.ops_durations[row, upcoming] / longest
    token = jnp.stack([rest, count, duration, jnp.zeros(jobs)], axis=1)
    right = jnp.concatenate([token, machine * o.ops_mask.any(axis=1)[:, None]], axis=1)
    nothing = jnp.zeros((1, right.shape[1])).at[0, 3].set(1.0)
    right = jnp.concatenate([right, nothing]).astype(jnp.float32)
    return PairView(left.astype(jnp.float32), right, o.action_mask, _facts(o.ops_mask.mean()))


def knapsack(env: Any, o: Any) -> View:
    """Weight, value, their ratio, and what fits."""
    ratio = jnp.minimum(o.values / (o.weights + 1e-3), 10.0) / 10.0
    tokens = jnp.stack([o.weights, o.values, ratio, o.packed_items, o.action_mask], axis=1)
    used = (o.packed_items * o.weights).sum() / env.generator.total_budget
    return SetView(tokens.astype(jnp.float32), o.action_mask, _facts(used))


def tetris(env: Any, o: Any) -> View:
    """Columns as tokens: their cells, those beside them, heights, and the piece."""
    filled = o.grid.astype(jnp.float32)
    rows = filled.shape[0]
    heights = (rows - jnp.where(filled.any(axis=0), jnp.argmax(filled > 0, axis=0), rows)) / rows
    padded = jnp.pad(filled, ((0, 0), (1, 3)), constant_values=1.0)
    tall = jnp.pad(heights, (1, 3), constant_values=1.0)
    near = [padded[:, shift : shift + filled.shape[1]].T for shift in range(5)]
    steps = jnp.stack([tall[shift : shift + filled.shape[1]] for shift in range(5)], axis=1)
    piece = jnp.broadcast_to(o.tetromino.reshape(-1), (filled.shape[1], 16))
    tokens = jnp.concatenate([*near, steps, piece.astype(jnp.float32)], axis=1)
    return PairView(
        _one_hot(jnp.arange(4), 4),
        tokens,
        jnp.ones_like(o.action_mask),
        jnp.concatenate([o.tetromino.reshape(-1).astype(jnp.float32), heights]),
    )


def cleaner(env: Any, o: Any) -> View:
    """Agents, each with the window around it and the whole grid."""
    shape = o.grid.shape
    planes = jnp.stack([o.grid == 0, o.grid == 2]).astype(jnp.float32)
    reach = 4
    framed = jnp.pad(planes, ((0, 0), (reach, reach), (reach, reach)), constant_values=0)
    framed = framed.at[1].set(jnp.pad(planes[1], reach, constant_values=1.0))
    side = 2 * reach + 1

    def see(cell: Array) -> Array:
        window = jax.lax.dynamic_slice(framed, (0, cell[0], cell[1]), (2, side, side))
        place = cell / jnp.array(shape)
        return jnp.concatenate([window.reshape(-1), planes[0].reshape(-1), place])

    views = jax.vmap(see)(o.agents_locations)
    index = _one_hot(jnp.arange(views.shape[0]), views.shape[0])
    return AgentsView(jnp.concatenate([views, index], axis=1))


def connector(env: Any, o: Any) -> View:
    """Agents, each with a window of obstacles around its head and the way to its target."""
    size, reach = o.grid.shape[0], 4
    codes = 3 * jnp.arange(env.num_agents)
    cells = jnp.arange(size * size)
    flat = o.grid.reshape(-1)
    head = jnp.where(flat[None] == codes[:, None] + 2, cells, 0).sum(axis=1)
    target = jnp.where(flat[None] == codes[:, None] + 3, cells, 0).sum(axis=1)
    done = ~(flat[None] == codes[:, None] + 3).any(axis=1)
    target = jnp.where(done, head, target)
    busy = jnp.pad((o.grid > 0).astype(jnp.float32), reach, constant_values=1.0)
    heads = jnp.pad((o.grid % 3 == 2).astype(jnp.float32), reach)
    both, side = jnp.stack([busy, heads]), 2 * reach + 1

    def see(at: Array, goal: Array, finished: Array) -> Array:
        row, column = at // size, at % size
        window = jax.lax.dynamic_slice(both, (0, row, column), (2, side, side))
        way = jnp.stack([goal // size - row, goal % size - column]) / size
        facts = jnp.stack([row / size, column / size, finished, o.step_count / env.time_limit])
        return jnp.concatenate([window.reshape(-1), way, jnp.sign(way), facts])

    return AgentsView(jax.vmap(see)(head, target, done.astype(jnp.float32)))


def cvrp(env: Any, o: Any) -> View:
    """Nodes relative to the vehicle, with demands."""
    here = o.coordinates[o.position]
    offset = o.coordinates - here
    apart = jnp.sqrt(jnp.square(offset).sum(axis=1))
    home = jnp.arange(o.demands.shape[0]) == 0
    columns = [o.demands, apart, o.action_mask, o.unvisited_nodes, home]
    tokens = jnp.concatenate([o.coordinates, offset, jnp.stack(columns, axis=1)], axis=1)
    return SetView(tokens, jnp.ones(tokens.shape[0], bool), _facts(o.capacity, *here))


def tsp(env: Any, o: Any) -> View:
    """Cities relative to the current and the first one."""
    here = jnp.where(o.position < 0, 0.5, o.coordinates[jnp.maximum(o.position, 0)])
    first = o.trajectory[0]
    start = jnp.where(first < 0, 0.5, o.coordinates[jnp.maximum(first, 0)])
    offset = o.coordinates - here
    apart = jnp.sqrt(jnp.square(offset).sum(axis=1))
    home = jnp.sqrt(jnp.square(o.coordinates - start).sum(axis=1))
    columns = jnp.stack([apart, home, o.action_mask], axis=1)
    tokens = jnp.concatenate([o.coordinates, offset, columns], axis=1)
    present = o.action_mask | (jnp.arange(tokens.shape[0]) == jnp.maximum(o.position, 0))
    return SetView(tokens, present, _facts(*here, *start, o.action_mask.mean()))


def level_based_foraging(env: Any, o: Any) -> View:
    """The agents' own views."""
    clock = jnp.full((env.num_agents, 1), o.step_count / env.time_limit)
    views = o.agents_view.reshape(env.num_agents, -1) / env.size
    return AgentsView(jnp.concatenate([views, clock], axis=1).astype(jnp.float32))


def maze(env: Any, o: Any) -> View:
    """Walls, agent and target, and the way there."""
    shape = o.walls.shape
    agent, target = jnp.stack(o.agent_position), jnp.stack(o.target_position)
    planes = _planes(o.walls, _marks(agent, shape), _marks(target, shape))
    way = (target - agent) / jnp.array(shape)
    return GridView(planes, _facts(o.step_count / env.limit, *way, *(agent / jnp.array(shape))))


def mmst(env: Any, o: Any) -> View:
    """Agents, and nodes with their owners and state."""
    agents, nodes = env.agents, env.num_nodes
    owner = jnp.where(o.node_types >= 0, o.node_types // 2, -1)
    waiting = (o.node_types >= 0) & (o.node_types % 2 == 1)
    here = _one_hot(o.positions, nodes)
    near = here @ (o.adj_matrix > 0)
    toward = (o.adj_matrix > 0) @ (_one_hot(owner, agents) * waiting[:, None])
    far = jnp.minimum((o.adj_matrix > 0) @ toward, 3.0) / 3.0
    right = jnp.concatenate(
        [_one_hot(owner, agents) * waiting[:, None], _one_hot(owner, agents), toward, far,
         here.T, near.T, o.action_mask.T],
        axis=1,
    )  # fmt: skip
    left = jnp.concatenate([_one_hot(jnp.arange(agents), agents)], axis=1)
    clock = _facts(o.step_count / env.time_limit)
    return PairView(left, right.astype(jnp.float32), o.action_mask, clock)


def multi_cvrp(env: Any, o: Any) -> View:
    """Vehicles, and customers with demands and windows."""
    problem = env.problem
    side, load = float(problem.map_side), float(problem.capacity)
    late = float(problem.max_start + problem.window_length)
    left = jnp.concatenate(
        [
            o.vehicles.coordinates / side,
            (o.vehicles.local_times / late)[:, None],
            (o.vehicles.capacities / load)[:, None],
            _one_hot(jnp.arange(problem.num_vehicles), problem.num_vehicles),
        ],
        axis=1,
    )
    offset = o.nodes.coordinates[:, None] - o.vehicles.coordinates[None]
    apart = jnp.sqrt(jnp.square(offset).sum(axis=-1)) / side
    columns = [
        o.nodes.demands / load * 5,
        o.windows.start / late,
        o.windows.end / late,
        o.coeffs.early * 5,
        o.coeffs.late,
        jnp.arange(o.nodes.demands.shape[0]) == 0,
    ]
    right = jnp.concatenate([o.nodes.coordinates / side, apart, jnp.stack(columns, axis=1)], axis=1)
    waiting = (o.nodes.demands > 0).mean(dtype=jnp.float32)
    return PairView(left, right.astype(jnp.float32), o.action_mask, _facts(waiting))


def pac_man(env: Any, o: Any) -> View:
    """Windows around the player: walls, pellets, power-ups, ghosts."""
    shape, reach = o.grid.shape, 7
    player = jnp.stack([o.player_locations.x, o.player_locations.y])
    pellets = _marks(o.pellet_locations[:, ::-1], shape).at[0, 0].set(0.0)
    powers = _marks(o.power_up_locations[:, ::-1], shape).at[0, 0].set(0.0)
    ghosts = _marks(o.ghost_locations[:, ::-1], shape)
    planes = jnp.stack([1.0 - o.grid, pellets, powers, ghosts])
    framed = jnp.pad(planes, ((0, 0), (reach, reach), (reach, reach)))
    side = 2 * reach + 1
    window = jax.lax.dynamic_slice(framed, (0, player[0], player[1]), (4, side, side))
    ways = (o.ghost_locations[:, ::-1] - player) / side
    fright = jnp.maximum(o.frightened_state_time, 0) / 30
    facts = jnp.concatenate([ways.reshape(-1), _facts(fright, *(player / jnp.array(shape)))])
    return GridView(jnp.moveaxis(window, 0, -1).astype(jnp.float32), facts.astype(jnp.float32))


def robot_warehouse(env: Any, o: Any) -> View:
    """The robots' own views, with where they are and where the goals are."""
    rows, columns = env.layout.shape
    view = o.agents_view.astype(jnp.float32)
    place = view[:, :2] / jnp.array([rows, columns])
    way = (jnp.asarray(env.goals[0]) - view[:, :2]) / jnp.array([rows, columns])
    clock = jnp.full((view.shape[0], 1), o.step_count / env.time_limit)
    return AgentsView(jnp.concatenate([place, way, view[:, 2:], clock], axis=1))


def snake(env: Any, o: Any) -> View:
    """The planes, and the clock."""
    return GridView(o.grid, _facts(o.step_count / env.time_limit))


def sokoban(env: Any, o: Any) -> View:
    """Agent, boxes, walls and targets."""
    movable, fixed = o.grid[..., 0], o.grid[..., 1]
    planes = _planes(movable == 3, movable == 4, fixed == 1, fixed == 2)
    return GridView(planes, _facts(o.step_count / env.time_limit))


def search_and_rescue(env: Any, o: Any) -> View:
    """The searchers' own views, halved in resolution."""
    views = o.searcher_views
    near = jnp.where(views < 0, 0.0, 1.0 - views)
    pooled = near.reshape(*near.shape[:2], -1, 2).max(axis=-1).reshape(near.shape[0], -1)
    facts = jnp.stack([o.step / env.time_limit, o.targets_remaining])
    facts = jnp.broadcast_to(facts, (near.shape[0], 2))
    return AgentsView(jnp.concatenate([pooled, o.positions, facts], axis=1))


VIEWS: dict[str, Callable[[Any, Any], View]] = {
    "BinPack": bin_pack,
    "CVRP": cvrp,
    "Cleaner": cleaner,
    "Connector": connector,
    "FlatPack": flat_pack,
    "Game2048": game2048,
    "GraphColoring": graph_coloring,
    "JobShop": job_shop,
    "Knapsack": knapsack,
    "LevelBasedForaging": level_based_foraging,
    "MMST": mmst,
    "Maze": maze,
    "Minesweeper": minesweeper,
    "MultiCVRP": multi_cvrp,
    "PacMan": pac_man,
    "RobotWarehouse": robot_warehouse,
    "RubiksCube": rubiks_cube,
    "SearchAndRescue": search_and_rescue,
    "SlidingTilePuzzle": sliding_tile_puzzle,
    "Snake": snake,
    "Sokoban": sokoban,
    "Sudoku": sudoku,
    "TSP": tsp,
    "Tetris": tetris,
}
"""How each environment is seen, by the name of its class."""
