"""Whole decoder steps against the architecture written out in float64."""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest
from test_quantized import random_rows, rounded

from trimtab import kernels
from trimtab.errors import InputError, UnsupportedError
from trimtab.kernels import _library
from trimtab.kernels.decoder import NativeDecoder, Tensor, dense_values, unsupported
from trimtab.kernels.decoder_step import decoder_step, packed_decoder

pytestmark = pytest.mark.skipif(
    _library.extension() is None, reason="the native kernels are not built"
)


@dataclasses.dataclass(frozen=True)
class Config:
    """A small model; the fields that the native decoder reads."""

    vocabulary: int = 71
    hidden: int = 64
    feed_forward: int = 96
    layers: int = 2
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 16
    norm_epsilon: float = 1e-5
    activation: str = "silu"
    embedding_scale: float = 1.0
    score_scale: float = 0.25
    logit_scale: float = 1.0
    rotary_layout: str = "adjacent"
    layer_windows: tuple[int, ...] = (0, 0)
    bias: bool = False
    head_norms: bool = False
    post_norms: bool = False
    sub_norms: bool = False
    tied: bool = True
    bases: tuple[float, ...] = (10000.0, 10000.0)

    def rotary_frequencies(self, layer):
        steps = np.arange(self.head_dim // 2) * 2 / self.head_dim
        return (self.bases[layer] ** -steps).astype(np.float32)


MODELS = {
    "llama": Config(),
    "untied, ungrouped": Config(tied=False, heads=3, kv_heads=3, head_dim=10, hidden=33),
    "qwen2": Config(bias=True, rotary_layout="half", logit_scale=0.5),
    "qwen3": Config(head_norms=True, rotary_layout="half", head_dim=24),
    "gemma3": Config(
        head_norms=True,
        post_norms=True,
        activation="gelu_tanh",
        embedding_scale=8.0,
        rotary_layout="half",
        layer_windows=(12, 0),
        bases=(10000.0, 1e6),
        kv_heads=1,
        heads=4,
    ),
    "bitnet": Config(sub_norms=True, activation="relu2", rotary_layout="half"),
}


def random_tensors(config, kind="f32", seed=0):
    generator = np.random.default_rng(seed)
    tensors = {}

    def matrix(path, rows, columns, scale=0.2):
        if kind in ("f32", "bf16", "f16"):
            dtype = {"f32": np.float32, "bf16": ml_dtypes.bfloat16, "f16": np.float16}[kind]
            values = generator.normal(0, scale, (rows, columns)).astype(dtype)
            tensors[f"{path}/weight"] = Tensor(kind, values, (rows, columns))
        else:
            data = random_rows(kind, rows, columns, int(generator.integers(1 << 30)))
            tensors[f"{path}/weight"] = Tensor(kind, data, (rows, columns), 0.1)

    def vector(path, size, name="weight"):
        values = generator.normal(1, 0.2, size).astype(np.float32)
        tensors[f"{path}/{name}"] = Tensor("f32", values, (size,))

    c = config
    width, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    values = generator.normal(0, 1, (c.vocabulary, c.hidden)).astype(np.float32)
    tensors["embedding/weight"] = Tensor("f32", values, values.shape)
    for layer in range(c.layers):
        block = f"blocks/{layer}"
        for name, rows, columns in (
            ("attention/query", width, c.hidden),
            ("attention/key", kv, c.hidden),
            ("attention/value", kv, c.hidden),
            ("attention/output", c.hidden, width),
            ("feed_forward/gate", c.feed_forward, c.hidden),
            ("feed_forward/up", c.feed_forward, c.hidden),
            ("feed_forward/down", c.hidden, c.feed_forward),
        ):
            matrix(f"{block}/{name}", rows, columns)
        vector(f"{block}/attention_norm", c.hidden)
        vector(f"{block}/feed_forward_norm", c.hidden)
        if c.bias:
            for name, size in (("query", width), ("key", kv), ("value", kv)):
                vector(f"{block}/attention/{name}", size, "bias")
        if c.head_norms:
            vector(f"{block}/attention/query_norm", c.head_dim)
            vector(f"{block}/attention/key_norm", c.head_dim)
        if c.post_norms:
            vector(f"{block}/post_attention_norm", c.hidden)
            vector(f"{block}/post_feed_forward_norm", c.hidden)
        if c.sub_norms:
            vector(f"{block}/attention/sub_norm", width)
            vector(f"{block}/feed_forward/sub_norm", c.feed_forward)
    vector("final_norm", c.hidden)
    if not c.tied:
        matrix("head", c.vocabulary, c.hidden)
    return tensors


def forward(config, tensors, ids):
    """Logits of every position and the final hidden states, in float64.

    Activations are rounded as the kind of the weights that they meet asks for, and nowhere else.
    """
    c = config
    w = {path: dense_values(tensor).astype(np.float64) for path, tensor in tensors.items()}

    def norm(x, path):
        if f"{path}/weight" not in w:
            return x
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + c.norm_epsilon) * w[f"{path}/weight"]

    def linear(x, path):
        x = rounded(x, tensors[f"{path}/weight"].kind)
        return x @ w[f"{path}/weight"].T + w.get(f"{path}/bias", 0)

    def rotate(x, layer):
        angle = np.arange(len(ids))[:, None, None] * c.rotary_frequencies(layer).astype(np.float64)
        cos, sin = np.cos(angle), np.sin(angle)
        half = c.head_dim // 2
        first = slice(0, half) if c.rotary_layout == "half" else slice(0, None, 2)
        second = slice(half, None) if c.rotary_layout == "half" else slice(1, None, 2)
        out = np.empty_like(x)
        out[..., first] = x[..., first] * cos - x[..., second] * sin
        out[..., second] = x[..., second] * cos + x[..., first] * sin
        return out

    def activate(x):
        if c.activation == "silu":
            return x / (1 + np.exp(-x))
        if c.activation == "relu2":
            return np.maximum(x, 0) ** 2
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    n = len(ids)
    distance = np.arange(n)[:, None] - np.arange(n)[None]
    x = w["embedding/weight"][ids] * c.embedding_scale
    for layer in range(c.layers):
        block = f"blocks/{layer}"
        h = norm(x, f"{block}/attention_norm")
        q, k, v = (
            linear(h, f"{block}/attention/{name}").reshape(n, -1, c.head_dim)
            for name in ("query", "key", "value")
        )
        q = rotate(norm(q, f"{block}/attention/query_norm"), layer)
        k = rotate(norm(k, f"{block}/attention/key_norm"), layer)
        k, v = (np.repeat(a, c.heads // c.kv_heads, 1) for a in (k, v))
        scores = np.einsum("ihd,jhd->hij", q, k) * c.score_scale
        seen = distance >= 0
        if c.layer_windows[layer]:
            seen &= distance < c.layer_windows[layer]
        scores = np.where(seen, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        o = np.einsum("hij,jhd->ihd", weights, v).reshape(n, -1)
        o = linear(norm(o, f"{block}/attention/sub_norm"), f"{block}/attention/output")
        x = x + norm(o, f"{block}/post_attention_norm")
        h = norm(x, f"{block}/feed_forward_norm")
        h = activate(linear(h, f"{block}/feed_forward/gate")) * linear(
            h, f"{block}/feed_forward/up"
        )
        h = linear(norm(h, f"{block}/feed_forward/sub_norm"), f"{block}/feed_forward/down")
        x = x + norm(h, f"{block}/post_feed_forward_norm")
    states = norm(x, "final_norm")
    head = w.get("head/weight", w["embedding/weight"])
    return states @ head.T * c.logit_scale, states


def error(found, truth):
    return np.abs(found - truth).max() / np.abs(truth).max()


def run_in_pieces(engine, cache, ids, sizes, slot=0):
    """Feed ids in chunks of the given sizes; logits of every position."""
    logits, position = [], 0
    for size in sizes:
        part = ids[position : position + size]
        places = np.arange(position, position + len(part))
        rows = np.arange(len(part))
        logits.append(engine.step(cache, part, [slot] * len(part), places, rows))
        position += len(part)
    return np.concatenate(logits)


IDS = np.random.default_rng(7).integers(0, 71, 40)


@pytest.mark.parametrize("isa", kernels.available_isas())
@pytest.mark.parametrize("name", MODELS)
def test_exact_decoding_equals_the_architecture_in_chunks_and_token_by_token(name, isa):
    config = MODELS[name]
    tensors = random_tensors(config)
    truth, states = forward(config, tensors, IDS)
    with kernels.use_isa(isa):
        engine = NativeDecoder(config, tensors, exact=True)
        for sizes in ([40], [1] * 40, [20, 3, 1, 16]):
            cache = engine.new_cache(2, 64, "f32")
            assert error(run_in_pieces(engine, cache, IDS, sizes, slot=1), truth) < 1e-4, sizes
        cache = engine.new_cache(1, 64, "f32")
        assert error(engine.hidden(cache, IDS, [0] * 40, range(40)), states) < 1e-4


def assert_near(found, truth):
    # Single values at the middle between two codes round the other way, and more of them follow.
    assert np.median(np.abs(found - truth)) / np.abs(truth).max() < 1e-5
    assert error(found, truth) < 0.02


@pytest.mark.parametrize("kind", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "bf16", "f16"])
def test_quantised_decoding_rounds_activations_and_nothing_else(kind):
    config = MODELS["llama"]
    tensors = random_tensors(config, kind)
    truth, _ = forward(config, tensors, IDS)
    engine = NativeDecoder(config, tensors)
    for sizes in ([40], [1] * 40):
        assert_near(run_in_pieces(engine, engine.new_cache(1, 64, "f32"), IDS, sizes), truth)


@pytest.mark.parametrize("kind", ["q4_k", "q5_k", "q6_k"])
def test_super_blocks_decode_too(kind):
    config = Config(hidden=256, feed_forward=256, heads=8, kv_heads=2, head_dim=32)
    tensors = random_tensors(config, kind)
    truth, _ = forward(config, tensors, IDS)
    engine = NativeDecoder(config, tensors)
    assert_near(run_in_pieces(engine, engine.new_cache(1, 64, "f32"), IDS, [40]), truth)


def test_ternary_layers_round_activations_once_a_row():
    config = MODELS["bitnet"]
    tensors = random_tensors(config, "ternary")
    truth, _ = forward(config, tensors, IDS)
    engine = NativeDecoder(config, tensors)
    assert_near(run_in_pieces(engine, engine.new_cache(1, 64, "f32"), IDS, [25, 15]), truth)


def test_a_cache_of_half_the_size_costs_little():
    config = MODELS["llama"]
    tensors = random_tensors(config)
    truth, _ = forward(config, tensors, IDS)
    engine = NativeDecoder(config, tensors)
    for sizes in ([40], [1] * 40):
        found = run_in_pieces(engine, engine.new_cache(1, 64, "bf16"), IDS, sizes)
        assert error(found, truth) < 0.02


def test_a_ring_forgets_nothing_that_the_window_sees():
    config = MODELS["gemma3"]
    tensors = random_tensors(config)
    ids = np.random.default_rng(8).integers(0, 71, 700)
    truth, _ = forward(config, tensors, ids)
    engine = NativeDecoder(config, tensors, exact=True)
    cache = engine.new_cache(1, 700, "f32")
    assert cache.keys[0].shape[2] == 12 + 511
    found = run_in_pieces(engine, cache, ids, [512, 150, *[1] * 38])
    assert error(found, truth) < 1e-4


@pytest.mark.parametrize("kind", ["q4_1", "f32"])
def test_a_request_gets_the_same_bits_alone_in_company_and_with_any_threads(kind):
    config = MODELS["llama"]
    engine = NativeDecoder(config, random_tensors(config, kind))
    prompts = [IDS[:9], IDS[9:30], IDS[30:33]]
    alone = []
    for threads in (1, 2, 5):
        with kernels.use_threads(threads):
            cache = engine.new_cache(3, 64)
            for slot, prompt in enumerate(prompts):
                one = run_in_pieces(engine, cache, prompt, [len(prompt)], slot)
                alone.append(one[-1].tobytes())
            lengths = np.array([len(prompt) for prompt in prompts])
            together = engine.step(cache, [1, 2, 3], [0, 1, 2], lengths, [0, 1, 2])
            for slot in range(3):
                single = engine.step(cache, [slot + 1], [slot], [lengths[slot]], [0])
                assert single[0].tobytes() == together[slot].tobytes()
    assert alone[:3] == alone[3:6] == alone[6:]
    cache = engine.new_cache(3, 64)
    slots = np.repeat(np.arange(3), [9, 21, 3])
    places = np.concatenate([np.arange(9), np.arange(21), np.arange(3)])
    mixed = engine.step(cache, IDS[:33], slots, places, [8, 29, 32])
    assert [row.tobytes() for row in mixed] == alone[:3]


def test_exported_positions_continue_in_another_slot_as_if_computed_there():
    config = MODELS["llama"]
    engine = NativeDecoder(config, random_tensors(config, "q8_0"))
    cache = engine.new_cache(2, 64)
    run_in_pieces(engine, cache, IDS[:20], [20], slot=0)
    cache.restore(1, 0, cache.export(0, 0, 20))
    first, second = (engine.step(cache, [5], [slot], [20], [0]) for slot in (0, 1))
    assert first.tobytes() == second.tobytes()
    assert cache.nbytes == 2 * 2 * 2 * 2 * 64 * 16 * 2


def test_what_it_cannot_run_or_was_asked_wrongly_is_said_in_a_sentence():
    config = MODELS["llama"]
    tensors = random_tensors(config, "q4_1")
    assert unsupported(config, tensors) is None
    strange = dataclasses.replace(config, activation="tanh")
    with pytest.raises(UnsupportedError, match="no activation 'tanh'"):
        NativeDecoder(strange, tensors)
    engine = NativeDecoder(config, tensors)
    cache = engine.new_cache(1, 8)
    with pytest.raises(InputError, match="token id is outside the vocabulary"):
        engine.step(cache, [71], [0], [0], [0])
    with pytest.raises(InputError, match="position is past the end of the cache"):
        engine.step(cache, [1], [0], [8], [0])
    with pytest.raises(InputError, match="slot is outside"):
        engine.step(cache, [1], [1], [0], [0])
    with pytest.raises(InputError, match="output index"):
        engine.step(cache, [1], [0], [0], [1])
    with pytest.raises(InputError, match="at most 512 tokens"):
        engine.step(cache, [1] * 513, [0] * 513, range(513), [])
    with pytest.raises(InputError, match="slots >= 1"):
        engine.new_cache(0, 8)


def test_the_jax_form_gives_the_same_bits_and_a_new_cache():
    config = MODELS["llama"]
    engine = NativeDecoder(config, random_tensors(config, "q4_0"))
    cache = engine.new_cache(2, 64)
    packed, buffer = packed_decoder(engine, cache)
    step = jax.jit(decoder_step, donate_argnums=1)
    slots, places = [1] * 12, np.arange(12)
    truth = engine.step(cache, IDS[:12], slots, places, [3, 11])
    buffer, logits = step(
        packed, buffer, *(np.array(a, np.int32) for a in (IDS[:12], slots, places, [3, 11]))
    )
    assert np.asarray(logits).tobytes() == truth.tobytes()
    assert np.asarray(buffer).tobytes() == cache.buffer.tobytes()
    truth = engine.step(cache, [5], [1], [12], [0])
    _, logits = step(packed, buffer, *(np.array(a, np.int32) for a in ([5], [1], [12], [0])))
    assert np.asarray(logits).tobytes() == truth.tobytes()
