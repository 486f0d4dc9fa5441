"""The shared encoder: masks, mixers, layouts, heads, precision."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trimtab.errors import InputError, ShapeError, UnknownNameError, UnsupportedError
from trimtab.models import (
    MIXERS,
    Classifier,
    Encoder,
    EncoderConfig,
    PretrainingModel,
    attention_layers,
    bert_base,
    bert_like,
    cast,
    fnet_base,
    fnet_large,
    hybrid,
    trainable,
    with_attention,
)

SMALL = EncoderConfig(
    vocabulary=40, width=16, feed_forward=32, depth=2, heads=2, max_tokens=12, segments=2
)


def build(**changes) -> Encoder:
    return Encoder(SMALL.replace(**changes), key=jax.random.key(0))


def count(model) -> int:
    return sum(a.size for a in jax.tree.leaves(model) if eqx.is_inexact_array(a))


def test_published_sizes_have_the_published_number_of_parameters():
    shapes = eqx.filter_eval_shape(Encoder, fnet_base(), key=jax.random.key(0))
    assert sum(a.size for a in jax.tree.leaves(shapes) if hasattr(a, "size")) == 82_861_056
    shapes = eqx.filter_eval_shape(Encoder, bert_base(), key=jax.random.key(0))
    assert sum(a.size for a in jax.tree.leaves(shapes) if hasattr(a, "size")) == 109_482_240
    assert fnet_large().depth == 24


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_trains(mixer):
    model = PretrainingModel(SMALL.replace(mixers=mixer), key=jax.random.key(0))
    ids = jnp.arange(12)

    def loss(model):
        logits, order = model(ids, positions=jnp.array([1, 5]), key=jax.random.key(1))
        return logits.var() + order.var()

    gradients = eqx.filter_grad(loss)(model)
    norms = jax.tree.map(lambda g: float(jnp.abs(g).sum()), gradients)
    named = jax.tree_util.tree_leaves_with_path(norms)
    silent = {jax.tree_util.keystr(p, simple=True, separator="/") for p, n in named if n == 0.0}
    fixed = {f"encoder/layers/{i}/mixer/{m}_weight" for i in (0, 1) for m in ("token", "width")}
    # A key bias shifts all scores of a query alike, which softmax does not see.
    expected = fixed if mixer == "random" else set()
    assert silent - {f"encoder/layers/{i}/mixer/key/bias" for i in (0, 1)} == expected


def test_random_matrices_are_left_out_of_training():
    model = build(mixers="random")
    marks = trainable(model)
    assert marks.layers[0].mixer.token_weight is False
    assert marks.layers[0].feed_forward.output.weight is True
    assert marks.embeddings.word.weight is True


@pytest.mark.parametrize("mixer", ["fourier", "hartley", "linear", "random"])
def test_a_mask_is_refused_where_it_cannot_be_honoured(mixer):
    with pytest.raises((InputError, UnsupportedError), match="attention_mask"):
        build(mixers=mixer)(jnp.arange(12), attention_mask=jnp.ones(12, jnp.int32))


@pytest.mark.parametrize("mixers", ["fourier", "attention", ("fourier", "attention")], ids=str)
def test_exact_padding_leaves_the_true_tokens_as_without_padding(mixers):
    model = build(mixers=mixers, padding="exact")
    ids = jnp.array([3, 9, 4, 1, 7])
    alone = model(ids).hidden
    padded = jnp.concatenate([ids, jnp.array([2, 2, 2, 2])])
    mask = jnp.arange(9) < 5
    both = jax.jit(lambda i, m: model(i, attention_mask=m))(padded, mask)
    np.testing.assert_allclose(both.hidden[:5], alone, atol=2e-5)
    changed = model(padded.at[7].set(11), attention_mask=mask)
    np.testing.assert_allclose(changed.hidden[:5], both.hidden[:5], atol=2e-5)


def test_dropout_needs_a_key_and_is_reproducible():
    model = build()
    ids = jnp.arange(12)
    np.testing.assert_array_equal(model(ids).hidden, model(ids).hidden)
    one, two, other = (model(ids, key=jax.random.key(k)).hidden for k in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert float(jnp.abs(one - other).max()) > 0.1


def test_layouts_place_attention_as_the_paper_does():
    assert attention_layers(12, 2, "top") == (10, 11)
    assert attention_layers(12, 2, "bottom") == (0, 1)
    assert attention_layers(12, 2, "middle") == (5, 6)
    assert attention_layers(12, 2, "mixed") == (0, 6)
    assert attention_layers(12, 5, "mixed") == (0, 2, 4, 6, 8, 10)
    assert attention_layers(12, 0, "mixed") == ()
    assert hybrid(3, [1]) == ("fourier", "attention", "fourier")
    assert with_attention(fnet_base(), 2).layer_mixers[-3:] == ("fourier", "attention", "attention")
    assert bert_like(fnet_base()).layer_mixers == ("attention",) * 12
    with pytest.raises(InputError, match="0 to 3"):
        attention_layers(3, 4)
    with pytest.raises(UnknownNameError, match="Did you mean 'middle'"):
        attention_layers(3, 1, "midle")
    with pytest.raises(InputError, match="no layer 5"):
        hybrid(3, [5])


def test_wrong_configurations_are_refused():
    with pytest.raises(UnknownNameError, match="Did you mean 'fourier'"):
        SMALL.replace(mixers="fouier")
    with pytest.raises(InputError, match="2 layers"):
        SMALL.replace(mixers=("fourier",))
    with pytest.raises(InputError, match="at least 1"):
        SMALL.replace(width=0)
    with pytest.raises(InputError, match="projection=True"):
        SMALL.replace(projection=False, embedding_width=8)
    with pytest.raises(UnknownNameError, match="activation"):
        SMALL.replace(activation="gelo")
    with pytest.raises(ShapeError, match="do not divide"):
        build(mixers="attention", heads=3)
    with pytest.raises(ShapeError, match="longer than the encoder's 12 positions"):
        build()(jnp.arange(13))
    with pytest.raises(ShapeError, match="built for 12 tokens got 5"):
        build(mixers="linear")(jnp.arange(5))


def test_narrow_embeddings_are_projected_and_tied():
    model = PretrainingModel(SMALL.replace(embedding_width=8), key=jax.random.key(0))
    logits, order = model(jnp.arange(12))
    assert logits.shape == (12, 40)
    assert order.shape == (2,)


def test_a_frozen_padding_row_starts_at_zero_and_gets_no_gradient():
    model = build(padding_id=3)
    assert float(jnp.abs(model.embeddings.word.weight[3]).sum()) == 0.0
    gradient = eqx.filter_grad(lambda m: m(jnp.arange(12)).hidden.var())(model)
    rows = jnp.abs(gradient.embeddings.word.weight).sum(1)
    assert float(rows[3]) == 0.0
    assert float(rows[4]) > 0.0


@pytest.mark.parametrize("mixers", ["fourier", "attention"])
def test_bfloat16_stays_close_to_float32(mixers):
    model = build(mixers=mixers)
    ids = jnp.arange(12)
    wide = model(ids).hidden
    narrow = cast(model, jnp.bfloat16)(ids).hidden
    assert narrow.dtype == jnp.bfloat16
    cosine = jnp.vdot(wide, narrow) / (jnp.linalg.norm(wide) * jnp.linalg.norm(narrow))
    # Ten times closer at published sizes, where errors average out over the width.
    assert float(cosine) > 0.998


def test_float16_does_not_overflow_where_the_transform_of_an_offset_would():
    model = cast(
        Encoder(SMALL.replace(width=512, feed_forward=512), key=jax.random.key(0)), "float16"
    )
    shifted = eqx.tree_at(
        lambda m: m.embeddings.projection.bias, model, jnp.full(512, 20.0, jnp.float16)
    )
    assert bool(jnp.isfinite(shifted(jnp.arange(12)).hidden).all())


def test_a_classifier_keeps_its_encoder():
    encoder = build()
    model = Classifier(encoder, 5, key=jax.random.key(1))
    assert model(jnp.arange(12)).shape == (5,)
    assert model.encoder is encoder
