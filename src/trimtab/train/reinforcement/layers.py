"""Parts of policy networks: perceptrons, convolutions over grids, attention over sets."""

from __future__ import annotations

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from trimtab.errors import InputError


class Perceptron(eqx.Module):
    """Dense layers with rectifiers between them, orthogonal start."""

    layers: tuple[eqx.nn.Linear, ...]
    active_end: bool = eqx.field(static=True)

    def __init__(
        self, sizes: tuple[int, ...], *, key: Array, scale: float = 1.0, active: bool = False
    ):
        keys = jax.random.split(key, len(sizes) - 1)
        layers = []
        for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            layer = eqx.nn.Linear(inputs, outputs, key=keys[index])
            gain = scale if index == len(sizes) - 2 else 2**0.5
            weight = jax.nn.initializers.orthogonal(gain)(keys[index], (outputs, inputs))
            layer = eqx.tree_at(lambda m: (m.weight, m.bias), layer, (weight, jnp.zeros(outputs)))
            layers.append(layer)
        self.layers = tuple(layers)
        self.active_end = active

    def __call__(self, x: Float[Array, " features"]) -> Float[Array, " outputs"]:
        """Apply to one vector."""
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index < len(self.layers) - 1 or self.active_end:
                x = jax.nn.relu(x)
        return x


class Convolutions(eqx.Module):
    """Convolutions that keep the size of a grid, written as sums of shifted products.

    On CPUs a handful of matrix products over channels beats XLA's convolution for small grids
    and large batches.
    """

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]

    def __init__(self, channels: tuple[int, ...], *, key: Array, width: int = 3):
        if width % 2 == 0:
            raise InputError(f"The filter width is {width}; expected an odd number.")
        keys = jax.random.split(key, len(channels) - 1)
        start = jax.nn.initializers.he_normal(in_axis=(0, 1, 2), out_axis=3)
        self.weights = tuple(
            start(each, (width, width, inputs, outputs))
            for each, inputs, outputs in zip(keys, channels, channels[1:])
        )
        self.biases = tuple(jnp.zeros(outputs) for outputs in channels[1:])

    def __call__(
        self, x: Float[Array, "rows columns inputs"]
    ) -> Float[Array, "rows columns outputs"]:
        """Apply all layers, each followed by a rectifier."""
        rows, columns = x.shape[:2]
        for weight, bias in zip(self.weights, self.biases):
            width, reach = weight.shape[0], weight.shape[0] // 2
            padded = jnp.pad(x, ((reach, reach), (reach, reach), (0, 0)))
            patches = jnp.concatenate(
                [
                    padded[row : row + rows, column : column + columns]
                    for row in range(width)
                    for column in range(width)
                ],
                axis=-1,
            )
            x = jax.nn.relu(patches @ weight.reshape(-1, weight.shape[-1]) + bias)
        return x


class Attention(eqx.Module):
    """A transformer block: attention to the same or another set, then a perceptron."""

    query: eqx.nn.Linear
    key_value: eqx.nn.Linear
    output: eqx.nn.Linear
    expand: eqx.nn.Linear
    contract: eqx.nn.Linear
    norms: tuple[eqx.nn.LayerNorm, eqx.nn.LayerNorm]
    heads: int = eqx.field(static=True)

    def __init__(self, width: int, heads: int, *, key: Array, hidden: int | None = None):
        keys = jax.random.split(key, 5)
        hidden = hidden or 2 * width
        self.query = eqx.nn.Linear(width, width, key=keys[0])
        self.key_value = eqx.nn.Linear(width, 2 * width, key=keys[1])
        self.output = eqx.nn.Linear(width, width, key=keys[2])
        self.expand = eqx.nn.Linear(width, hidden, key=keys[3])
        self.contract = eqx.nn.Linear(hidden, width, key=keys[4])
        self.norms = (eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width))
        self.heads = heads

    def __call__(
        self,
        x: Float[Array, "queries width"],
        context: Float[Array, "keys width"],
        mask: Bool[Array, "#queries keys"] | None = None,
    ) -> Float[Array, "queries width"]:
        """Attend from ``x`` to ``context``; ``mask`` is true where that is allowed."""
        size = x.shape[1] // self.heads
        query = jax.vmap(self.query)(x).reshape(x.shape[0], self.heads, size)
        both = jax.vmap(self.key_value)(context).reshape(context.shape[0], 2, self.heads, size)
        scores = jnp.einsum("qhd,khd->hqk", query, both[:, 0]) / size**0.5
        if mask is not None:
            scores = jnp.where(mask[None], scores, jnp.finfo(scores.dtype).min)
        mixed = jnp.einsum("hqk,khd->qhd", jax.nn.softmax(scores), both[:, 1])
        x = jax.vmap(self.norms[0])(x + jax.vmap(self.output)(mixed.reshape(x.shape)))
        hidden = jax.nn.relu(jax.vmap(self.expand)(x))
        return jax.vmap(self.norms[1])(x + jax.vmap(self.contract)(hidden))
