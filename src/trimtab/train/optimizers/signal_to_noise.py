"""Scale each gradient element by its signal-to-noise ratio before any optax transformation.

Method of Jiang, Liu, Ding, Guo and Lin, "Accelerating Large Batch Training via Gradient Signal to
Noise Ratio (GSNR)", 2023 (arXiv 2309.13681): with the mean and variance of the gradients of K
groups of the batch, ``r = mean**2 / variance`` is normalised to mean 1 inside each layer, clipped,
and multiplies the mean gradient. The paper clips to ``[gamma, 1]``, which can only slow a
parameter down; ``clip="symmetric"`` clips to ``[gamma, 1 / gamma]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree, Scalar

from trimtab.errors import InputError, unknown_name
from trimtab.train.optimizers.layers import (
    Layer,
    Normaliser,
    leaf_entries,
    normalised,
    signal_to_noise,
)

Clip = Literal["paper", "symmetric", "renormalised"]
CLIPS = ("paper", "symmetric", "renormalised")
Control = Literal["shuffled", "constant"]


class VrState(NamedTuple):
    """State of :func:`vr`.

    Attributes:
        count: steps taken.
        momentum: bias-corrected moving average of the ratios, or None without decay.
        base: the wrapped transformation's state.
    """

    count: Scalar
    momentum: PyTree
    base: PyTree


def gradient_ratios(
    mean: PyTree,
    squared_deviations: PyTree,
    count: Any,
    *,
    gamma: float = 0.1,
    clip: Clip = "paper",
    layer: Layer = "leaf",
    stacked: Mapping[str, int] | None = None,
    normaliser: Normaliser = "mean",
    mean_over: Literal["active", "all"] = "active",
    axis_names: Sequence[str] = (),
) -> PyTree:
    """Return the factor r by which each gradient element is multiplied, in float32.

    An entry without noise but with a signal gets the upper limit, one with neither (a dead unit,
    an embedding row that no example used) the lower; neither enters the layer's mean.

    Args:
        mean: mean of the group gradients.
        squared_deviations: sum over groups of squared deviations from it.
        count: number K of groups; it cancels, so any positive number gives the same.
        gamma: lower limit of r, in (0, 1].
        clip: ``"paper"``: to [gamma, 1]; ``"symmetric"``: to [gamma, 1/gamma];
            ``"renormalised"``: to [gamma, 1], then scaled to mean 1 in each layer.
        layer: what shares one mean: see :func:`trimtab.train.optimizers.layers.leaf_entries`.
        stacked: glob over parameter paths to the number of leading axes that enumerate layers.
        normaliser: the layer's centre: mean, median or trimmed mean.
        mean_over: whether entries without signal and noise count in the mean.
        axis_names: mapped axes that leaves are cut over.
    """
    entries = leaf_entries(mean, layer, stacked or {})
    options = {"normaliser": normaliser, "mean_over": mean_over, "axis_names": axis_names}
    means, structure = jax.tree.flatten(mean)
    deviations = structure.flatten_up_to(squared_deviations)
    count = jnp.asarray(count, jnp.float32)
    ratios = [signal_to_noise(m, d, count) for m, d in zip(means, deviations)]
    upper = 1.0 / gamma if clip == "symmetric" else 1.0
    clipped = [
        jnp.where(jnp.isnan(r), gamma, jnp.clip(r, gamma, upper))
        for r in normalised(ratios, entries, **options)
    ]
    if clip == "renormalised":
        clipped = normalised(clipped, entries, mean_over="all", axis_names=axis_names)
    return jax.tree.unflatten(structure, clipped)


def vr(
    base: optax.GradientTransformation,
    gamma: float = 0.1,
    decay: float = 0.0,
    *,
    clip: Clip = "paper",
    layer: Layer = "leaf",
    stacked: Mapping[str, int] | None = None,
    normaliser: Normaliser = "mean",
    mean_over: Literal["active", "all"] = "active",
    momentum_dtype: Any = jnp.float32,
    axis_names: Sequence[str] = (),
    control: Control | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Let the gradient's signal-to-noise ratio choose each element's step under any optimizer.

    ``vr(optax.sgd(rate))`` is VR-SGD, with momentum VR-Momentum, ``vr(optax.lars(rate))`` VR-LARS;
    ``vr(optax.adam(rate), decay=0.9)`` VR-Adam, likewise VR-LAMB; Muon, schedule-free and others
    work the same. Weight decay inside ``base`` is not scaled. With ``gamma=1`` it is ``base``.

    ``update`` needs the group statistics as keyword arguments ``sum_sq_diff_grads`` and
    ``sample_size``, which :func:`trimtab.train.training_step` passes when built with ``groups``
    and optax's aggregators pass too. A step whose statistics are not finite changes nothing.

    >>> import jax.numpy as jnp, optax
    >>> optimizer = vr(optax.sgd(1.0), gamma=0.5)
    >>> parameters = jnp.zeros(2)
    >>> updates, _ = optimizer.update(
    ...     jnp.ones(2), optimizer.init(parameters), parameters,
    ...     sum_sq_diff_grads=jnp.array([1.0, 100.0]), sample_size=8,
    ... )
    >>> updates.tolist()
    [-1.0, -0.5]

    Args:
        base: any optax transformation.
        gamma: lower limit of the ratio, in (0, 1].
        decay: decay of the bias-corrected moving average of the ratio; 0.9 in the paper's VR-Adam
            and VR-LAMB, 0 (none) in the others.
        clip: see :func:`gradient_ratios`.
        layer: what shares one normalisation: ``"leaf"``, ``"module"``, ``"tree"`` or a function.
        stacked: glob over parameter paths to the number of leading axes that enumerate layers,
            such as ``{"blocks/*": 1}``.
        normaliser: ``"mean"``, ``"median"`` or ``"trimmed"``.
        mean_over: whether entries without signal and noise count in the mean.
        momentum_dtype: element type that the moving average is stored in.
        axis_names: mapped axes that leaves are cut over, inside ``shard_map``.
        control: for experiments: ``"shuffled"`` permutes the ratios inside each leaf and
            ``"constant"`` replaces them by their mean, so that only their size acts.
        seed: of the shuffling.

    Raises:
        InputError: gamma or decay is out of range, or ``update`` gets no statistics.
        UnknownNameError: a variant has no such name.
    """
    if not 0.0 < gamma <= 1.0:
        raise InputError(f"gamma must lie in (0, 1], got {gamma}.")
    if not 0.0 <= decay < 1.0:
        raise InputError(f"decay must lie in [0, 1), got {decay}.")
    if clip not in CLIPS:
        raise unknown_name("clip", clip, CLIPS)
    if control not in (None, "shuffled", "constant"):
        raise unknown_name("control", str(control), ("shuffled", "constant"))
    inner = optax.with_extra_args_support(base)

    def initial(params: Any) -> VrState:
        momentum = None
        if decay:
            momentum = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype=momentum_dtype), params)
        return VrState(jnp.asarray(0, jnp.int32), momentum, inner.init(params))

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        sum_sq_diff_grads: Any = None,
        sample_size: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, Any]:
        if sum_sq_diff_grads is None or sample_size is None:
            raise InputError(
                "vr() got a gradient without its spread over groups: pass sum_sq_diff_grads= and "
                "sample_size=, or build the step with training_step(..., groups=K). "
                "optax.MultiSteps drops them; accumulate with training_step(accumulate=) instead."
            )
        _check_count(sample_size)

        ratios = gradient_ratios(
            updates,
            sum_sq_diff_grads,
            sample_size,
            gamma=gamma,
            clip=clip,
            layer=layer,
            stacked=stacked,
            normaliser=normaliser,
            mean_over=mean_over,
            axis_names=axis_names,
        )
        if control is not None:
            key = jax.random.fold_in(jax.random.key(seed), state.count)
            ratios = _controlled(ratios, control, key)
        count = state.count + 1
        factors, momentum = _averaged(ratios, state.momentum, count, decay, momentum_dtype)
        # Without the barrier XLA:CPU computes the ratio again in the loop of every output.
        factors = jax.lax.optimization_barrier(factors)
        scaled = jax.tree.map(lambda r, g: (r * g).astype(g.dtype), factors, updates)
        scaled, inner_state = inner.update(scaled, state.base, params, **extra_args)

        total = optax.tree.sum((updates, sum_sq_diff_grads))
        if axis_names:
            total = jax.lax.psum(total, tuple(axis_names))
        finite = jnp.isfinite(total)
        # A choice by element joins the update's own loop; a branch would copy all state.
        result = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            VrState(count, momentum, inner_state),
            state,
        )
        return jax.tree.map(lambda u: jnp.where(finite, u, jnp.zeros_like(u)), scaled), result

    return optax.GradientTransformationExtraArgs(initial, update)


