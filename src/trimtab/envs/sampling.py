"""Uniform choices among legal things, by counting set bits instead of drawing one number each."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from trimtab.envs.specs import BoundedArray, DiscreteArray, MultiDiscreteArray


def nth_true(flags: Array, rank: Array) -> Array:
    """Index of the ``rank``-th true entry (0-based) of a vector; 0 when there are too few.

    Long vectors are searched in two levels of about the square root of their length, so the
    cost is one pass over the flags and two short comparisons.
    """
    length = flags.shape[0]
    if length <= 64:
        return jnp.argmax(_running_count(flags) > rank).astype(jnp.int32)
    width = math.isqrt(length - 1) + 1
    rows = -(-length // width)
    padded = jnp.pad(flags, (0, rows * width - length)).reshape(rows, width)
    before = _running_count(padded.sum(axis=1, dtype=jnp.int32))
    row = jnp.argmax(before > rank)
    rest = rank - jnp.where(row > 0, before[row - 1], 0)
    column = jnp.argmax(_running_count(padded[row]) > rest)
    return jnp.where(before[-1] > rank, row * width + column, 0).astype(jnp.int32)


def choose_true(key: Array, flags: Array) -> Array:
    """Index of a uniformly chosen true entry of a vector; 0 when none is true."""
    return choose_true_from(jax.random.uniform(key), flags)


def choose_true_from(uniform: Array, flags: Array) -> Array:
    """As :func:`choose_true`, from a number in [0, 1)."""
    count = flags.sum(dtype=jnp.int32)
    rank = jnp.minimum((uniform * count).astype(jnp.int32), count - 1)
    return nth_true(flags, rank)


def choose_distinct(key: Array, length: int, count: int) -> Array:
    """``count`` distinct integers below ``length``, uniformly, in random order.

    The first ``count`` steps of a Fisher-Yates shuffle; no sorting.
    """
    uniforms = jax.random.uniform(key, (count,))

    def take(index: Array, order: Array) -> Array:
        other = index + below(uniforms[index], length - index)
        first, second = order[index], order[other]
        return order.at[index].set(second).at[other].set(first)

    return jax.lax.fori_loop(0, count, take, jnp.arange(length, dtype=jnp.int32))[:count]


def sample_action(key: Array, spec: BoundedArray, mask: Array | None = None) -> Array:
    """A uniformly random legal action.

    Args:
        key: a typed random key.
        spec: the action spec.
        mask: true where legal. Either it covers the joint action (its shape is the component
            sizes) or it has a row per component, which are then drawn independently.
    """
    if isinstance(spec, DiscreteArray):
        if mask is None:
            return jax.random.randint(key, (), 0, spec.num_values).astype(spec.dtype)
        return choose_true(key, mask).astype(spec.dtype)
    if isinstance(spec, MultiDiscreteArray):
        if mask is None:
            sizes = jnp.array(spec.num_values)
            return jax.random.randint(key, spec.shape, 0, sizes).astype(spec.dtype)
        if is_joint(spec, mask):
            flat = choose_true(key, mask.reshape(-1))
            return jnp.stack(jnp.unravel_index(flat, mask.shape)).astype(spec.dtype)
        uniforms = jax.random.uniform(key, (mask.shape[0],))
        return jax.vmap(choose_true_from)(uniforms, mask).astype(spec.dtype)
    low, high = jnp.asarray(spec.minimum), jnp.asarray(spec.maximum)
    return jax.random.uniform(key, spec.shape, spec.dtype, low, high)


def is_joint(spec: MultiDiscreteArray, mask: Any) -> bool:
    """Whether the mask covers the product of the components instead of one row per component."""
    return tuple(mask.shape) == tuple(spec.num_values)


def _running_count(flags: Array) -> Array:
    """Cumulative sum of a short vector as one comparison table, which fuses well."""
    index = jnp.arange(flags.shape[0])
    return jnp.where(index[None, :] <= index[:, None], flags.astype(jnp.int32), 0).sum(axis=1)


def spend_uniforms(key: Array, count: int) -> tuple[Array, Array]:
    """The next key of a stream and ``count`` numbers in [0, 1), from one call of the generator.

    Splitting a key and drawing from a half costs two calls; the words of one counter-mode call
    are as independent.
    """
    words = jax.random.key_data(key).shape[-1]
    bits = jax.random.bits(key, (words + count,), jnp.uint32)
    following = jax.random.wrap_key_data(bits[:words], impl=jax.random.key_impl(key))
    return following, (bits[words:] >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)


def below(uniform: Array, bound: Any) -> Array:
    """An integer in ``0 .. bound - 1`` from a number in [0, 1)."""
    index = (uniform * jnp.asarray(bound, jnp.float32)).astype(jnp.int32)
    return jnp.minimum(index, jnp.asarray(bound, jnp.int32) - 1)


def choose_subset(key: Array, length: int, count: int) -> Array:
    """Flags of ``count`` distinct entries of a vector, every subset equally likely.

    Floyd's method (Bentley and Floyd, Communications of the ACM 30(9), 1987): one step per
    chosen entry and no sorting.
    """
    uniforms = jax.random.uniform(key, (count,))

    def take(index: Array, flags: Array) -> Array:
        top = length - count + index
        candidate = below(uniforms[index], top + 1)
        chosen = jnp.where(flags[candidate], top, candidate)
        return flags.at[chosen].set(True)

    return jax.lax.fori_loop(0, count, take, jnp.zeros(length, bool))


def random_order(uniforms: Array) -> Array:
    """A uniformly random permutation from independent numbers in [0, 1).

    Entry ``i`` is the rank of number ``i``, by counting, which is far cheaper than sorting here.
    """
    index = jnp.arange(uniforms.shape[0])
    before = uniforms[None, :] < uniforms[:, None]
    tied = (uniforms[None, :] == uniforms[:, None]) & (index[None, :] < index[:, None])
    return (before | tied).sum(axis=1, dtype=jnp.int32)
