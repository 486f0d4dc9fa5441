"""Swapping mixers, rescaling the transform, and turning BERT into a hybrid."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trimtab.errors import InputError, UnknownNameError, UnsupportedError
from trimtab.models import Classifier, Encoder, EncoderConfig
from trimtab.models.conversion import (
    orthonormal,
    rank_layers,
    replace_mixer,
    swap_mixers,
    to_hybrid,
)
from trimtab.models.mixing import IdentityMixer
from trimtab.models.weights import load_encoder, save_encoder

SMALL = EncoderConfig(
    vocabulary=40, width=16, feed_forward=32, depth=3, heads=2, max_tokens=12, segments=2
)
IDS = jnp.arange(12)


def build(**changes) -> Encoder:
    return Encoder(SMALL.replace(**changes), key=jax.random.key(0))


def test_swapping_keeps_everything_but_the_mixers():
    model = Classifier(build(), 3, key=jax.random.key(1))
    swapped = swap_mixers(model, [None, "attention", "identity"], key=jax.random.key(2))
    assert swapped.encoder.config.layer_mixers == ("fourier", "attention", "identity")
    for layer in range(3):
        ours, theirs = swapped.encoder.layers[layer], model.encoder.layers[layer]
        assert ours.feed_forward.output.weight is theirs.feed_forward.output.weight
    assert swapped(IDS).shape == (3,)
    back = swap_mixers(swapped, "fourier")
    np.testing.assert_array_equal(back(IDS), model(IDS))


def test_swapping_refuses_wrong_requests():
    with pytest.raises(InputError, match="3 layers"):
        swap_mixers(build(), ["fourier"])
    with pytest.raises(UnknownNameError, match="mixer"):
        swap_mixers(build(), "fnet")
    with pytest.raises(InputError, match=r"pass key=jax\.random\.key"):
        swap_mixers(build(), "attention")
    with pytest.raises(InputError, match="no encoder"):
        swap_mixers(jnp.ones(3), "fourier")


def test_a_mixer_of_ones_own_can_be_put_in():
    model = replace_mixer(build(), 1, IdentityMixer())
    assert isinstance(model.layers[1].mixer, IdentityMixer)
    assert model(IDS).hidden.shape == (12, 16)


@pytest.mark.parametrize(
    "mixers", ["fourier", "hartley", ("fourier", "attention", "fourier")], ids=str
)
def test_orthonormal_scaling_computes_the_same_at_the_trained_length(mixers, tmp_path):
    model = build(mixers=mixers)
    scaled = orthonormal(model, 12)
    np.testing.assert_allclose(scaled(IDS).hidden, model(IDS).hidden, atol=2e-5)
    save_encoder(scaled, tmp_path / "m")
    np.testing.assert_array_equal(load_encoder(tmp_path / "m")(IDS).hidden, scaled(IDS).hidden)
    with pytest.raises(UnsupportedError, match="already"):
        orthonormal(scaled, 12)


def test_orthonormal_mixing_keeps_the_size_of_its_input_at_any_length():
    mixer = orthonormal(build(), 12).layers[0].mixer
    for tokens in (4, 64, 256):
        x = jax.random.normal(jax.random.key(tokens), (tokens, 16))
        # The real part of the transform of white noise has half the energy.
        assert abs(float(mixer(x).std() / x.std()) - 0.5**0.5) < 0.15


def test_ranking_finds_the_layer_whose_attention_matters_least():
    model = build(mixers="attention")
    # Attention that returns nothing: the residual alone goes on, as where a head is unused.
    silent = model.layers[1].mixer.output
    silent = eqx.tree_at(
        lambda layer: (layer.weight, layer.bias), silent, (0 * silent.weight, 0 * silent.bias)
    )
    model = eqx.tree_at(lambda m: m.layers[1].mixer.output, model, silent)
    target = model(IDS).hidden

    def loss(candidate):
        return jnp.square(candidate(IDS).hidden - target).mean()

    ranking = rank_layers(model, loss, mixer="identity")
    assert sorted(entry.layer for entry in ranking) == [0, 1, 2]
    assert ranking[0].layer == 1
    assert ranking[0].increase <= ranking[1].increase <= ranking[2].increase
    # With the residual doubled before a normalisation, identity mixing changes nothing.
    assert ranking[0].loss < 1e-9


def test_conversion_keeps_the_asked_for_number_of_attention_layers():
    model = Classifier(build(mixers="attention"), 2, key=jax.random.key(1))
    target = model(IDS)
    calls = []

    def loss(candidate):
        calls.append(candidate.encoder.config.layer_mixers)
        return jnp.square(candidate(IDS) - target).sum()

    converted, order = to_hybrid(model, 1, loss)
    names = converted.encoder.config.layer_mixers
    assert names.count("attention") == 1
    assert names.count("fourier") == 2
    assert [entry.layer for entry in order] == [
        i for i in [e.layer for e in order] if names[i] == "fourier"
    ]
    assert converted.encoder.config.orthonormal
    assert len(calls) == (1 + 3) + (1 + 2)
    with pytest.raises(InputError, match="cannot be kept"):
        to_hybrid(model, 4, loss)
    with pytest.raises(InputError, match="no attention layer"):
        rank_layers(build(), loss)
