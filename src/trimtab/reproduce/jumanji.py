"""The Jumanji suite: environment steps a second, and policies that learn."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from trimtab.envs import Batch, make, sample_action
from trimtab.progress import Progress
from trimtab.reproduce.experiment import Experiment, Figure, Result, Row, compared
from trimtab.reproduce.plot import Series, line_chart

_COMMAND = "trimtab reproduce jumanji"
_LANES = 256


@dataclasses.dataclass(frozen=True)
class Lesson:
    """An environment to learn in.

    Args:
        id: of the environment.
        quick_steps: environment steps at the quick size.
        full_steps: environment steps at the full size.
        metric: what the paper reports at the end of training, among the extras.
        paper: the paper's figure for it; the paper prints curves, not numbers, for returns.
    """

    id: str
    quick_steps: int
    full_steps: int
    metric: str = ""
    paper: float | None = None


LESSONS = (
    Lesson("Knapsack-v1", 40_000, 1_000_000),
    Lesson("TSP-v1", 40_000, 2_000_000),
    Lesson("Minesweeper-v0", 50_000, 2_000_000),
    Lesson("GraphColoring-v1", 40_000, 1_000_000),
    Lesson("SlidingTilePuzzle-v0", 60_000, 4_000_000),
    Lesson("Cleaner-v0", 60_000, 4_000_000),
    Lesson("Snake-v1", 80_000, 4_000_000),
    Lesson("RubiksCube-partly-scrambled-v0", 60_000, 4_000_000),
    Lesson("Game2048-v1", 0, 2_000_000),
    Lesson("Maze-v0", 0, 4_000_000),
    Lesson("Tetris-v0", 0, 2_000_000),
    Lesson("Connector-v3", 0, 4_000_000, "ratio_connections", 0.885),
    Lesson("BinPack-v2", 0, 500_000, "volume_utilization", 0.934),
)
_QUICK_RACES = ("SlidingTilePuzzle-v0", "Maze-v0", "TSP-v1")
_FULL_RACES = (
    *_QUICK_RACES,
    "Game2048-v1",
    "Snake-v1",
    "RubiksCube-v0",
    "Minesweeper-v0",
    "Knapsack-v1",
    "Connector-v3",
    "CVRP-v1",
)


def run(progress: Progress, seed: int, full: bool = False) -> Result:
    """Race the environments, then train in them."""
    races = _FULL_RACES if full else _QUICK_RACES
    lessons = LESSONS if full else tuple(lesson for lesson in LESSONS if lesson.quick_steps)
    total = len(races) + len(lessons)
    rows: list[Row] = []
    for done, id in enumerate(races):
        progress(f"stepping {id}", done, total)
        rows.append(_race(id, 200 if full else 60))
    curves = []
    for done, lesson in enumerate(lessons, start=len(races)):
        progress(f"learning {lesson.id}", done, total)
        lesson_rows, curve = _learn(lesson, seed, full)
        rows += lesson_rows
        curves.append(curve)
    return Result(tuple(rows), tuple(_figures(curves)))


def _race(id: str, steps: int) -> Row:
    """Lazy resets against the peer's automatic resets, or ours at every step without it."""
    env = make(id)
    tape = _tape(env, steps, _LANES)
    ours = _replay(Batch(env), tape)
    has_peer = importlib.util.find_spec("jumanji") is not None
    baseline = _peer_replay(id, tape) if has_peer else _replay(Batch(env, auto_reset="eager"), tape)
    samples = [(ours(), baseline()) for _ in range(5)]
    mine, theirs = np.median(np.array(samples), axis=0)
    against = "jumanji under vmap of its AutoResetWrapper" if has_peer else "a reset every step"
    return compared(
        f"CPU time of a step, {id}",
        "us",
        baseline=theirs * 1e6,
        ours=mine * 1e6,
        better="lower",
        at_least=2.0,
        command=_COMMAND,
        note=f"batch {_LANES}, {steps} steps of recorded actions, against {against}",
    )


def _tape(env: Any, steps: int, lanes: int) -> Any:
    batch = Batch(env)

    def record(carry: Any, key: Any) -> Any:
        state, seen = carry
        mask = getattr(seen, "action_mask", None)
        draw = functools.partial(sample_action, spec=env.action_spec)
        keys = jax.random.split(key, lanes)
        if mask is None:
            action = jax.vmap(draw)(keys)
        else:
            action = jax.vmap(lambda k, m: draw(k, mask=m))(keys, mask)
        state, timestep = batch.step(state, action)
        return (state, timestep.observation), action

    def play(start_keys: Any, action_keys: Any) -> Any:
        state, timestep = batch.reset(start_keys)
        return jax.lax.scan(record, (state, timestep.observation), action_keys)[1]

    # The same starts as in the replay, which then goes through the very episodes recorded.
    return jax.jit(play)(_start_keys(lanes), jax.random.split(jax.random.key(0), steps))


