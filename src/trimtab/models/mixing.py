"""Ways for the tokens of a sequence to see one another, all behind one interface.

A :class:`Mixer` maps (tokens, width) to the same shape and is followed by a residual sum and a
normalisation. Fourier and Hartley have no parameters, linear has two square matrices, random has
the same two fixed, identity does not mix, attention is the transformer's.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from trimtab.errors import InputError, ShapeError, UnsupportedError, unknown_name
from trimtab.models.fourier import fourier_mix, hartley_mix, ragged_fourier_mix
from trimtab.models.layers import Linear, dropout, normal

Padding = Literal["refuse", "exact"]


class Mixer(eqx.Module):
    """The interface of a mixing sublayer."""

    @abc.abstractmethod
    def __call__(
        self,
        x: Float[Array, "tokens width"],
        *,
        mask: Bool[Array, " tokens"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "tokens width"]:
        """Mix one example.

        Args:
            x: the tokens' vectors.
            mask: True at true tokens, False at padding; None if every token is true.
            key: turns dropout inside the mixer on.

        Returns:
            the mixed tokens, without the residual.
        """


class FourierMixer(Mixer):
    """The real part of the 2-D discrete Fourier transform; see :func:`fourier_mix`.

    Padding is part of the signal: it changes every output. With ``padding="refuse"`` a mask is an
    error; with ``"exact"`` each example is transformed over its true length, so padding has no
    influence at all.
    """

    path: str = eqx.field(static=True, default="auto")
    padding: Padding = eqx.field(static=True, default="refuse")
    orthonormal: bool = eqx.field(static=True, default=False)

    def __call__(
        self,
        x: Float[Array, "tokens width"],
        *,
        mask: Bool[Array, " tokens"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "tokens width"]:
        """Mix in float32; ``orthonormal`` divides by ``√(tokens · width)``.

        Raises:
            InputError: a mask was given and ``padding`` is ``"refuse"``.
        """
        if mask is None:
            return fourier_mix(x, path=self.path) * self._scale(x.shape[0], x.shape[1])
        _refuse_mask("Fourier", self.padding)
        length = jnp.maximum(1, jnp.sum(mask, dtype=jnp.int32))
        return ragged_fourier_mix(x, length) * self._scale(length, x.shape[1])

    def _scale(self, tokens: int | Array, width: int) -> Array | float:
        if not self.orthonormal:
            return 1.0
        return jax.lax.rsqrt(jnp.asarray(tokens, jnp.float32) * width)


class HartleyMixer(Mixer):
    """The 2-D Hartley transform; unlike the Fourier mixer it loses nothing of its input."""

    orthonormal: bool = eqx.field(static=True, default=False)

    def __call__(
        self,
        x: Float[Array, "tokens width"],
        *,
        mask: Bool[Array, " tokens"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "tokens width"]:
        """Mix in float32.

        Raises:
            InputError: a mask was given.
        """
        if mask is not None:
            _refuse_mask("Hartley", "refuse")
        scale = (x.shape[0] * x.shape[1]) ** -0.5 if self.orthonormal else 1.0
        return hartley_mix(x) * scale


class LinearMixer(Mixer):
    """Learned square matrices over tokens and over features: ``W_tokens x W_width``.

    The token matrix ties the mixer to one length: shorter sequences must be padded to it.
    """

    token_weight: Float[Array, "tokens tokens"]
    width_weight: Float[Array, "width width"]

    def __init__(self, tokens: int, width: int, *, key: PRNGKeyArray) -> None:
        """Draw both matrices from a normal distribution of deviation 0.02.

        Args:
            tokens: the only sequence length that is accepted.
            width: the feature width.
            key: consumed.
        """
        token_key, width_key = jax.random.split(key)
        dtype = jnp.dtype(jnp.float32)
        self.token_weight = normal(token_key, (tokens, tokens), dtype)
        self.width_weight = normal(width_key, (width, width), dtype)

    def __call__(
        self,
        x: Float[Array, "tokens width"],
        *,
        mask: Bool[Array, " tokens"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "tokens width"]:
        """Multiply from both sides.

        Raises:
            ShapeError: not exactly the length that the mixer was built for.
            InputError: a mask was given.
        """
        if mask is not None:
            _refuse_mask("linear", "refuse")
        return _both_sides(x, self.token_weight, self.width_weight, "linear")


class RandomMixer(Mixer):
    """The linear mixer with fixed LeCun-normal matrices: they get no gradient.

    Leave them out of weight decay too: see :func:`trimtab.models.encoder.trainable`.
    """

    token_weight: Float[Array, "tokens tokens"]
    width_weight: Float[Array, "width width"]

    def __init__(self, tokens: int, width: int, *, key: PRNGKeyArray) -> None:
        """Draw both matrices.

        Args:
            tokens: the only sequence length that is accepted.
            width: the feature width.
            key: consumed.
        """
        width_key, token_key = jax.random.split(key)
        draw = jax.nn.initializers.lecun_normal()
        dtype = jnp.dtype(jnp.float32)
        self.token_weight = draw(token_key, (tokens, tokens), dtype)
        self.width_weight = draw(width_key, (width, width), dtype)

    def __call__(
        self,
        x: Float[Array, "tokens width"],
        *,
        mask: Bool[Array, " tokens"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "tokens width"]:
        """Multiply from both sides.

        Raises:
            ShapeError: not exactly the length that the mixer was built for.
            InputError: a mask was given.
        """
        if mask is not None:
            _refuse_mask("random", "refuse")
        fixed = jax.lax.stop_gradient((self.token_weight, self.width_weight))
        return _both_sides(x, *fixed, "random")


class IdentityMixer(Mixer):
    """No mixing: the layer keeps only its feed-forward part (the paper's "FF-only")."""

    def __call__(
        self,
        x: Float[Array, "tokens width"],
        *,
        mask: Bool[Array, " tokens"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "tokens width"]:
        """Return the input."""
        return x


class AttentionMixer(Mixer):
    """Multi-head self-attention with biases, its output projection and dropout on the weights."""

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    heads: int = eqx.field(static=True)
    weight_dropout: float = eqx.field(static=True)
    output_dropout: float = eqx.field(static=True)

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        weight_dropout: float = 0.1,
        output_dropout: float = 0.0,
        key: PRNGKeyArray,
    ) -> None:
        """Draw four square projections.

        Args:
            width: the feature width.
            heads: number of heads, a divisor of ``width``.
            weight_dropout: dropout on the attention weights.
            output_dropout: dropout after the output projection.
            key: consumed.

        Raises:
            ShapeError: ``heads`` does not divide ``width``.
        """
        if width % heads:
            raise ShapeError(f"{heads} heads do not divide the width {width}; pass a divisor.")
        keys = jax.random.split(key, 4)
        self.query, self.key, self.value, self.output = (
            Linear(width, width, bias_init=normal, key=k) for k in keys
        )
        self.heads = heads
        self.weight_dropout = weight_dropout
        self.output_dropout = output_dropout

    def __call__(
        self,
        x: Float[Array, "tokens width"],
        *,
        mask: Bool[Array, " tokens"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "tokens width"]:
        """Attend from every token to every true token."""
        weight_key, output_key = (None, None) if key is None else jax.random.split(key)
        query, key_, value = (
            layer(x).reshape(x.shape[0], self.heads, -1).swapaxes(0, 1)
            for layer in (self.query, self.key, self.value)
        )
        scores = query @ key_.swapaxes(1, 2) * (query.shape[-1] ** -0.5)
        if mask is not None:
            scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
        weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(x.dtype)
        weights = dropout(weights, self.weight_dropout, weight_key)
        attended = (weights @ value).swapaxes(0, 1).reshape(x.shape)
        return dropout(self.output(attended), self.output_dropout, output_key)


MIXERS: dict[str, type[Mixer]] = {
    "fourier": FourierMixer,
    "hartley": HartleyMixer,
    "linear": LinearMixer,
    "random": RandomMixer,
    "identity": IdentityMixer,
    "attention": AttentionMixer,
}

LAYOUTS = ("top", "bottom", "middle", "mixed")


def attention_layers(depth: int, attention: int, layout: str = "top") -> tuple[int, ...]:
    """Return which layers of a hybrid have attention.

    Args:
        depth: number of layers.
        attention: number of attention layers asked for.
        layout: ``"top"`` (the last ones), ``"bottom"``, ``"middle"`` or ``"mixed"`` (evenly
            spread: every ``depth // attention``-th, which is more than asked for where
            ``attention`` does not divide ``depth``).

    Raises:
        InputError: ``attention`` is negative or above ``depth``.
        UnknownNameError: no such layout.
    """
    if layout not in LAYOUTS:
        raise unknown_name("attention layout", layout, LAYOUTS)
    if not 0 <= attention <= depth:
        raise InputError(
            f"A {depth}-layer encoder can have 0 to {depth} attention layers, not {attention}."
        )
    if attention == 0:
        return ()
    chosen = {
        "top": lambda layer: layer >= depth - attention,
        "bottom": lambda layer: layer < attention,
        "middle": lambda layer: depth - attention <= 2 * layer < depth + attention,
        "mixed": lambda layer: layer % (depth // attention) == 0,
    }[layout]
    return tuple(layer for layer in range(depth) if chosen(layer))


def hybrid(
    depth: int,
    attention: int | Sequence[int] = 2,
    layout: str = "top",
    *,
    base: str = "fourier",
) -> tuple[str, ...]:
    """Return one mixer name a layer, with attention in some of them (the paper's FNet-Hybrid).

    Args:
        depth: number of layers.
        attention: how many attention layers, or exactly which ones.
        layout: where they go if only their number is given.
        base: the mixer of all other layers.

    Raises:
        InputError: a layer index is out of range.
        UnknownNameError: no such layout or mixer.

    >>> hybrid(4, 2)
    ('fourier', 'fourier', 'attention', 'attention')
    """
    if base not in MIXERS:
        raise unknown_name("mixer", base, MIXERS)
    if isinstance(attention, int):
        layers = attention_layers(depth, attention, layout)
    else:
        layers = tuple(attention)
        bad = [layer for layer in layers if not 0 <= layer < depth]
        if bad:
            raise InputError(
                f"A {depth}-layer encoder has no layer {bad[0]}; pass 0 to {depth - 1}."
            )
    return tuple("attention" if layer in layers else base for layer in range(depth))


def _both_sides(x: Array, tokens: Array, width: Array, kind: str) -> Array:
    if x.shape[0] != tokens.shape[0]:
        raise ShapeError(
            f"A {kind} mixer built for {tokens.shape[0]} tokens got {x.shape[0]}; pad the sequence "
            f"to {tokens.shape[0]} or build the encoder with max_tokens={x.shape[0]}."
        )
    return tokens @ (x @ width)


def _refuse_mask(kind: str, padding: Padding) -> None:
    if padding == "exact":
        return
    if kind == "Fourier":
        raise InputError(
            "Fourier mixing has no mask: padding would change every output. Leave attention_mask "
            "out and pad as in training, or build the encoder with padding='exact' to transform "
            "each example over its true length."
        )
    raise UnsupportedError(
        f"A {kind} mixer cannot leave padding out: leave attention_mask out and pad every example "
        "as in training."
    )
