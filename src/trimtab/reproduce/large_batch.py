"""Large-batch training of a small network with many optimizers: one compiled run a method.

Everything that differs between two runs of a method (rate, seed, order of the examples) is an
argument, so a learning-rate sweep compiles once. Rates are tuned on a validation split, for every
method on the same geometric grid, and results are kept run by run so that a sweep can be stopped
and continued.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree, Scalar

from trimtab.errors import unknown_name
from trimtab.files import atomic_file
from trimtab.train.datasets import load_images
from trimtab.train.optimizers import layer_signals, optimizer_named
from trimtab.train.statistics import gradient_statistics

EVALUATE_EVERY = 5


@dataclass(frozen=True)
class Task:
    """A training problem.

    Args:
        name: short.
        batch: examples a step.
        groups: groups a batch is cut into for gradient statistics.
        steps: optimizer steps; linear warm-up over the first tenth, then cosine to zero.
        examples: training examples used; None for all but the validation split.
        label_noise: share of training labels drawn anew at random.
        target: validation accuracy whose first crossing is counted in steps.
    """

    name: str
    batch: int
    groups: int
    steps: int
    examples: int | None = None
    label_noise: float = 0.0
    target: float = 0.82


TASKS = {
    task.name: task
    for task in (
        Task("8k", batch=8192, groups=32, steps=120),
        Task("27k", batch=27_500, groups=50, steps=60, target=0.78),
        Task(
            "noise", batch=2500, groups=25, steps=200, examples=10_000, label_noise=0.2, target=0.80
        ),
    )
}


@dataclass(frozen=True)
class Method:
    """An optimizer under test.

    Args:
        name: as the tables show it.
        optimizer: name for :func:`trimtab.train.optimizers.optimizer_named`.
        middle: centre of its learning-rate grid.
        options: of the optimizer.
        groups: other number of groups than the task's.
        warm_only: keep the rate constant after warm-up, as schedule-free methods want.
    """

    name: str
    optimizer: str
    middle: float
    options: Mapping[str, Any] = field(default_factory=dict)
    groups: int | None = None
    warm_only: bool = False


def _with_variants(base: str, label: str, middle: float) -> list[Method]:
    variants = {
        "paper clip": {},
        "symmetric": {"clip": "symmetric"},
        "shuffled r": {"control": "shuffled"},
        "constant r": {"control": "constant"},
        "symmetric, shuffled r": {"clip": "symmetric", "control": "shuffled"},
    }
    return [Method(label, base, middle)] + [
        Method(f"VR-{label}, {name}", f"vr-{base}", middle, {"vr": options})
        for name, options in variants.items()
    ]


METHODS = {
    method.name: method
    for method in (
        *_with_variants("momentum", "Momentum", 0.2),
        *_with_variants("adam", "Adam", 0.016),
        *_with_variants("lamb", "LAMB", 0.02),
        Method("VR-Adam, renormalised", "vr-adam", 0.016, {"vr": {"clip": "renormalised"}}),
        Method("VR-Adam, symmetric, K=8", "vr-adam", 0.016, {"vr": {"clip": "symmetric"}}, 8),
        Method("LARS", "lars", 8.0),
        Method("VR-LARS, paper clip", "vr-lars", 8.0),
        Method("NadamW", "nadamw", 0.016),
        Method("Schedule-free AdamW", "schedule-free", 0.016, warm_only=True),
        Method("Muon", "muon", 0.05),
        Method("VR-Muon, symmetric", "vr-muon", 0.05, {"vr": {"clip": "symmetric"}}),
    )
}


class Data(NamedTuple):
    """Arrays of a task on the device; images flattened."""

    train: tuple[Array, Array]
    validation: tuple[Array, Array]
    test: tuple[Array, Array]


class Outcome(NamedTuple):
    """One run.

    Attributes:
        test: accuracy on the test split.
        train: accuracy on up to 10,000 training examples, their (noisy) labels included.
        curve: validation accuracy every ``EVALUATE_EVERY`` steps.
        signal: telemetry of the first kernel at the first, middle and last step, or None.
    """

    test: float
    train: float
    curve: list[float]
    signal: dict[str, list[float]] | None = None


def _halved(images: np.ndarray) -> np.ndarray:
    """Average 2 by 2 pixels and flatten."""
    count, rows, columns, _ = images.shape
    pooled = images.reshape(count, rows // 2, 2, columns // 2, 2).mean((2, 4))
    return pooled.reshape(count, -1)


@functools.lru_cache(maxsize=2)
def load(task: Task, dataset: str = "auto") -> tuple[str, Data]:
    """Return the name of the data and its arrays; Fashion-MNIST is averaged to 14 by 14."""
    splits = load_images(dataset, validation=5000 if dataset == "fashion-mnist" else None)
    shrink = _halved if splits.name == "fashion-mnist" else lambda x: x.reshape(len(x), -1)
    images, labels = shrink(splits.train.images), splits.train.labels.copy()
    if task.examples is not None:
        images, labels = images[: task.examples], labels[: task.examples]
    if task.label_noise:
        rng = np.random.default_rng(7)
        changed = rng.random(len(labels)) < task.label_noise
        labels[changed] = rng.integers(0, splits.classes, int(changed.sum()))
    centre, spread = images.mean(), images.std()

    def placed(pixels: np.ndarray, marks: np.ndarray) -> tuple[Array, Array]:
        return jnp.asarray((pixels - centre) / spread), jnp.asarray(marks)

    return splits.name, Data(
        placed(images, labels),
        placed(shrink(splits.validation.images), splits.validation.labels),
        placed(shrink(splits.test.images), splits.test.labels),
    )


def _initial(key: Array, inputs: int) -> PyTree:
    """A network of two hidden layers, 64 and 32 wide, with He's initial weights."""
    sizes = (inputs, 64, 32, 10)
    return [
        {
            "weight": jax.random.normal(layer_key, (fan_in, fan_out)) * math.sqrt(2.0 / fan_in),
            "bias": jnp.zeros(fan_out),
        }
        for layer_key, fan_in, fan_out in zip(jax.random.split(key, 3), sizes, sizes[1:])
    ]


