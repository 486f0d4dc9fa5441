"""The recipe ``rl`` of ``trimtab train``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import jax

from trimtab.envs import Environment, make
from trimtab.errors import unknown_name
from trimtab.train.config import Config, section, write_config
from trimtab.train.metrics import JsonLines
from trimtab.train.recipes.supervised import Context, Summary, refuse_other_run
from trimtab.train.reinforcement.agents import greedy_agent, learned_agent, random_agent
from trimtab.train.reinforcement.evaluation import evaluate
from trimtab.train.reinforcement.settings import Settings, settings_for
from trimtab.train.reinforcement.trainer import train


@dataclass(frozen=True)
class EnvironmentSection:
    """``[data]`` of the recipe.

    Args:
        env: id of the environment.
        settings: keyword arguments of the environment.
        episodes: episodes of each evaluation.
        devices: devices that share the lanes.
    """

    env: str = "Snake-v1"
    settings: dict[str, Any] = field(default_factory=dict)
    episodes: int = 256
    devices: int = 1


def configuration(env: str, **changes: Any) -> Config:
    """The configuration behind ``trimtab train rl --env ENV``.

    Args:
        env: id of the environment.
        changes: other top-level settings, such as ``steps`` or ``seed``.
    """
    defaults = {"steps": 1_000_000, "output": f"runs/{env}"}
    return Config(recipe="rl", data={"env": env}, **{**defaults, **changes})


def run(context: Context) -> Summary:
    """Train, then evaluate against random and greedy play.

    ``steps`` counts environment steps; ``[model]`` holds fields of :class:`Settings`.
    """
    config = context.config
    data = section(EnvironmentSection, config.data, "data.")
    env = make(data.env, **data.settings)
    settings = _settings(env, config.model)
    output = context.output
    refuse_other_run(context)
    output.mkdir(parents=True, exist_ok=True)
    write_config(config, output / "config.toml")
    sink = JsonLines(output / "metrics.jsonl")
    last: dict[str, float] = {}

    def log(step: int, metrics: Any) -> None:
        last.update({f"train/{name}": value for name, value in metrics.items()})
        sink(step, {f"train/{name}": value for name, value in metrics.items()})

    train_key, *eval_keys = jax.random.split(jax.random.key(config.seed), 4)
    network = train(
        env,
        total_steps=config.steps,
        key=train_key,
        settings=settings,
        devices=data.devices,
        log=log,
        log_every=config.run.log_every,
        checkpoints=output / "checkpoints",
        checkpoint_every=config.run.checkpoint_every or 10**9,
        progress=context.progress,
    )
    agents = {
        "random": random_agent(env),
        "greedy": greedy_agent(env),
        "learned": learned_agent(network, env),
    }
    for (name, agent), key in zip(agents.items(), eval_keys):
        result = evaluate(env, agent, key=key, episodes=data.episodes)
        last[f"return/{name}"] = result.mean_return
    sink(config.steps, {name: value for name, value in last.items() if "return/" in name})
    sink.close()
    notes = {"environment": data.env, "algorithm": settings.algorithm}
    return Summary(config.steps, "finished", last, notes, str(output))


def _settings(env: Environment, model: dict[str, Any]) -> Settings:
    """Tuned settings with those of ``[model]`` on top."""
    known = [field.name for field in dataclasses.fields(Settings)]
    for name in model:
        if name not in known:
            raise unknown_name("setting", f"model.{name}", [f"model.{each}" for each in known])
    return settings_for(env, **model)
