"""CPU time of an environment step against the published suite, for all twenty-six ids.

Both sides run 256 lanes in one compiled scan that replays a tape of masked-random actions, recorded
in ours; the peer's cost does not depend on which actions are taken, since under vmap it steps,
resets and selects in any case. Every leaf of state, observation and time step is kept at each step.
Ours resets lazily, the peer by the automatic resets it ships. Figures are process CPU time a step
of one lane, all threads together; rounds are interleaved. ``values`` also has compile times (trace
and compile of that scan, in CPU seconds, without a cache).
"""

from __future__ import annotations

import argparse
import functools
import gc
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from trimtab.envs import Batch, make, registered_environments, sample_action

LANES = 256
GOALS = {
    "FlatPack-v0": 100,
    "MMST-v0": 60,
    "RubiksCube-v0": 60,
    "BinPack-v2": 10,
    "SearchAndRescue-v0": 10,
    "RobotWarehouse-v0": 10,
    "Connector-v3": 15,
    "Cleaner-v0": 20,
    "Maze-v0": 20,
    "SlidingTilePuzzle-v0": 20,
    "Minesweeper-v0": 5,
    "RubiksCube-partly-scrambled-v0": 5,
    "JobShop-v0": 5,
    "GraphColoring-v1": 5,
    "Sudoku-v0": 5,
    "Sudoku-very-easy-v0": 5,
}
"""How many times faster the pure JAX path should be; 2 for the ids that are not listed."""
SYNCHRONOUS = {"RubiksCube-v0": 200, "SlidingTilePuzzle-v0": 500, "Sokoban-v0": 120}
"""Lengths that contain the time limit which all lanes reach together."""
COSTLY = {"BinPack-v2": 30, "FlatPack-v0": 26, "SearchAndRescue-v0": 30, "MMST-v0": 60}
COSTLY |= {"Connector-v3": 60, "RobotWarehouse-v0": 60}


class Side:
    """One contestant: its compiled replay, and what compiling took."""

    def __init__(self, reset: Callable, step: Callable, tape: Any):
        self._start = jax.jit(reset)(_start_keys())
        self._tape = tape

        def replay(start: Any, tape: Any) -> Any:
            advance = lambda carry, action: (step(carry[0], action), None)  # noqa: E731
            return jax.lax.scan(advance, start, tape)[0]

        began = time.process_time()
        self._compiled = jax.jit(replay).lower(self._start, tape).compile()
        self.compile_cpu_s = time.process_time() - began
        self._lane_steps = LANES * tape.shape[0]

    def run(self) -> float:
        """CPU seconds of a lane's step."""
        began = time.process_time()
        jax.block_until_ready(self._compiled(self._start, self._tape))
        return (time.process_time() - began) / self._lane_steps


def record(env: Any, steps: int) -> Any:
    """Masked-random actions of all lanes, shape ``(steps, lanes, ...)``."""
    batch = Batch(env)
    draw = functools.partial(sample_action, spec=env.action_spec)

    def act(key: Any, observation: Any) -> Any:
        mask = getattr(observation, "action_mask", None)
        keys = jax.random.split(key, LANES)
        if mask is None:
            return jax.vmap(draw)(keys)
        return jax.vmap(lambda k, m: draw(k, mask=m))(keys, mask)

    def advance(carry: Any, key: Any) -> Any:
        state, observation = carry
        action = act(key, observation)
        state, timestep = batch.step(state, action)
        return (state, timestep.observation), action

    def play(start_keys: Any, action_keys: Any) -> Any:
        state, timestep = batch.reset(start_keys)
        return jax.lax.scan(advance, (state, timestep.observation), action_keys)[1]

    # The same starts as in Side, so that ours replays the very episodes it recorded.
    return jax.jit(play)(_start_keys(), jax.random.split(jax.random.key(1), steps))


def _start_keys() -> Any:
    return jax.random.split(jax.random.key(0), LANES)


def our_environment(id: str) -> Any:
    """Our environment, with the peer's time limits."""
    try:
        return make(id, time_limit_mode="terminate")
    except TypeError:
        return make(id)


def peer_side(id: str, tape: Any) -> Side:
    """The published suite's environment with its own automatic resets."""
    import jumanji
    from jumanji.wrappers import AutoResetWrapper

    env: Any = _sokoban_on_our_levels() if id == "Sokoban-v0" else jumanji.make(id)
    wrapped = AutoResetWrapper(env)

    def reset(keys: Any) -> Any:
        return jax.vmap(wrapped.reset)(jax.random.key_data(keys))

    return Side(reset, jax.vmap(wrapped.step), tape)


def _sokoban_on_our_levels() -> Any:
    """Its levels are downloaded; it gets ours instead."""
    from jumanji.environments import Sokoban
    from jumanji.environments.routing.sokoban.generator import Generator
    from jumanji.environments.routing.sokoban.types import State

    from trimtab.envs.protocol import Table
    from trimtab.envs.routing.sokoban_levels import LevelBank, ReversePlay

    levels = jax.jit(jax.vmap(ReversePlay()))(jax.random.split(jax.random.key(0), 1024))
    bank = LevelBank(Table(levels.fixed), Table(levels.movable))

    class Levels(Generator):
        def __call__(self, rng_key: Any) -> Any:
            level = bank(jax.random.wrap_key_data(rng_key))
            return State(
                key=rng_key,
                fixed_grid=level.fixed,
                variable_grid=level.movable,
                agent_location=level.agent,
                step_count=jnp.array(0, jnp.int32),
            )

    return Sokoban(generator=Levels())


def ids() -> list[str]:
    """Published ids."""
    return [id for id in registered_environments() if not id.endswith("-fixed")]


def race(quick: bool, only: list[str] | None = None, alone: bool = False) -> Iterator[Any]:
    """Outcomes of all ids; ``alone`` leaves the peer out."""
    from race import Race

    for id in only or ids():
        steps = SYNCHRONOUS.get(id) or COSTLY.get(id, 100)
        env = our_environment(id)
        batch, tape = Batch(env), record(env, steps)
        sides = {"trimtab": Side(batch.reset, batch.step, tape)}
        if not alone:
            sides["jumanji 1.1.2"] = peer_side(id, tape)
        contest = Race(f"{id}, step", unit="us")
        for name, side in sides.items():
            contest.enter(name, side.run)
            side.run()
        rounds = 3 if quick or id in COSTLY or id in SYNCHRONOUS else 7
        samples: list[list[float]] = [[] for _ in sides]
        for _ in range(rounds):
            for index, side in enumerate(sides.values()):
                samples[index].append(side.run())
        contest.values = {
            "id": id,
            "lanes": LANES,
            "steps": steps,
            "goal": GOALS.get(id, 2),
            "compile_cpu_s": {name: side.compile_cpu_s for name, side in sides.items()},
        }
        yield contest._outcome(samples, [1] * len(sides), None)
        sides.clear()
        gc.collect()


def main() -> None:
    """``--only`` races some ids, ``--alone`` leaves the peer out."""
    from race import command

    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--only", nargs="+", metavar="ID")
    parser.add_argument("--alone", action="store_true")
    own, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    jax.config.update("jax_enable_compilation_cache", False)
    command(__doc__, "environments", lambda quick: race(quick, own.only, own.alone))


if __name__ == "__main__":
    main()
