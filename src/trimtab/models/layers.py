"""The plain layers that encoders are made of; each maps the last axis only."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from trimtab.errors import ShapeError, unknown_name
from trimtab.kernels import bias_gelu, dense_linear, layer_norm

Initializer = Callable[[PRNGKeyArray, tuple[int, ...], jnp.dtype], Array]

normal = jax.nn.initializers.normal(0.02)
zeros = jax.nn.initializers.zeros


class Linear(eqx.Module):
    """Multiply the last axis by a matrix and add a bias: ``y = x Wᵀ + b``.

    The weight is kept as (out, in), the layout of PyTorch and Equinox files.
    """

    weight: Float[Array, "out_features in_features"]
    bias: Float[Array, " out_features"] | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        weight_init: Initializer = normal,
        bias_init: Initializer = zeros,
        key: PRNGKeyArray,
    ) -> None:
        """Draw the parameters.

        Args:
            in_features: size of the input's last axis.
            out_features: size of the output's last axis.
            use_bias: whether a bias is added.
            weight_init: gives the (in, out) matrix, which is then stored transposed.
            bias_init: gives the bias.
            key: consumed.
        """
        weight_key, bias_key = jax.random.split(key)
        dtype = jnp.dtype(jnp.float32)
        self.weight = weight_init(weight_key, (in_features, out_features), dtype).T
        self.bias = bias_init(bias_key, (out_features,), dtype) if use_bias else None

    def __call__(self, x: Float[Array, "*lead in_features"]) -> Float[Array, "*lead out_features"]:
        """Return the product in ``x``'s element type.

        Raises:
            ShapeError: the last axis is not as wide as the weight expects.
        """
        y = matmul_transposed(x, self.weight)
        return y if self.bias is None else y + self.bias


def matmul_transposed(
    x: Float[Array, "*lead in_features"], weight: Float[Array, "out_features expected"]
) -> Float[Array, "*lead out_features"]:
    """Return ``x Wᵀ``.

    Raises:
        ShapeError: the last axis is not as wide as the weight expects.
    """
    if x.shape[-1] != weight.shape[-1]:
        raise ShapeError(
            f"A linear layer expects {weight.shape[-1]} features on the last axis, got "
            f"{x.shape[-1]} (shape {x.shape})."
        )
    if x.dtype == weight.dtype == jnp.bfloat16:
        return dense_linear(x, weight)
    return x @ weight.T


class LayerNorm(eqx.Module):
    """Centre and scale the last axis to unit variance, then apply a learned gain and offset.

    Statistics are taken in float32 whatever the input is; the result has the gain's type.
    """

    weight: Float[Array, " features"]
    bias: Float[Array, " features"]
    epsilon: float = eqx.field(static=True)

    def __init__(self, features: int, *, epsilon: float = 1e-12) -> None:
        """Start as the plain normalisation.

        Args:
            features: size of the last axis.
            epsilon: added to the variance.
        """
        self.weight = jnp.ones(features)
        self.bias = jnp.zeros(features)
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*lead features"]) -> Float[Array, "*lead features"]:
        """Return the normalised input."""
        # The native kernel's gradient is 50 times quicker than what XLA makes of the formula.
        normalised = layer_norm(x, self.weight, self.bias, epsilon=self.epsilon)
        return normalised.astype(self.weight.dtype)


class Embedding(eqx.Module):
    """A table of vectors looked up by integer.

    With ``frozen_row`` the gradient of that row is zero, as `torch.nn.Embedding(padding_idx=)`.
    """

    weight: Float[Array, "rows features"]
    frozen_row: int | None = eqx.field(static=True)

    def __init__(
        self,
        rows: int,
        features: int,
        *,
        frozen_row: int | None = None,
        key: PRNGKeyArray,
    ) -> None:
        """Draw the table from a normal distribution of deviation 0.02.

        Args:
            rows: number of vectors.
            features: their width.
            frozen_row: a row that lookups never train; it starts at zero.
            key: consumed.
        """
        table = normal(key, (rows, features), jnp.dtype(jnp.float32))
        self.weight = table if frozen_row is None else table.at[frozen_row].set(0.0)
        self.frozen_row = frozen_row

    def __call__(self, ids: Int[Array, "*lead"]) -> Float[Array, "*lead features"]:
        """Return one row for each id."""
        rows = self.weight[ids]
        if self.frozen_row is None:
            return rows
        frozen = (ids == self.frozen_row)[..., None]
        return jnp.where(frozen, jax.lax.stop_gradient(rows), rows)


def gelu_tanh(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """GELU in its tanh form, the one of FNet's and the first BERT's code."""
    return jax.nn.gelu(x, approximate=True)


def gelu_erf(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """GELU in its exact form, the one of `transformers`' BERT."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": gelu_tanh,
    "gelu": gelu_erf,
    "relu": jax.nn.relu,
}


def activation(name: str) -> Callable[[Array], Array]:
    """Return an activation function by name.

    Raises:
        UnknownNameError: no such activation.
    """
    if name not in ACTIVATIONS:
        raise unknown_name("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]


def dropout(
    x: Float[Array, "*shape"], rate: float, key: PRNGKeyArray | None
) -> Float[Array, "*shape"]:
    """Zero a fraction ``rate`` of the values and scale up the rest; the identity without a key."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))


class FeedForward(eqx.Module):
    """Widen, activate, narrow: the part of a transformer layer that sees one token at a time."""

    intermediate: Linear
    output: Linear
    activation: str = eqx.field(static=True)

    def __init__(
        self,
        width: int,
        hidden_width: int,
        *,
        activation: str = "gelu_tanh",
        key: PRNGKeyArray,
    ) -> None:
        """Draw the parameters; the first bias is normal(0.02), the second zero.

        Args:
            width: features in and out.
            hidden_width: features between the two products.
            activation: a name in :data:`ACTIVATIONS`.
            key: consumed.
        """
        widen_key, narrow_key = jax.random.split(key)
        self.intermediate = Linear(width, hidden_width, bias_init=normal, key=widen_key)
        self.output = Linear(hidden_width, width, key=narrow_key)
        self.activation = activation

    def __call__(self, x: Float[Array, "*lead width"]) -> Float[Array, "*lead width"]:
        """Apply both products.

        The activation is recomputed in the backward pass, so that one array of the hidden width
        is kept for it instead of the several that its derivative needs.
        """
        widen = self.intermediate
        if self.activation == "gelu_tanh" and type(widen) is Linear and widen.bias is not None:
            return self.output(bias_gelu(matmul_transposed(x, widen.weight), widen.bias))
        activate = jax.checkpoint(activation(self.activation))
        return self.output(activate(widen(x)))
