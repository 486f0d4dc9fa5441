"""Sites found in jaxprs, whatever way the layer was written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trimtab as tt
from trimtab.errors import UnknownNameError
from trimtab.graph import linear_weight
from trimtab.graph.sites import matches


def _heads(x, w, heads=2):
    return (x @ w).reshape(x.shape[0], heads, -1)


def plain_softmax(p, x):
    q, k, v = (_heads(x, p[name]) for name in ("q", "k", "v"))
    scores = jnp.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    return jnp.einsum("hqk,khd->qhd", weights, v).reshape(x.shape[0], -1)


def masked_softmax(p, x):
    q, k, v = (_heads(x, p[name]) for name in ("q", "k", "v"))
    scores = jnp.einsum("qhd,khd->hqk", q, k) * 0.3
    causal = jnp.tril(jnp.ones((x.shape[0],) * 2, bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf).astype(jnp.float32), axis=-1)
    return jnp.einsum("hqk,khd->qhd", weights, v).reshape(x.shape[0], -1)


def library_attention(p, x):
    q, k, v = (_heads(x, p[name]) for name in ("q", "k", "v"))
    return jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape[0], -1)


def fused_projection(p, x):
    packed = x @ jnp.concatenate([p["q"], p["k"], p["v"]], 1)
    q, k, v = (part.reshape(x.shape[0], 2, -1) for part in jnp.split(packed, 3, -1))
    return jax.nn.dot_product_attention(q, k, v).reshape(x.shape[0], -1)


def rematerialised(p, x):
    return jax.checkpoint(masked_softmax)(p, x)


@pytest.fixture(scope="module")
def projections():
    keys = jax.random.split(jax.random.key(0), 3)
    return {name: jax.random.normal(k, (8, 8)) for name, k in zip("qkv", keys)}


@pytest.mark.parametrize(
    "attention", [plain_softmax, masked_softmax, library_attention, rematerialised]
)
def test_attention_is_found_however_it_is_written(attention, projections):
    program = tt.capture(attention, jnp.ones((5, 8)), parameters=projections)
    (site,) = program.sites("attention")
    assert len(program.sites("linear")) == 3
    assert {np.prod(site.shapes[role]) for role in ("query", "key", "value")} == {5 * 8}


def test_a_classifier_with_softmax_is_not_attention():
    def model(p, x):
        return jax.nn.softmax(x @ p["a"]) @ p["b"]

    program = tt.capture(
        model, jnp.ones((4, 8)), parameters={"a": jnp.ones((8, 3)), "b": jnp.ones((3, 2))}
    )
    assert program.sites("attention") == []
    assert [site.path for site in program.sites("linear")] == ["a", "b"]


def test_weights_are_followed_through_transposes_casts_and_scans(key):
    stacked = jax.random.normal(key, (3, 6, 4, 2))

    def model(p, x):
        def layer(h, w):
            return jnp.tanh(h @ w.astype(jnp.bfloat16).transpose(2, 1, 0).reshape(8, 6).T), None

        return jax.lax.scan(lambda h, w: (layer(h, w)[0] @ p["out"], None), x, p["stack"])[0]

    x = jnp.ones((5, 6), jnp.bfloat16)
    out = jnp.ones((8, 6), jnp.bfloat16)
    program = tt.capture(model, x, parameters={"stack": stacked, "out": out})
    inner, outer = program.sites("linear")
    assert (inner.path, inner.repeats, len(inner.loops)) == ("stack", 3, 1)
    assert (outer.path, outer.repeats, outer.provenance["weight"].loops) == ("out", 3, ())
    matrix = linear_weight(inner, stacked)
    expected = stacked.astype(jnp.bfloat16).transpose(0, 3, 2, 1).reshape(3, 8, 6)
    np.testing.assert_array_equal(matrix, expected)


def test_a_bias_belongs_to_its_linear_layer():
    def model(p, x):
        return jax.nn.relu(x @ p["layer"]["w"] + p["layer"]["b"])

    parameters = {"layer": {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}}
    (site,) = tt.capture(model, jnp.ones((4, 3)), parameters=parameters).sites()
    assert site.parameters == {"weight": "layer/w", "bias": "layer/b"}


@pytest.mark.parametrize("form", ["layer", "rms"])
def test_normalizations_are_found_with_their_scale(form):
    def model(p, x):
        centred = x - x.mean(-1, keepdims=True) if form == "layer" else x
        moment = jnp.mean(jnp.square(centred), -1, keepdims=True)
        return centred * jax.lax.rsqrt(moment + 1e-6) * p["norm"]["scale"]

    (site,) = tt.capture(
        model, jnp.ones((4, 8)), parameters={"norm": {"scale": jnp.ones(8)}}
    ).sites("normalization")
    assert (site.path, site.attributes["form"]) == ("norm", form)


def test_an_embedding_is_found_with_its_table(key):
    table = jax.random.normal(key, (10, 4))
    (site,) = tt.capture(
        lambda p, i: jnp.take(p["words"], i, axis=0), jnp.array([1, 2]), parameters={"words": table}
    ).sites("embedding")
    assert site.parameters == {"weight": "words"}


def test_sites_inside_loops_and_branches_are_found():
    def model(p, x):
        x = jax.lax.while_loop(lambda s: s.sum() < 9, lambda s: s @ p["a"], x)
        return jax.lax.cond(x[0, 0] > 0, lambda y: y @ p["b"], lambda y: y, x)

    parameters = {"a": jnp.eye(3), "b": jnp.eye(3)}
    program = tt.capture(model, jnp.ones((3, 3)), parameters=parameters)
    assert [site.path for site in program.sites("linear")] == ["a", "b"]


def test_globs_select_and_exclude():
    assert matches("blocks/0/query/weight", "**/weight")
    assert matches("weight", "**/weight")
    assert not matches("blocks/0/query/bias", "**/weight")
    assert not matches("blocks/0/key", "blocks/*,!*/key")
    assert matches("blocks/0/key", "!*/query")


def test_an_unknown_kind_lists_the_known(projections):
    program = tt.capture(plain_softmax, jnp.ones((5, 8)), parameters=projections)
    with pytest.raises(UnknownNameError, match="Did you mean 'linear'"):
        program.sites("linaer")
