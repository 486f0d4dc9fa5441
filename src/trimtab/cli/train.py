"""``trimtab train``: run a recipe from a configuration file."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trimtab.cli.output import Output, examples, output_options

if TYPE_CHECKING:
    from trimtab.train.config import Config
    from trimtab.train.recipes.supervised import Summary


@click.command(
    epilog=examples(
        "trimtab train vision.toml",
        "trimtab train vision.toml --set optimizer.name=vr-adamw --set output=runs/vr",
        "trimtab train vision.toml --resume",
        "trimtab train rl --env Snake-v1 --set steps=500_000",
    )
)
@click.argument("config", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--env", metavar="ID", help="Environment of the recipe 'rl', in place of a file.")
@click.option("--resume", is_flag=True, help="Continue from the newest checkpoint, if any.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting.")
@click.option("-o", "--output", metavar="DIR", help="Where checkpoints and metrics go.")
@click.option("--seed", type=int, help="Seed of everything random.")
@output_options
def command(
    out: Output,
    config: Path,
    env: str | None,
    resume: bool,
    overrides: tuple[str, ...],
    output: str | None,
    seed: int | None,
) -> None:
    """Train a model as CONFIG, a TOML file, describes.

    Its first line names the recipe (vision, text, ...); "rl --env ID" needs no file.
    SIGTERM and Ctrl-C save a checkpoint and end the run cleanly; --resume then goes on as if it
    had never stopped.
    """
    from trimtab.train.config import load_config
    from trimtab.train.recipes import find_recipe
    from trimtab.train.recipes.supervised import Context

    settings = _environment_config(env, overrides) if env else load_config(config, overrides)
    if output is not None:
        settings = dataclasses.replace(settings, output=output)
    if seed is not None:
        settings = dataclasses.replace(settings, seed=seed)
    run = find_recipe(settings.recipe).load()
    with out.progress() as progress:
        summary = run(Context(settings, resume=resume, progress=progress))
    _report(out, summary)
    if summary.stopped == "signal":
        raise SystemExit(130)


def _environment_config(env: str, overrides: tuple[str, ...]) -> Config:
    """The configuration of ``rl --env``, with overrides."""
    from trimtab.train.config import Config, overridden, section
    from trimtab.train.reinforcement.recipe import configuration

    values = dataclasses.asdict(configuration(env))
    for override in overrides:
        values = overridden(values, override)
    return section(Config, values, "")


def _report(out: Output, summary: Summary) -> None:
    if out.json:
        values = dataclasses.asdict(summary)
        values["metrics"] = {
            name: value if math.isfinite(value) else None for name, value in summary.metrics.items()
        }
        out.document(values)
        return
    from rich.table import Table

    table = Table(
        title=f"{summary.stopped} at step {summary.step}", title_justify="left", show_header=False
    )
    table.add_column("name")
    table.add_column("value", justify="right")
    for name, value in summary.notes.items():
        table.add_row(name, str(value))
    for name, value in summary.metrics.items():
        if not name.startswith("train/signal/"):
            table.add_row(name, f"{value:.6g}")
    out.print(table, f"Written to {summary.output}")
