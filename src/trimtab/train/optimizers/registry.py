"""Optimizers by name for configuration files, each ready to be wrapped by :func:`vr`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import optax

from trimtab.errors import InputError, unknown_name
from trimtab.train.optimizers.signal_to_noise import vr


@dataclass(frozen=True)
class Family:
    """A named optimizer.

    Attributes:
        build: takes ``learning_rate`` and options.
        ratio_decay: decay of the ratio's moving average that :func:`vr` uses around it.
        defaults: options unlike those of ``build``.
    """

    build: Callable[..., optax.GradientTransformation]
    ratio_decay: float = 0.0
    defaults: Mapping[str, Any] = field(default_factory=dict)


OPTIMIZERS: dict[str, Family] = {
    "sgd": Family(optax.sgd),
    "momentum": Family(optax.sgd, defaults={"momentum": 0.9}),
    "nesterov": Family(optax.sgd, defaults={"momentum": 0.9, "nesterov": True}),
    "lars": Family(optax.lars),
    "adam": Family(optax.adam, 0.9),
    "adamw": Family(optax.adamw, 0.9),
    "nadamw": Family(optax.nadamw, 0.9),
    "lamb": Family(optax.lamb, 0.9),
    "lion": Family(optax.lion, 0.9),
    "adafactor": Family(optax.adafactor, 0.9),
    "muon": Family(optax.contrib.muon),
    "schedule-free": Family(optax.contrib.schedule_free_adamw, 0.9),
    "prodigy": Family(optax.contrib.prodigy, 0.9),
}


def optimizer_named(
    name: str, learning_rate: optax.ScalarOrSchedule, **options: Any
) -> optax.GradientTransformation:
    """Build a named optimizer.

    >>> import optax
    >>> isinstance(optimizer_named("adamw", 1e-3, weight_decay=0.1), optax.GradientTransformation)
    True

    Args:
        name: a key of ``OPTIMIZERS``; ``"vr-"`` before it wraps it by
            :func:`trimtab.train.optimizers.vr`.
        learning_rate: number or schedule.
        **options: of the optimizer; those in ``vr`` (a table) go to the wrapper.

    Raises:
        UnknownNameError: there is no such optimizer.
        InputError: it has no such option.
    """
    family_name = name.removeprefix("vr-")
    if family_name not in OPTIMIZERS:
        raise unknown_name("optimizer", name, [*OPTIMIZERS, *(f"vr-{n}" for n in OPTIMIZERS)])
    family = OPTIMIZERS[family_name]
    wrapper = dict(options.pop("vr", {}))
    known = inspect.signature(family.build).parameters
    for option in options:
        if option not in known:
            raise InputError(
                f"Optimizer {name!r} has no option {option!r}. It has: "
                f"{', '.join(sorted(set(known) - {'learning_rate'}))}."
            )
    base = family.build(learning_rate=learning_rate, **(dict(family.defaults) | options))
    if not name.startswith("vr-"):
        if wrapper:
            raise InputError(f"The table vr needs the optimizer 'vr-{name}', not {name!r}.")
        return base
    allowed = inspect.signature(vr).parameters
    for option in wrapper:
        if option not in allowed or option == "base":
            raise InputError(f"vr has no option {option!r}. It has: {', '.join(allowed)}.")
    settings: dict[str, Any] = {"decay": family.ratio_decay, **wrapper}
    return vr(base, **settings)
