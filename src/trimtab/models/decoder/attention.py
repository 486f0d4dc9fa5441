"""Grouped-query attention with rotary positions, windows and optional norms."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from trimtab.models.decoder.cache import row_positions, write_rows
from trimtab.models.decoder.config import DecoderConfig, RotaryLayout
from trimtab.models.decoder.linear import Matrix, RMSNorm

LayerCache = tuple[
    Float[Array, "kv_heads rows head_dim"],
    Float[Array, "kv_heads rows head_dim"],
]


def rotate(
    x: Float[Array, "chunk heads head_dim"],
    positions: Int[Array, " chunk"],
    frequencies: np.ndarray,
    layout: RotaryLayout,
) -> Float[Array, "chunk heads head_dim"]:
    """Turn coordinate pairs by ``position * frequency`` (Su et al., RoFormer, eq. 34).

    Args:
        x: queries or keys.
        positions: absolute position of each row.
        frequencies: radians per position of each pair.
        layout: which coordinates form a pair; see :class:`DecoderConfig`.
    """
    angles = positions.astype(jnp.float32)[:, None, None] * jnp.asarray(frequencies)
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    wide = x.astype(jnp.float32)
    if layout == "half":
        first, second = jnp.split(wide, 2, axis=-1)
    else:
        first, second = wide[..., 0::2], wide[..., 1::2]
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    if layout == "half":
        return jnp.concatenate(turned, axis=-1).astype(x.dtype)
    return jnp.stack(turned, axis=-1).reshape(x.shape).astype(x.dtype)


def attend(
    query: Float[Array, "chunk heads head_dim"],
    keys: Float[Array, "kv_heads rows head_dim"],
    values: Float[Array, "kv_heads rows head_dim"],
    positions: Int[Array, " chunk"],
    key_positions: Int[Array, " rows"],
    *,
    window: int,
    scale: float,
) -> Float[Array, "chunk width"]:
    """Mix values by softmax of scaled query-key products, causal and within a window.

    Args:
        query: one sequence's queries; head a reads key-value head ``a // (heads / kv_heads)``.
        keys: all keys at hand.
        values: their values.
        positions: position of each query.
        key_positions: position of each key; negative rows are empty.
        window: how many positions back a query sees; 0 means all.
        scale: multiplies the products.

    Returns:
        ``[chunk, heads * head_dim]``.
    """
    chunk, heads, head_dim = query.shape
    grouped = query.reshape(chunk, keys.shape[0], heads // keys.shape[0], head_dim)
    scores = jnp.einsum(
        "ckgd,krd->kgcr", grouped, keys.astype(query.dtype), preferred_element_type=jnp.float32
    )
    distance = positions[:, None] - key_positions[None, :]
    visible = (key_positions >= 0) & (distance >= 0)
    if window:
        visible &= distance < window
    weights = jax.nn.softmax(jnp.where(visible, scores * scale, -1e30), axis=-1)
    mixed = jnp.einsum(
        "kgcr,krd->ckgd",
        weights.astype(query.dtype),
        values.astype(query.dtype),
        preferred_element_type=jnp.float32,
    )
    return mixed.reshape(chunk, heads * head_dim).astype(query.dtype)


class Attention(eqx.Module):
    """Self-attention of one layer over one sequence."""

    query: Matrix
    key: Matrix
    value: Matrix
    output: Matrix
    query_norm: RMSNorm | None
    key_norm: RMSNorm | None
    sub_norm: RMSNorm | None
    config: DecoderConfig = eqx.field(static=True)
    window: int = eqx.field(static=True)

    def __call__(
        self,
        x: Float[Array, "chunk hidden"],
        positions: Int[Array, " chunk"],
        cache: LayerCache | None,
        count: Int[Array, ""],
    ) -> tuple[Float[Array, "chunk hidden"], LayerCache | None]:
        """Attend over the chunk and, with a cache, over everything before it.

        Args:
            x: normed residual stream.
            positions: absolute positions, consecutive.
            cache: this layer's keys and values of the sequence, or None.
            count: how many rows of the chunk are real; the rest is padding.
        """
        scale = self.config.score_scale
        assert scale is not None
        query, key, value = self._project(x, positions)
        if cache is None:
            keys, values, key_positions = key.swapaxes(0, 1), value.swapaxes(0, 1), positions
        else:
            keys = write_rows(cache[0], key, positions, count)
            values = write_rows(cache[1], value, positions, count)
            cache = (keys, values)
            key_positions = row_positions(keys.shape[1], positions[0] + count - 1)
        mixed = attend(
            query, keys, values, positions, key_positions, window=self.window, scale=scale
        )
        if self.sub_norm is not None:
            mixed = self.sub_norm(mixed)
        return self.output(mixed), cache

    def _project(
        self, x: Float[Array, "chunk hidden"], positions: Int[Array, " chunk"]
    ) -> tuple[Array, Array, Array]:
        config = self.config
        chunk = x.shape[0]
        query = self.query(x).reshape(chunk, config.heads, config.head_dim)
        key = self.key(x).reshape(chunk, config.kv_heads, config.head_dim)
        value = self.value(x).reshape(chunk, config.kv_heads, config.head_dim)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        frequencies = config.window_frequencies(self.window)
        query = rotate(query, positions, frequencies, config.rotary_layout)
        key = rotate(key, positions, frequencies, config.rotary_layout)
        return query, key, value
