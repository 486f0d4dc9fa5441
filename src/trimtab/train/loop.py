"""The training loop: steps, evaluation, checkpoints, metrics, and a clean exit on a signal."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax

from trimtab.errors import InputError
from trimtab.progress import Progress, silent
from trimtab.train.checkpoint import Checkpoints
from trimtab.train.data import ResumableIterator
from trimtab.train.evaluation import EarlyStop
from trimtab.train.metrics import MetricSink
from trimtab.train.step import TrainingStep, TrainState, evaluation_model

Stopped = Literal["finished", "early", "signal"]


@dataclass(frozen=True)
class Profile:
    """Record a profile of a few steps, to be opened with TensorBoard, XProf or Perfetto.

    Args:
        directory: where the trace goes.
        first: first step to record; past compilation by default.
        steps: how many.
    """

    directory: str | Path
    first: int = 10
    steps: int = 5


@dataclass(frozen=True)
class FitResult:
    """How a run ended.

    Attributes:
        state: the last state.
        stopped: ``"finished"`` all steps, ``"early"`` by early stop, ``"signal"`` when told to.
        metrics: last value of every metric.
    """

    state: TrainState
    stopped: Stopped
    metrics: dict[str, float] = field(default_factory=dict)


def fit(
    step: TrainingStep | Callable[[Any, Any], tuple[Any, Mapping[str, Any]]],
    state: Any,
    batches: ResumableIterator | Iterator[Any],
    *,
    steps: int,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    evaluate_every: int = 0,
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int = 0,
    resume: bool = False,
    early_stop: EarlyStop | None = None,
    sinks: Sequence[MetricSink] = (),
    log_every: int = 10,
    progress: Progress = silent,
    profile: Profile | None = None,
    signals: Sequence[signal.Signals] = (signal.SIGTERM,),
) -> FitResult:
    """Train until ``steps`` optimizer steps, an early stop or a signal.

    Any function ``(state, batch) -> (state, metrics)`` serves as the step if its state has an
    integer array ``step`` that counts calls. A run resumed from a checkpoint continues with the
    same batches, random numbers and optimizer state as if it had never stopped.

    Args:
        step: what one step does.
        state: where to start.
        batches: what to train on; with checkpoints it must tell its position.
        steps: total number of steps, those before a resume included.
        evaluate: ``(model)`` to metrics; for a :class:`TrainingStep` the model is the averaged one
            where there is an average, otherwise it is the whole state.
        evaluate_every: steps between evaluations; 0 evaluates only at the end.
        checkpoints: where to save.
        checkpoint_every: steps between checkpoints; 0 saves only at the end or when stopped.
        resume: start from the newest checkpoint when there is one.
        early_stop: when to give up on improvement.
        sinks: receive ``(step, metrics)``; names start with ``train/`` or the evaluation's prefix.
        log_every: steps between records.
        progress: told about every logged step, with examples a second and the time left.
        profile: record a trace of some steps.
        signals: on these the run saves and ends cleanly.

    Raises:
        InputError: batches cannot tell their position though the run is to be saved, they end
            before the last step, or an interval is negative.
    """
    _check(steps, batches, checkpoints, evaluate_every, checkpoint_every, log_every)
    memory: dict[str, Any] = {}
    if resume and checkpoints is not None and checkpoints.latest() is not None:
        restored = checkpoints.restore(state)
        state, memory = restored.state, dict(restored.position.get("early_stop", {}))
        batches.set_state(restored.position["data"])  # pyright: ignore[reportAttributeAccessIssue]
        progress(f"resumed at step {restored.step}", restored.step, steps)
    start = int(state.step)
    for sink in sinks:
        if hasattr(sink, "rewind"):
            sink.rewind(start)  # pyright: ignore[reportAttributeAccessIssue]

    metrics: dict[str, float] = {}
    clock = _Clock(start, steps)
    stopped: Stopped = "finished"
    number = start
    with _Stop(signals) as stop, _Tracer(profile) as tracer:
        while number < steps:
            tracer.before(number)
            batch = _next(batches, number, steps)
            state, scalars = step(state, batch)
            number += 1
            clock.examples += _examples(batch)
            at_end = number == steps
            if number % log_every == 0 or at_end:
                metrics |= _record(sinks, number, scalars, clock.rates())
                progress(clock.message(number, metrics), number, steps)
            evaluated = None
            if evaluate is not None and (
                at_end or (evaluate_every and number % evaluate_every == 0)
            ):
                evaluated = dict(evaluate(_model(step, state)))
                metrics |= evaluated
                for sink in sinks:
                    sink(number, evaluated)
                if early_stop is not None:
                    memory, give_up = early_stop.updated(memory, evaluated)
                    stopped = "early" if give_up else stopped
            if stop.requested:
                stopped = "signal"
            ending = at_end or stopped != "finished"
            if checkpoints is not None and (ending or _due(number, checkpoint_every)):
                position = {"data": _position(batches), "early_stop": memory}
                checkpoints.save(number, state, position, evaluated)
            if ending:
                break
    if checkpoints is not None:
        checkpoints.wait()
    for sink in sinks:
        if hasattr(sink, "close"):
            sink.close()  # pyright: ignore[reportAttributeAccessIssue]
    return FitResult(state, stopped, metrics)


def _check(
    steps: int,
    batches: Any,
    checkpoints: Checkpoints | None,
    evaluate_every: int,
    checkpoint_every: int,
    log_every: int,
) -> None:
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}.")
    if log_every < 1 or evaluate_every < 0 or checkpoint_every < 0:
        raise InputError(
            "log_every must be at least 1 and evaluate_every and checkpoint_every at least 0, got "
            f"{log_every}, {evaluate_every} and {checkpoint_every}."
        )
    if checkpoints is not None and not isinstance(batches, ResumableIterator):
        raise InputError(
            "A run with checkpoints needs batches that tell their position (get_state, set_state). "
            "Use trimtab.train.training_batches or a Grain iterator."
        )


def _due(number: int, every: int) -> bool:
    return every > 0 and number % every == 0


def _next(batches: Any, number: int, steps: int) -> Any:
    try:
        return next(batches)
    except StopIteration:
        raise InputError(
            f"The batches ended after {number} of {steps} steps. Repeat the data or take fewer."
        ) from None


def _position(batches: Any) -> Any:
    state = batches.get_state()
    return state.decode() if isinstance(state, bytes) else state


def _model(step: Any, state: Any) -> Any:
    return evaluation_model(step, state) if isinstance(step, TrainingStep) else state


def _examples(batch: Any) -> int:
    return next((leaf.shape[0] for leaf in jax.tree.leaves(batch) if getattr(leaf, "ndim", 0)), 0)


def _record(
    sinks: Sequence[MetricSink], number: int, scalars: Mapping[str, Any], rates: Mapping[str, float]
) -> dict[str, float]:
    values = {f"train/{name}": float(value) for name, value in scalars.items()} | dict(rates)
    for sink in sinks:
        sink(number, values)
    return values


class _Clock:
    """Examples a second since the last record, and the time that the rest will take."""

    def __init__(self, start: int, steps: int) -> None:
        self._steps = steps
        self._began = self._last = time.perf_counter()
        self._number = start
        self._step_seconds: float | None = None
        self.examples = 0

    def rates(self) -> dict[str, float]:
        now = time.perf_counter()
        elapsed = max(now - self._last, 1e-9)
        rate = self.examples / elapsed
        self._last, self.examples = now, 0
        return {"time/seconds": now - self._began, "time/examples_per_second": rate}

    def message(self, number: int, metrics: Mapping[str, float]) -> str:
        now = time.perf_counter()
        taken = number - self._number
        seconds = (now - self._began) / max(taken, 1)
        left = (self._steps - number) * seconds
        return (
            f"step {number}/{self._steps}, loss {metrics['train/loss']:.4g}, "
            f"{metrics['time/examples_per_second']:,.0f} examples/s, {_duration(left)} left"
            if "train/loss" in metrics
            else f"step {number}/{self._steps}, {_duration(left)} left"
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Stop(contextlib.AbstractContextManager):
    """Notes a signal instead of dying from it; only the main thread can listen."""

    def __init__(self, signals: Sequence[signal.Signals]) -> None:
        listening = threading.current_thread() is threading.main_thread()
        self._signals = tuple(signals) if listening else ()
        self._previous: dict[signal.Signals, Any] = {}
        self.requested = False

    def __enter__(self) -> _Stop:
        for number in self._signals:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt  # Asked twice: the saving itself may be what hangs.
        self.requested = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class _Tracer(contextlib.AbstractContextManager):
    """Starts and stops the profiler around the asked steps."""

    def __init__(self, profile: Profile | None) -> None:
        self._profile = profile
        self._running = False

    def before(self, number: int) -> None:
        if self._profile is None:
            return
        if number == self._profile.first:
            jax.profiler.start_trace(str(self._profile.directory))
            self._running = True
        elif self._running and number >= self._profile.first + self._profile.steps:
            self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._running = False

    def __exit__(self, *_: object) -> None:
        if self._running:
            self._stop()
