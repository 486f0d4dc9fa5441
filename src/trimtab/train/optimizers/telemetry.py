"""What gradient statistics say about each layer: signal, noise, and whether there is any signal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar

from trimtab.errors import InputError
from trimtab.train.optimizers.layers import Layer, leaf_entries, signal_to_noise
from trimtab.train.optimizers.signal_to_noise import Clip, gradient_ratios
from trimtab.train.statistics import GradientStatistics


class LayerSignal(NamedTuple):
    """Signal and noise of one layer at one step.

    Attributes:
        ratio: mean over active elements of squared mean over variance of the group gradients.
        factor: mean of what :func:`trimtab.train.optimizers.vr` would multiply the gradient by.
        floor_share: share of elements at the lower clip.
        cap_share: share at the upper clip.
        noise_scale: per-example gradient variance over squared gradient norm, in examples: the
            batch size at which noise and signal are equal (McCandlish et al. 2018, B_simple).
        f_statistic: squared norm of the mean times K over the mean squared deviation: 1 when there
            is only noise.
        f_probability: chance of an F statistic at least this large from pure noise. It takes
            elements as independent, which overstates the evidence where they move together;
            :func:`sign_flip_test` does not.
    """

    ratio: Scalar
    factor: Scalar
    floor_share: Scalar
    cap_share: Scalar
    noise_scale: Scalar
    f_statistic: Scalar
    f_probability: Scalar


def layer_signals(
    statistics: GradientStatistics,
    *,
    group_size: int = 1,
    gamma: float = 0.1,
    clip: Clip = "paper",
    layer: Layer = "leaf",
) -> dict[str, LayerSignal]:
    """Summarise each layer's gradient statistics.

    Args:
        statistics: of one step.
        group_size: examples a group.
        gamma: lower clip that the shares refer to.
        clip: clipping rule that the shares refer to.
        layer: what counts as a layer.
    """
    ratios = gradient_ratios(
        statistics.mean,
        statistics.squared_deviations,
        statistics.count,
        gamma=gamma,
        clip=clip,
        layer=layer,
    )
    entries = leaf_entries(statistics.mean, layer, {})
    leaves = zip(
        jax.tree.leaves(statistics.mean),
        jax.tree.leaves(statistics.squared_deviations),
        jax.tree.leaves(ratios),
    )
    grouped: dict[str, list[tuple]] = {}
    for entry, leaf in zip(entries, leaves):
        grouped.setdefault(entry.layer, []).append(leaf)
    upper = 1.0 / gamma if clip == "symmetric" else 1.0
    return {
        label: _layer_signal(members, statistics.count, group_size, gamma, upper)
        for label, members in grouped.items()
    }


def _layer_signal(
    members: list[tuple], count: Scalar, group_size: int, gamma: float, upper: float
) -> LayerSignal:
    size = sum(mean.size for mean, _, _ in members)
    square = sum(jnp.sum(jnp.square(mean)) for mean, _, _ in members)
    deviations = sum(jnp.sum(m2) for _, m2, _ in members)
    raw = [signal_to_noise(mean, m2, count) for mean, m2, _ in members]
    active = jnp.maximum(sum(jnp.sum(jnp.isfinite(r)) for r in raw), 1)
    total = sum(jnp.sum(jnp.where(jnp.isfinite(r), r, 0.0)) for r in raw)
    trace, signal = _noise_and_signal(square, deviations, count)
    f_statistic = count * square / jnp.maximum(deviations / (count - 1.0), 1e-30)
    return LayerSignal(
        ratio=total / active,
        factor=jnp.asarray(sum(jnp.sum(r) for _, _, r in members) / size),
        floor_share=jnp.asarray(sum(jnp.sum(r <= gamma) for _, _, r in members) / size),
        cap_share=jnp.asarray(sum(jnp.sum(r >= upper) for _, _, r in members) / size),
        noise_scale=group_size * trace / jnp.maximum(signal, 1e-30),
        f_statistic=f_statistic,
        f_probability=f_tail(f_statistic, size, size * (count - 1.0)),
    )


def _noise_and_signal(square: Any, deviations: Any, count: Any) -> tuple[Any, Any]:
    """Unbiased variance of one group's gradient and squared norm of the true gradient."""
    trace = deviations / (count - 1.0)
    return trace, square - trace / count


