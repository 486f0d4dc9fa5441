"""The native decoder step as a JAX function, for programs that keep their state in JAX.

The cache is one byte array that goes in and comes out; donate it to ``jax.jit`` and it is updated
in place. There is no gradient: train through ``trimtab.models.decoder``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from trimtab.kernels import _library
from trimtab.kernels.decoder import NativeCache, NativeDecoder


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedDecoder:
    """The arrays of a :class:`trimtab.kernels.decoder.NativeDecoder`, sharing its memory.

    Attributes:
        weights: packed tiles.
        plan: sizes and offsets.
        table: where a cache keeps each layer.
        vocabulary: columns of the logits.
        slots: sequences of that cache.
        bfloat16: element type of that cache; float32 otherwise.
    """

    weights: UInt8[Array, " bytes"]
    plan: UInt8[Array, " plan_bytes"]
    table: UInt8[Array, " table_bytes"]
    vocabulary: int = dataclasses.field(metadata={"static": True})
    slots: int = dataclasses.field(metadata={"static": True})
    bfloat16: bool = dataclasses.field(metadata={"static": True})


def packed_decoder(
    engine: NativeDecoder, cache: NativeCache
) -> tuple[PackedDecoder, UInt8[Array, " cache_bytes"]]:
    """View an engine's weights as JAX arrays and copy a cache into one.

    Args:
        engine: the packed model; must stay alive no longer than usual, its memory is shared.
        cache: made by ``engine.new_cache``; its layout and contents are taken.

    Returns:
        The model and the cache to pass to :func:`decoder_step`.
    """
    device = jax.devices("cpu")[0]
    packed = PackedDecoder(
        jax.device_put(engine.weights, device, may_alias=True),
        jax.device_put(engine.plan, device),
        jax.device_put(cache.table.view(np.uint8).reshape(-1), device),
        engine.vocabulary,
        cache.slots,
        cache.keys[0].dtype == np.uint16,
    )
    return packed, jnp.array(cache.buffer, copy=True)


def decoder_step(
    model: PackedDecoder,
    cache: UInt8[Array, " cache_bytes"],
    tokens: Int[Array, " rows"],
    slots: Int[Array, " rows"],
    positions: Int[Array, " rows"],
    outputs: Int[Array, " outputs"],
) -> tuple[UInt8[Array, " cache_bytes"], Float[Array, "outputs vocabulary"]]:
    """Run a ragged batch of tokens; see :meth:`trimtab.kernels.decoder.NativeDecoder.step`.

    Args:
        model: weights and layout.
        cache: keys and values so far; donate it.
        tokens: int32 ids.
        slots: int32 cache slots.
        positions: int32 absolute positions.
        outputs: int32 indices of the rows whose logits are wanted.

    Returns:
        The new cache, and the logits.
    """
    results: Any = (
        jax.ShapeDtypeStruct(cache.shape, cache.dtype),
        jax.ShapeDtypeStruct((outputs.shape[0], model.vocabulary), jnp.float32),
    )
    call = jax.ffi.ffi_call(
        _library.ffi_target("decoder_step"),
        results,
        vmap_method="sequential",
        input_output_aliases={2: 0},
    )
    integers = (array.astype(jnp.int32) for array in (tokens, slots, positions, outputs))
    new_cache, logits = call(
        model.weights,
        model.plan,
        cache,
        model.table,
        *integers,
        slots=np.int64(model.slots),
        cache_bfloat=np.int64(model.bfloat16),
    )
    return new_cache, logits
