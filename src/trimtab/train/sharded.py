"""Gradient statistics over a mesh of devices: one fused all-reduce, or scattered shards.

Each device summarises its own groups; merging needs sums over devices of two parameter-sized
trees. Relative to a mean that every device already knows (the *shift*, last step's mean
gradient), both sums travel in a single all-reduce of twice the parameter bytes and nothing cancels
as long as the gradient changes slowly. The scattered form reduces each sum straight to the device
that owns the shard, updates there and gathers the update: 1.5 times the ring traffic of plain
data parallelism.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, PyTree

from trimtab.errors import UnsupportedError
from trimtab.train.statistics import GradientStatistics


def device_count(mesh: Mesh, axes: Sequence[str]) -> int:
    """Return how many devices the named mesh axes span."""
    return math.prod(mesh.shape[axis] for axis in axes)


def merge_across(
    statistics: GradientStatistics, axes: Sequence[str], shift: PyTree = None
) -> GradientStatistics:
    """Merge the statistics of all devices along mapped ``axes``; call it inside ``shard_map``.

    Args:
        statistics: this device's groups, equally many on each device.
        axes: mapped axis names to reduce over.
        shift: a tree known to all devices that is near the mean gradient. With it one all-reduce
            carries everything; without it a second one follows the first, and nothing is assumed.
    """
    names = tuple(axes)
    devices = jax.lax.psum(1, names)
    count = statistics.count
    total = count * devices
    averaged = (statistics.loss, statistics.metrics)
    if shift is None:
        mean, averaged = jax.lax.pmean((statistics.mean, averaged), names)
        deviations = jax.lax.psum(
            jax.tree.map(
                lambda m2, own, centre: m2 + count * jnp.square(own - centre),
                statistics.squared_deviations,
                statistics.mean,
                mean,
            ),
            names,
        )
        return GradientStatistics(mean, deviations, total, *averaged)

    offset = jax.tree.map(lambda own, centre: own - centre, statistics.mean, shift)
    squares = jax.tree.map(
        lambda m2, away: m2 + count * jnp.square(away), statistics.squared_deviations, offset
    )
    offset, squares, averaged = jax.lax.psum((offset, squares, averaged), names)
    away = jax.tree.map(lambda leaf: leaf / devices, offset)
    mean = jax.tree.map(lambda centre, leaf: centre + leaf, shift, away)
    deviations = jax.tree.map(
        lambda total_squares, leaf: jnp.maximum(total_squares - total * jnp.square(leaf), 0.0),
        squares,
        away,
    )
    averaged = jax.tree.map(lambda leaf: leaf / devices, averaged)
    return GradientStatistics(mean, deviations, total, *averaged)


def across_devices(
    local: Callable[..., tuple[PyTree, GradientStatistics]],
    mesh: Mesh,
    axes: Sequence[str],
    *,
    statistics: bool,
    groups: int | None,
) -> Callable[..., tuple[PyTree, GradientStatistics]]:
    """Run a per-device gradient function over a mesh with replicated parameters.

    Args:
        local: ``(parameters, frozen, scale, variables, batch, key, groups)`` to
            ``(variables, statistics)`` of one device's examples.
        mesh: the devices.
        axes: mesh axes that the batch's leading axis is cut over.
        statistics: whether squared deviations are wanted.
        groups: groups on each device, or None.

    Returns:
        The same function with ``shift`` in place of ``groups``, over the whole batch.
    """
    names = tuple(axes)
    everywhere, cut = PartitionSpec(), PartitionSpec(names)

    def whole(
        parameters: PyTree,
        frozen: PyTree,
        scale: Array,
        variables: PyTree,
        batch: PyTree,
        key: Array,
        shift: PyTree,
    ) -> tuple[PyTree, GradientStatistics]:
        frozen_arrays, static = eqx.partition(frozen, eqx.is_array)

        def body(parameters, frozen_arrays, scale, variables, batch, key, shift):
            # Varying parameters keep each device's gradient its own; otherwise differentiation
            # would insert the sum over devices by itself and the deviations would be lost.
            parameters, frozen_arrays, variables, scale, key = jax.tree.map(
                lambda leaf: jax.lax.pcast(leaf, names, to="varying"),
                (parameters, frozen_arrays, variables, scale, key),
            )
            key = jax.random.fold_in(key, jax.lax.axis_index(names))
            frozen = eqx.combine(frozen_arrays, static)
            variables, own = local(parameters, frozen, scale, variables, batch, key, groups)
            variables = _averaged(variables, names)
            if statistics:
                return variables, merge_across(own, names, shift)
            mean, value, metrics = jax.lax.pmean((own.mean, own.loss, own.metrics), names)
            return variables, GradientStatistics(
                mean, None, jnp.asarray(1.0, jnp.float32), value, metrics
            )

        mapped = jax.shard_map(
            body,
            mesh=mesh,
            in_specs=(everywhere, everywhere, everywhere, everywhere, cut, everywhere, everywhere),
            out_specs=everywhere,
            axis_names=set(names),
        )
        return mapped(parameters, frozen_arrays, scale, variables, batch, key, shift)

    return whole


def _averaged(variables: PyTree, names: tuple[str, ...]) -> PyTree:
    def average(leaf: Array) -> Array:
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            return jax.lax.pmean(leaf, names)
        # Counters agree on all devices; the maximum makes that visible to the type system.
        return jax.lax.pmax(leaf, names)

    return jax.tree.map(average, variables)


def scatter_statistics(
    statistics: GradientStatistics, axis: str, shift: PyTree = None
) -> GradientStatistics:
    """Merge devices' statistics so that each device receives only its shard of every leaf.

    Leaves are flattened and padded with zeros to a multiple of the device count; device d gets the
    d-th piece. Two reduce-scatters replace the all-reduce.

    Args:
        statistics: this device's groups, equally many on each device.
        axis: mapped axis name.
        shift: whole tree near the mean gradient that all devices share (one gathered every so many
            steps serves), or None for zero: then nearly noiseless gradients lose precision.
    """
    devices = jax.lax.axis_size(axis)
    total = statistics.count * devices
    centres = jax.tree.map(jnp.zeros_like, statistics.mean) if shift is None else shift
    offset = jax.tree.map(lambda own, centre: own - centre, statistics.mean, centres)
    squares = jax.tree.map(
        lambda m2, away: m2 + statistics.count * jnp.square(away),
        statistics.squared_deviations,
        offset,
    )
    offset, squares = jax.tree.map(
        lambda leaf: jax.lax.psum_scatter(_flat(leaf, devices), axis, tiled=True),
        (offset, squares),
    )
    away = jax.tree.map(lambda leaf: leaf / devices, offset)
    own_centres = own_shards(centres, axis)
    mean = jax.tree.map(lambda centre, leaf: centre + leaf, own_centres, away)
    deviations = jax.tree.map(
        lambda total_squares, leaf: jnp.maximum(total_squares - total * jnp.square(leaf), 0.0),
        squares,
        away,
    )
    loss, metrics = jax.lax.pmean((statistics.loss, statistics.metrics), axis)
    return GradientStatistics(mean, deviations, total, loss, metrics)


def own_shards(tree: PyTree, axis: str) -> PyTree:
    """Return this device's piece of every leaf, flattened and padded to the device count."""
    devices = jax.lax.axis_size(axis)
    index = jax.lax.axis_index(axis)

    def piece(leaf: Array) -> Array:
        flat = _flat(leaf, devices)
        size = flat.size // devices
        return jax.lax.dynamic_slice(flat, (index * size,), (size,))

    return jax.tree.map(piece, tree)