def f_tail(statistic: Any, numerator: Any, denominator: Any) -> Scalar:
    """Return the probability that an F variable exceeds ``statistic`` (Paulson 1942).

    The cube-root normal approximation stays accurate for the millions of degrees of freedom of a
    layer, where the incomplete beta function in float32 does not.

    Args:
        statistic: observed value.
        numerator: degrees of freedom above.
        denominator: degrees of freedom below.
    """
    root = jnp.cbrt(jnp.asarray(statistic, jnp.float32))
    a, b = 2.0 / (9.0 * numerator), 2.0 / (9.0 * denominator)
    deviate = ((1.0 - b) * root - (1.0 - a)) / jnp.sqrt(b * jnp.square(root) + a)
    return 0.5 * jax.scipy.special.erfc(deviate / jnp.sqrt(2.0))


def layer_telemetry(
    *,
    group_size: int = 1,
    gamma: float = 0.1,
    clip: Clip = "paper",
    layer: Layer = "leaf",
) -> Callable[[GradientStatistics], dict[str, Array]]:
    """Return a function for ``training_step(telemetry=)``.

    Its metrics are ``signal/<layer>/<name>`` for the fields of :class:`LayerSignal`, and
    ``noise/variance`` (of one example's gradient, summed over elements) and ``noise/signal``
    (squared norm of the true gradient), from which :func:`trimtab.train.optimizers.advise` works.
    """

    def telemetry(statistics: GradientStatistics) -> dict[str, Array]:
        signals = layer_signals(
            statistics, group_size=group_size, gamma=gamma, clip=clip, layer=layer
        )
        named = {
            f"signal/{label}/{name}": value
            for label, signal in signals.items()
            for name, value in signal._asdict().items()
        }
        return named | noise_metrics(statistics, group_size=group_size)

    return telemetry


def noise_metrics(statistics: GradientStatistics, *, group_size: int = 1) -> dict[str, Array]:
    """Return ``noise/variance`` and ``noise/signal`` of the whole gradient.

    Args:
        statistics: of one step.
        group_size: examples a group.
    """
    square = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(statistics.mean))
    deviations = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(statistics.squared_deviations))
    trace, signal = _noise_and_signal(square, deviations, statistics.count)
    return {"noise/variance": jnp.asarray(group_size * trace), "noise/signal": jnp.asarray(signal)}


def sign_flip_test(
    group_gradients: PyTree,
    *,
    key: Array,
    draws: int = 999,
    layer: Layer = "leaf",
    alternative: Literal["signal"] = "signal",
) -> dict[str, Float[Array, ""]]:
    """Test by layer whether group gradients share a direction; exact for symmetric noise.

    Without a true gradient each group's gradient is as likely as its negative, so the norm of the
    mean is compared with norms under random signs. Only the K by K inner products are needed, and
    elements may be correlated at will.

    Args:
        group_gradients: leaves of shape ``(groups, *parameter)``.
        key: randomness of the signs.
        draws: random sign vectors; the smallest probability is ``1 / (draws + 1)``.
        layer: what counts as a layer.
        alternative: what a small probability speaks for.

    Returns:
        Layer to the probability of a mean this large without signal.
    """
    if draws < 1 or alternative != "signal":
        raise InputError(f"draws must be at least 1 and alternative 'signal', got {draws}.")
    leaves = jax.tree.leaves(group_gradients)
    entries = leaf_entries(jax.tree.map(lambda leaf: leaf[0], group_gradients), layer, {})
    groups = leaves[0].shape[0]
    signs = jax.random.rademacher(key, (draws, groups), jnp.float32)
    products: dict[str, Array] = {}
    for entry, leaf in zip(entries, leaves):
        flat = leaf.reshape(groups, -1).astype(jnp.float32)
        products[entry.layer] = products.get(entry.layer, 0.0) + flat @ flat.T
    result = {}
    for label, gram in products.items():
        observed = jnp.sum(gram)
        flipped = jnp.einsum("dk,kl,dl->d", signs, gram, signs)
        result[label] = (1.0 + jnp.sum(flipped >= observed)) / (draws + 1.0)
    return result
