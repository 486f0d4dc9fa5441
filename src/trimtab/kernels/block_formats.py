"""How GGUF packs weights into blocks, and the plain arithmetic that unpacks them.

Each function takes raw blocks and works on NumPy and JAX arrays alike, so one definition serves the
file reader, the tests, the plain JAX path and the native kernels that are checked against it.
Layouts follow the GGUF file format (ggml ``block_*`` structures).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class BlockFormat:
    """One packed weight format.

    Attributes:
        name: lower-case GGUF name, such as ``"q4_1"``.
        values: weights in a block.
        bytes: bytes in a block.
        unpack: maps uint8 blocks ``[..., bytes]`` to float32 ``[..., values]``.
    """

    name: str
    values: int
    bytes: int
    unpack: Callable[[Any], Any]

    def row_bytes(self, columns: int) -> int:
        """Return how many bytes hold a row of ``columns`` weights."""
        if columns % self.values:
            from trimtab.errors import ShapeError

            raise ShapeError(
                f"Format {self.name} packs {self.values} weights a block, which does not divide "
                f"a row of {columns}. Use a format with smaller blocks, such as q8_0."
            )
        return columns // self.values * self.bytes


def dequantize(kind: str, rows: Any) -> Any:
    """Unpack packed rows to float32.

    Args:
        kind: a key of :data:`BLOCK_FORMATS`.
        rows: uint8 ``[..., row_bytes]``, NumPy or JAX.

    Returns:
        float32 ``[..., columns]`` of the same array library.
    """
    form = BLOCK_FORMATS[kind]
    blocks = rows.reshape(*rows.shape[:-1], rows.shape[-1] // form.bytes, form.bytes)
    values = form.unpack(blocks)
    return values.reshape(*rows.shape[:-1], -1)


def _library(array: Any) -> Any:
    if isinstance(array, np.ndarray):
        return np
    import jax.numpy as jnp

    return jnp


def _half(pair: Any) -> Any:
    """Read little-endian float16 from uint8 ``[..., 2]`` as float32 ``[..., 1]``."""
    if isinstance(pair, np.ndarray):
        return np.ascontiguousarray(pair).view(np.float16).astype(np.float32)
    import jax

    return jax.lax.bitcast_convert_type(pair, np.float16).astype(np.float32)[..., None]


def _signed(data: Any) -> Any:
    """Reinterpret uint8 as int8, then widen to float32."""
    xp = _library(data)
    wide = data.astype(xp.int32)
    return xp.where(wide > 127, wide - 256, wide).astype(xp.float32)


def _nibbles(packed: Any) -> Any:
    """Return low nibbles followed by high nibbles along the last axis."""
    return _library(packed).concatenate([packed & 15, packed >> 4], axis=-1)


def _q4_0(blocks: Any) -> Any:
    return _half(blocks[..., :2]) * (_nibbles(blocks[..., 2:]).astype(np.float32) - 8.0)


def _q4_1(blocks: Any) -> Any:
    codes = _nibbles(blocks[..., 4:]).astype(np.float32)
    return _half(blocks[..., :2]) * codes + _half(blocks[..., 2:4])


def _fifth_bits(packed: Any) -> Any:
    """Spread the 32 bits of uint8 ``[..., 4]`` into uint8 ``[..., 32]``."""
    shifts = np.arange(8, dtype=np.uint8)
    return ((packed[..., None] >> shifts) & 1).reshape(*packed.shape[:-1], 32)


def _q5_0(blocks: Any) -> Any:
    codes = _nibbles(blocks[..., 6:]) | (_fifth_bits(blocks[..., 2:6]) << 4)
    return _half(blocks[..., :2]) * (codes.astype(np.float32) - 16.0)


def _q5_1(blocks: Any) -> Any:
    codes = _nibbles(blocks[..., 8:]) | (_fifth_bits(blocks[..., 4:8]) << 4)
    return _half(blocks[..., :2]) * codes.astype(np.float32) + _half(blocks[..., 2:4])


def _q8_0(blocks: Any) -> Any:
    return _half(blocks[..., :2]) * _signed(blocks[..., 2:])


def _sub_block_scales(packed: Any) -> tuple[Any, Any]:
    """Unpack 12 bytes into eight 6-bit scales and eight 6-bit minima, both float32."""
    xp = _library(packed)
    first, second, third = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scales = xp.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=-1)
    minima = xp.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=-1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _sub_block_nibbles(packed: Any) -> Any:
    """Split 128 bytes into codes ``[..., 8, 32]``: chunk c holds sub-blocks 2c and 2c + 1."""
    xp = _library(packed)
    chunks = packed.reshape(*packed.shape[:-1], 4, 32)
    pairs = xp.stack([chunks & 15, chunks >> 4], axis=-2)
    return pairs.reshape(*packed.shape[:-1], 8, 32)


def _scale_sub_blocks(blocks: Any, codes: Any) -> Any:
    """Apply the super-block and sub-block scales of Q4_K and Q5_K."""
    scales, minima = _sub_block_scales(blocks[..., 4:16])
    step = (_half(blocks[..., :2]) * scales)[..., None]
    offset = (_half(blocks[..., 2:4]) * minima)[..., None]
    values = step * codes.astype(np.float32) - offset
    return values.reshape(*blocks.shape[:-1], 256)


def _q4_k(blocks: Any) -> Any:
    return _scale_sub_blocks(blocks, _sub_block_nibbles(blocks[..., 16:144]))


def _q5_k(blocks: Any) -> Any:
    shifts = np.arange(8, dtype=np.uint8)[:, None]
    fifth = (blocks[..., 16:48][..., None, :] >> shifts) & 1
    return _scale_sub_blocks(blocks, _sub_block_nibbles(blocks[..., 48:176]) | (fifth << 4))


def _q6_k(blocks: Any) -> Any:
    xp = _library(blocks)
    low = blocks[..., :128].reshape(*blocks.shape[:-1], 2, 2, 32)
    high = blocks[..., 128:192].reshape(*blocks.shape[:-1], 2, 1, 32)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    nibbles = xp.concatenate([low & 15, low >> 4], axis=-2)
    codes = (nibbles | (((high >> shifts) & 3) << 4)).astype(np.float32) - 32.0
    scales = _signed(blocks[..., 192:208]).reshape(*blocks.shape[:-1], 2, 4, 2, 1)
    step = _half(blocks[..., 208:210])[..., None, None, None] * scales
    values = step * codes.reshape(*blocks.shape[:-1], 2, 4, 2, 16)
    return values.reshape(*blocks.shape[:-1], 256)


def _ternary(blocks: Any) -> Any:
    shifts = np.arange(0, 8, 2, dtype=np.uint8)
    return ((blocks >> shifts) & 3).astype(np.float32) - 1.0


BLOCK_FORMATS: dict[str, BlockFormat] = {
    form.name: form
    for form in (
        BlockFormat("q4_0", 32, 18, _q4_0),
        BlockFormat("q4_1", 32, 20, _q4_1),
        BlockFormat("q5_0", 32, 22, _q5_0),
        BlockFormat("q5_1", 32, 24, _q5_1),
        BlockFormat("q8_0", 32, 34, _q8_0),
        BlockFormat("q4_k", 256, 144, _q4_k),
        BlockFormat("q5_k", 256, 176, _q5_k),
        BlockFormat("q6_k", 256, 210, _q6_k),
        # Not a GGUF type: four codes a byte (value + 1), one scale a tensor kept beside the blocks.
        BlockFormat("ternary", 4, 1, _ternary),
    )
}
