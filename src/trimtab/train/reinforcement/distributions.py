"""Distributions over actions, from what a network's policy head gives."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from trimtab.envs.sampling import is_joint
from trimtab.envs.specs import DiscreteArray, MultiDiscreteArray
from trimtab.errors import ShapeError

_LOWEST = jnp.finfo(jnp.float32).min
_EDGE = 0.999


@runtime_checkable
class Distribution(Protocol):
    """A distribution over one (unbatched) action."""

    def sample(self, key: Array) -> Array:
        """Draw an action."""
        ...

    def mode(self) -> Array:
        """The most likely action."""
        ...

    def log_prob(self, action: Array) -> Array:
        """Logarithm of an action's probability (density)."""
        ...

    def entropy(self) -> Array:
        """Entropy in nats."""
        ...


class Categorical(eqx.Module):
    """Independent choices among the last axis; an action of one choice has no axis."""

    logits: Array

    def sample(self, key: Array) -> Array:
        """Draw by the Gumbel maximum."""
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def mode(self) -> Array:
        """The largest logits."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    def log_prob(self, action: Array) -> Array:
        """Sum over choices."""
        logs = jax.nn.log_softmax(self.logits)
        chosen = jnp.take_along_axis(logs, action[..., None].astype(jnp.int32), axis=-1)
        return chosen.sum()

    def entropy(self) -> Array:
        """Sum over choices."""
        logs = jax.nn.log_softmax(self.logits)
        return -jnp.where(self.logits > _LOWEST, jnp.exp(logs) * logs, 0.0).sum()


class Factorised(eqx.Module):
    """One choice among all combinations of several components."""

    logits: Array

    def _flat(self) -> Categorical:
        return Categorical(self.logits.reshape(-1))

    def _components(self, flat: Array) -> Array:
        return jnp.stack(jnp.unravel_index(flat, self.logits.shape)).astype(jnp.int32)

    def sample(self, key: Array) -> Array:
        """Draw a combination."""
        return self._components(self._flat().sample(key))

    def mode(self) -> Array:
        """The most likely combination."""
        return self._components(self._flat().mode())

    def log_prob(self, action: Array) -> Array:
        """Logarithm of the combination's probability."""
        index = tuple(action[part] for part in range(self.logits.ndim))
        flat = jnp.ravel_multi_index(index, self.logits.shape, mode="clip")
        return self._flat().log_prob(flat)

    def entropy(self) -> Array:
        """Entropy of the combination."""
        return self._flat().entropy()


class SquashedNormal(eqx.Module):
    """Normal variables through the hyperbolic tangent, clipped just inside (-1, 1)."""

    mean: Array
    log_deviation: Array

    def sample(self, key: Array) -> Array:
        """Draw and squash."""
        noise = jax.random.normal(key, self.mean.shape)
        squashed = jnp.tanh(self.mean + jnp.exp(self.log_deviation) * noise)
        return jnp.clip(squashed, -_EDGE, _EDGE)

    def mode(self) -> Array:
        """The squashed mean."""
        return jnp.tanh(self.mean)

    def log_prob(self, action: Array) -> Array:
        """Density by the change of variables."""
        raw = jnp.arctanh(jnp.clip(action, -_EDGE, _EDGE))
        scaled = (raw - self.mean) * jnp.exp(-self.log_deviation)
        normal = -0.5 * jnp.square(scaled) - self.log_deviation - 0.5 * jnp.log(2 * jnp.pi)
        return (normal - jnp.log1p(-jnp.square(jnp.tanh(raw)) + 1e-6)).sum()

    def entropy(self) -> Array:
        """That of the normal variables, an upper bound of the squashed one."""
        half = 0.5 * (1 + jnp.log(2 * jnp.pi))
        return jnp.broadcast_to(half + self.log_deviation, self.mean.shape).sum()


def action_distribution(spec: Any, head: Any, mask: Array | None) -> Distribution:
    """The distribution that fits an action spec.

    Args:
        spec: the environment's action spec.
        head: logits of the shape of the mask, or ``(mean, log_deviation)`` for real actions.
        mask: true where legal; None allows everything.
    """
    if not isinstance(spec, DiscreteArray | MultiDiscreteArray):
        return SquashedNormal(*head)
    if mask is not None:
        if head.shape != mask.shape:
            raise ShapeError(f"The policy gave logits {head.shape} for a mask {mask.shape}.")
        head = jnp.where(mask, head, _LOWEST)
    if isinstance(spec, MultiDiscreteArray) and is_joint(spec, head):
        return Factorised(head)
    return Categorical(head)
