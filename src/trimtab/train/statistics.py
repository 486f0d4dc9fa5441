"""Mean and squared deviations of the gradients of equal groups of a batch, in one pass.

A batch is cut into K groups of equal size; the element-wise mean of the K group gradients and the
sum of their squared deviations from it describe the signal and the noise of each parameter. They
are accumulated as (count, mean, squared deviations) and merged by the rule of Chan, Golub and
LeVeque (1983), which does not cancel where the noise is small beside the mean: the textbook
``E[g^2] - E[g]^2`` in float32 loses every digit once the deviation is a thousandth of the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar

from trimtab.errors import InputError, ShapeError, unknown_name

Method = Literal["scan", "compensated", "vmap"]
METHODS = ("scan", "compensated", "vmap")


class GradientStatistics(eqx.Module):
    """Gradients of ``count`` equal groups, summarised element by element in float32.

    Attributes:
        mean: mean of the group gradients, one leaf a parameter.
        squared_deviations: sum over groups of ``(gradient - mean)**2``; population variance is
            this over ``count``.
        count: number of groups.
        loss: mean loss over the whole batch.
        metrics: means of the loss function's second result.
        group_square_norms: squared norm of each group's gradient when asked for, else None; with
            groups of one example these are the squares of the GraNd scores of Paul et al. (2021).
    """

    mean: PyTree
    squared_deviations: PyTree
    count: Scalar
    loss: Scalar
    metrics: PyTree
    group_square_norms: Float[Array, " groups"] | None = None


def merge_statistics(left: GradientStatistics, right: GradientStatistics) -> GradientStatistics:
    """Return the statistics of the union of two sets of groups (Chan, Golub, LeVeque 1983).

    All groups on both sides must hold equally many examples.
    """
    count = left.count + right.count
    share = right.count / count
    weight = left.count * right.count / count
    mean = jax.tree.map(lambda a, b: a + (b - a) * share, left.mean, right.mean)
    deviations = jax.tree.map(
        lambda first, second, a, b: first + second + jnp.square(b - a) * weight,
        left.squared_deviations,
        right.squared_deviations,
        left.mean,
        right.mean,
    )
    loss, metrics = jax.tree.map(
        lambda a, b: a + (b - a) * share, (left.loss, left.metrics), (right.loss, right.metrics)
    )
    norms = None
    if left.group_square_norms is not None and right.group_square_norms is not None:
        norms = jnp.concatenate([left.group_square_norms, right.group_square_norms])
    return GradientStatistics(mean, deviations, count, loss, metrics, norms)


def statistics_of_stacked(
    gradients: PyTree, losses: Array | None = None, metrics: PyTree = None
) -> GradientStatistics:
    """Summarise group gradients that are stacked along a leading axis of every leaf.

    Args:
        gradients: leaves of shape ``(groups, *parameter)``.
        losses: one loss a group, or None.
        metrics: leaves with a leading group axis, or None.
    """
    groups = jax.tree.leaves(gradients)[0].shape[0]
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gradients)
    mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), wide)
    deviations = jax.tree.map(
        lambda leaf, centre: jnp.sum(jnp.square(leaf - centre), axis=0), wide, mean
    )
    loss = jnp.asarray(0.0) if losses is None else jnp.mean(losses)
    return GradientStatistics(
        mean,
        deviations,
        jnp.asarray(groups, jnp.float32),
        loss,
        jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), metrics),
    )


def split_batch(batch: PyTree, parts: int) -> PyTree:
    """Cut every leaf's leading axis into ``(parts, examples / parts)``.

    Raises:
        ShapeError: the leaves disagree on the number of examples, or it is not a multiple.
    """
    leaves = [leaf for leaf in jax.tree.leaves(batch) if hasattr(leaf, "shape")]
    sizes = {leaf.shape[0] if leaf.ndim else -1 for leaf in leaves}
    if len(sizes) != 1 or -1 in sizes:
        raise ShapeError(
            f"The leaves of a batch must share their leading axis; sizes are "
            f"{sorted(sizes)}, with -1 for scalars. Put the examples first in every array."
        )
    examples = sizes.pop()
    if examples % parts:
        raise ShapeError(
            f"A batch of {examples} examples cannot be cut into {parts} equal parts. "
            f"Choose a batch size that is a multiple of {parts}, or another number of groups."
        )
    return jax.tree.map(lambda leaf: leaf.reshape(parts, examples // parts, *leaf.shape[1:]), batch)


def gradient_statistics(
    loss: Callable[..., Any],
    parameters: PyTree,
    batch: PyTree,
    *,
    groups: int = 32,
    key: Array | None = None,
    method: Method = "scan",
    norms: bool = False,
) -> GradientStatistics:
    """Differentiate ``loss`` on ``groups`` equal parts of ``batch`` and summarise the gradients.

    ``"scan"`` holds one group's activations and two parameter-sized buffers at a time.
    ``"compensated"`` is the same with a third buffer for what float32 rounds off the running mean:
    it keeps the variance accurate to 1e-6 even where the deviation is 1e-4 of the mean (plain scan:
    about 1e-4). ``"vmap"`` computes all groups at once and holds all their gradients.

    Args:
        loss: ``(parameters, batch)`` or, with ``key``, ``(parameters, batch, key)`` to a loss, or
            to ``(loss, metrics)``; the loss is a scalar or one value an example.
        parameters: pytree of floating-point arrays to differentiate by.
        batch: pytree whose leaves have the examples on their leading axis.
        groups: number K of groups, at least 2; it must divide the batch.
        key: randomness of the loss; each group gets its own.
        method: ``"scan"``, ``"compensated"`` or ``"vmap"``.
        norms: also keep each group's squared gradient norm.

    Raises:
        InputError: fewer than two groups.
        ShapeError: the batch cannot be cut evenly.
    """
    if groups < 2:
        raise InputError(f"Gradient statistics need at least 2 groups, {groups} given.")
    parts = split_batch(batch, groups)
    keys = None if key is None else jax.random.split(key, groups)

    def differentiate(carry: None, part: PyTree, part_key: Array | None) -> tuple:
        (value, metrics), gradient = jax.value_and_grad(scalar_loss(loss), has_aux=True)(
            parameters, part, *(() if part_key is None else (part_key,))
        )
        return carry, gradient, value, metrics

    return accumulate_statistics(
        differentiate, None, (parts, keys), groups, method=method, norms=norms
    )[1]


def scalar_loss(loss: Callable[..., Any]) -> Callable[..., tuple[Scalar, dict]]:
    """Wrap ``loss`` so that it returns a float32 scalar mean and a dictionary of mean metrics."""

    def scalar(*arguments: Any) -> tuple[Scalar, dict]:
        result = loss(*arguments)
        value, metrics = result if isinstance(result, tuple) else (result, {})
        mean = jnp.mean(value.astype(jnp.float32))
        return mean, jax.tree.map(lambda leaf: jnp.mean(leaf.astype(jnp.float32)), metrics)

    return scalar


def accumulate_statistics(
    differentiate: Callable[..., tuple[Any, PyTree, Array, PyTree]],
    carry: PyTree,
    parts: Sequence[PyTree],
    groups: int,
    *,
    method: Method = "scan",
    norms: bool = False,
) -> tuple[PyTree, GradientStatistics]:
    """Summarise ``differentiate(carry, *part)`` over the leading axis of ``parts``.

    Args:
        differentiate: returns ``(carry, gradient, loss, metrics)`` of one group.
        carry: state that groups hand on, such as running averages of a normalisation; ``"vmap"``
            gives every group the same and averages the results.
        parts: arguments with a leading axis of length ``groups``; None stays None.
        groups: length of that axis.
        method: ``"scan"``, ``"compensated"`` or ``"vmap"``.
        norms: also keep each group's squared gradient norm.

    Returns:
        The last carry and the statistics.
    """
    if method == "vmap":
        carries, gradients, losses, metrics = jax.vmap(lambda part: differentiate(carry, *part))(
            tuple(parts)
        )
        summary = statistics_of_stacked(gradients, losses, metrics)
        if norms:
            summary = _with_norms(summary, jax.vmap(_square_norm)(gradients))
        return _averaged_carry(carries), summary
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)

    outputs = jax.eval_shape(differentiate, carry, *jax.tree.map(lambda leaf: leaf[0], parts))
    zeros = zeros_like_outputs(outputs[1:])
    residual = zeros[0] if method == "compensated" else None

    def absorb(state: tuple, part: tuple) -> tuple[tuple, Any]:
        handed, index, mean, averages, deviations, residual = state
        handed, gradient, *rest = differentiate(handed, *part)
        share = 1.0 / (index + 1.0)
        mean, deviations, residual = _absorbed(
            gradient, mean, deviations, residual, share, index * share
        )
        averages = jax.tree.map(lambda m, x: m + (x - m) * share, averages, tuple(rest))
        squares = _square_norm(gradient) if norms else None
        return (handed, index + 1.0, mean, averages, deviations, residual), squares

    index = jnp.asarray(0.0, jnp.float32)
    start = (carry, index, zeros[0], zeros[1:], zeros[0], residual)
    (carry, count, mean, (loss, metrics), deviations, _), squares = jax.lax.scan(
        absorb, start, tuple(parts), length=groups
    )
    return carry, GradientStatistics(mean, deviations, count, loss, metrics, squares)


def _absorbed(
    gradient: PyTree, mean: PyTree, deviations: PyTree, residual: PyTree, share: Any, weight: Any
) -> tuple[PyTree, PyTree, PyTree]:
    """Welford's update of mean and squared deviations by one more gradient.

    Args:
        gradient: the newcomer.
        mean: mean so far, rounded to float32.
        deviations: squared deviations so far.
        residual: what rounding took off the mean, or None to do without.
        share: 1 / count, the newcomer included.
        weight: earlier count / count.
    """
    gradient = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gradient)
    if residual is None:
        away = jax.tree.map(lambda g, m: g - m, gradient, mean)
        target = jax.tree.map(lambda d: d * share, away)
    else:
        away = jax.tree.map(lambda g, m, lost: (g - m) - lost, gradient, mean, residual)
        target = jax.tree.map(lambda d, lost: d * share + lost, away, residual)
    deviations = jax.tree.map(lambda total, d: total + jnp.square(d) * weight, deviations, away)
    moved = jax.tree.map(lambda m, t: m + t, mean, target)
    if residual is not None:
        residual = jax.tree.map(lambda t, new, old: t - (new - old), target, moved, mean)
    return moved, deviations, residual


def zeros_like_outputs(outputs: PyTree, dtype: Any = jnp.float32) -> PyTree:
    """Return zeros shaped like abstract outputs, for the start of a scan or an idle branch.

    Inside ``shard_map`` a value that will differ between devices must be marked so from the start.

    Args:
        outputs: results of ``jax.eval_shape``.
        dtype: element type; None takes each output's own.
    """

    def zeros(leaf: jax.ShapeDtypeStruct) -> Array:
        varying = getattr(getattr(leaf, "manual_axis_type", None), "varying", frozenset())
        start = jnp.zeros(leaf.shape, leaf.dtype if dtype is None else dtype)
        return jax.lax.pcast(start, tuple(varying), to="varying") if varying else start

    return jax.tree.map(zeros, outputs)


def _averaged_carry(carries: PyTree) -> PyTree:
    def average(leaf: Array) -> Array:
        return jnp.mean(leaf, axis=0) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf[0]

    return jax.tree.map(average, carries)


def _with_norms(statistics: GradientStatistics, squares: Array) -> GradientStatistics:
    return eqx.tree_at(
        lambda s: s.group_square_norms, statistics, squares, is_leaf=lambda x: x is None
    )


def _square_norm(tree: PyTree) -> Scalar:
    return sum(
        (jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)),
        start=jnp.asarray(0.0, jnp.float32),
    )
