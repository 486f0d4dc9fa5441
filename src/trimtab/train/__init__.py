"""Training: a step builder, a loop, gradient statistics, optimizers, checkpoints and metrics.

Names load on first use, so that importing this room stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.train.checkpoint import Checkpoints as Checkpoints
    from trimtab.train.data import ResumableIterator as ResumableIterator
    from trimtab.train.data import ShuffledBatches as ShuffledBatches
    from trimtab.train.data import batch_iterator as batch_iterator
    from trimtab.train.data import evaluation_batches as evaluation_batches
    from trimtab.train.data import training_batches as training_batches
    from trimtab.train.evaluation import EarlyStop as EarlyStop
    from trimtab.train.evaluation import evaluate as evaluate
    from trimtab.train.evaluation import evaluator as evaluator
    from trimtab.train.loop import FitResult as FitResult
    from trimtab.train.loop import Profile as Profile
    from trimtab.train.loop import fit as fit
    from trimtab.train.metrics import JsonLines as JsonLines
    from trimtab.train.metrics import TensorBoard as TensorBoard
    from trimtab.train.metrics import read_metrics as read_metrics
    from trimtab.train.precision import PRECISIONS as PRECISIONS
    from trimtab.train.precision import Precision as Precision
    from trimtab.train.statistics import GradientStatistics as GradientStatistics
    from trimtab.train.statistics import gradient_statistics as gradient_statistics
    from trimtab.train.statistics import merge_statistics as merge_statistics
    from trimtab.train.step import TrainingStep as TrainingStep
    from trimtab.train.step import TrainState as TrainState
    from trimtab.train.step import evaluation_model as evaluation_model
    from trimtab.train.step import training_step as training_step

_MODULES = {
    "checkpoint": ("Checkpoints",),
    "data": (
        "ResumableIterator",
        "ShuffledBatches",
        "batch_iterator",
        "evaluation_batches",
        "training_batches",
    ),
    "evaluation": ("EarlyStop", "evaluate", "evaluator"),
    "loop": ("FitResult", "Profile", "fit"),
    "metrics": ("JsonLines", "TensorBoard", "read_metrics"),
    "precision": ("PRECISIONS", "Precision"),
    "statistics": ("GradientStatistics", "gradient_statistics", "merge_statistics"),
    "step": ("TrainState", "TrainingStep", "evaluation_model", "training_step"),
}
_EXPORTS = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
