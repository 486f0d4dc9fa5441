"""Drawings of environments on maps and graphs."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from trimtab.envs.pictures.shapes import on_circle, path
from trimtab.envs.viewers.scene import Circle, Line, Picture, Polygon, Rectangle, Shape, hue

_SIDE, _MARGIN = 10.0, 0.5


def _place(coordinates: np.ndarray, side: float = 1.0) -> list[tuple[float, float]]:
    """Map coordinates, y pointing up, as points of a picture."""
    scale = (_SIDE - 2 * _MARGIN) / side
    return [(_MARGIN + x * scale, _SIDE - _MARGIN - y * scale) for x, y in coordinates.tolist()]


def _map(shapes: list[Shape], title: str) -> Picture:
    return Picture(_SIDE, _SIDE, tuple(shapes), title, "#f7f5ef")


def _dot(point: tuple[float, float], radius: float, fill: str) -> Circle:
    return Circle(point[0], point[1], radius, fill)


def _depot(point: tuple[float, float]) -> Rectangle:
    return Rectangle(point[0] - 0.22, point[1] - 0.22, 0.44, 0.44, "#222222")


def tsp(env: Any, state: Any) -> Picture:
    """Cities and the tour, closed when complete."""
    points = _place(state.coordinates)
    tour = [points[city] for city in state.trajectory[: int(state.num_visited)]]
    closed = tour + tour[:1] if len(tour) == len(points) else tour
    length = sum(math.dist(a, b) for a, b in itertools.pairwise(closed)) / (_SIDE - 2 * _MARGIN)
    shapes: list[Shape] = path(closed, "#2f62c9", 0.06)
    shapes += [Circle(x, y, 0.16, "#444444") for x, y in points]
    if tour:
        shapes.append(_dot(tour[-1], 0.22, "#d13c3c"))
    return _map(shapes, f"length {length:.2f}")


def cvrp(env: Any, state: Any) -> Picture:
    """Customers sized by demand, and a colour for each round trip."""
    points = _place(state.coordinates)
    visits = state.trajectory[: int(state.num_total_visits)].tolist()
    shapes: list[Shape] = []
    trip = 0
    for start, end in itertools.pairwise(visits):
        shapes.append(Line(points[start], points[end], hue(trip, 7), 0.07))
        trip += end == 0
    for node, (x, y) in enumerate(points[1:], start=1):
        served = bool(state.visited_mask[node])
        radius = 0.1 + 0.02 * float(state.demands[node])
        shapes.append(Circle(x, y, radius, "#9a9a9a" if served else "#d13c3c"))
    shapes.append(_depot(points[0]))
    return _map(shapes, f"load {int(state.capacity)}")


def multi_cvrp(env: Any, state: Any) -> Picture:
    """Customers that wait (red) or are served (grey), and a colour for each vehicle."""
    points = _place(state.nodes.coordinates, float(env.problem.map_side))
    vehicles = state.order.shape[0]
    shapes: list[Shape] = []
    for vehicle in range(vehicles):
        visits = state.order[vehicle, : int(state.step_count)].tolist()
        shapes += path([points[node] for node in visits], hue(vehicle, vehicles), 0.06)
    for node, (x, y) in enumerate(points[1:], start=1):
        waits = state.nodes.demands[node] > 0
        shapes.append(Circle(x, y, 0.16, "#d13c3c" if waits else "#9a9a9a"))
    for vehicle, node in enumerate(state.positions.tolist()):
        shapes.append(_dot(points[node], 0.26, hue(vehicle, vehicles)))
    shapes.append(_depot(points[0]))
    return _map(shapes, f"distance {float(state.distances.sum()):.1f}")


def mmst(env: Any, state: Any) -> Picture:
    """The graph on a circle; walked edges and nodes in the agents' colours."""
    nodes, agents = state.adj_matrix.shape[0], state.terminals.shape[0]
    points = on_circle(nodes, 4.4, 5)
    shapes: list[Shape] = [
        Line(points[i], points[j], "#cccccc", 0.03)
        for i, j in np.argwhere(np.triu(state.adj_matrix))
    ]
    for agent in range(agents):
        walk = state.walks[agent, : int(state.walk_end[agent]) + 1].tolist()
        shapes += path([points[node] for node in walk], hue(agent, agents), 0.08)
    for node, (x, y) in enumerate(points):
        owner = int(state.node_types[node])
        fill = hue(owner, agents) if owner >= 0 else "#dddddd"
        shapes.append(Circle(x, y, 0.26 if owner >= 0 else 0.16, fill))
    for node in state.positions.tolist():
        shapes.append(_dot(points[node], 0.14, "#222222"))
    done = int(state.finished_agents.sum())
    return _map(shapes, f"{done} of {agents} agents finished")


def search_and_rescue(env: Any, state: Any) -> Picture:
    """Targets lost (orange) and found (grey); searchers point where they go."""
    side = env.start.env_size
    shapes: list[Shape] = []
    for (x, y), found in zip(_place(state.target_positions, side), state.found):
        shapes.append(Circle(x, y, 0.12, "#aaaaaa" if found else "#f08c2e"))
    for (x, y), heading in zip(_place(state.positions, side), state.headings.tolist()):
        tip, left, right = (heading, 0.5), (heading + 2.6, 0.32), (heading - 2.6, 0.32)
        corners = tuple((x + r * math.cos(a), y - r * math.sin(a)) for a, r in (tip, left, right))
        shapes.append(Polygon(corners, "#2f62c9"))
    return _map(shapes, f"{int(state.found.sum())} of {len(state.found)} found")


DRAWINGS = {
    "CVRP": cvrp,
    "MMST": mmst,
    "MultiCVRP": multi_cvrp,
    "SearchAndRescue": search_and_rescue,
    "TSP": tsp,
}
