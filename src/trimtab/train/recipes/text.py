"""Byte-level language modelling of text that is on the machine."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from trimtab.errors import InputError
from trimtab.train.config import section
from trimtab.train.data import evaluation_batches, training_batches
from trimtab.train.datasets import load_bytes
from trimtab.train.recipes.supervised import Context, Summary, Task, run_task


@dataclass(frozen=True)
class TextData:
    """``[data]`` of the text recipe.

    Args:
        files: glob patterns; none takes the Python standard library's source text.
        limit: most bytes to read.
        length: bytes a training example.
        validation: share of the text, at its end, set apart.
    """

    files: list[str] = field(default_factory=list)
    limit: int = 4_000_000
    length: int = 128
    validation: float = 0.05


@dataclass(frozen=True)
class TextModel:
    """``[model]`` of the text recipe: a transformer.

    Args:
        width: of the residual stream.
        depth: blocks.
        heads: attention heads; they divide the width.
    """

    width: int = 128
    depth: int = 4
    heads: int = 4


class Block(eqx.Module):
    """Attention and a perceptron, each on normalised input and added to the stream."""

    attention_norm: eqx.nn.RMSNorm
    attention: eqx.nn.MultiheadAttention
    position: eqx.nn.RotaryPositionalEmbedding
    mixer_norm: eqx.nn.RMSNorm
    expand: eqx.nn.Linear
    contract: eqx.nn.Linear

    def __init__(self, model: TextModel, *, key: Array) -> None:
        attention_key, expand_key, contract_key = jax.random.split(key, 3)
        width = model.width
        self.attention_norm = eqx.nn.RMSNorm(width)
        self.attention = eqx.nn.MultiheadAttention(model.heads, width, key=attention_key)
        self.position = eqx.nn.RotaryPositionalEmbedding(width // model.heads)
        self.mixer_norm = eqx.nn.RMSNorm(width)
        self.expand = eqx.nn.Linear(width, 4 * width, key=expand_key)
        self.contract = eqx.nn.Linear(4 * width, width, key=contract_key)

    def __call__(self, stream: Float[Array, "seq width"]) -> Float[Array, "seq width"]:
        def rotated(query: Array, key: Array, value: Array) -> tuple[Array, Array, Array]:
            turn = jax.vmap(self.position, in_axes=1, out_axes=1)
            return turn(query), turn(key), value

        causal = jnp.tril(jnp.ones((stream.shape[0],) * 2, bool))
        normal = jax.vmap(self.attention_norm)(stream)
        stream = stream + self.attention(normal, normal, normal, mask=causal, process_heads=rotated)
        normal = jax.vmap(self.mixer_norm)(stream)
        hidden = jax.nn.gelu(jax.vmap(self.expand)(normal))
        return stream + jax.vmap(self.contract)(hidden)


class ByteModel(eqx.Module):
    """A causal transformer over bytes that starts from an implicit zero byte."""

    embedding: eqx.nn.Embedding
    blocks: list[Block]
    norm: eqx.nn.RMSNorm
    head: eqx.nn.Linear

    def __init__(self, model: TextModel, *, key: Array) -> None:
        embedding_key, head_key, *block_keys = jax.random.split(key, model.depth + 2)
        weight = 0.02 * jax.random.normal(embedding_key, (256, model.width))
        self.embedding = eqx.nn.Embedding(weight=weight)
        self.blocks = [Block(model, key=block_key) for block_key in block_keys]
        self.norm = eqx.nn.RMSNorm(model.width)
        self.head = eqx.nn.Linear(model.width, 256, key=head_key)

    def __call__(self, text: Int[Array, " seq"]) -> Float[Array, "seq 256"]:
        """Return logits of every byte given those before it."""
        before = jnp.concatenate([jnp.zeros(1, text.dtype), text[:-1]])
        stream = jax.vmap(self.embedding)(before)
        for block in self.blocks:
            stream = block(stream)
        return jax.vmap(self.head)(jax.vmap(self.norm)(stream))


def metrics(model: Any, batch: dict[str, Array]) -> dict[str, Array]:
    """Return each example's mean loss and bits a byte."""
    text = batch["text"].astype(jnp.int32)
    logits = jax.vmap(model)(text).astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, text).mean(axis=1)
    return {"loss": loss, "bits_per_byte": loss / math.log(2.0)}


def loss(model: Any, batch: dict[str, Array], key: Array | None = None) -> tuple:
    """Return each example's loss, and bits a byte as a metric."""
    values = metrics(model, batch)
    return values["loss"], {"bits_per_byte": values["bits_per_byte"]}


def run(context: Context) -> Summary:
    """Train a byte model; see :class:`TextData` and :class:`TextModel` for its tables."""
    config = context.config
    data = section(TextData, config.data, "data.")
    settings = section(TextModel, config.model, "model.")
    if settings.width % settings.heads or (settings.width // settings.heads) % 2:
        raise InputError(
            f"model.heads = {settings.heads} must cut model.width = {settings.width} into even "
            "parts."
        )
    text = load_bytes(data.files, limit=data.limit)
    examples = text[: len(text) // data.length * data.length].reshape(-1, data.length)
    held = round(len(examples) * data.validation)
    if not 0 < held < len(examples):
        raise InputError(
            f"{len(examples)} examples of {data.length} bytes are too few to set "
            f"{data.validation:.0%} apart. Give more text, or a smaller data.length."
        )
    train, validation = np.split(examples, [len(examples) - held])
    size = min(config.training.batch_size, 64)
    task = Task(
        model=ByteModel(settings, key=jax.random.key(config.seed)),
        loss=loss,
        batches=training_batches({"text": train}, config.training.batch_size, seed=config.seed),
        metrics=metrics,
        validation=lambda: evaluation_batches({"text": validation}, size),
        notes={"text, bytes": int(text.size), "training examples": len(train)},
    )
    return run_task(context, task)
