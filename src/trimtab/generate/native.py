"""The native engine behind the scheduler's interface; needs no JAX."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import numpy as np

from trimtab.generate.checkpoint import Checkpoint

_CACHE_TYPES = {"bfloat16": "bf16", "float32": "f32"}


def native_obstacle(checkpoint: Checkpoint) -> str | None:
    """Return why the native kernels cannot run a model, or None when they can."""
    try:
        decoder = importlib.import_module("trimtab.kernels.decoder")
    except ImportError as error:
        return f"the native kernels are not built ({error})."
    return decoder.unsupported(checkpoint.config, _kernel_tensors(decoder, checkpoint))


def _kernel_tensors(decoder: ModuleType, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the tensors in the kernels' own type."""
    return {
        name: decoder.Tensor(tensor.kind, tensor.data, tensor.shape, tensor.scale)
        for name, tensor in checkpoint.tensors.items()
    }


class NativeEngine:
    """Whole-stack CPU kernels over repacked weights.

    Args:
        checkpoint: the model.
        slots: sequences held at once.
        capacity: longest sequence, in tokens.
        cache_dtype: ``bfloat16`` or ``float32``.
        threads: worker threads; None means ``TRIMTAB_THREADS`` or all cores.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        slots: int,
        capacity: int,
        cache_dtype: str,
        threads: int | None,
    ) -> None:
        decoder = importlib.import_module("trimtab.kernels.decoder")
        self.config, self.slots, self.capacity = checkpoint.config, slots, capacity
        tensors = _kernel_tensors(decoder, checkpoint)
        self._engine = decoder.NativeDecoder(checkpoint.config, tensors, threads=threads)
        self._cache = self._engine.new_cache(slots, capacity, dtype=_CACHE_TYPES[cache_dtype])
        self.name = "native"

    @property
    def cache_bytes(self) -> int:
        return self._cache.nbytes

    def step(
        self, tokens: np.ndarray, slots: np.ndarray, positions: np.ndarray, outputs: np.ndarray
    ) -> np.ndarray:
        return self._engine.step(self._cache, tokens, slots, positions, outputs)

    def hidden(self, tokens: np.ndarray, slots: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return self._engine.hidden(self._cache, tokens, slots, positions)

    def export(self, slot: int, start: int, stop: int) -> Any:
        return self._cache.export(slot, start, stop)

    def restore(self, slot: int, start: int, stop: int, copy: Any) -> None:
        self._cache.restore(slot, start, copy)
