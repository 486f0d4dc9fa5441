"""What the scheduler needs of an engine, and the plain JAX engine (reference, fallback, GPU)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from trimtab.errors import InputError, unknown_name
from trimtab.generate.checkpoint import Checkpoint
from trimtab.models.decoder.config import DecoderConfig
from trimtab.models.decoder.weights import Tensor, is_packed

if TYPE_CHECKING:
    from trimtab.models.decoder.cache import KVCache
    from trimtab.models.decoder.model import Decoder

CHUNK = 512
BUCKETS = (1, 8, 32, 64, 128, 256, 512)
ENGINES = ("auto", "native", "jax")


@runtime_checkable
class Engine(Protocol):
    """Runs tokens of several sequences (slots) against one key-value cache.

    Attributes:
        config: sizes of the model.
        slots: how many sequences it holds.
        capacity: longest sequence, in tokens.
        name: for reports.
    """

    config: DecoderConfig
    slots: int
    capacity: int
    name: str

    def step(
        self, tokens: np.ndarray, slots: np.ndarray, positions: np.ndarray, outputs: np.ndarray
    ) -> np.ndarray:
        """Run a ragged batch and return float32 logits ``[len(outputs), vocabulary]``.

        Args:
            tokens: int32 ``[n]``, at most :data:`CHUNK`.
            slots: int32 ``[n]``: the slot of each token; a slot's tokens are consecutive.
            positions: int32 ``[n]``: absolute positions, rising by one within a slot.
            outputs: int32 ``[m]``: which of the n tokens need logits.
        """
        ...

    def hidden(self, tokens: np.ndarray, slots: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Run a ragged batch and return float32 final hidden states ``[n, hidden]``."""
        ...

    def export(self, slot: int, start: int, stop: int) -> Any:
        """Copy keys and values of some positions of a slot."""
        ...

    def restore(self, slot: int, start: int, stop: int, copy: Any) -> None:
        """Put a copy from :meth:`export` into a slot, at the positions it was taken from."""
        ...

    @property
    def cache_bytes(self) -> int:
        """Bytes of the key-value cache."""
        ...


def build_engine(
    checkpoint: Checkpoint,
    *,
    engine: str = "auto",
    slots: int = 1,
    capacity: int = 2048,
    cache_dtype: str = "bfloat16",
    weights: str = "auto",
    threads: int | None = None,
) -> Engine:
    """Choose and build an engine.

    Args:
        checkpoint: the model.
        engine: ``native`` (CPU kernels), ``jax``, or ``auto``: native where it serves the model.
        slots: sequences held at once.
        capacity: longest sequence, in tokens.
        cache_dtype: ``bfloat16`` or ``float32``.
        weights: for the JAX engine; see :class:`JaxEngine`.
        threads: for the native engine; None means ``TRIMTAB_THREADS`` or all cores.
    """
    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES)
    if capacity < 1 or slots < 1:
        raise InputError(f"An engine needs a slot and a position, not {slots} and {capacity}.")
    if cache_dtype not in ("bfloat16", "float32"):
        raise unknown_name("cache element type", cache_dtype, ("bfloat16", "float32"))
    if engine != "jax":
        from trimtab.generate.native import NativeEngine, native_obstacle

        obstacle = native_obstacle(checkpoint)
        if obstacle is None:
            return NativeEngine(checkpoint, slots, capacity, cache_dtype, threads)
        if engine == "native":
            raise InputError(f"The native engine cannot run this model: {obstacle}")
    return JaxEngine(
        checkpoint, slots=slots, capacity=capacity, cache_dtype=cache_dtype, weights=weights
    )


