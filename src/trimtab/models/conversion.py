"""Changing a finished encoder: swap mixers, rescale mixing, turn BERT into FNet-Hybrid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from trimtab.errors import InputError, UnsupportedError, unknown_name
from trimtab.models.encoder import (
    SCALED,
    Encoder,
    EncoderConfig,
    EncoderLayer,
    make_mixer,
    mixing_constants,
)
from trimtab.models.mixing import MIXERS, Mixer

Model = TypeVar("Model")


def swap_mixers(
    model: Model, mixers: str | Sequence[str | None], *, key: PRNGKeyArray | None = None
) -> Model:
    """Return the model with other mixers; everything else keeps its parameters.

    Args:
        model: an :class:`Encoder`, or any module that holds one as ``.encoder``.
        mixers: one mixer name for all layers, or one a layer; None keeps that layer's own.
        key: draws the parameters of new linear, random and attention mixers.

    Raises:
        InputError: the number of names is not the number of layers, or a key is missing.
        UnknownNameError: no such mixer.
    """
    encoder = encoder_of(model)
    config, depth = encoder.config, len(encoder.layers)
    names = [mixers] * depth if isinstance(mixers, str) else list(mixers)
    if len(names) != depth:
        raise InputError(
            f"{len(names)} mixers were given for {depth} layers; give one name, or one a layer."
        )
    wanted = [name or own for name, own in zip(names, config.layer_mixers)]
    for name in wanted:
        if name not in MIXERS:
            raise unknown_name("mixer", name, MIXERS)
    needs_key = [
        n for n, own in zip(wanted, config.layer_mixers) if n != own and _has_parameters(n)
    ]
    if needs_key and key is None:
        raise InputError(
            f"A new {needs_key[0]} mixer has parameters to draw: pass key=jax.random.key(...)."
        )
    keys = jax.random.split(jax.random.key(0) if key is None else key, depth)
    config = config.replace(mixers=wanted[0] if len(set(wanted)) == 1 else tuple(wanted))
    layers = tuple(
        layer if name == own else _with_mixer(layer, name, config, layer_key)
        for layer, name, own, layer_key in zip(
            encoder.layers, wanted, encoder.config.layer_mixers, keys
        )
    )
    return _with_layers(model, layers, config)


def replace_mixer(model: Model, layer: int, mixer: Mixer) -> Model:
    """Return the model with a mixer module of your own in one layer; its config stays the same."""
    return eqx.tree_at(lambda m: encoder_of(m).layers[layer].mixer, model, mixer)


def orthonormal(model: Model, tokens: int) -> Model:
    """Return an equal model whose Fourier mixing is divided by ``√(n d)``.

    At length ``tokens`` (that of training) it computes the same function; at other lengths the
    residual keeps the weight it had there, while the plain transform's grows with the root of the
    length. Mixing results stay near the size of their input, which float16 can hold.

    With ``s = 1 / √(tokens · width)``: ``LN(h + M h)`` with epsilon ε equals
    ``LN(s h + s M h)`` with epsilon ``s² ε``.

    Args:
        model: an :class:`Encoder`, or a module that holds one as ``.encoder``.
        tokens: the length at which the parameters were trained.

    Raises:
        UnsupportedError: it is orthonormal already.
    """
    encoder = encoder_of(model)
    config = encoder.config
    if config.orthonormal:
        raise UnsupportedError("This encoder's mixing is orthonormal already.")
    scale = 1.0 / math.sqrt(tokens * config.width)
    config = config.replace(
        orthonormal=True, skip=scale, mixing_epsilon=config.epsilon * scale * scale
    )
    layers = tuple(
        _with_mixer(layer, name, config, jax.random.key(0)) if name in SCALED else layer
        for layer, name in zip(encoder.layers, config.layer_mixers)
    )
    return _with_layers(model, layers, config)


@dataclass(frozen=True)
class LayerLoss:
    """What replacing one layer's attention costs.

    Args:
        layer: its index.
        loss: the loss with that layer's attention replaced.
        increase: how much more than the unchanged model's loss.
    """

    layer: int
    loss: float
    increase: float


def rank_layers(
    model: Model, loss: Callable[[Model], Any], *, mixer: str = "fourier"
) -> list[LayerLoss]:
    """Rank attention layers by how little the loss grows when their attention is replaced.

    The replacement is orthonormal, so that a trained layer's residual is not drowned by an
    unnormalised transform hundreds of times its size.

    Args:
        model: an encoder with attention, or a module that holds one as ``.encoder``.
        loss: maps a model to a number on held-out batches.
        mixer: ``"fourier"``, ``"hartley"`` or ``"identity"``.

    Returns:
        one entry for each attention layer, the cheapest to replace first.

    Raises:
        InputError: no layer attends.
    """
    attending = _attention(model)
    start = float(loss(model))
    ranked = []
    for layer in attending:
        value = float(loss(_replace(model, [layer], mixer)))
        ranked.append(LayerLoss(layer, value, value - start))
    return sorted(ranked, key=lambda entry: entry.increase)


def to_hybrid(
    model: Model,
    attention: int,
    loss: Callable[[Model], Any],
    *,
    mixer: str = "fourier",
    greedy: bool = True,
) -> tuple[Model, list[LayerLoss]]:
    """Turn BERT into FNet-Hybrid: replace attention where it costs least, keep it in the rest.

    Args:
        model: an encoder with attention, or a module that holds one as ``.encoder``.
        attention: how many attention layers to keep.
        loss: maps a model to a number on held-out batches.
        mixer: what the others get: ``"fourier"``, ``"hartley"`` or ``"identity"``.
        greedy: rank again after each replacement, which accounts for what was replaced before;
            False ranks once.

    Returns:
        the hybrid, to be fine-tuned, and the replacements in the order they were made.

    Raises:
        InputError: more attention layers are to be kept than there are.
    """
    attending = _attention(model)
    if not 0 <= attention <= len(attending):
        raise InputError(
            f"The encoder has {len(attending)} attention layers, so {attention} cannot be kept."
        )
    replaced: list[LayerLoss] = []
    ranking = rank_layers(model, loss, mixer=mixer) if len(attending) > attention else []
    for _ in range(len(attending) - attention):
        entry = ranking.pop(0)
        model = _replace(model, [entry.layer], mixer)
        replaced.append(entry)
        if greedy and len(attending) - len(replaced) > attention:
            ranking = rank_layers(model, loss, mixer=mixer)
    return model, replaced


def encoder_of(model: Any) -> Encoder:
    """Return the encoder that a module is or holds.

    Raises:
        InputError: there is none.
    """
    encoder = model if isinstance(model, Encoder) else getattr(model, "encoder", None)
    if not isinstance(encoder, Encoder):
        raise InputError(f"{type(model).__name__} is no encoder and holds none as .encoder.")
    return encoder


def _replace(model: Model, layers: Sequence[int], mixer: str) -> Model:
    names: list[str | None] = [None] * len(encoder_of(model).layers)
    for layer in layers:
        names[layer] = mixer
    config = encoder_of(model).config
    if mixer in SCALED and not config.orthonormal:
        if any(name in SCALED for name in config.layer_mixers):
            raise UnsupportedError(
                "The encoder has unnormalised Fourier layers already; rescale them first with "
                "orthonormal(model, tokens)."
            )
        # An orthonormal mixer's output is as large as its input, as attention's is.
        model = _with_layers(model, encoder_of(model).layers, config.replace(orthonormal=True))
    return swap_mixers(model, names)


def _attention(model: Any) -> list[int]:
    found = [
        i for i, name in enumerate(encoder_of(model).config.layer_mixers) if name == "attention"
    ]
    if not found:
        raise InputError("The encoder has no attention layer to replace.")
    return found


def _has_parameters(name: str) -> bool:
    return name in ("linear", "random", "attention")


def _with_mixer(
    layer: EncoderLayer, name: str, config: EncoderConfig, key: PRNGKeyArray
) -> EncoderLayer:
    skip, epsilon = mixing_constants(name, config)
    norm = _static(layer.mixing_norm, epsilon=epsilon)
    return _static(layer, mixer=make_mixer(name, config, key=key), mixing_norm=norm, skip=skip)


def _static(module: Any, **changes: Any) -> Any:
    """A copy of a module with some fields changed, without running its initialiser."""
    copy = object.__new__(type(module))
    for name in module.__dataclass_fields__:
        object.__setattr__(copy, name, changes.get(name, getattr(module, name)))
    return copy


def _with_layers(model: Model, layers: tuple[EncoderLayer, ...], config: EncoderConfig) -> Model:
    encoder = _static(encoder_of(model), layers=layers, config=config)
    if isinstance(model, Encoder):
        return encoder
    return eqx.tree_at(lambda m: m.encoder, model, encoder)
