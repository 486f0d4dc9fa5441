"""The key-value cache: an explicit pytree, one array pair a layer, rings for windowed layers."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from trimtab.errors import InputError
from trimtab.models.decoder.config import DecoderConfig

MAXIMUM_CHUNK = 512


def cache_rows(window: int, capacity: int) -> int:
    """Return how many positions a layer keeps.

    A call writes up to :data:`MAXIMUM_CHUNK` keys and then attends, so a ring needs the window plus
    the rest of that chunk for its first query still to find its oldest key.
    """
    return capacity if window == 0 else min(capacity, window + MAXIMUM_CHUNK - 1)


class KVCache(eqx.Module):
    """Keys (normed and rotated) and values of every layer.

    Position ``p`` of a sequence lies in row ``p % rows`` of its slot, where ``rows`` is the third
    axis of the layer. Lengths are not stored: each call states its positions.

    Attributes:
        keys: per layer ``[slots, kv_heads, rows, head_dim]``.
        values: per layer, the same shape.
    """

    keys: tuple[Float[Array, "slots kv_heads rows head_dim"], ...]
    values: tuple[Float[Array, "slots kv_heads rows head_dim"], ...]

    @staticmethod
    def empty(config: DecoderConfig, slots: int, capacity: int, dtype: str = "bfloat16") -> KVCache:
        """Return a zeroed cache.

        Args:
            config: the decoder's configuration.
            slots: how many sequences it holds at once.
            capacity: longest sequence, in tokens.
            dtype: element type of keys and values.
        """
        if slots < 1 or capacity < 1:
            raise InputError(f"A cache needs a slot and a position, not {slots} and {capacity}.")

        def zeros() -> tuple[Array, ...]:
            return tuple(
                jnp.zeros(
                    (slots, config.kv_heads, cache_rows(window, capacity), config.head_dim), dtype
                )
                for window in config.layer_windows
            )

        return KVCache(zeros(), zeros())

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(array.nbytes for array in (*self.keys, *self.values))


def write_rows(
    rows: Float[Array, "kv_heads rows head_dim"],
    new: Float[Array, "chunk kv_heads head_dim"],
    positions: Int[Array, " chunk"],
    count: Int[Array, ""],
) -> Float[Array, "kv_heads rows head_dim"]:
    """Store the first ``count`` of a chunk's keys (or values) in their ring rows."""
    total = rows.shape[1]
    real = jnp.arange(new.shape[0]) < count
    target = jnp.where(real, positions % total, total)
    return rows.at[:, target].set(new.swapaxes(0, 1).astype(rows.dtype), mode="drop")


def row_positions(total: int, last: Int[Array, ""]) -> Int[Array, " rows"]:
    """Return the position that each ring row holds when ``last`` was written last; < 0: none."""
    rows = jnp.arange(total)
    return last - (last - rows) % total
