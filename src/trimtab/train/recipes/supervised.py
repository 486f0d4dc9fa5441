"""What supervised recipes share: from a configuration and a task to a finished run."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from trimtab.errors import InputError
from trimtab.progress import Progress, silent
from trimtab.train.checkpoint import Checkpoints
from trimtab.train.config import Config, write_config
from trimtab.train.data import ResumableIterator
from trimtab.train.evaluation import EarlyStop, evaluator
from trimtab.train.loop import FitResult, Profile, fit
from trimtab.train.metrics import JsonLines, TensorBoard, read_metrics
from trimtab.train.optimizers import advise, choose_groups, layer_telemetry, optimizer_named
from trimtab.train.precision import precision_named
from trimtab.train.schedules import schedule_named
from trimtab.train.step import evaluation_model, training_step


@dataclass(frozen=True)
class Context:
    """What a recipe is given.

    Args:
        config: the whole configuration.
        resume: continue from the newest checkpoint in the output directory.
        progress: told how far the run is.
    """

    config: Config
    resume: bool = False
    progress: Progress = silent

    @property
    def output(self) -> Path:
        """Directory of everything that the run writes."""
        return Path(self.config.output)


@dataclass(frozen=True)
class Task:
    """A supervised problem.

    Args:
        model: what to train.
        loss: as :func:`trimtab.train.training_step` takes it.
        batches: training batches.
        metrics: ``(model, batch)`` to per-example metrics.
        validation: makes a pass over pairs of a batch and how many of its examples count.
        test: the same for the test data, or None.
        notes: facts for the summary, such as which data was used.
    """

    model: Any
    loss: Callable[..., Any]
    batches: ResumableIterator
    metrics: Callable[[Any, Any], Mapping[str, Any]]
    validation: Callable[[], Iterable[tuple[Any, int]]]
    test: Callable[[], Iterable[tuple[Any, int]]] | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """How a run ended.

    Attributes:
        step: last step.
        stopped: ``"finished"``, ``"early"`` or ``"signal"``.
        metrics: last value of every metric.
        notes: facts about the run.
        output: its directory.
    """

    step: int
    stopped: str
    metrics: dict[str, float]
    notes: dict[str, Any]
    output: str


def run_task(context: Context, task: Task) -> Summary:
    """Train a task as its configuration says.

    Raises:
        InputError: the output directory holds another run and ``resume`` is off.
    """
    config = context.config
    settings = config.run
    refuse_other_run(context)
    schedule = schedule_named(
        config.optimizer.schedule,
        config.optimizer.learning_rate,
        config.steps,
        warmup=config.optimizer.warmup,
        end=config.optimizer.end,
    )
    optimizer = optimizer_named(config.optimizer.name, schedule, **config.optimizer.options)
    training = config.training
    groups = group_count(config)
    telemetry = None
    if training.telemetry:
        if groups is None:
            raise InputError("training.telemetry needs groups: set training.groups = -1.")
        telemetry = layer_telemetry(group_size=training.batch_size // groups)
    step = training_step(
        task.loss,
        optimizer,
        groups=groups,
        accumulate=training.accumulate,
        precision=precision_named(training.precision),
        clip_norm=training.clip_norm or None,
        ema_decay=training.ema_decay or None,
        schedule=schedule,
        telemetry=telemetry,
        donate=True,
    )
    state = step.initial_state(task.model, jax.random.key(config.seed + 1))
    evaluate = evaluator(task.metrics)
    write_config(config, context.output / "config.toml")
    log = context.output / "metrics.jsonl"
    sinks = [JsonLines(log)]
    if settings.tensorboard:
        sinks.append(TensorBoard(context.output / "tensorboard"))  # pyright: ignore
    with Checkpoints(
        context.output / "checkpoints",
        keep_last=settings.keep_last,
        keep_best=settings.keep_best,
        metric=settings.best_metric,
        mode="max" if settings.best_mode == "max" else "min",
    ) as checkpoints:
        result = fit(
            step,
            state,
            task.batches,
            steps=config.steps,
            evaluate=lambda model: evaluate(model, task.validation()),
            evaluate_every=settings.evaluate_every,
            checkpoints=checkpoints,
            checkpoint_every=settings.checkpoint_every,
            resume=context.resume,
            early_stop=_early_stop(config),
            sinks=sinks,
            log_every=settings.log_every,
            progress=context.progress,
            profile=_profile(context),
            signals=(signal.SIGTERM, signal.SIGINT),
        )
    return _summary(context, task, step, result, log)


def refuse_other_run(context: Context) -> None:
    """Raise when the output directory holds a run that this one would write over."""
    if not context.resume and (context.output / "metrics.jsonl").exists():
        raise InputError(
            f"{context.output} holds a run already. Continue it with --resume, or choose another "
            "directory with --set output=..."
        )


def group_count(config: Config) -> int | None:
    """Return the number of gradient groups that a configuration asks for, or None."""
    training = config.training
    if training.groups > 0:
        return training.groups
    if training.groups < 0 or config.optimizer.name.startswith("vr-"):
        return choose_groups(training.batch_size // training.accumulate)
    return None


def _early_stop(config: Config) -> EarlyStop | None:
    settings = config.run
    if not settings.patience:
        return None
    mode = "max" if settings.best_mode == "max" else "min"
    return EarlyStop(settings.best_metric, settings.patience, mode)


def _profile(context: Context) -> Profile | None:
    settings = context.config.run
    if not settings.profile_steps:
        return None
    return Profile(context.output / "profile", settings.profile_first, settings.profile_steps)


def _summary(context: Context, task: Task, step: Any, result: FitResult, log: Path) -> Summary:
    metrics = dict(result.metrics)
    if task.test is not None and result.stopped != "signal":
        final = evaluator(task.metrics, prefix="test/")
        metrics |= final(evaluation_model(step, result.state), task.test())
    notes = dict(task.notes)
    if context.config.training.telemetry:
        advice = advise(read_metrics(log))
        if math.isfinite(advice.noise_scale):
            notes["gradient noise scale, examples"] = round(advice.noise_scale, 1)
            notes["advised batch size"] = advice.batch_size
    return Summary(int(result.state.step), result.stopped, metrics, notes, str(context.output))