def _averaged(
    ratios: PyTree, momentum: PyTree, count: Scalar, decay: float, dtype: Any
) -> tuple[PyTree, PyTree]:
    """Bias-corrected moving average of the ratios, and what is stored of it.

    The corrected average is updated directly, by a step of (1 - decay) / (1 - decay**count): the
    same number as correcting a zero-started average, and exactly 1 while all ratios are 1.
    """
    if not decay:
        return ratios, None
    share = (1.0 - decay) / (1.0 - jnp.asarray(decay, jnp.float32) ** count)
    share = jnp.where(count == 1, 1.0, share)  # which rounding would make slightly less
    factors = jax.tree.map(
        lambda p, r: p.astype(jnp.float32) + (r - p.astype(jnp.float32)) * share, momentum, ratios
    )
    return factors, jax.tree.map(lambda p: p.astype(dtype), factors)


def _controlled(ratios: PyTree, control: Control, key: Array) -> PyTree:
    leaves, structure = jax.tree.flatten(ratios)
    if control == "constant":
        return jax.tree.unflatten(
            structure, [jnp.full_like(leaf, jnp.mean(leaf)) for leaf in leaves]
        )
    keys = jax.random.split(key, len(leaves))
    shuffled = [
        jax.random.permutation(leaf_key, leaf.reshape(-1)).reshape(leaf.shape)
        for leaf_key, leaf in zip(keys, leaves)
    ]
    return jax.tree.unflatten(structure, shuffled)


def _check_count(sample_size: Any) -> None:
    """One group has no spread; a count inside a compiled program is trusted."""
    if isinstance(sample_size, (int, float, np.number)) and sample_size < 2:
        raise InputError(
            f"vr() needs the statistics of at least 2 groups, got {float(sample_size):g}."
        )