class JaxEngine:
    """The decoder under ``jax.jit``, with donated caches and a few chunk lengths.

    Args:
        checkpoint: the model.
        slots: sequences held at once.
        capacity: longest sequence, in tokens.
        cache_dtype: element type of keys and values.
        weights: ``packed`` unpacks blocks at every use (least memory), ``float32`` or ``bfloat16``
            unpack them once; ``auto`` takes float32 on CPU and bfloat16 elsewhere.
        model: a decoder to run instead of one built from the tensors, such as a rewritten one.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        slots: int = 1,
        capacity: int = 2048,
        cache_dtype: str = "bfloat16",
        weights: str = "auto",
        model: Decoder | None = None,
    ) -> None:
        import jax

        from trimtab.models.decoder.cache import KVCache
        from trimtab.models.decoder.model import Decoder

        if weights == "auto":
            weights = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        dtype = "bfloat16" if weights == "bfloat16" else "float32"
        self.config, self.slots, self.capacity = checkpoint.config, slots, capacity
        self.name = f"jax ({jax.default_backend()}, {weights})"
        if model is None:
            tensors = unpack_tensors(checkpoint.tensors, weights)
            model = Decoder.from_tensors(checkpoint.config, tensors, dtype=dtype)
        self.model = model
        self._cache = KVCache.empty(checkpoint.config, slots, capacity, cache_dtype)

    @property
    def cache_bytes(self) -> int:
        return self._cache.nbytes

    def step(
        self, tokens: np.ndarray, slots: np.ndarray, positions: np.ndarray, outputs: np.ndarray
    ) -> np.ndarray:
        logits = np.empty((len(outputs), self.config.vocabulary), np.float32)
        runs = _runs(slots)
        single = np.array([begin for begin, end in runs if end - begin == 1], np.int64)
        mine = np.flatnonzero(np.isin(outputs, single))
        if single.size:
            decoded = self._decode(tokens[single], slots[single], positions[single])
            logits[mine] = decoded[np.searchsorted(single, outputs[mine])]
        for begin, end in runs:
            if end - begin == 1:
                continue
            hidden = self._prefill(tokens[begin:end], int(slots[begin]), int(positions[begin]))
            mine = np.flatnonzero((outputs >= begin) & (outputs < end))
            if mine.size:
                logits[mine] = self._head(hidden, outputs[mine] - begin)
        return logits

    def hidden(self, tokens: np.ndarray, slots: np.ndarray, positions: np.ndarray) -> np.ndarray:
        rows = []
        for begin, end in _runs(slots):
            hidden = self._prefill(tokens[begin:end], int(slots[begin]), int(positions[begin]))
            rows.append(np.asarray(hidden[: end - begin], np.float32))
        return np.concatenate(rows)

    def export(self, slot: int, start: int, stop: int) -> Any:
        return _compiled().export(self._cache, slot, start, stop - start)

    def restore(self, slot: int, start: int, stop: int, copy: Any) -> None:
        self._cache = _compiled().restore(self._cache, slot, start, copy)

    def _decode(self, tokens: np.ndarray, slots: np.ndarray, positions: np.ndarray) -> np.ndarray:
        # All slots run, so that one compiled shape serves any mix; idle ones write nothing.
        ids, starts, counts = (np.zeros(self.slots, np.int32) for _ in range(3))
        ids[slots], starts[slots], counts[slots] = tokens, positions, 1
        logits, self._cache = _compiled().decode(self.model, self._cache, ids, starts, counts)
        return np.asarray(logits)[slots]

    def _prefill(self, tokens: np.ndarray, slot: int, start: int) -> Any:
        size = next(bucket for bucket in BUCKETS if bucket >= len(tokens))
        padded = np.zeros(size, np.int32)
        padded[: len(tokens)] = tokens
        hidden, self._cache = _compiled().prefill(
            self.model, self._cache, padded, slot, start, len(tokens)
        )
        return hidden

    def _head(self, hidden: Any, rows: np.ndarray) -> np.ndarray:
        size = next(bucket for bucket in BUCKETS if bucket >= len(rows))
        padded = np.zeros(size, np.int32)
        padded[: len(rows)] = rows
        return np.asarray(_compiled().head(self.model, hidden, padded))[: len(rows)]


def unpack_tensors(tensors: Mapping[str, Tensor], weights: str) -> dict[str, Tensor]:
    """Return tensors with blocks unpacked to ``float32`` or ``bfloat16``; ternary ones stay."""
    if weights not in ("packed", "float32", "bfloat16"):
        raise unknown_name("weight form", weights, ("packed", "float32", "bfloat16"))
    if weights == "packed":
        return dict(tensors)
    import ml_dtypes

    def unpacked(tensor: Tensor) -> Tensor:
        if tensor.kind == "ternary" or (not is_packed(tensor) and weights == "float32"):
            return tensor
        if weights == "float32":
            return Tensor("f32", tensor.float32(), tensor.shape)
        if len(tensor.shape) < 2:
            return tensor
        return Tensor("bf16", tensor.float32().astype(ml_dtypes.bfloat16), tensor.shape)

    return {name: unpacked(tensor) for name, tensor in tensors.items()}


def _runs(slots: np.ndarray) -> list[tuple[int, int]]:
    """Return the [begin, end) ranges of equal neighbouring slots."""
    cuts = [0, *(np.flatnonzero(np.diff(slots)) + 1).tolist(), len(slots)]
    return list(itertools.pairwise(cuts))


class _Compiled:
    """The jitted functions, made on first use so that importing this file needs no JAX."""

    def __init__(self) -> None:
        import jax

        self.decode = jax.jit(_decode_all, donate_argnums=1)
        self.prefill = jax.jit(_prefill_slot, donate_argnums=1)
        self.head = jax.jit(lambda model, hidden, rows: model.logits(hidden[rows]))
        self.export = jax.jit(_export_rows, static_argnums=3)
        self.restore = jax.jit(_restore_rows, donate_argnums=0)


@functools.cache
def _compiled() -> _Compiled:
    return _Compiled()


def _decode_all(
    model: Decoder, cache: KVCache, tokens: Any, starts: Any, counts: Any
) -> tuple[Any, KVCache]:
    hidden, cache = model.extend(tokens[:, None], starts, counts, cache)
    return model.logits(hidden[:, 0]), cache


def _prefill_slot(
    model: Decoder, cache: KVCache, tokens: Any, slot: Any, start: Any, count: Any
) -> tuple[Any, KVCache]:
    import jax

    def one(array: Any) -> Any:
        return jax.lax.dynamic_slice_in_dim(array, slot, 1, axis=0)

    def back(array: Any, row: Any) -> Any:
        return jax.lax.dynamic_update_slice_in_dim(array, row, slot, axis=0)

    starts, counts = jax.numpy.reshape(start, 1), jax.numpy.reshape(count, 1)
    hidden, row = model.extend(tokens[None], starts, counts, jax.tree.map(one, cache))
    return hidden[0], jax.tree.map(back, cache, row)


def _export_rows(cache: KVCache, slot: Any, start: Any, count: int) -> KVCache:
    import jax

    def rows(array: Any) -> Any:
        places = (start + jax.numpy.arange(count)) % array.shape[2]
        return array[slot][:, places]

    return jax.tree.map(rows, cache)


def _restore_rows(cache: KVCache, slot: Any, start: Any, copy: KVCache) -> KVCache:
    import jax

    def put(array: Any, rows: Any) -> Any:
        places = (start + jax.numpy.arange(rows.shape[1])) % array.shape[2]
        return array.at[slot, :, places].set(rows.swapaxes(0, 1))

    return jax.tree.map(put, cache, copy)