def _logits(parameters: PyTree, images: Float[Array, "batch pixels"]) -> Float[Array, "batch 10"]:
    *hidden, last = parameters
    for layer in hidden:
        images = jax.nn.relu(images @ layer["weight"] + layer["bias"])
    return images @ last["weight"] + last["bias"]


def _loss(parameters: PyTree, batch: tuple[Array, Array]) -> Scalar:
    images, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(
        _logits(parameters, images), labels
    ).mean()


def _accuracy(parameters: PyTree, split: tuple[Array, Array]) -> Scalar:
    return jnp.mean(jnp.argmax(_logits(parameters, split[0]), axis=1) == split[1])


def _rate_shape(task: Task, method: Method) -> optax.Schedule:
    warm = max(task.steps // 10, 1)
    if method.warm_only:
        return optax.linear_schedule(0.0, 1.0, warm)
    return optax.warmup_cosine_decay_schedule(0.0, 1.0, warm, task.steps, 0.0)


def _eval_parameters(state: PyTree, parameters: PyTree) -> PyTree:
    kind = optax.contrib.ScheduleFreeState
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kind))
    found = [node for node in nodes if isinstance(node, kind)]
    return optax.contrib.schedule_free_eval_params(found[0], parameters) if found else parameters


@functools.lru_cache(maxsize=64)
def _compiled(task: Task, method_name: str) -> Callable[..., tuple]:
    method = METHODS[method_name]
    shape = _rate_shape(task, method)
    uses_groups = method.optimizer.startswith("vr-")
    groups = method.groups or task.groups
    # A count that does not divide the batch is lowered to the next one that does.
    while task.batch % groups:
        groups -= 1

    def train(rate: Scalar, key: Array, order: Array, data: Data) -> tuple:
        optimizer = optax.with_extra_args_support(
            optimizer_named(method.optimizer, lambda step: rate * shape(step + 1), **method.options)
        )
        parameters = _initial(key, data.train[0].shape[1])

        def step(carry: tuple, rows: Array) -> tuple:
            parameters, state = carry
            batch = (data.train[0][rows], data.train[1][rows])
            signal = None
            if uses_groups:
                stats = gradient_statistics(_loss, parameters, batch, groups=groups)
                first = layer_signals(stats)["0/weight"]
                signal = (first.factor, first.floor_share, first.f_statistic)
                updates, state = optimizer.update(
                    stats.mean,
                    state,
                    parameters,
                    sum_sq_diff_grads=stats.squared_deviations,
                    sample_size=stats.count,
                )
            else:
                gradient = jax.grad(_loss)(parameters, batch)
                updates, state = optimizer.update(gradient, state, parameters)
            return (optax.apply_updates(parameters, updates), state), signal

        def block(carry: tuple, rows: Array) -> tuple:
            carry, signals = jax.lax.scan(step, carry, rows)
            parameters = _eval_parameters(carry[1], carry[0])
            return carry, (_accuracy(parameters, data.validation), signals)

        carry = (parameters, optimizer.init(parameters))
        carry, (curve, signals) = jax.lax.scan(block, carry, order)
        parameters = _eval_parameters(carry[1], carry[0])
        shown = jax.tree.map(lambda leaf: leaf[:10_000], data.train)
        return _accuracy(parameters, data.test), _accuracy(parameters, shown), curve, signals

    return jax.jit(train)


