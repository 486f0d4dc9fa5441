"""Writes a page and a picture for each environment: ``python docs/environments/generate.py``.

Rules and settings come from docstrings, shapes from specs, the picture from random play.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import jax
import numpy as np

from trimtab.envs import make, registered_environments, sample_action
from trimtab.envs.specs import DiscreteArray, MultiDiscreteArray, Spec
from trimtab.files import atomic_file

FOLDER = Path(__file__).parent
ROOMS = {
    "Logic": (
        ("Game2048-v1", 60),
        ("GraphColoring-v1", 12),
        ("Minesweeper-v0", 6),
        ("RubiksCube-partly-scrambled-v0", 0),
        ("SlidingTilePuzzle-v0", 10),
        ("Sudoku-v0", 5),
    ),
    "Packing": (
        ("BinPack-v2", 14),
        ("FlatPack-v0", 16),
        ("JobShop-v0", 25),
        ("Knapsack-v1", 22),
        ("Tetris-v0", 10),
    ),
    "Routing": (
        ("Cleaner-v0", 40),
        ("Connector-v3", 8),
        ("CVRP-v1", 20),
        ("LevelBasedForaging-v0", 3),
        ("Maze-v0", 5),
        ("MMST-v0", 25),
        ("MultiCVRP-v0", 8),
        ("PacMan-v1", 20),
        ("RobotWarehouse-v0", 12),
        ("Snake-v1", 400),
        ("Sokoban-v0", 5),
        ("TSP-v1", 20),
    ),
    "Swarms": (("SearchAndRescue-v0", 60),),
}
"""Ids with the number of random steps before the picture."""


def play(env: Any, steps: int) -> Any:
    """The state after random legal steps, before an episode's end."""

    @jax.jit
    def advance(state: Any, observation: Any, key: Any) -> Any:
        mask = getattr(observation, "action_mask", None)
        return env.step(state, sample_action(key, env.action_spec, mask))

    state, timestep = jax.jit(env.reset)(jax.random.key(1))
    for step in range(steps):
        following, timestep = advance(state, timestep.observation, jax.random.key(100 + step))
        if bool(timestep.terminated) and step < steps - 1 and env_restarts(env):
            break
        state = following
        if bool(timestep.last):
            break
    return state


def env_restarts(env: Any) -> bool:
    """Whether the state after a terminal step is worth a picture less than the one before."""
    return type(env).__name__ in ("Snake", "Minesweeper", "Tetris", "RobotWarehouse", "JobShop")


def fields(spec: Any, prefix: str = "") -> list[str]:
    """Table rows of an observation spec."""
    rows = []
    for name, child in spec.children:
        if isinstance(child, Spec):
            rows += fields(child, f"{prefix}{name}.")
            continue
        shape = " x ".join(map(str, child.shape)) or "scalar"
        low, high = np.min(child.minimum), np.max(child.maximum)
        span = "" if child.dtype == np.bool_ else f"{low:g} to {high:g}"
        rows.append(f"| `{prefix}{name}` | {shape} | {child.dtype} | {span} |")
    return rows


def action_text(spec: Any) -> str:
    """One sentence about actions."""
    if isinstance(spec, DiscreteArray):
        return f"One integer below {spec.num_values}."
    if isinstance(spec, MultiDiscreteArray):
        sizes = spec.num_values
        if len(set(sizes)) == 1:
            return f"{len(sizes)} integers below {sizes[0]}."
        return f"{len(sizes)} integers below {', '.join(map(str, sizes))}."
    return f"Real numbers of shape {spec.shape} in [{spec.minimum:g}, {spec.maximum:g}]."


def page(id: str, env: Any) -> str:
    """The Markdown of an environment."""
    kind = type(env)
    module = inspect.getmodule(kind)
    title = (module.__doc__ or "").strip().splitlines()[0] if module else ""
    text = inspect.getdoc(kind) or ""
    rules, _, settings = text.partition("\nArgs:\n")
    ids = [name for name in registered_environments() if type(make(name)) is kind]
    lines = [line.strip() for line in settings.splitlines()]
    arguments: list[str] = []
    for raw, line in zip(settings.splitlines(), lines):
        if raw.startswith("    ") and not raw.startswith("     ") and ":" in line:
            name, _, rest = line.partition(":")
            arguments.append(f"- `{name}`: {rest.strip()}")
        elif line and arguments:
            arguments[-1] += f" {line}"
    agents = env.num_agents
    reward = "scalar" if agents is None else f"one for each of {agents} agents"
    parts = [
        f"# {kind.__name__}",
        title,
        f"![A state of {kind.__name__}](images/{kind.__name__}.svg)",
        "Ids: " + ", ".join(f"`{name}`" for name in ids) + ".",
        rules.strip(),
        "## Observation",
        "| field | shape | type | values |\n|---|---|---|---|\n"
        + "\n".join(fields(env.observation_spec)),
        "## Action",
        f"{action_text(env.action_spec)} Reward and discount: {reward}.",
    ]
    if arguments:
        parts += ["## Settings", "\n".join(arguments)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Write all pages, pictures and their list."""
    for entries in ROOMS.values():
        for id, steps in entries:
            env = make(id)
            name = type(env).__name__
            with atomic_file(FOLDER / "images" / f"{name}.svg") as temporary:
                temporary.write_text(env.render(play(env, steps), "svg"))
            with atomic_file(FOLDER / f"{name}.md") as temporary:
                temporary.write_text(page(id, env))
            print(name)


if __name__ == "__main__":
    main()
