"""The optimizer in optax's aggregator form, and a trust ratio for parameters cut over devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from trimtab.errors import InputError
from trimtab.train.optimizers.signal_to_noise import vr


def vr_aggregator(
    base: optax.GradientTransformation,
    *,
    groups_axis: int = 0,
    accumulation_steps: int = 1,
    **options: Any,
) -> Any:
    """Return an optax aggregator that takes one gradient a group and applies :func:`vr`.

    Args:
        base: any optax transformation.
        groups_axis: axis of every leaf that enumerates groups.
        accumulation_steps: calls over which statistics accumulate before one update.
        **options: of :func:`trimtab.train.optimizers.vr`.

    Returns:
        An ``optax.experimental.aggregating.Aggregator``; its ``update`` takes leaves of shape
        ``(groups, *parameter)``.
    """
    if accumulation_steps < 1:
        raise InputError(f"accumulation_steps must be at least 1, got {accumulation_steps}.")
    aggregating = optax.experimental.aggregating
    return aggregating.process(
        preprocessor=optax.identity(),
        aggregator=aggregating.get_per_element_mean_and_sum_sq_diff_grads(
            groups_axis, accumulation_steps
        ),
        postprocessor=vr(base, **options),
        aggregator_has_aux=True,
    )


def trust_ratio(
    *, axis_names: Sequence[str] = (), coefficient: float = 1.0, eps: float = 0.0
) -> optax.GradientTransformation:
    """Scale each leaf's update to the norm of its parameter, also when leaves are cut over devices.

    ``optax.scale_by_trust_ratio`` would take the norm of a shard for that of the leaf.

    Args:
        axis_names: mapped axes that leaves are cut over.
        coefficient: factor on the ratio.
        eps: added to the update's norm.
    """

    def norm(leaf: Array) -> Array:
        square = jnp.sum(jnp.square(leaf.astype(jnp.float32)))
        return jnp.sqrt(jax.lax.psum(square, tuple(axis_names)) if axis_names else square)

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        if params is None:
            raise InputError(
                "trust_ratio needs the parameters: call update(updates, state, params)."
            )

        def scaled(update: Array, parameter: Array) -> Array:
            size, length = norm(parameter), norm(update)
            ratio = coefficient * size / (length + eps)
            usable = (size > 0.0) & (length > 0.0)
            return (update * jnp.where(usable, ratio, 1.0)).astype(update.dtype)

        return jax.tree.map(scaled, updates, params), state

    return optax.GradientTransformation(optax.init_empty_state, update)
