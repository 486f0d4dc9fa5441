"""One decoder for every supported family; the configuration says which parts are there."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from trimtab.models.decoder.attention import Attention, LayerCache
from trimtab.models.decoder.cache import KVCache
from trimtab.models.decoder.config import DecoderConfig
from trimtab.models.decoder.linear import Matrix, RMSNorm, linear_from_tensor
from trimtab.models.decoder.weights import Tensor, check_tensors, parameter_shapes

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}


class FeedForward(eqx.Module):
    """Gated feed-forward layer: ``down(act(gate x) * up x)``."""

    gate: Matrix
    up: Matrix
    down: Matrix
    sub_norm: RMSNorm | None
    activation: str = eqx.field(static=True)

    def __call__(self, x: Float[Array, "chunk hidden"]) -> Float[Array, "chunk hidden"]:
        inner = ACTIVATIONS[self.activation](self.gate(x)) * self.up(x)
        return self.down(inner if self.sub_norm is None else self.sub_norm(inner))


class Block(eqx.Module):
    """Attention and feed-forward layer with their residual connections."""

    attention_norm: RMSNorm
    attention: Attention
    post_attention_norm: RMSNorm | None
    feed_forward_norm: RMSNorm
    feed_forward: FeedForward
    post_feed_forward_norm: RMSNorm | None

    def __call__(
        self,
        x: Float[Array, "chunk hidden"],
        positions: Int[Array, " chunk"],
        cache: LayerCache | None,
        count: Int[Array, ""],
    ) -> tuple[Float[Array, "chunk hidden"], LayerCache | None]:
        mixed, cache = self.attention(self.attention_norm(x), positions, cache, count)
        x = x + (mixed if self.post_attention_norm is None else self.post_attention_norm(mixed))
        inner = self.feed_forward(self.feed_forward_norm(x))
        if self.post_feed_forward_norm is not None:
            inner = self.post_feed_forward_norm(inner)
        return x + inner, cache


class Decoder(eqx.Module):
    """A decoder-only language model.

    ``decoder(tokens)`` gives logits of whole sequences, for training and capture; :meth:`extend`
    continues sequences held in a :class:`KVCache`, for generation. All leaves are arrays, so the
    module is an argument of ``jax.jit`` and ``jax.grad`` as it stands.

    >>> config = DecoderConfig(vocabulary=8, hidden=4, feed_forward=8, layers=1, heads=2,
    ...                        kv_heads=1, head_dim=2)
    >>> Decoder.initialize(config, key=jax.random.key(0))(jnp.zeros((1, 3), int)).shape
    (1, 3, 8)

    Attributes:
        embedding: token embeddings, also the head when there is none.
        blocks: the layers.
        final_norm: RMSNorm before the head.
        head: output matrix, or None when tied to the embedding.
        config: sizes and switches.
        dtype: element type of activations; norms, rotations and softmax use float32 anyway.
    """

    embedding: Matrix
    blocks: tuple[Block, ...]
    final_norm: RMSNorm
    head: Matrix | None
    config: DecoderConfig = eqx.field(static=True)
    dtype: str = eqx.field(static=True, default="float32")

    def __call__(
        self, tokens: Int[Array, "batch sequence"]
    ) -> Float[Array, "batch sequence vocab"]:
        """Return the logits after every token.

        Args:
            tokens: token ids, each row one sequence from position 0.
        """
        positions = jnp.arange(tokens.shape[1])
        count = jnp.asarray(tokens.shape[1])
        x = self.embed(tokens)
        for block in self.blocks:
            x = jax.vmap(lambda row, block=block: block(row, positions, None, count)[0])(x)
        return self.logits(self.final_norm(x))

    def embed(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch hidden"]:
        """Return scaled token embeddings in the compute type."""
        return (self.embedding.rows(tokens) * self.config.embedding_scale).astype(self.dtype)

    def extend(
        self,
        tokens: Int[Array, "slots chunk"],
        starts: Int[Array, " slots"],
        counts: Int[Array, " slots"],
        cache: KVCache,
    ) -> tuple[Float[Array, "slots chunk hidden"], KVCache]:
        """Run a chunk of every sequence and store its keys and values.

        Args:
            tokens: the next tokens of each slot, padded on the right.
            starts: position of each slot's first token here.
            counts: how many of a slot's tokens are real; 0 leaves the slot untouched.
            cache: keys and values so far; donate it.

        Returns:
            Hidden states after the final norm (rows of padding are meaningless), and the cache.
        """
        positions = starts[:, None] + jnp.arange(tokens.shape[1])
        x = self.embed(tokens)
        keys, values = [], []
        for layer, block in enumerate(self.blocks):
            x, stored = jax.vmap(block)(
                x, positions, (cache.keys[layer], cache.values[layer]), counts
            )
            assert stored is not None
            keys.append(stored[0])
            values.append(stored[1])
        return self.final_norm(x), KVCache(tuple(keys), tuple(values))

    def logits(self, hidden: Float[Array, "*batch hidden"]) -> Float[Array, "*batch vocab"]:
        """Return float32 logits of final hidden states."""
        head = self.embedding if self.head is None else self.head
        return head(hidden).astype(jnp.float32) * self.config.logit_scale

    @staticmethod
    def from_tensors(
        config: DecoderConfig, tensors: Mapping[str, Tensor], *, dtype: str = "float32"
    ) -> Decoder:
        """Build a decoder over stored tensors; packed ones stay packed.

        Args:
            config: sizes and switches.
            tensors: parameter name -> tensor, named as in :func:`parameter_shapes`.
            dtype: element type of activations.

        Raises:
            FileFormatError: a tensor is missing or has the wrong shape.
        """
        check_tensors(config, tensors)

        def matrix(name: str) -> Matrix:
            return linear_from_tensor(
                tensors[f"{name}/weight"],
                tensors.get(f"{name}/bias"),
                quantize_activations=config.quantize_activations,
            )

        def norm(name: str) -> RMSNorm | None:
            stored = tensors.get(f"{name}/weight")
            if stored is None:
                return None
            return RMSNorm(jnp.asarray(stored.float32()), config.norm_epsilon)

        return _assemble(config, matrix, norm, dtype)

    @staticmethod
    def initialize(config: DecoderConfig, *, key: PRNGKeyArray, dtype: str = "float32") -> Decoder:
        """Return a decoder with random float32 weights of standard deviation 0.02.

        Args:
            config: sizes and switches.
            key: consumed.
            dtype: element type of activations.
        """
        return Decoder.from_tensors(config, random_tensors(config, key=key), dtype=dtype)


def random_tensors(config: DecoderConfig, *, key: PRNGKeyArray) -> dict[str, Tensor]:
    """Return dense float32 tensors drawn for a new model; norms are ones, biases zeros."""
    shapes = list(parameter_shapes(config))
    tensors = {}
    for (name, shape), weight_key in zip(shapes, jax.random.split(key, len(shapes)), strict=True):
        if name.endswith("bias"):
            data = np.zeros(shape, np.float32)
        elif len(shape) == 1:
            data = np.ones(shape, np.float32)
        else:
            data = np.asarray(0.02 * jax.random.normal(weight_key, shape, jnp.float32))
        tensors[name] = Tensor("f32", data, shape)
    return tensors


def _assemble(
    config: DecoderConfig,
    matrix: Callable[[str], Matrix],
    norm: Callable[[str], RMSNorm | None],
    dtype: str,
) -> Decoder:
    def required(name: str) -> RMSNorm:
        found = norm(name)
        assert found is not None, name
        return found

    def block(layer: int) -> Block:
        here = f"blocks/{layer}"
        inner = f"{here}/attention"
        attention = Attention(
            query=matrix(f"{inner}/query"),
            key=matrix(f"{inner}/key"),
            value=matrix(f"{inner}/value"),
            output=matrix(f"{inner}/output"),
            query_norm=norm(f"{inner}/query_norm"),
            key_norm=norm(f"{inner}/key_norm"),
            sub_norm=norm(f"{inner}/sub_norm"),
            config=config,
            window=config.layer_windows[layer],
        )
        feed_forward = FeedForward(
            gate=matrix(f"{here}/feed_forward/gate"),
            up=matrix(f"{here}/feed_forward/up"),
            down=matrix(f"{here}/feed_forward/down"),
            sub_norm=norm(f"{here}/feed_forward/sub_norm"),
            activation=config.activation,
        )
        return Block(
            attention_norm=required(f"{here}/attention_norm"),
            attention=attention,
            post_attention_norm=norm(f"{here}/post_attention_norm"),
            feed_forward_norm=required(f"{here}/feed_forward_norm"),
            feed_forward=feed_forward,
            post_feed_forward_norm=norm(f"{here}/post_feed_forward_norm"),
        )

    return Decoder(
        embedding=matrix("embedding"),
        blocks=tuple(block(layer) for layer in range(config.layers)),
        final_norm=required("final_norm"),
        head=None if config.tied else matrix("head"),
        config=config,
        dtype=dtype,
    )
