"""The decoder's cache, chunks, leaves and gradients, on tiny random models."""

from __future__ import annotations

import equinox as eqx
import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tiny_language_models import tiny_config
from trimtab.errors import FileFormatError, InputError
from trimtab.kernels.block_formats import BLOCK_FORMATS, dequantize
from trimtab.models.decoder import BlockLinear, Decoder, DecoderConfig, KVCache, Rotary, Tensor
from trimtab.models.decoder.cache import cache_rows, row_positions
from trimtab.models.decoder.model import random_tensors
from trimtab.models.decoder.weights import pack_ternary, parameter_shapes, ternarize

WINDOWED = dict(layer_windows=(24, 0), local_rotary=Rotary(base=500.0))


run = jax.jit(lambda model, tokens: model(tokens))
extend = jax.jit(lambda model, *rest: model.extend(*rest))


def run_in_chunks(model: Decoder, tokens: np.ndarray, chunk: int, pad: int, capacity: int):
    """Extend a cache chunk by chunk and return all hidden states."""
    cache = KVCache.empty(model.config, len(tokens), capacity, "float32")
    pieces = []
    for start in range(0, tokens.shape[1], chunk):
        part = tokens[:, start : start + chunk]
        count = part.shape[1]
        padded = np.pad(part, ((0, 0), (0, chunk + pad - count)), constant_values=3)
        starts = jnp.full(len(tokens), start)
        counts = jnp.full(len(tokens), count)
        hidden, cache = extend(model, jnp.asarray(padded), starts, counts, cache)
        pieces.append(hidden[:, :count])
    return jnp.concatenate(pieces, axis=1)


@pytest.mark.parametrize("changes", [{}, WINDOWED, {"layer_windows": (7, 5)}], ids=str)
@pytest.mark.parametrize(("chunk", "pad"), [(16, 0), (33, 7), (1, 0)])
def test_chunks_through_the_cache_equal_the_whole_sequence(changes, chunk, pad, key):
    model = Decoder.initialize(tiny_config(**changes), key=key)
    tokens = np.random.default_rng(0).integers(0, 259, (2, 66))
    whole = run(model, jnp.asarray(tokens))
    pieces = model.logits(run_in_chunks(model, tokens, chunk, pad, 96))
    assert jnp.abs(whole - pieces).max() <= 2e-5


def test_a_ring_forgets_only_what_the_window_cannot_see(key):
    config = tiny_config(layer_windows=(20, 20), context=4096)
    model = Decoder.initialize(config, key=key)
    tokens = np.random.default_rng(0).integers(0, 259, (1, 1400))
    assert cache_rows(20, 4096) == 531
    pieces = model.logits(run_in_chunks(model, tokens, 512, 0, 4096))
    assert jnp.abs(run(model, jnp.asarray(tokens)) - pieces).max() <= 2e-5


def test_row_positions_name_the_newest_position_of_each_row():
    for total, last in ((5, 2), (5, 4), (5, 13), (8, 7)):
        held = [-1] * total
        for position in range(last + 1):
            held[position % total] = position
        got = np.asarray(row_positions(total, jnp.asarray(last)))
        assert [max(value, -1) for value in got] == held


def test_an_idle_slot_is_left_untouched(key):
    model = Decoder.initialize(tiny_config(), key=key)
    cache = KVCache.empty(model.config, 2, 32, "float32")
    cache = jax.tree.map(lambda array: array + 1.0, cache)
    tokens, starts = jnp.zeros((2, 4), int), jnp.zeros(2, int)
    _, after = extend(model, tokens, starts, jnp.asarray([4, 0]), cache)
    for array in (*after.keys, *after.values):
        assert (array[1] == 1.0).all()
        assert (array[0, :, :4] != 1.0).any()


def test_layouts_of_rotary_pairs_agree_after_permuting_rows(key):
    from trimtab.generate.gguf_model import permute_to_adjacent

    config = tiny_config()
    tensors = random_tensors(config, key=key)
    permuted = dict(tensors)
    for layer in range(config.layers):
        for part, heads in (("query", config.heads), ("key", config.kv_heads)):
            name = f"blocks/{layer}/attention/{part}/weight"
            moved = permute_to_adjacent(tensors[name].data, heads)
            permuted[name] = tensors[name]._replace(data=moved)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 259, (1, 120)))
    half = run(Decoder.from_tensors(config, tensors), tokens)
    changed = config.replace(rotary_layout="adjacent")
    adjacent = run(Decoder.from_tensors(changed, permuted), tokens)
    assert jnp.abs(half - adjacent).max() <= 1e-5


