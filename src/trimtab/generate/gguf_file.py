"""The GGUF container: metadata and memory-mapped tensors, read defensively and written atomically.

Counts and lengths in a header are claims. Each is checked against the bytes that remain before
anything is allocated, so a hostile file costs no more memory than its own size.
Format: ggml-org/ggml ``docs/gguf.md``, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.errors import FileFormatError
from trimtab.files import atomic_file

MAGIC = b"GGUF"
MAXIMUM_DIMENSIONS = 4
MAXIMUM_NESTING = 4
DEFAULT_ALIGNMENT = 32


@dataclasses.dataclass(frozen=True)
class TensorType:
    """How a GGUF type lays out values: ``values`` of them in ``bytes`` bytes."""

    name: str
    values: int
    bytes: int


TENSOR_TYPES: dict[int, TensorType] = {
    number: TensorType(name, values, size)
    for number, name, values, size in (
        (0, "f32", 1, 4), (1, "f16", 1, 2), (2, "q4_0", 32, 18), (3, "q4_1", 32, 20),
        (6, "q5_0", 32, 22), (7, "q5_1", 32, 24), (8, "q8_0", 32, 34), (9, "q8_1", 32, 40),
        (10, "q2_k", 256, 84), (11, "q3_k", 256, 110), (12, "q4_k", 256, 144),
        (13, "q5_k", 256, 176), (14, "q6_k", 256, 210), (15, "q8_k", 256, 292),
        (16, "iq2_xxs", 256, 66), (17, "iq2_xs", 256, 74), (18, "iq3_xxs", 256, 98),
        (19, "iq1_s", 256, 50), (20, "iq4_nl", 32, 18), (21, "iq3_s", 256, 110),
        (22, "iq2_s", 256, 82), (23, "iq4_xs", 256, 136), (24, "i8", 1, 1), (25, "i16", 1, 2),
        (26, "i32", 1, 4), (27, "i64", 1, 8), (28, "f64", 1, 8), (29, "iq1_m", 256, 56),
        (30, "bf16", 1, 2), (34, "tq1_0", 256, 54), (35, "tq2_0", 256, 66), (36, "i2_s", 4, 1),
        (39, "mxfp4", 32, 17), (40, "nvfp4", 64, 36), (41, "q1_0", 128, 18),
    )
}  # fmt: skip
TYPE_NUMBERS = {kind.name: number for number, kind in TENSOR_TYPES.items()}

# Microsoft's BitNet type carries one float32 scale, padded to 32 bytes, after its codes.
TRAILING_BYTES = {"i2_s": 32}

_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        name: as in the file, such as ``"blk.0.attn_q.weight"``.
        kind: lower-case type name, such as ``"q4_1"``.
        shape: row-major shape, slowest axis first (the reverse of the file's order).
        data: uint8 view of the memory map, without any interpretation.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    data: np.ndarray


@dataclasses.dataclass(frozen=True)
class GGUFFile:
    """A parsed file; tensor data stays in the memory map until touched."""

    path: Path
    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]


def read_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Parse a GGUF file.

    Args:
        path: the file.

    Raises:
        FileFormatError: the file is not GGUF, is truncated, or makes impossible claims.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            view = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        raise FileFormatError(f"Cannot read {path}: {error.strerror or error}.") from error
    return parse_gguf(view, path)


def parse_gguf(buffer: Any, path: Path) -> GGUFFile:
    """Parse GGUF bytes (a memory map or bytes); ``path`` only names them in errors."""
    cursor = _Cursor(buffer, path)
    if cursor.take(4) != MAGIC:
        raise FileFormatError(f"{path} is not a GGUF file: it does not begin with 'GGUF'.")
    version = cursor.scalar("<I")
    if version not in (2, 3):
        hint = " It looks big-endian." if version & 0xFFFF == 0 else ""
        raise FileFormatError(
            f"{path} has GGUF version {version}; versions 2 and 3 (little-endian) are read.{hint}"
        )
    tensor_count = cursor.count("tensors", smallest=24)
    field_count = cursor.count("metadata fields", smallest=13)
    metadata: dict[str, Any] = {}
    for _ in range(field_count):
        name = cursor.string()
        metadata[name] = cursor.value(cursor.scalar("<I"))
    claims = [_tensor_claim(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise FileFormatError(f"{path} asks for alignment {alignment!r}, not a power of two.")
    start = -(-cursor.offset // alignment) * alignment
    tensors: dict[str, StoredTensor] = {}
    for claim in claims:
        if claim[0] in tensors:
            raise FileFormatError(f"{path} holds two tensors named {claim[0]!r}.")
        tensors[claim[0]] = _map_tensor(buffer, path, start, *claim)
    return GGUFFile(path, version, metadata, tensors)


def _tensor_claim(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string()
    dimensions = cursor.scalar("<I")
    if dimensions > MAXIMUM_DIMENSIONS:
        raise FileFormatError(
            f"{cursor.path}: tensor {name!r} claims {dimensions} dimensions; "
            f"GGUF allows {MAXIMUM_DIMENSIONS}."
        )
    shape = tuple(cursor.scalar("<Q") for _ in range(dimensions))
    return name, shape, cursor.scalar("<I"), cursor.scalar("<Q")


def _map_tensor(
    buffer: Any,
    path: Path,
    start: int,
    name: str,
    file_shape: tuple[int, ...],
    number: int,
    offset: int,
) -> StoredTensor:
    kind = TENSOR_TYPES.get(number)
    if kind is None:
        raise FileFormatError(f"{path}: tensor {name!r} has the unknown type number {number}.")
    values = 1
    for extent in file_shape:
        values *= extent
    row = file_shape[0] if file_shape else 1
    if values <= 0 or row % kind.values:
        raise FileFormatError(
            f"{path}: tensor {name!r} of shape {tuple(reversed(file_shape))} cannot be of type "
            f"{kind.name}, which packs {kind.values} values a block."
        )
    size = values // kind.values * kind.bytes + TRAILING_BYTES.get(kind.name, 0)
    first = start + offset
    if first + size > len(buffer):
        raise FileFormatError(
            f"{path} is truncated: tensor {name!r} ends at byte {first + size}, "
            f"the file at {len(buffer)}. Download it again."
        )
    data = np.frombuffer(buffer, np.uint8, count=size, offset=first)
    return StoredTensor(name, kind.name, tuple(reversed(file_shape)), data)


class _Cursor:
    """Reads from a buffer, never past its end."""

    def __init__(self, buffer: Any, path: Path) -> None:
        self.buffer, self.path, self.offset, self.size = buffer, path, 0, len(buffer)

    def take(self, count: int) -> bytes:
        self._require(count)
        self.offset += count
        return bytes(self.buffer[self.offset - count : self.offset])

    def scalar(self, form: str) -> Any:
        count = struct.calcsize(form)
        self._require(count)
        self.offset += count
        return struct.unpack_from(form, self.buffer, self.offset - count)[0]

    def count(self, what: str, smallest: int) -> int:
        claimed = self.scalar("<Q")
        if claimed * smallest > self.size:
            raise FileFormatError(
                f"{self.path} claims {claimed} {what}, more than its {self.size} bytes can hold."
            )
        return claimed

    def string(self) -> str:
        length = self.scalar("<Q")
        return self.take(length).decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise FileFormatError(f"{self.path}: unknown metadata type {kind}.")
        if depth >= MAXIMUM_NESTING:
            raise FileFormatError(f"{self.path}: metadata arrays nest too deeply.")
        element = self.scalar("<I")
        if element in _SCALARS:
            return self._scalars(_SCALARS[element])
        length = self.count("array entries", smallest=8)
        if element == _STRING:
            return self._strings(length)
        return [self.value(element, depth + 1) for _ in range(length)]

    def _scalars(self, form: str) -> np.ndarray:
        width = struct.calcsize(form)
        length = self.count("array entries", smallest=width)
        dtype = np.dtype("<u1" if form == "<?" else form.replace("b", "i1").replace("B", "u1"))
        raw = np.frombuffer(self.take(length * width), dtype)
        return raw.astype(bool) if form == "<?" else raw

    def _strings(self, length: int) -> list[str]:
        # A vocabulary has 10^5 entries, so this loop avoids a call per entry.
        buffer, offset, size = self.buffer, self.offset, self.size
        unpack, strings = struct.Struct("<Q").unpack_from, []
        for _ in range(length):
            if offset + 8 > size:
                self._require(size)
            end = offset + 8 + unpack(buffer, offset)[0]
            if end > size:
                self._require(size)
            strings.append(str(buffer[offset + 8 : end], "utf-8", "replace"))
            offset = end
        self.offset = offset
        return strings

    def _require(self, count: int) -> None:
        if count > self.size - self.offset:
            raise FileFormatError(
                f"{self.path} is truncated or damaged: {count} bytes are promised after byte "
                f"{self.offset}, the file has {self.size}. Download it again."
            )


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Iterable[StoredTensor],
) -> None:
    """Write a version 3 file, complete or not at all.

    Args:
        path: where to write.
        metadata: str, bool, int (int32/uint32/int64 as needed), float (float32), lists and arrays.
        tensors: names, kinds and raw bytes as they shall lie in the file.
    """
    tensors = list(tensors)
    header = bytearray(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for name, value in metadata.items():
        header += _encoded_string(name) + _encoded_value(value)
    offset = 0
    for tensor in tensors:
        header += _encoded_string(tensor.name) + struct.pack("<I", len(tensor.shape))
        header += struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape))
        header += struct.pack("<IQ", TYPE_NUMBERS[tensor.kind], offset)
        offset += _padded(tensor.data.nbytes)
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        stream.write(header + bytes(_padded(len(header)) - len(header)))
        for tensor in tensors:
            stream.write(np.ascontiguousarray(tensor.data).view(np.uint8).reshape(-1).data)
            stream.write(bytes(_padded(tensor.data.nbytes) - tensor.data.nbytes))


def _padded(size: int) -> int:
    return -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _encoded_string(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _encoded_value(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _encoded_string(value)
    if isinstance(value, (list, tuple, np.ndarray)):
        return struct.pack("<I", _ARRAY) + _encoded_array(value)
    number = _scalar_type(value)
    return struct.pack("<I", number) + struct.pack(_SCALARS[number], value)


def _encoded_array(values: Any) -> bytes:
    if len(values) and isinstance(values[0], str):
        body = b"".join(_encoded_string(text) for text in values)
        return struct.pack("<IQ", _STRING, len(values)) + body
    if isinstance(values, np.ndarray):
        number = _ARRAY_TYPES[values.dtype.str.replace("|", "<")]
        return struct.pack("<IQ", number, len(values)) + np.ascontiguousarray(values).tobytes()
    number = max((_scalar_type(value) for value in values), default=5)
    body = b"".join(struct.pack(_SCALARS[number], value) for value in values)
    return struct.pack("<IQ", number, len(values)) + body


_ARRAY_TYPES = {
    "<u1": 0, "<i1": 1, "<u2": 2, "<i2": 3, "<u4": 4, "<i4": 5, "<f4": 6, "<b1": 7, "<u8": 10,
    "<i8": 11, "<f8": 12,
}  # fmt: skip


def _scalar_type(value: Any) -> int:
    if isinstance(value, (bool, np.bool_)):
        return 7
    if isinstance(value, (float, np.floating)):
        return 6
    if 0 <= value < 2**32:
        return 4
    return 5 if -(2**31) <= value < 0 else 11