def _start_keys(lanes: int) -> Any:
    return jax.random.split(jax.random.key(1), lanes)


def _replay(batch: Batch, tape: Any) -> Callable[[], float]:
    keys = _start_keys(_LANES)
    return _timed(batch.reset, batch.step, keys, tape)


def _peer_replay(id: str, tape: Any) -> Callable[[], float]:
    jumanji = importlib.import_module("jumanji")
    wrappers = importlib.import_module("jumanji.wrappers")
    wrapped = wrappers.AutoResetWrapper(jumanji.make(id))
    keys = jax.random.key_data(_start_keys(_LANES))
    return _timed(jax.vmap(wrapped.reset), jax.vmap(wrapped.step), keys, tape)


def _timed(reset: Callable, step: Callable, keys: Any, tape: Any) -> Callable[[], float]:
    """A function that replays the tape and returns CPU seconds a step of one lane."""
    start = jax.jit(reset)(keys)

    @jax.jit
    def replay(start: Any, tape: Any) -> Any:
        return jax.lax.scan(lambda c, action: (step(c[0], action), None), start, tape)[0]

    jax.block_until_ready(replay(start, tape))
    lane_steps = _LANES * jax.tree.leaves(tape)[0].shape[0]

    def sample() -> float:
        began = time.process_time()
        jax.block_until_ready(replay(start, tape))
        return (time.process_time() - began) / lane_steps

    return sample


def _learn(lesson: Lesson, seed: int, full: bool) -> tuple[list[Row], Series]:
    from trimtab.train.reinforcement import (
        evaluate,
        learned_agent,
        random_agent,
        settings_for,
        train,
    )

    env = make(lesson.id)
    settings = settings_for(env) if full else settings_for(env, lanes=64, width=16, depth=1)
    steps = lesson.full_steps if full else lesson.quick_steps
    updates = max(1, steps // (settings.lanes * settings.steps))
    curve: list[tuple[int, float]] = []
    train_key, *keys = jax.random.split(jax.random.key(seed), 3)
    network = train(
        env,
        total_steps=steps,
        key=train_key,
        settings=settings,
        log=lambda step, metrics: curve.append((step, metrics["episode_return"])),
        log_every=max(1, updates // 12),
    )
    episodes = 512 if full else 64
    chance = evaluate(env, random_agent(env), key=keys[0], episodes=episodes)
    agent = learned_agent(network, env, sample=True)
    learned = evaluate(env, agent, key=keys[1], episodes=episodes)
    error = float(np.hypot(chance.standard_error, learned.standard_error))
    difference = learned.mean_return - chance.mean_return
    note = f"{steps:,} steps of {settings.algorithm}; baseline: random play, {episodes} episodes"
    rows = [
        Row(
            metric=f"return, {lesson.id}",
            unit="return",
            paper="curve only",
            baseline=chance.mean_return,
            ours=learned.mean_return,
            holds=difference > 3 * error,
            seeds=(seed,),
            command=_COMMAND + (" --full" if full else ""),
            note=note,
        )
    ]
    if lesson.metric:
        rows.append(
            Row(
                metric=f"{lesson.metric.replace('_', ' ')}, {lesson.id}",
                unit="share",
                paper=lesson.paper,
                baseline=chance.extras[lesson.metric],
                ours=learned.extras[lesson.metric],
                holds=None,
                seeds=(seed,),
                command=_COMMAND + " --full",
                note=f"{note}; the paper trains for over 100 million steps",
            )
        )
    low = chance.mean_return
    scale = max(abs(learned.mean_return - low), 1e-6)
    relative = [None if np.isnan(y) else (y - low) / scale for _, y in curve]
    return rows, Series(lesson.id, [x for x, _ in curve], relative)


def _figures(curves: list[Series]) -> list[Figure]:
    """At most eight lines a chart."""
    return [
        line_chart(
            "Learning curves" if start == 0 else "Learning curves, continued",
            "environment steps",
            "0: random play, 1: the learned policy",
            [curve for curve in curves[start : start + 8] if len(curve.x) > 1],
        )
        for start in range(0, len(curves), 8)
    ]


EXPERIMENT = Experiment(
    system="jumanji",
    title="environments that step fast and policies that learn in them",
    source="Bonnet et al., Jumanji: a Diverse Suite of Scalable Reinforcement Learning "
    "Environments in JAX, ICLR 2024",
    claim="22 environments that scale on accelerators, with an actor-critic baseline that beats "
    "random play in each of them",
    baseline="the published package itself, if installed, on the same recorded actions; random "
    "play with the same number of episodes",
    quick="three environments raced, eight learned for some seconds each",
    full="ten environments raced, thirteen learned with tuned settings (over an hour)",
    run=run,
)
