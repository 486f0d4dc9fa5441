"""The post-norm text encoder that FNet, its hybrids and BERT share; they differ in their mixers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from trimtab.errors import InputError, ShapeError, unknown_name
from trimtab.kernels.fourier import fourier_mix_residual_norm
from trimtab.models.fourier_choice import choose_path
from trimtab.models.layers import (
    Embedding,
    FeedForward,
    LayerNorm,
    Linear,
    activation,
    dropout,
    normal,
)
from trimtab.models.mixing import (
    MIXERS,
    AttentionMixer,
    FourierMixer,
    HartleyMixer,
    IdentityMixer,
    LinearMixer,
    Mixer,
    Padding,
    RandomMixer,
)

Tree = TypeVar("Tree")
lecun_normal = jax.nn.initializers.lecun_normal()

SCALED = ("fourier", "hartley")
"""Mixers whose transform can be unnormalised or orthonormal."""


@dataclass(frozen=True)
class EncoderConfig:
    """The sizes and choices of an encoder.

    Args:
        vocabulary: number of word vectors.
        width: features of every layer.
        feed_forward: features between the two products of a feed-forward part.
        depth: number of layers.
        heads: attention heads, in the layers that attend.
        max_tokens: number of position vectors, the longest input.
        segments: number of segment vectors.
        mixers: one mixer name for all layers, or one a layer.
        embedding_width: features of the embeddings; ``width`` if None.
        projection: whether a linear layer follows the embeddings, as in FNet.
        activation: of the feed-forward part.
        dropout: after the embeddings and each feed-forward part, and on attention weights.
        attention_output_dropout: after the attention's output projection, as in BERT.
        epsilon: added to variances by the normalisations.
        padding_id: a word whose vector is zero and never trained, as in `transformers`.
        padding: ``"refuse"`` a mask in Fourier layers, or mix ``"exact"``\\ ly the true tokens.
        fourier_path: how Fourier layers compute; see :func:`trimtab.models.fourier_mix`.
        orthonormal: divide Fourier and Hartley mixing by the root of tokens times width.
        skip: weight of the residual beside a Fourier or Hartley layer's mixing.
        mixing_epsilon: epsilon of the normalisation after Fourier and Hartley mixing; ``epsilon``
            if None. It and ``skip`` are set by :func:`trimtab.models.conversion.orthonormal`.
    """

    vocabulary: int = 32_000
    width: int = 768
    feed_forward: int = 3072
    depth: int = 12
    heads: int = 12
    max_tokens: int = 512
    segments: int = 4
    mixers: str | tuple[str, ...] = "fourier"
    embedding_width: int | None = None
    projection: bool = True
    activation: str = "gelu_tanh"
    dropout: float = 0.1
    attention_output_dropout: float = 0.0
    epsilon: float = 1e-12
    padding_id: int | None = None
    padding: Padding = "refuse"
    fourier_path: str = "auto"
    orthonormal: bool = False
    skip: float = 1.0
    mixing_epsilon: float | None = None

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "feed_forward", "depth", "heads", "max_tokens"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"EncoderConfig.{name} must be at least 1, got {getattr(self, name)}."
                )
        for name in self.layer_mixers:
            if name not in MIXERS:
                raise unknown_name("mixer", name, MIXERS)
        if len(self.layer_mixers) != self.depth:
            raise InputError(
                f"{len(self.layer_mixers)} mixers were given for {self.depth} layers; give one "
                "name, or one a layer."
            )
        if self.padding not in ("refuse", "exact"):
            raise unknown_name("padding mode", self.padding, ("refuse", "exact"))
        if not self.projection and self.embedding_width not in (None, self.width):
            raise InputError(
                f"Embeddings of width {self.embedding_width} need projection=True to reach "
                f"{self.width}."
            )
        activation(self.activation)

    @property
    def layer_mixers(self) -> tuple[str, ...]:
        """The mixer's name in each layer."""
        return (self.mixers,) * self.depth if isinstance(self.mixers, str) else tuple(self.mixers)

    def replace(self, **changes: object) -> EncoderConfig:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]


