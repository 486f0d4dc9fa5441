"""Causal attention of new tokens over a key/value cache with slots, grouped heads and windows.

``o_h = softmax(scale q_h K_g^T) V_g`` where head h reads the keys of group ``g = h // (H / G)``.
The key of position p lies in row ``p % rows`` of its slot, so a windowed layer can keep a ring.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from trimtab.errors import ShapeError
from trimtab.kernels.binding import Shaped, kernel


def _reference(
    queries: Array,
    keys: Array,
    values: Array,
    slots: Array,
    positions: Array,
    *,
    scale: float,
    window: int,
) -> Array:
    tokens, heads, dim = queries.shape
    groups, rows = keys.shape[1], keys.shape[2]
    # The newest position of each token's slot decides which position every row holds.
    same = slots[:, None] == slots[None]
    last = jnp.max(jnp.where(same, positions[None], -1), axis=1)[:, None]
    held = last - (last - jnp.arange(rows)[None]) % rows
    visible = (held >= 0) & (held <= positions[:, None])
    if window:
        visible &= positions[:, None] - held < window
    grouped = queries.reshape(tokens, groups, heads // groups, dim) * scale
    scores = jnp.einsum(
        "tghd,tgrd->tghr", grouped, keys[slots].astype(jnp.float32), precision="highest"
    )
    weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, -1e30), axis=-1)
    out = jnp.einsum(
        "tghr,tgrd->tghd", weights, values[slots].astype(jnp.float32), precision="highest"
    )
    return out.reshape(queries.shape)


def _served(
    queries: Shaped, keys: Shaped, values: Shaped, slots: Shaped, positions: Shaped, **_: Any
) -> bool:
    return (
        queries.dtype == "float32"
        and keys.dtype == values.dtype
        and keys.dtype in ("float32", "bfloat16")
        and slots.dtype == positions.dtype == "int32"
        and queries.shape[2] <= 256
        and queries.shape[1] // keys.shape[1] <= 96
    )


cached_attention_kernel = kernel(
    "cached_attention", reference=_reference, results=(0,), accepts=_served
)


def cached_attention(
    queries: Float[Array, "tokens heads dim"] | Any,
    keys: Float[Array, "slots groups rows dim"] | Any,
    values: Float[Array, "slots groups rows dim"] | Any,
    slots: Int[Array, " tokens"] | Any,
    positions: Int[Array, " tokens"] | Any,
    *,
    scale: float,
    window: int = 0,
) -> Any:
    """Attend from new tokens to everything that their slots hold up to them.

    Args:
        queries: float32, after rotation; tokens of one slot consecutive and in rising position.
        keys: float32 or bfloat16; the tokens' own keys are written already.
        values: like ``keys``.
        slots: int32, the cache slot of each token.
        positions: int32, the position of each token.
        scale: multiplies the scores.
        window: keys at distance ``window`` or more are not seen; 0 sees all.

    Returns:
        float32, shaped like ``queries``.

    Raises:
        ShapeError: the shapes do not belong together.
    """
    if (
        len(queries.shape) != 3
        or len(keys.shape) != 4
        or tuple(keys.shape) != tuple(values.shape)
        or keys.shape[3] != queries.shape[2]
        or queries.shape[1] % keys.shape[1]
    ):
        raise ShapeError(
            f"cached_attention got queries {tuple(queries.shape)}, keys {tuple(keys.shape)} and "
            f"values {tuple(values.shape)}; expected (tokens, heads, dim) and twice "
            "(slots, groups, rows, dim) with heads a multiple of groups."
        )
    return cached_attention_kernel(
        queries, keys, values, slots, positions, scale=float(scale), window=int(window)
    )
