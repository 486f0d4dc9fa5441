"""Which parameters share one normalisation of the signal-to-noise ratio, and how it is computed.

A *layer* is one leaf, the leaves of one module, or the whole tree. A leaf that stacks many layers
along leading axes (layers scanned over, experts) is normalised slice by slice.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from trimtab.errors import InputError, ShapeError, UnsupportedError, unknown_name

Layer = Literal["leaf", "module", "tree"] | Callable[[str], str]
Normaliser = Literal["mean", "median", "trimmed"]
NORMALISERS = ("mean", "median", "trimmed")


class Entry(NamedTuple):
    """How one leaf is normalised.

    Attributes:
        path: its name, ``layers/0/weight``.
        layer: label of the layer it belongs to.
        stacked: how many leading axes enumerate layers.
    """

    path: str
    layer: str
    stacked: int


def leaf_entries(tree: PyTree, layer: Layer, stacked: Mapping[str, int]) -> list[Entry]:
    """Assign every leaf of ``tree`` to a layer.

    Args:
        tree: parameters.
        layer: ``"leaf"``, ``"module"`` (all leaves under one parent), ``"tree"``, or a function
            from a leaf's path to the label of its layer.
        stacked: glob over paths to the number of leading axes that enumerate layers.

    Raises:
        ShapeError: a leaf has fewer axes than are said to be stacked.
    """
    if isinstance(layer, str) and layer not in ("leaf", "module", "tree"):
        raise unknown_name("layer grouping", layer, ("leaf", "module", "tree"))
    entries = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        axes = next((n for glob, n in stacked.items() if fnmatch.fnmatchcase(name, glob)), 0)
        if axes > leaf.ndim:
            raise ShapeError(
                f"{name} has shape {leaf.shape}, which has no {axes} stacked leading axes. "
                "Narrow the pattern in stacked=."
            )
        entries.append(Entry(name, _label(name, layer), axes))
    return entries


def _label(name: str, layer: Layer) -> str:
    if callable(layer):
        return layer(name)
    if layer == "leaf":
        return name
    return name.rpartition("/")[0] if layer == "module" else ""


def signal_to_noise(mean: Array, squared_deviations: Array, count: Scalar) -> Array:
    """Return squared mean over population variance, element by element, in float32.

    Infinite where there is no noise but a signal, not a number where there is neither.
    Source: Jiang et al. 2023 (arXiv 2309.13681), Algorithm 1; division by zero there is undefined.
    """
    mean = mean.astype(jnp.float32)
    variance = jnp.maximum(squared_deviations.astype(jnp.float32) / count, 0.0)
    ratio = jnp.square(mean) / variance
    # Beyond 1e30 the sum over a layer could overflow, and such an entry is noiseless in any case.
    return jnp.where(ratio > 1e30, jnp.inf, ratio)


def normalised(
    ratios: Sequence[Array],
    entries: Sequence[Entry],
    *,
    normaliser: Normaliser = "mean",
    mean_over: Literal["active", "all"] = "active",
    axis_names: Sequence[str] = (),
) -> list[Array]:
    """Divide each ratio by the centre of its layer; infinities and NaN pass through.

    Args:
        ratios: leaves of signal-to-noise ratios.
        entries: what :func:`leaf_entries` gave for them.
        normaliser: ``"mean"``; or ``"median"`` or ``"trimmed"`` (mean without the top and bottom
            tenth), both scaled so that nothing changes for equal ratios.
        mean_over: ``"active"`` leaves entries with neither signal nor noise out of the mean,
            ``"all"`` counts them as zeros.
        axis_names: mapped axes that leaves are cut over; sums are taken over them too.
    """
    if normaliser not in NORMALISERS:
        raise unknown_name("normaliser", normaliser, NORMALISERS)
    if axis_names and normaliser != "mean":
        raise UnsupportedError(
            f"The {normaliser} of a layer cut over {tuple(axis_names)} needs all of its entries in "
            "one place. Use normaliser='mean'."
        )
    layers: dict[str, list[int]] = {}
    for position, entry in enumerate(entries):
        layers.setdefault(entry.layer, []).append(position)
    centre = _mean_of if normaliser == "mean" else _quantile_of
    sums = {}
    for label, members in layers.items():
        stacks = {ratios[m].shape[: entries[m].stacked] for m in members}
        if len(stacks) > 1:
            raise ShapeError(
                f"The leaves of layer {label!r} have different stacked axes: {sorted(stacks)}. "
                "Give them one pattern in stacked=, or use layer='leaf'."
            )
        flat = [ratios[m].reshape(*ratios[m].shape[: entries[m].stacked], -1) for m in members]
        sums[label] = centre(flat, normaliser, mean_over)
    if normaliser == "mean":
        # One collective for all layers: the sums of a layer are only a few numbers.
        totals = jax.lax.psum(sums, tuple(axis_names)) if axis_names else sums
        centres = {
            label: total / jnp.maximum(count, 1.0) for label, (total, count) in totals.items()
        }
    else:
        centres = sums
    result = []
    for ratio, entry in zip(ratios, entries):
        centre_value = centres[entry.layer]
        shape = (*ratio.shape[: entry.stacked], *(1,) * (ratio.ndim - entry.stacked))
        result.append(ratio / centre_value.reshape(shape))
    return result


def _mean_of(flat: list[Array], _: str, mean_over: str) -> tuple[Array, Array]:
    if mean_over not in ("active", "all"):
        raise InputError(f"mean_over must be 'active' or 'all', got {mean_over!r}.")
    total = jnp.zeros(flat[0].shape[:-1], jnp.float32)
    count = jnp.zeros(flat[0].shape[:-1], jnp.float32)
    for leaf in flat:
        finite = jnp.isfinite(leaf)
        total += jnp.sum(jnp.where(finite, leaf, 0.0), axis=-1)
        counted = finite if mean_over == "active" else finite | jnp.isnan(leaf)
        count += jnp.sum(counted, axis=-1, dtype=jnp.float32)
    return total, count


def _quantile_of(flat: list[Array], normaliser: str, _: str) -> Array:
    values = jnp.concatenate(flat, axis=-1)
    values = jnp.where(jnp.isfinite(values), values, jnp.nan)
    if normaliser == "median":
        centre = jnp.nanmedian(values, axis=-1)
    else:
        low, high = jnp.nanquantile(values, jnp.asarray([0.1, 0.9]), axis=-1)
        inside = (values >= low[..., None]) & (values <= high[..., None])
        centre = jnp.sum(jnp.where(inside, values, 0.0), axis=-1) / jnp.maximum(
            jnp.sum(inside, axis=-1), 1
        )
    return jnp.where(jnp.isnan(centre) | (centre == 0.0), 1.0, centre)