def make_mixer(name: str, config: EncoderConfig, *, key: PRNGKeyArray) -> Mixer:
    """Build the mixer of one layer.

    Args:
        name: a key of :data:`trimtab.models.MIXERS`.
        config: gives the sizes.
        key: consumed by mixers with parameters.

    Raises:
        UnknownNameError: no such mixer.
    """
    if name not in MIXERS:
        raise unknown_name("mixer", name, MIXERS)
    kind = MIXERS[name]
    if kind is FourierMixer:
        return FourierMixer(config.fourier_path, config.padding, config.orthonormal)
    if kind is HartleyMixer:
        return HartleyMixer(config.orthonormal)
    if kind is LinearMixer:
        return LinearMixer(config.max_tokens, config.width, key=key)
    if kind is RandomMixer:
        return RandomMixer(config.max_tokens, config.width, key=key)
    if kind is AttentionMixer:
        return AttentionMixer(
            config.width,
            config.heads,
            weight_dropout=config.dropout,
            output_dropout=config.attention_output_dropout,
            key=key,
        )
    return IdentityMixer()


class Embeddings(eqx.Module):
    """Sum of word, position and segment vectors, normalised and (in FNet) projected."""

    word: Embedding
    position: Embedding
    segment: Embedding
    norm: LayerNorm
    projection: Linear | None
    dropout: float = eqx.field(static=True)

    def __init__(self, config: EncoderConfig, *, key: PRNGKeyArray) -> None:
        """Draw the tables.

        Args:
            config: gives the sizes.
            key: consumed.
        """
        word_key, position_key, segment_key, projection_key = jax.random.split(key, 4)
        width = config.embedding_width or config.width
        self.word = Embedding(config.vocabulary, width, frozen_row=config.padding_id, key=word_key)
        self.position = Embedding(config.max_tokens, width, key=position_key)
        self.segment = Embedding(config.segments, width, key=segment_key)
        self.norm = LayerNorm(width, epsilon=config.epsilon)
        self.projection = (
            Linear(width, config.width, weight_init=lecun_normal, key=projection_key)
            if config.projection
            else None
        )
        self.dropout = config.dropout

    def __call__(
        self,
        ids: Int[Array, " tokens"],
        segments: Int[Array, " tokens"] | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "tokens width"]:
        """Embed one example.

        Raises:
            ShapeError: more tokens than position vectors.
        """
        tokens, limit = ids.shape[0], self.position.weight.shape[0]
        if tokens > limit:
            raise ShapeError(
                f"An input of {tokens} tokens is longer than the encoder's {limit} positions; "
                "shorten it, or build the encoder with a larger max_tokens."
            )
        segment = jnp.zeros_like(ids) if segments is None else segments
        parts = (self.word(ids), self.position.weight[:tokens], self.segment(segment))
        # Small numbers that a normalisation is about to enlarge: sum them with all digits.
        hidden = self.norm(parts[0].astype(jnp.float32) + parts[1] + parts[2])
        if self.projection is not None:
            hidden = self.projection(hidden)
        return dropout(hidden, self.dropout, key)


