"""Memory-mapped reading of safetensors files, single or sharded.

The ``safetensors`` package copies every tensor it gives to NumPy; weights here stay in the page
cache until an engine repacks them. The header is checked as the format's specification demands.
"""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path

import numpy as np

from trimtab.errors import FileFormatError

_ELEMENT_TYPES = {
    "F64": ("f64", np.float64), "F32": ("f32", np.float32), "F16": ("f16", np.float16),
    "BF16": ("bf16", np.uint16), "U8": ("u8", np.uint8), "I8": ("i8", np.int8),
    "I32": ("i32", np.int32), "I64": ("i64", np.int64), "BOOL": ("bool", np.bool_),
}  # fmt: skip
_LONGEST_HEADER = 100_000_000


def read_safetensors(folder: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Map every tensor of a model folder.

    Args:
        folder: holds ``model.safetensors`` or ``model.safetensors.index.json`` and its shards.

    Returns:
        Tensor name -> element kind and read-only array (bfloat16 as uint16 bits).

    Raises:
        FileFormatError: a file is missing, truncated or inconsistent.
    """
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        single = folder / "model.safetensors"
        if not single.exists():
            raise FileFormatError(
                f"{folder} holds neither model.safetensors nor model.safetensors.index.json. "
                "Weights in pickled .bin files are not read: convert them with "
                "`model.save_pretrained(folder)`."
            )
        return map_safetensors(single)
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        shards = sorted({str(name) for name in weight_map.values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise FileFormatError(f"{index} is not a valid shard index: {error}.") from error
    tensors: dict[str, tuple[str, np.ndarray]] = {}
    for shard in shards:
        if Path(shard).name != shard:
            raise FileFormatError(f"{index} names a shard outside its folder: {shard!r}.")
        tensors.update(map_safetensors(folder / shard))
    missing = sorted(set(weight_map) - set(tensors))
    if missing:
        raise FileFormatError(f"{index} lists {missing[0]!r}, which no shard holds.")
    return tensors


def map_safetensors(path: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Map the tensors of one file."""
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size < 8:
                raise FileFormatError(f"{path} is truncated: {size} bytes.")
            view = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise FileFormatError(f"Cannot read {path}: {error.strerror or error}.") from error
    length = int.from_bytes(view[:8], "little")
    if length > min(size - 8, _LONGEST_HEADER):
        raise FileFormatError(f"{path} claims a header of {length} bytes in a file of {size}.")
    try:
        header = json.loads(view[8 : 8 + length])
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        return {
            name: _map_entry(view, 8 + length, path, name, entry) for name, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{path} has a damaged header: {error}.") from error


def _map_entry(
    view: mmap.mmap, start: int, path: Path, name: str, entry: dict
) -> tuple[str, np.ndarray]:
    if entry["dtype"] not in _ELEMENT_TYPES:
        raise FileFormatError(f"{path}: {name} has element type {entry['dtype']}, which is unread.")
    kind, dtype = _ELEMENT_TYPES[entry["dtype"]]
    shape = tuple(int(extent) for extent in entry["shape"])
    first, last = (int(offset) for offset in entry["data_offsets"])
    count = 1
    for extent in shape:
        if extent < 0:
            raise FileFormatError(f"{path}: {name} has a negative extent.")
        count *= extent
    if not 0 <= first <= last <= len(view) - start or last - first != count * dtype().itemsize:
        raise FileFormatError(f"{path} is truncated or damaged at tensor {name!r}.")
    return kind, np.frombuffer(view, dtype, count, start + first).reshape(shape)
