"""Training configurations: TOML tables with overrides, checked against typed sections."""

from __future__ import annotations

import dataclasses
import os
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from trimtab.errors import FileFormatError, InputError, unknown_name

Section = TypeVar("Section")


@dataclass(frozen=True)
class OptimizerSection:
    """``[optimizer]``: what takes the steps.

    Args:
        name: one of ``trimtab.train.optimizers.OPTIMIZERS``, with ``vr-`` before it for
            signal-to-noise scaling.
        learning_rate: peak rate.
        schedule: ``"cosine"``, ``"linear"``, ``"constant"`` or ``"inverse-root"`` after warm-up.
        warmup: steps of linear warm-up, or a share of all steps below 1.
        end: last rate as a share of the peak.
        options: of the optimizer; its table ``vr`` holds those of the scaling.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup: float = 0.1
    end: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingSection:
    """``[training]``: how a step is computed.

    Args:
        batch_size: examples a step.
        accumulate: micro-batches that a gradient averages over.
        groups: groups for gradient statistics; 0 for none, -1 to choose by batch size. ``vr-``
            optimizers choose by themselves.
        precision: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        clip_norm: largest gradient norm; 0 for no limit.
        ema_decay: decay of the parameters' moving average; 0 for none.
        telemetry: record each layer's signal and noise; needs groups.
    """

    batch_size: int = 128
    accumulate: int = 1
    groups: int = 0
    precision: str = "float32"
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    telemetry: bool = False


@dataclass(frozen=True)
class RunSection:
    """``[run]``: what happens around the steps.

    Args:
        log_every: steps between metric records.
        evaluate_every: steps between evaluations; 0 for only the last.
        checkpoint_every: steps between checkpoints; 0 for only the last.
        keep_last: newest checkpoints kept.
        keep_best: best checkpoints kept besides.
        best_metric: what is best by.
        best_mode: ``"min"`` or ``"max"``.
        patience: evaluations without improvement before stopping; 0 never stops.
        tensorboard: also write TensorBoard files.
        profile_steps: steps of which a profile is recorded.
        profile_first: first of them.
    """

    log_every: int = 10
    evaluate_every: int = 100
    checkpoint_every: int = 100
    keep_last: int = 2
    keep_best: int = 1
    best_metric: str = "validation/loss"
    best_mode: str = "min"
    patience: int = 0
    tensorboard: bool = False
    profile_steps: int = 0
    profile_first: int = 10


@dataclass(frozen=True)
class Config:
    """A whole configuration.

    Args:
        recipe: name of the recipe.
        steps: optimizer steps.
        seed: of everything random.
        output: directory of checkpoints and metrics.
        data: table that the recipe reads.
        model: table that the recipe reads.
        optimizer: see :class:`OptimizerSection`.
        training: see :class:`TrainingSection`.
        run: see :class:`RunSection`.
    """

    recipe: str
    steps: int = 1000
    seed: int = 0
    output: str = "run"
    data: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    training: TrainingSection = field(default_factory=TrainingSection)
    run: RunSection = field(default_factory=RunSection)


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Read a TOML configuration and apply ``key=value`` overrides.

    Args:
        path: the file.
        overrides: such as ``optimizer.learning_rate=0.01``; values are TOML, bare words are
            strings.

    Raises:
        FileFormatError: the file is not TOML.
        InputError: a key or a value is not known.
    """
    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path} is not TOML: {error}.") from error
    for override in overrides:
        values = overridden(values, override)
    if "recipe" not in values:
        raise InputError(f'{path} names no recipe. Begin it with: recipe = "vision"')
    return section(Config, values, "")


def overridden(values: Mapping[str, Any], override: str) -> dict[str, Any]:
    """Return ``values`` with one ``key=value`` put in.

    >>> overridden({"a": {"b": 1}}, "a.c=[2, 3]")
    {'a': {'b': 1, 'c': [2, 3]}}

    Raises:
        InputError: there is no key, or it leads through something that is not a table.
    """
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise InputError(f"--set needs key=value, got {override!r}.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    result = dict(values)
    table = result
    for key in keys[:-1]:
        inner = table.get(key, {})
        if not isinstance(inner, Mapping):
            raise InputError(f"--set {override}: {key!r} is not a table.")
        table[key] = dict(inner)
        table = table[key]
    table[keys[-1]] = value
    return result


def section(kind: type[Section], values: Mapping[str, Any], where: str) -> Section:
    """Build a typed section from a table.

    Args:
        kind: a dataclass.
        values: the table.
        where: its name, for messages; empty at the top.

    Raises:
        UnknownNameError: a key is none of the fields.
        InputError: a value has another type than its field.
    """
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]  # pyright: ignore[reportArgumentType]
    filled = {}
    for key, value in values.items():
        if key not in names:
            raise unknown_name("setting", f"{where}{key}", [f"{where}{name}" for name in names])
        filled[key] = _typed(hints[key], value, f"{where}{key}")
    return kind(**filled)


def _typed(hint: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise InputError(f"{name} must be a table, got {value!r}.")
        return section(typing.cast(type, hint), value, f"{name}.")
    expected = typing.get_origin(hint) or hint
    if expected is types.UnionType:
        return value
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise InputError(f"{name} must be of type {expected.__name__}, got {value!r}.")
    return value


def to_toml(config: Config) -> str:
    """Write a configuration as TOML that :func:`load_config` reads back."""
    return _tables(dataclasses.asdict(config), "")


def write_config(config: Config, path: Path) -> None:
    """Write a configuration beside a run."""
    from trimtab.files import atomic_file

    with atomic_file(path) as temporary:
        temporary.write_text(to_toml(config), "utf-8")


def _tables(values: Mapping[str, Any], where: str) -> str:
    plain = {k: v for k, v in values.items() if not isinstance(v, Mapping)}
    lines = [f"[{where}]"] if where and plain else []
    lines += [f"{key} = {_value(value)}" for key, value in plain.items()]
    text = "\n".join(lines) + ("\n" if lines else "")
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            text += ("\n" if text else "") + _tables(value, f"{where}.{key}" if where else key)
    return text


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return repr(value)
