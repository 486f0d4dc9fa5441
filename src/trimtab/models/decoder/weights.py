"""The table of named tensors between a weight file and an engine (no JAX here)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from trimtab.errors import FileFormatError
from trimtab.kernels.block_formats import BLOCK_FORMATS, dequantize
from trimtab.models.decoder.config import DecoderConfig

DENSE_KINDS = ("f32", "f16", "bf16")


class Tensor(NamedTuple):
    """One weight as it lies in a file.

    Attributes:
        kind: ``f32``, ``f16``, ``bf16`` or a name in :data:`BLOCK_FORMATS`.
        data: the dense array ``shape``, or uint8 rows ``[rows, row_bytes]``; often memory-mapped.
        shape: logical shape, ``(out, in)`` or ``(n,)``.
        scale: multiplies every weight; only ternary tensors have one that is not 1.
    """

    kind: str
    data: np.ndarray
    shape: tuple[int, ...]
    scale: float = 1.0

    @property
    def nbytes(self) -> int:
        """Bytes of the stored form."""
        return self.data.nbytes

    def float32(self) -> np.ndarray:
        """Return the weights unpacked to a new or shared float32 array of ``shape``."""
        if self.kind in DENSE_KINDS:
            return np.asarray(dense_view(self), dtype=np.float32)
        values = dequantize(self.kind, np.asarray(self.data)).reshape(self.shape)
        return values if self.scale == 1.0 else values * np.float32(self.scale)


def dense_view(tensor: Tensor) -> np.ndarray:
    """Return a dense tensor with its real element type (bfloat16 bits become bfloat16)."""
    if tensor.kind == "bf16" and tensor.data.dtype == np.uint16:
        import ml_dtypes

        return tensor.data.view(ml_dtypes.bfloat16)
    return tensor.data


def parameter_shapes(config: DecoderConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and logical shape of every parameter of a decoder, in file order."""
    wide, narrow = config.heads * config.head_dim, config.kv_heads * config.head_dim
    hidden, inner = config.hidden, config.feed_forward
    yield "embedding/weight", (config.vocabulary, hidden)
    for layer in range(config.layers):
        block = f"blocks/{layer}"
        yield f"{block}/attention_norm/weight", (hidden,)
        for name, rows in (("query", wide), ("key", narrow), ("value", narrow)):
            yield f"{block}/attention/{name}/weight", (rows, hidden)
            if config.attention_bias:
                yield f"{block}/attention/{name}/bias", (rows,)
        if config.query_key_norm:
            yield f"{block}/attention/query_norm/weight", (config.head_dim,)
            yield f"{block}/attention/key_norm/weight", (config.head_dim,)
        if config.sub_norms:
            yield f"{block}/attention/sub_norm/weight", (wide,)
        yield f"{block}/attention/output/weight", (hidden, wide)
        if config.sandwich_norms:
            yield f"{block}/post_attention_norm/weight", (hidden,)
        yield f"{block}/feed_forward_norm/weight", (hidden,)
        yield f"{block}/feed_forward/gate/weight", (inner, hidden)
        yield f"{block}/feed_forward/up/weight", (inner, hidden)
        if config.sub_norms:
            yield f"{block}/feed_forward/sub_norm/weight", (inner,)
        yield f"{block}/feed_forward/down/weight", (hidden, inner)
        if config.sandwich_norms:
            yield f"{block}/post_feed_forward_norm/weight", (hidden,)
    yield "final_norm/weight", (hidden,)
    if not config.tied:
        yield "head/weight", (config.vocabulary, hidden)


def check_tensors(config: DecoderConfig, tensors: Mapping[str, Tensor]) -> None:
    """Raise unless every parameter is present with its shape.

    Raises:
        FileFormatError: a tensor is missing or has another shape; the sentence names it.
    """
    for name, shape in parameter_shapes(config):
        if name not in tensors:
            raise FileFormatError(
                f"The weights lack {name!r}, which a {config.architecture} model of "
                f"{config.layers} layers needs. The file may be truncated or of another model."
            )
        if tuple(tensors[name].shape) != shape:
            raise FileFormatError(
                f"{name} has shape {tuple(tensors[name].shape)} in the file, but the "
                f"configuration asks for {shape}."
            )


def ternarize(tensor: Tensor) -> Tensor:
    """Round weights to -1, 0, 1 times one scale (BitNet b1.58, absmean, eq. 1-3).

    The scale is ``max(mean |W|, 1e-5)``; rounding is half to even.
    """
    weights = tensor.float32()
    scale = max(float(np.abs(weights).mean()), 1e-5)
    codes = np.clip(np.round(weights * np.float32(1.0 / scale)), -1, 1).astype(np.int8)
    return Tensor("ternary", pack_ternary(codes), tensor.shape, scale)


def pack_ternary(codes: np.ndarray) -> np.ndarray:
    """Pack int8 ``[rows, columns]`` of -1, 0, 1 into uint8 ``[rows, columns / 4]``."""
    groups = (codes.astype(np.int8) + 1).astype(np.uint8).reshape(*codes.shape[:-1], -1, 4)
    return groups[..., 0] | groups[..., 1] << 2 | groups[..., 2] << 4 | groups[..., 3] << 6


def is_packed(tensor: Tensor) -> bool:
    """Say whether a tensor is stored in blocks."""
    return tensor.kind in BLOCK_FORMATS
