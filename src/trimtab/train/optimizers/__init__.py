"""Optimizers guided by the gradient's signal and noise. Names load on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.train.optimizers.advisor import BatchAdvice as BatchAdvice
    from trimtab.train.optimizers.advisor import advise as advise
    from trimtab.train.optimizers.advisor import choose_groups as choose_groups
    from trimtab.train.optimizers.aggregator import trust_ratio as trust_ratio
    from trimtab.train.optimizers.aggregator import vr_aggregator as vr_aggregator
    from trimtab.train.optimizers.fused import fused_adam as fused_adam
    from trimtab.train.optimizers.fused import fused_vr_adam as fused_vr_adam
    from trimtab.train.optimizers.registry import OPTIMIZERS as OPTIMIZERS
    from trimtab.train.optimizers.registry import optimizer_named as optimizer_named
    from trimtab.train.optimizers.signal_to_noise import VrState as VrState
    from trimtab.train.optimizers.signal_to_noise import gradient_ratios as gradient_ratios
    from trimtab.train.optimizers.signal_to_noise import vr as vr
    from trimtab.train.optimizers.telemetry import layer_signals as layer_signals
    from trimtab.train.optimizers.telemetry import layer_telemetry as layer_telemetry
    from trimtab.train.optimizers.telemetry import noise_metrics as noise_metrics
    from trimtab.train.optimizers.telemetry import sign_flip_test as sign_flip_test

_MODULES = {
    "advisor": ("BatchAdvice", "advise", "choose_groups"),
    "aggregator": ("trust_ratio", "vr_aggregator"),
    "fused": ("fused_adam", "fused_vr_adam"),
    "registry": ("OPTIMIZERS", "optimizer_named"),
    "telemetry": ("layer_signals", "layer_telemetry", "noise_metrics", "sign_flip_test"),
    "signal_to_noise": ("VrState", "gradient_ratios", "vr"),
}
_EXPORTS = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