def run(task: Task, method: str, rate: float, seed: int, dataset: str = "auto") -> Outcome:
    """Train once and return accuracies.

    Args:
        task: the problem.
        method: a name in ``METHODS``.
        rate: peak learning rate.
        seed: of the initial weights and the order of the examples.
        dataset: see :func:`trimtab.train.datasets.load_images`.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    _, data = load(task, dataset)
    rng = np.random.default_rng(seed)
    examples = len(data.train[1])
    needed = task.steps * task.batch
    epochs = [rng.permutation(examples) for _ in range(-(-needed // examples))]
    order = np.concatenate(epochs)[:needed].astype(np.int32)
    order = order.reshape(task.steps // EVALUATE_EVERY, EVALUATE_EVERY, task.batch)
    test, train, curve, signals = _compiled(task, method)(
        jnp.float32(rate), jax.random.key(seed), order, data
    )
    shown = None
    if signals is not None:
        picked = [np.asarray(s).reshape(-1)[[0, task.steps // 2, -1]].tolist() for s in signals]
        shown = dict(zip(map(str, ("factor", "floor_share", "f_statistic")), picked))
    return Outcome(float(test), float(train), np.asarray(curve).tolist(), shown)


def steps_to_target(outcome: Outcome, target: float) -> int | None:
    """Return the first evaluated step at or above the target accuracy."""
    for index, value in enumerate(outcome.curve):
        if value >= target:
            return (index + 1) * EVALUATE_EVERY
    return None


def grid(method: str, points: int = 9) -> list[float]:
    """Return the method's learning rates, a factor of the square root of two apart."""
    middle = METHODS[method].middle
    return [middle * 2 ** ((index - points // 2) / 2) for index in range(points)]


class Sweep:
    """Runs of one task, kept in a JSON file from which an interrupted sweep continues.

    Args:
        task: the problem.
        path: the file; None keeps nothing.
        dataset: see :func:`trimtab.train.datasets.load_images`.
    """

    def __init__(self, task: Task, path: Path | None = None, dataset: str = "auto") -> None:
        self.task = task
        self._path = path
        self._dataset = dataset
        self.runs: dict[str, Outcome] = {}
        if path is not None and path.exists():
            stored = json.loads(path.read_text())
            self.runs = {name: Outcome(**value) for name, value in stored["runs"].items()}

    def outcome(self, method: str, rate: float, seed: int) -> Outcome:
        """Return a run, trained now if it is not yet known."""
        name = f"{method} @ {rate:.5g} # {seed}"
        if name not in self.runs:
            self.runs[name] = run(self.task, method, rate, seed, self._dataset)
            self._save()
        return self.runs[name]

    def best_rate(self, method: str, seeds: Sequence[int] = (0,), points: int = 9) -> float:
        """Return the rate with the best validation accuracy at the end.

        The grid grows by up to three points on a side while the best lies at its edge.
        """
        scores: dict[float, float] = {}
        rates = grid(method, points)
        for _ in range(4):
            for rate in rates:
                if rate not in scores:
                    finals = [self.outcome(method, rate, seed).curve[-1] for seed in seeds]
                    scores[rate] = sum(finals) / len(finals)
            best = max(scores, key=scores.__getitem__)
            low, high = min(scores), max(scores)
            if best == low:
                rates = [low / math.sqrt(2)]
            elif best == high:
                rates = [high * math.sqrt(2)]
            else:
                break
        return max(scores, key=scores.__getitem__)

    def window(self, method: str, seeds: Sequence[int] = (0,), points: int = 9) -> float:
        """Return the ratio of the largest to the smallest rate within 0.01 of the best accuracy."""
        best = self.best_rate(method, seeds, points)

        def score(rate: float) -> float:
            finals = [self.outcome(method, rate, seed).curve[-1] for seed in seeds]
            return sum(finals) / len(finals)

        top = score(best)
        edges = []
        for factor in (math.sqrt(2), 1 / math.sqrt(2)):
            rate = best
            for _ in range(12):
                if score(rate * factor) < top - 0.01:
                    break
                rate *= factor
            edges.append(rate)
        return edges[0] / edges[1]

    def _save(self) -> None:
        if self._path is None:
            return
        with atomic_file(self._path) as temporary:
            document = {
                "task": asdict(self.task),
                "runs": {name: outcome._asdict() for name, outcome in self.runs.items()},
            }
            temporary.write_text(json.dumps(document))


def mean_and_error(values: Iterable[float]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    array = np.asarray(list(values), np.float64)
    error = array.std(ddof=1) / math.sqrt(len(array)) if len(array) > 1 else math.nan
    return float(array.mean()), float(error)