def gather_shards(shards: PyTree, like: PyTree, axis: str) -> PyTree:
    """Put the pieces of :func:`own_shards` together again on every device.

    Args:
        shards: this device's pieces.
        like: tree with the leaves' full shapes.
        axis: mapped axis name.
    """

    def whole(piece: Array, leaf: Array) -> Array:
        flat = jax.lax.all_gather(piece, axis, tiled=True)
        return flat[: leaf.size].reshape(leaf.shape)

    return jax.tree.map(whole, shards, like)


def _flat(leaf: Array, devices: int) -> Array:
    return jnp.pad(leaf.reshape(-1), (0, -leaf.size % devices))


def sharded_update(
    optimizer: Any,
    statistics: GradientStatistics,
    optimizer_state: PyTree,
    parameters: PyTree,
    axis: str,
) -> tuple[PyTree, PyTree]:
    """Take an optimizer step on this device's shards and gather the new parameters (ZeRO).

    The optimizer sees flat shards: it must act element by element, or reduce over ``axis`` itself
    as ``vr(..., axis_names=(axis,))`` and :func:`trimtab.train.optimizers.trust_ratio` do.

    Args:
        optimizer: an optax transformation whose state was made from :func:`own_shards`.
        statistics: this device's own groups.
        optimizer_state: state over shards.
        parameters: whole parameters, the same on every device.
        axis: mapped axis name.

    Returns:
        Whole new parameters and the new state over shards.
    """
    if any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in jax.tree.leaves(parameters)):
        raise UnsupportedError("Sharded updates hold real parameters only; split complex ones.")
    merged = scatter_statistics(statistics, axis)
    shards = own_shards(parameters, axis)
    updates, optimizer_state = optimizer.update(
        merged.mean,
        optimizer_state,
        shards,
        sum_sq_diff_grads=merged.squared_deviations,
        sample_size=merged.count,
    )
    updates = gather_shards(updates, parameters, axis)
    return jax.tree.map(lambda p, u: p + u, parameters, updates), optimizer_state
