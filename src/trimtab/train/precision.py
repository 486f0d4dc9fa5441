"""Which element types a step computes in, and the scale that keeps small gradients alive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Scalar

from trimtab.errors import unknown_name


@dataclass(frozen=True)
class Precision:
    """Element types of one training step.

    Args:
        compute: type of parameters and inputs inside the loss; parameters stay in their own type
            outside, and gradients come back in that type.
        initial_scale: factor on the loss before differentiation; 1 means no scaling.
        dynamic: halve the scale after a step with a non-finite gradient and double it after
            ``growth_interval`` good ones; a bad step changes nothing else.
        growth_interval: good steps between two doublings.
    """

    compute: Any = jnp.float32
    initial_scale: float = 1.0
    dynamic: bool = False
    growth_interval: int = 2000

    def cast(self, tree: Any) -> Any:
        """Return ``tree`` with its floating-point arrays in the compute type."""
        return jax.tree.map(
            lambda leaf: (
                leaf.astype(self.compute)
                if eqx.is_inexact_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)
                else leaf
            ),
            tree,
        )


# Name in configuration files -> precision. Half precision alone needs a scale: its smallest
# normal number is 6e-5, while bfloat16 has the exponent range of float32.
PRECISIONS = {
    "float32": Precision(),
    "bfloat16": Precision(compute=jnp.bfloat16),
    "float16": Precision(compute=jnp.float16, initial_scale=2.0**15, dynamic=True),
}


def precision_named(name: str) -> Precision:
    """Return the precision called ``name``.

    Raises:
        UnknownNameError: no precision has that name.
    """
    if name not in PRECISIONS:
        raise unknown_name("precision", name, PRECISIONS)
    return PRECISIONS[name]


class LossScale(eqx.Module):
    """The loss scale in use and how many good steps it has seen."""

    value: Scalar
    good_steps: Scalar


def initial_loss_scale(precision: Precision) -> LossScale:
    """Return the loss scale that training starts with."""
    return LossScale(jnp.asarray(precision.initial_scale, jnp.float32), jnp.asarray(0, jnp.int32))


def adjusted_loss_scale(scale: LossScale, finite: Scalar, precision: Precision) -> LossScale:
    """Return the loss scale for the next step.

    Args:
        scale: the scale used in this step.
        finite: whether every gradient of this step was finite.
        precision: the rule; without ``dynamic`` the scale stays.
    """
    if not precision.dynamic:
        return scale
    good_steps = jnp.where(finite, scale.good_steps + 1, 0)
    grow = good_steps >= precision.growth_interval
    value = jnp.where(finite, jnp.where(grow, scale.value * 2, scale.value), scale.value / 2)
    return LossScale(jnp.clip(value, 1.0, 2.0**24), jnp.where(grow, 0, good_steps))
