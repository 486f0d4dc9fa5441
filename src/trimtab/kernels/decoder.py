"""A whole decoder-only language model as one native call a step.

The weights are packed once into tiles of 16 output rows by 32 columns (``native/block_tiles.h``) in
one buffer on huge pages; a step then runs every layer for a ragged batch of tokens, from token ids
to logits, over a key/value cache. Activations meet quantised weights as int8, with one scale per
32 values. A row's result depends neither on its neighbours in the batch nor on the threads.

Nothing here imports JAX, so that a command reaches its first token quickly; the same mathematics
as JAX operations is ``trimtab.models.decoder``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from trimtab.errors import DeviceError, InputError, ShapeError, UnsupportedError
from trimtab.kernels import _library
from trimtab.kernels.block_formats import BLOCK_FORMATS, dequantize

# Codes of native/block_tiles.h.
KINDS = {
    "f32": 0,
    "bf16": 1,
    "f16": 2,
    "q4_0": 3,
    "q4_1": 4,
    "q5_0": 5,
    "q5_1": 6,
    "q8_0": 7,
    "q4_k": 8,
    "q5_k": 9,
    "q6_k": 10,
    "ternary": 11,
}
_DENSE_BYTES = {"f32": 4, "bf16": 2, "f16": 2}
_ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, "relu2": 2}
_PLAN_MAGIC = 0x31706574735F7474
_MAXIMUM_HEAD_DIM = 256
_MAXIMUM_GROUP = 96
_ALIGNMENT = 64

MAXIMUM_STEP_TOKENS = 512
"""Most tokens of one call; rings of windowed layers are sized for it."""

_MATRIX = np.dtype(
    [("offset", "<i8"), ("bias", "<i8"), ("kind", "<i8"), ("rows", "<i8"), ("columns", "<i8")]
)
_MATRICES = ("query", "key", "value", "output", "gate", "up", "down")
_VECTORS = (
    "attention_norm",
    "query_norm",
    "key_norm",
    "attention_sub_norm",
    "post_attention_norm",
    "feed_forward_norm",
    "feed_forward_sub_norm",
    "post_feed_forward_norm",
)
_LAYER = np.dtype(
    [(name, _MATRIX) for name in _MATRICES]
    + [(name, "<i8") for name in (*_VECTORS, "window", "frequencies")]
)
_PLAN = np.dtype(
    [
        *(
            (name, "<i8")
            for name in (
                "magic",
                "layers",
                "hidden",
                "feed_forward",
                "heads",
                "kv_heads",
                "head_dim",
                "vocabulary",
                "rotary_half",
                "activation",
                "final_norm",
            )
        ),
        *((name, "<f8") for name in ("epsilon", "embedding_scale", "score_scale", "logit_scale")),
        ("embedding", _MATRIX),
        ("head", _MATRIX),
    ]
)


class Tensor(NamedTuple):
    """One parameter as a file holds it.

    Attributes:
        kind: ``"f32"``, ``"bf16"``, ``"f16"`` or a key of
            :data:`trimtab.kernels.block_formats.BLOCK_FORMATS`.
        data: dense values of shape ``shape`` (bfloat16 as ``ml_dtypes`` or its uint16 bits), or
            uint8 rows ``[out, bytes]`` of blocks.
        shape: ``(out, in)`` of a matrix, ``(n,)`` of a vector.
        scale: multiplies ternary weights.
    """

    kind: str
    data: np.ndarray
    shape: tuple[int, ...]
    scale: float = 1.0


def _names(layer: int) -> dict[str, str]:
    """Parameter path of each matrix and vector of a layer."""
    block = f"blocks/{layer}"
    attention, feed_forward = f"{block}/attention", f"{block}/feed_forward"
    return {
        **{name: f"{attention}/{name}" for name in ("query", "key", "value", "output")},
        **{name: f"{feed_forward}/{name}" for name in ("gate", "up", "down")},
        "attention_norm": f"{block}/attention_norm",
        "query_norm": f"{attention}/query_norm",
        "key_norm": f"{attention}/key_norm",
        "attention_sub_norm": f"{attention}/sub_norm",
        "post_attention_norm": f"{block}/post_attention_norm",
        "feed_forward_norm": f"{block}/feed_forward_norm",
        "feed_forward_sub_norm": f"{feed_forward}/sub_norm",
        "post_feed_forward_norm": f"{block}/post_feed_forward_norm",
    }


def unsupported(config: Any, tensors: Mapping[str, Tensor]) -> str | None:
    """Say why the native decoder cannot run a model.

    Args:
        config: sizes and choices; see :class:`NativeDecoder`.
        tensors: parameter path to tensor.

    Returns:
        One sentence, or None if it can.
    """
    if _library.extension() is None:
        return "The native kernels are not built, so the JAX decoder runs instead."
    if config.activation not in _ACTIVATIONS:
        return f"The native decoder has no activation {config.activation!r}."
    if config.head_dim > _MAXIMUM_HEAD_DIM or config.head_dim % 2:
        return (
            f"The native decoder takes even head widths up to {_MAXIMUM_HEAD_DIM}, "
            f"not {config.head_dim}."
        )
    if config.heads % config.kv_heads or config.heads // config.kv_heads > _MAXIMUM_GROUP:
        return f"The native decoder cannot share {config.kv_heads} key heads among {config.heads}."
    for path, tensor in tensors.items():
        if tensor.kind not in KINDS:
            return f"The native decoder cannot read {path} of kind {tensor.kind!r}."
        if len(tensor.shape) == 2 and tensor.kind in BLOCK_FORMATS and tensor.shape[1] % 32:
            return (
                f"The native decoder needs a multiple of 32 columns in {path}, "
                f"not {tensor.shape[1]}."
            )
    for layer in range(config.layers):
        names = _names(layer)
        for group in (("query", "key", "value"), ("gate", "up")):
            kinds = {tensors[f"{names[name]}/weight"].kind for name in group}
            if "ternary" in kinds and kinds - {"ternary", *_DENSE_BYTES}:
                return f"Block {layer} mixes ternary and block weights that read one input."
    return None


def strip_bytes(kind: str, columns: int) -> int:
    """Bytes of 16 packed output rows; the layout is described in ``native/block_tiles.h``."""
    if kind == "f32":
        return columns * 64
    if kind == "bf16":
        return (columns + 1) // 2 * 64
    if kind == "f16":
        return -(-columns * 32 // 64) * 64
    blocks = columns // 32
    tile, every_eight, once = {
        "q4_0": (288, 0, 0),
        "q4_1": (320, 0, 0),
        "q5_0": (352, 0, 0),
        "q5_1": (384, 0, 0),
        "q8_0": (544, 0, 0),
        "q4_k": (288, 64, 0),
        "q5_k": (352, 64, 0),
        "q6_k": (416, 32, 0),
        "ternary": (128, 0, 64),
    }[kind]
    return -(-(blocks * tile + -(-blocks // 8) * every_eight + once) // 64) * 64


def run_native(
    name: str, arguments: Sequence[np.ndarray], results: Sequence[np.ndarray], **attributes: Any
) -> None:
    """Run a native function on NumPy memory, without JAX.

    Args:
        name: entry of the native table.
        arguments: C-contiguous arrays it reads (or updates, where it says so).
        results: C-contiguous arrays it fills.
        attributes: numbers.

    Raises:
        DeviceError: the extension is not built.
        InputError: the native side refuses the call.
    """
    native = _library.extension()
    if native is None:
        raise DeviceError(
            "The native kernels are not built. Install a C++17 compiler and reinstall trimtab."
        )
    try:
        native.call(
            native.kernel_index(name),
            tuple(_raw(array) for array in arguments),
            tuple(_raw(array) for array in results),
            attributes,
        )
    except ValueError as error:
        raise InputError(f"{name}: {error}.") from None


def _raw(array: np.ndarray) -> tuple[int, ...]:
    return (array.ctypes.data, _library.DATA_TYPES[array.dtype.name], *array.shape)


def _allocate(size: int) -> np.ndarray:
    native = _library.extension()
    assert native is not None
    return native.allocate(size)


def file_rows(tensor: Tensor) -> np.ndarray:
    """View a matrix as uint8 ``[out, bytes]``, the form in which it is packed."""
    rows, columns = tensor.shape
    if tensor.kind in _DENSE_BYTES:
        width = columns * _DENSE_BYTES[tensor.kind]
    else:
        width = BLOCK_FORMATS[tensor.kind].row_bytes(columns)
    data = np.ascontiguousarray(tensor.data).view(np.uint8)
    if data.size != rows * width:
        raise ShapeError(
            f"A {tensor.kind} matrix of shape {tensor.shape} takes {rows * width} bytes, "
            f"not {data.size}."
        )
    return data.reshape(rows, width)


def dense_values(tensor: Tensor) -> np.ndarray:
    """Expand a tensor of any kind to float32 of its logical shape."""
    if tensor.kind == "f32":
        values = tensor.data
    elif tensor.kind == "f16":
        values = tensor.data.view(np.float16)
    elif tensor.kind == "bf16":
        values = (tensor.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        values = dequantize(tensor.kind, file_rows(tensor))
        if tensor.kind == "ternary":
            values = values * np.float32(tensor.scale)
    return np.ascontiguousarray(values, np.float32).reshape(tensor.shape)


class _Layout:
    """Places matrices and vectors one after the other, each on a cache line."""

    def __init__(self) -> None:
        self.size = 0
        self.matrices: list[tuple[int, Tensor]] = []
        self.vectors: list[tuple[int, np.ndarray]] = []

    def _take(self, size: int) -> int:
        offset = self.size
        self.size += -(-size // _ALIGNMENT) * _ALIGNMENT
        return offset

    def matrix(self, tensor: Tensor, bias: Tensor | None) -> tuple[int, ...]:
        rows, columns = tensor.shape
        offset = self._take(-(-rows // 16) * strip_bytes(tensor.kind, columns))
        self.matrices.append((offset, tensor))
        return (offset, self.vector(bias), KINDS[tensor.kind], rows, columns)

    def vector(self, tensor: Tensor | np.ndarray | None) -> int:
        if tensor is None:
            return -1
        values = dense_values(tensor) if isinstance(tensor, Tensor) else tensor
        offset = self._take(values.nbytes)
        self.vectors.append((offset, np.ascontiguousarray(values, np.float32)))
        return offset

    def fill(self) -> np.ndarray:
        buffer = _allocate(max(self.size, 1))
        for offset, values in self.vectors:
            buffer[offset : offset + values.nbytes] = values.reshape(-1).view(np.uint8)
        for offset, tensor in self.matrices:
            rows, columns = tensor.shape
            size = -(-rows // 16) * strip_bytes(tensor.kind, columns)
            run_native(
                "pack_blocks",
                [file_rows(tensor)],
                [buffer[offset : offset + size]],
                kind=KINDS[tensor.kind],
                columns=columns,
                scale=float(tensor.scale),
            )
        return buffer


@dataclass(frozen=True)
class NativeCache:
    """Keys and values of every layer, for a number of independent slots, in one buffer.

    Attributes:
        keys: one array a layer, ``[slots, kv_heads, rows, head_dim]``, float32 or bfloat16 bits as
            uint16. The key of position p is in row ``p % rows``.
        values: the same for values.
        buffer: the memory that both share.
        table: int64 ``[layers, 3]``: byte offsets of keys and values, and rows.
    """

    keys: tuple[np.ndarray, ...]
    values: tuple[np.ndarray, ...]
    buffer: np.ndarray
    table: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(array.nbytes for array in (*self.keys, *self.values))

    @property
    def slots(self) -> int:
        """How many sequences fit side by side."""
        return self.keys[0].shape[0]

    def export(self, slot: int, start: int, stop: int) -> list[np.ndarray]:
        """Copy the keys and values of positions ``start`` to ``stop - 1`` of a slot.

        Returns:
            For each layer its keys, then its values, ``[kv_heads, stop - start, head_dim]``. In a
            windowed layer the oldest positions may have been overwritten by later ones.
        """
        return [
            array[slot][:, np.arange(start, stop) % array.shape[2]]
            for array in (*self.keys, *self.values)
        ]

    def restore(self, slot: int, start: int, arrays: Sequence[np.ndarray]) -> None:
        """Write what :meth:`export` returned into a slot, at the same positions."""
        for array, saved in zip((*self.keys, *self.values), arrays, strict=True):
            # In a ring only the newest `rows` positions survive, as if they had been computed.
            kept = min(saved.shape[1], array.shape[2])
            stop = start + saved.shape[1]
            array[slot][:, np.arange(stop - kept, stop) % array.shape[2]] = saved[
                :, -kept or None :
            ]


class NativeDecoder:
    """A packed decoder-only model that runs on the CPU.

    Args:
        config: object with the attributes ``vocabulary``, ``hidden``, ``feed_forward``,
            ``layers``, ``heads``, ``kv_heads``, ``head_dim``, ``norm_epsilon``, ``activation``
            (``"silu"``, ``"gelu_tanh"`` or ``"relu2"``), ``embedding_scale``, ``score_scale``,
            ``logit_scale``, ``rotary_layout`` (``"adjacent"`` or ``"half"``), ``layer_windows``
            (0: global) and the method ``rotary_frequencies(layer)``.
        tensors: parameter path to :class:`Tensor`; ``head/weight`` may be absent (tied).
        threads: threads of every native kernel of the process; None keeps the current number.
        exact: expand all weights to float32, so that nothing is rounded to int8. Slow and large;
            for comparisons.

    Attributes:
        weights: uint8, the packed tiles.
        plan: uint8, sizes and offsets into ``weights``.
        vocabulary: columns of the logits.

    Raises:
        UnsupportedError: the native code cannot run this model; says why.
        ShapeError: a tensor's bytes do not fit its shape.
    """

    def __init__(
        self,
        config: Any,
        tensors: Mapping[str, Tensor],
        threads: int | None = None,
        *,
        exact: bool = False,
    ) -> None:
        if reason := unsupported(config, tensors):
            raise UnsupportedError(reason)
        if threads is not None:
            _library.set_thread_count(threads)
        if exact:
            tensors = {
                path: tensor
                if tensor.kind == "f32"
                else Tensor("f32", dense_values(tensor), tensor.shape)
                for path, tensor in tensors.items()
            }
        self.vocabulary = int(config.vocabulary)
        self.hidden_size = int(config.hidden)
        self._cache_shape = (int(config.kv_heads), int(config.head_dim))
        self._windows = tuple(int(window) for window in config.layer_windows)
        layout = _Layout()
        self.plan = _plan(config, tensors, layout)
        self.weights = layout.fill()

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        return self.weights.nbytes

    def new_cache(self, slots: int, capacity: int, dtype: str = "bf16") -> NativeCache:
        """Make an empty cache.

        Args:
            slots: sequences that it holds side by side.
            capacity: most tokens of one sequence.
            dtype: ``"bf16"`` or ``"f32"``.

        Raises:
            InputError: a size below 1 or another data type.
        """
        if slots < 1 or capacity < 1 or dtype not in ("bf16", "f32"):
            raise InputError(
                f"A cache needs slots >= 1, capacity >= 1 and dtype 'bf16' or 'f32', not "
                f"{slots}, {capacity}, {dtype!r}."
            )
        element = np.dtype(np.uint16 if dtype == "bf16" else np.float32)
        heads, dim = self._cache_shape
        table = np.zeros((len(self._windows), 3), np.int64)
        size = 0
        shapes = []
        for layer, window in enumerate(self._windows):
            rows = min(capacity, window + MAXIMUM_STEP_TOKENS - 1) if window else capacity
            shape = (slots, heads, rows, dim)
            bytes_each = -(-int(np.prod(shape)) * element.itemsize // _ALIGNMENT) * _ALIGNMENT
            table[layer] = (size, size + bytes_each, rows)
            size += 2 * bytes_each
            shapes.append(shape)
        buffer = _allocate(max(size, 1))
        buffer[:] = 0

        def view(offset: int, shape: tuple[int, ...]) -> np.ndarray:
            count = int(np.prod(shape)) * element.itemsize
            return buffer[offset : offset + count].view(element).reshape(shape)

        return NativeCache(
            tuple(view(int(row[0]), shape) for row, shape in zip(table, shapes)),
            tuple(view(int(row[1]), shape) for row, shape in zip(table, shapes)),
            buffer,
            table,
        )

    def step(
        self,
        cache: NativeCache,
        tokens: Any,
        slots: Any,
        positions: Any,
        outputs: Any,
    ) -> np.ndarray:
        """Run a ragged batch through the model; the cache is updated in place.

        Args:
            cache: keys and values so far.
            tokens: int32 ``[n]`` ids, at most :data:`MAXIMUM_STEP_TOKENS`. Those of one slot are
                consecutive and in rising position.
            slots: int32 ``[n]``, the cache slot of each token.
            positions: int32 ``[n]``, absolute positions from 0.
            outputs: int32 ``[m]``, indices into the n tokens whose logits are wanted.

        Returns:
            float32 ``[m, vocabulary]``.

        Raises:
            InputError: a token, slot, position or output index is out of range.
        """
        chosen = _integers(outputs)
        logits = np.empty((chosen.size, self.vocabulary), np.float32)
        self._run("decoder_step", cache, tokens, slots, positions, [chosen], logits)
        return logits

    def hidden(self, cache: NativeCache, tokens: Any, slots: Any, positions: Any) -> np.ndarray:
        """Like :meth:`step`, up to the final norm: float32 ``[n, hidden]``."""
        states = np.empty((_integers(tokens).size, self.hidden_size), np.float32)
        self._run("decoder_hidden", cache, tokens, slots, positions, [], states)
        return states

    def _run(
        self,
        name: str,
        cache: NativeCache,
        tokens: Any,
        slots: Any,
        positions: Any,
        more: list[np.ndarray],
        result: np.ndarray,
    ) -> None:
        ids = _integers(tokens)
        if ids.size > MAXIMUM_STEP_TOKENS:
            raise InputError(
                f"One step takes at most {MAXIMUM_STEP_TOKENS} tokens, not {ids.size}; "
                "split the prompt."
            )
        run_native(
            name,
            [
                self.weights,
                self.plan,
                cache.buffer,
                cache.table.view(np.uint8).reshape(-1),
                ids,
                _integers(slots),
                _integers(positions),
                *more,
            ],
            [result],
            slots=cache.slots,
            cache_bfloat=int(cache.keys[0].dtype == np.uint16),
        )


def _integers(values: Any) -> np.ndarray:
    return np.ascontiguousarray(values, np.int32).reshape(-1)


def _plan(config: Any, tensors: Mapping[str, Tensor], layout: _Layout) -> np.ndarray:
    """Lay out all weights and describe them as native/decoder.inl.h reads it."""

    def matrix(path: str) -> tuple[int, ...]:
        return layout.matrix(tensors[f"{path}/weight"], tensors.get(f"{path}/bias"))

    layers = np.zeros(config.layers, _LAYER)
    tables: dict[bytes, int] = {}
    for index in range(config.layers):
        names = _names(index)
        layer = layers[index]
        for name in _MATRICES:
            layer[name] = matrix(names[name])
        for name in _VECTORS:
            layer[name] = layout.vector(tensors.get(f"{names[name]}/weight"))
        layer["window"] = config.layer_windows[index]
        frequencies = np.ascontiguousarray(config.rotary_frequencies(index), np.float32)
        key = frequencies.tobytes()
        if key not in tables:
            tables[key] = layout.vector(frequencies)
        layer["frequencies"] = tables[key]
    plan = np.zeros((), _PLAN)
    for name in ("layers", "hidden", "feed_forward", "heads", "kv_heads", "head_dim"):
        plan[name] = getattr(config, name)
    plan["magic"] = _PLAN_MAGIC
    plan["vocabulary"] = config.vocabulary
    plan["rotary_half"] = config.rotary_layout == "half"
    plan["activation"] = _ACTIVATIONS[config.activation]
    plan["epsilon"] = config.norm_epsilon
    plan["embedding_scale"] = config.embedding_scale
    plan["score_scale"] = config.score_scale
    plan["logit_scale"] = getattr(config, "logit_scale", 1.0)
    plan["final_norm"] = layout.vector(tensors["final_norm/weight"])
    plan["embedding"] = matrix("embedding")
    plan["head"] = matrix("head") if "head/weight" in tensors else plan["embedding"]
    return np.frombuffer(plan.tobytes() + layers.tobytes(), np.uint8).copy()