@pytest.mark.parametrize("kind", [name for name in BLOCK_FORMATS if name != "ternary"])
def test_blocks_unpack_as_the_gguf_package_does(kind):
    form, random = BLOCK_FORMATS[kind], np.random.default_rng(1)
    blocks = random.integers(0, 256, (5, 3, form.bytes), dtype=np.uint8)
    two_halves = kind in ("q4_1", "q5_1", "q4_k", "q5_k")
    for offset in (0, 2) if two_halves else (208,) if kind == "q6_k" else (0,):
        halves = random.normal(size=(5, 3)).astype(np.float16)
        blocks[..., offset : offset + 2] = halves[..., None].view(np.uint8)
    rows = blocks.reshape(5, -1)
    wanted = gguf.dequantize(rows, gguf.GGMLQuantizationType[kind.upper()])
    assert np.array_equal(dequantize(kind, rows), wanted)
    assert np.array_equal(np.asarray(dequantize(kind, jnp.asarray(rows))), wanted)


def test_a_packed_leaf_equals_its_dense_form_in_value_and_gradient():
    values = np.random.default_rng(1).normal(size=(6, 64)).astype(np.float32)
    rows = gguf.quantize(values, gguf.GGMLQuantizationType.Q4_1)
    dense = dequantize("q4_1", rows)
    leaf = BlockLinear(jnp.asarray(rows), None, "q4_1")
    x = jnp.asarray(np.random.default_rng(2).normal(size=(3, 64)), jnp.float32)
    assert np.allclose(leaf(x), x @ dense.T, atol=1e-5)
    assert np.array_equal(leaf.rows(jnp.asarray([4, 1])), dense[[4, 1]])
    gradient = jax.grad(lambda x: leaf(x).sum())(x)
    assert np.allclose(gradient, np.broadcast_to(dense.sum(0), (3, 64)), atol=1e-4)


def test_ternary_rounding_is_that_of_the_paper():
    weights = np.asarray([[0.2, -0.9, 0.05, 1.4], [0.6, 0.6, -0.01, -2.0]], np.float32)
    tensor = ternarize(Tensor("f32", weights, (2, 4)))
    scale = np.abs(weights).mean()
    assert tensor.scale == pytest.approx(scale)
    wanted = np.clip(np.round(weights / scale), -1, 1) * np.float32(tensor.scale)
    assert np.allclose(tensor.float32(), wanted)
    codes = np.asarray([[-1, 0, 1, 1]], np.int8)
    assert np.array_equal(dequantize("ternary", pack_ternary(codes)), codes)


def test_every_parameter_has_a_gradient_and_the_name_of_its_path(key):
    config = tiny_config(
        query_key_norm=True, sandwich_norms=True, sub_norms=True, attention_bias=True, tied=False
    )
    model = Decoder.initialize(config, key=key)
    tokens = jnp.arange(12)[None]

    def loss(model: Decoder):
        return -jax.nn.log_softmax(model(tokens))[0, jnp.arange(11), tokens[0, 1:]].mean()

    gradients = eqx.filter_jit(eqx.filter_grad(loss))(model)
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
    }
    assert set(named) == {name for name, _ in parameter_shapes(config)}
    assert all(jnp.abs(leaf).max() > 0 for leaf in named.values())


def test_a_missing_or_misshapen_tensor_is_named(key):
    config = tiny_config()
    tensors = random_tensors(config, key=key)
    lacking = {name: value for name, value in tensors.items() if "1/attention/key" not in name}
    with pytest.raises(FileFormatError, match="blocks/1/attention/key/weight"):
        Decoder.from_tensors(config, lacking)
    wrong = tensors | {"final_norm/weight": Tensor("f32", np.ones(5, np.float32), (5,))}
    with pytest.raises(FileFormatError, match=r"final_norm/weight has shape \(5,\)"):
        Decoder.from_tensors(config, wrong)


@pytest.mark.parametrize(
    "changes", [{"layers": 0}, {"head_dim": 7}, {"kv_heads": 3}, {"layer_windows": (1, 2, 3)}]
)
def test_impossible_sizes_are_refused(changes):
    with pytest.raises(InputError):
        tiny_config(**changes)


def test_presets_have_the_published_number_of_parameters():
    assert DecoderConfig.smollm2_135m().parameters == 134_515_008
    assert DecoderConfig.gemma3_270m().parameters == pytest.approx(268.1e6, rel=1e-3)
    assert DecoderConfig.bitnet_2b().parameters == pytest.approx(2.41e9, rel=1e-2)