class EncoderLayer(eqx.Module):
    """Mix, add, normalise; feed forward, add, normalise.

    ``skip`` weighs the residual beside the mixing's output; it is 1 unless
    :func:`trimtab.models.conversion.orthonormal` rescaled the layer.
    """

    mixer: Mixer
    mixing_norm: LayerNorm
    feed_forward: FeedForward
    output_norm: LayerNorm
    dropout: float = eqx.field(static=True)
    skip: float = eqx.field(static=True, default=1.0)

    def __call__(
        self,
        hidden: Float[Array, "tokens width"],
        *,
        mask: Bool[Array, " tokens"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "tokens width"]:
        """Apply the layer to one example; a key turns dropout on."""
        mixer_key, output_key = (None, None) if key is None else jax.random.split(key)
        if mask is None and self._mixes_natively(hidden):
            hidden = self._mix_and_normalise(hidden)
        else:
            mixed = self.mixer(hidden, mask=mask, key=mixer_key)
            residual = hidden if self.skip == 1.0 else hidden * self.skip
            hidden = self.mixing_norm(residual + mixed)
        wide = dropout(self.feed_forward(hidden), self.dropout, output_key)
        return self.output_norm(hidden + wide)

    def _mixes_natively(self, hidden: Array) -> bool:
        mixer = self.mixer
        if not isinstance(mixer, FourierMixer) or hidden.dtype != self.mixing_norm.weight.dtype:
            return False
        length, dim = hidden.shape
        return hidden.dtype != jnp.float64 and choose_path(length, dim, mixer.path) == "native"

    def _mix_and_normalise(self, hidden: Array) -> Array:
        """The first half of the layer in one native call.

        Its residual has weight 1, so the whole sum is divided by ``skip``, which the normalisation
        undoes if epsilon is divided by its square.
        """
        norm, mixer = self.mixing_norm, self.mixer
        scale = (hidden.shape[0] * hidden.shape[1]) ** -0.5
        factor = scale if isinstance(mixer, FourierMixer) and mixer.orthonormal else 1.0
        return fourier_mix_residual_norm(
            hidden,
            norm.weight,
            norm.bias,
            factor=factor / self.skip,
            epsilon=norm.epsilon / self.skip**2,
        )


class EncoderOutput(NamedTuple):
    """What an encoder returns for one example."""

    hidden: Float[Array, "tokens width"]
    """The last layer's vectors."""
    pooled: Float[Array, " width"]
    """``tanh`` of a linear layer of the first token's vector."""


class Encoder(eqx.Module):
    """Embeddings, layers and pooler. Maps one example; use `jax.vmap` for a batch."""

    embeddings: Embeddings
    layers: tuple[EncoderLayer, ...]
    pooler: Linear
    config: EncoderConfig = eqx.field(static=True)

    def __init__(self, config: EncoderConfig, *, key: PRNGKeyArray) -> None:
        """Draw the parameters.

        Args:
            config: sizes and choices.
            key: consumed.
        """
        embedding_key, pooler_key, *layer_keys = jax.random.split(key, 2 + config.depth)
        self.embeddings = Embeddings(config, key=embedding_key)
        self.layers = tuple(
            _layer(name, config, layer_key)
            for name, layer_key in zip(config.layer_mixers, layer_keys)
        )
        self.pooler = Linear(config.width, config.width, key=pooler_key)
        self.config = config

    def __call__(
        self,
        ids: Int[Array, " tokens"],
        segments: Int[Array, " tokens"] | None = None,
        *,
        attention_mask: Bool[Array, " tokens"] | Int[Array, " tokens"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> EncoderOutput:
        """Encode one example.

        Args:
            ids: word indices.
            segments: segment indices; all zero if None.
            attention_mask: 1 at true tokens, 0 at padding, which must be at the end. Attention
                layers mask the padding; Fourier layers raise unless built with
                ``padding="exact"``, since padding changes every output of a plain transform.
            key: turns dropout on.

        Returns:
            hidden vectors and the pooled first one.

        Raises:
            InputError: a mask was given to mixers that cannot honour it.
            ShapeError: the input is longer than the position table.
        """
        embedding_key, *layer_keys = (
            [None] * (1 + len(self.layers))
            if key is None
            else jax.random.split(key, 1 + len(self.layers))
        )
        mask = None if attention_mask is None else attention_mask.astype(bool)
        hidden = self.embeddings(ids, segments, key=embedding_key)
        for layer, layer_key in zip(self.layers, layer_keys):
            hidden = layer(hidden, mask=mask, key=layer_key)
        return EncoderOutput(hidden, jnp.tanh(self.pooler(hidden[0])))


def _layer(name: str, config: EncoderConfig, key: PRNGKeyArray) -> EncoderLayer:
    mixer_key, feed_forward_key = jax.random.split(key)
    skip, epsilon = mixing_constants(name, config)
    return EncoderLayer(
        mixer=make_mixer(name, config, key=mixer_key),
        mixing_norm=LayerNorm(config.width, epsilon=epsilon),
        feed_forward=FeedForward(
            config.width, config.feed_forward, activation=config.activation, key=feed_forward_key
        ),
        output_norm=LayerNorm(config.width, epsilon=config.epsilon),
        dropout=config.dropout,
        skip=skip,
    )


def mixing_constants(name: str, config: EncoderConfig) -> tuple[float, float]:
    """Return the residual's weight and the normalisation's epsilon around a mixer."""
    if name not in SCALED:
        return 1.0, config.epsilon
    own = config.mixing_epsilon
    return config.skip, config.epsilon if own is None else own


class MaskedTokenHead(eqx.Module):
    """Scores over the vocabulary, tied to the word table: linear, GELU, normalise, project."""

    transform: Linear
    norm: LayerNorm
    bias: Float[Array, " vocabulary"]
    activation: str = eqx.field(static=True)

    def __init__(self, config: EncoderConfig, *, key: PRNGKeyArray) -> None:
        """Draw the parameters.

        Args:
            config: gives the sizes.
            key: consumed.
        """
        transform_key, bias_key = jax.random.split(key)
        width = config.embedding_width or config.width
        self.transform = Linear(config.width, width, key=transform_key)
        self.norm = LayerNorm(width, epsilon=config.epsilon)
        self.bias = normal(bias_key, (config.vocabulary,), jnp.dtype(jnp.float32))
        self.activation = config.activation

    def __call__(
        self, hidden: Float[Array, "*lead width"], words: Float[Array, "vocabulary embedding"]
    ) -> Float[Array, "*lead vocabulary"]:
        """Return logits for the vectors, given the encoder's word table."""
        return self.norm(activation(self.activation)(self.transform(hidden))) @ words.T + self.bias


class PretrainingModel(eqx.Module):
    """An encoder with the heads of its two pre-training tasks."""

    encoder: Encoder
    masked_tokens: MaskedTokenHead
    order: Linear

    def __init__(self, config: EncoderConfig, *, key: PRNGKeyArray) -> None:
        """Draw the parameters.

        Args:
            config: sizes and choices of the encoder.
            key: consumed.
        """
        encoder_key, head_key, order_key = jax.random.split(key, 3)
        self.encoder = Encoder(config, key=encoder_key)
        self.masked_tokens = MaskedTokenHead(config, key=head_key)
        self.order = Linear(config.width, 2, bias_init=normal, key=order_key)

    def __call__(
        self,
        ids: Int[Array, " tokens"],
        segments: Int[Array, " tokens"] | None = None,
        positions: Int[Array, " predictions"] | None = None,
        *,
        attention_mask: Bool[Array, " tokens"] | Int[Array, " tokens"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "predictions vocabulary"], Float[Array, " orders"]]:
        """Return the logits of both tasks for one example.

        Args:
            ids: word indices, some of them masked.
            segments: segment indices.
            positions: where to predict a word; everywhere if None.
            attention_mask: as for :class:`Encoder`.
            key: turns dropout on.
        """
        hidden, pooled = self.encoder(ids, segments, attention_mask=attention_mask, key=key)
        chosen = hidden if positions is None else hidden[positions]
        logits = self.masked_tokens(chosen, self.encoder.embeddings.word.weight)
        return logits, self.order(pooled)


class Classifier(eqx.Module):
    """An encoder with a fresh linear layer on its pooled vector."""

    encoder: Encoder
    classification: Linear

    def __init__(self, encoder: Encoder, classes: int, *, key: PRNGKeyArray) -> None:
        """Put a head on an encoder, pre-trained or not.

        Args:
            encoder: kept as it is.
            classes: number of outputs; 1 for regression.
            key: consumed.
        """
        self.encoder = encoder
        self.classification = Linear(encoder.config.width, classes, bias_init=normal, key=key)

    def __call__(
        self,
        ids: Int[Array, " tokens"],
        segments: Int[Array, " tokens"] | None = None,
        *,
        attention_mask: Bool[Array, " tokens"] | Int[Array, " tokens"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, " classes"]:
        """Return the class logits of one example; arguments as for :class:`Encoder`."""
        pooled = self.encoder(ids, segments, attention_mask=attention_mask, key=key).pooled
        return self.classification(pooled)


def trainable(model: PyTree) -> PyTree:
    """Return a tree of booleans: True at arrays to train, False at a random mixer's matrices.

    Pass it to `equinox.partition` or to an optimizer mask, since weight decay would otherwise
    shrink matrices that get no gradient.
    """

    def mark(node: PyTree) -> PyTree:
        if isinstance(node, RandomMixer):
            return jax.tree.map(lambda _: False, node)
        return eqx.is_inexact_array(node)

    return jax.tree.map(mark, model, is_leaf=lambda node: isinstance(node, RandomMixer))


def cast(model: Tree, dtype: str | jnp.dtype | type) -> Tree:
    """Return the model with its floating-point arrays in another type, such as bfloat16.

    Normalisation statistics, mixing and softmax stay in float32 inside.
    """
    return jax.tree.map(lambda a: a.astype(dtype) if eqx.is_inexact_array(a) else a, model)
