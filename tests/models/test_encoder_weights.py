"""Encoder weights: parity with `transformers` and with a Flax encoder, and exact round trips."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trimtab.errors import FileFormatError, UnsupportedError
from trimtab.models import Classifier, Encoder, EncoderConfig, PretrainingModel, hybrid
from trimtab.models.flax_layout import from_flax, load_flax, to_flax
from trimtab.models.weights import (
    load_encoder,
    load_huggingface,
    parameter_paths,
    save_encoder,
    save_huggingface,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = EncoderConfig(
    vocabulary=60, width=32, feed_forward=48, depth=2, heads=4, max_tokens=64, segments=2
)


def huggingface(family: str, kind: str = "ForPreTraining", **sizes):
    name = {"fnet": "FNet", "bert": "Bert"}[family]
    config = getattr(transformers, f"{name}Config")(**sizes)
    model = getattr(transformers, f"{name}{kind}")(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 0.02 if parameter.ndim > 1 else 0.1
            parameter.copy_(scale * noise + float("LayerNorm.weight" in parameter_name))
    return model


def small_sizes(tokens: int) -> dict:
    return dict(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=max(64, tokens),
        type_vocab_size=2,
    )


def inputs(tokens: int, vocabulary: int = 60) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    ids = generator.integers(4, vocabulary, (2, tokens), dtype=np.int32)
    return ids, generator.integers(0, 2, (2, tokens), dtype=np.int32)


def differences(reference, model, family: str, tokens: int, vocabulary: int = 60) -> dict:
    ids, segments = inputs(tokens, vocabulary)
    with torch.no_grad():
        long = (torch.from_numpy(ids).long(), torch.from_numpy(segments).long())
        base = getattr(reference, family)(long[0], token_type_ids=long[1])
        heads = reference(long[0], token_type_ids=long[1])

    @jax.jit
    @jax.vmap
    def run(ids, segments):
        return model.encoder(ids, segments), model(ids, segments)

    output, (logits, order) = run(jnp.asarray(ids), jnp.asarray(segments))
    pairs = {
        "hidden": (output.hidden, base.last_hidden_state),
        "pooled": (output.pooled, base.pooler_output),
        "masked tokens": (logits, heads.prediction_logits),
        "order": (order, heads.seq_relationship_logits),
    }
    return {k: float(np.abs(np.asarray(a) - b.numpy()).max()) for k, (a, b) in pairs.items()}


@pytest.mark.parametrize("tokens", [1, 37, 128])
@pytest.mark.parametrize("family", ["fnet", "bert"])
def test_outputs_equal_those_of_transformers(family, tokens, tmp_path):
    reference = huggingface(family, **small_sizes(tokens))
    reference.save_pretrained(tmp_path)
    model = load_huggingface(tmp_path)
    assert isinstance(model, PretrainingModel)
    assert max(differences(reference, model, family, tokens).values()) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize("tokens", [1, 37, 128, 509, 512, 2048])
def test_outputs_equal_those_of_transformers_at_published_sizes(size, tokens, tmp_path):
    sizes = dict(max_position_embeddings=max(512, tokens))
    if size == "large":
        sizes |= dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24)
    reference = huggingface("fnet", **sizes)
    reference.save_pretrained(tmp_path)
    found = differences(reference, load_huggingface(tmp_path), "fnet", tokens, 32_000)
    print(size, tokens, found)
    # 24 layers add up to 1.2e-5 in a few of two million values, in either library.
    assert max(found.values()) <= (1e-5 if size == "base" else 2e-5)


def test_outputs_equal_those_of_transformers_with_its_matrices(tmp_path):
    reference = huggingface(
        "fnet",
        **small_sizes(64),
        use_tpu_fourier_optimizations=True,
        tpu_short_seq_length=64,
    )
    reference.save_pretrained(tmp_path)
    for path in ("matmul", "folded_matmul"):
        model = load_huggingface(tmp_path, fourier_path=path)
        assert max(differences(reference, model, "fnet", 64).values()) <= 1e-5


@pytest.mark.parametrize("family", ["fnet", "bert"])
def test_gradients_of_every_parameter_equal_those_of_transformers(family, tmp_path):
    reference = huggingface(family, **small_sizes(37), hidden_dropout_prob=0.0)
    reference.save_pretrained(tmp_path)
    model = load_huggingface(tmp_path)
    ids, segments = inputs(37)
    output = reference(
        torch.from_numpy(ids).long(), token_type_ids=torch.from_numpy(segments).long()
    )
    (
        output.prediction_logits.square().mean() + output.seq_relationship_logits.square().sum()
    ).backward()

    def loss(model):
        logits, order = jax.vmap(model)(jnp.asarray(ids), jnp.asarray(segments))
        return jnp.square(logits).mean() + jnp.square(order).sum()

    gradients = parameter_paths(eqx.filter_jit(eqx.filter_grad(loss))(model))
    from trimtab.models.weights import huggingface_name

    theirs = {name: p.grad.numpy() for name, p in reference.named_parameters()}
    for path, ours in gradients.items():
        exact = theirs[huggingface_name(path, family, prefix=True)]
        error = np.abs(np.asarray(ours) - exact).max()
        # The key bias has no gradient but rounding.
        assert error <= 1e-4 * np.abs(exact).max() + 1e-7, path


@pytest.mark.parametrize("family", ["fnet", "bert"])
@pytest.mark.parametrize("kind", ["Model", "ForPreTraining", "ForSequenceClassification"])
def test_a_round_trip_through_hugging_face_files_returns_the_same_bits(family, kind, tmp_path):
    reference = huggingface(family, kind, **small_sizes(8))
    reference.save_pretrained(tmp_path / "theirs")
    model = load_huggingface(tmp_path / "theirs")
    save_huggingface(model, tmp_path / "ours")
    again = type(reference).from_pretrained(tmp_path / "ours")
    for name, value in reference.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_round_trip_through_the_flax_layout_returns_the_same_bits():
    mixers = hybrid(3, [1])
    config = SMALL.replace(depth=3, mixers=mixers, embedding_width=16)
    for model in (
        PretrainingModel(config, key=jax.random.key(0)),
        Classifier(Encoder(config, key=jax.random.key(0)), 3, key=jax.random.key(1)),
        Encoder(SMALL.replace(mixers="linear"), key=jax.random.key(0)),
    ):
        again = from_flax(to_flax(model))
        assert type(again) is type(model)
        for (path, a), b in zip(parameter_paths(model).items(), parameter_paths(again).values()):
            np.testing.assert_array_equal(a, b, err_msg=path)


def test_the_flax_layout_computes_the_same_in_flax(tmp_path):
    linen = pytest.importorskip("flax.linen")
    from flax import serialization

    mixers = ("fourier", "attention")
    model = Encoder(SMALL.replace(mixers=mixers), key=jax.random.key(0))
    ids = jnp.asarray(inputs(20)[0])

    class Feed(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(32, name="output")(
                linen.gelu(linen.Dense(48, name="intermediate")(x))
            )

    class Block(linen.Module):
        mixing: linen.Module | None
        feed: linen.Module

        @linen.compact
        def __call__(self, x):
            mixed = jnp.fft.fftn(x, axes=(1, 2)).real if self.mixing is None else self.mixing(x)
            x = linen.LayerNorm(epsilon=1e-12, name="mixing_layer_norm")(x + mixed)
            return linen.LayerNorm(epsilon=1e-12, name="output_layer_norm")(x + self.feed(x))

    class Text(linen.Module):
        def setup(self):
            self.blocks = [
                Block(
                    mixing=linen.SelfAttention(num_heads=4, name=f"self_attention_{i}")
                    if kind == "attention"
                    else None,
                    feed=Feed(name=f"feed_forward_{i}"),
                    name=f"encoder_{i}",
                )
                for i, kind in enumerate(mixers)
            ]
            self.pooler = linen.Dense(32, name="pooler")

        def __call__(self, x):
            for block in self.blocks:
                x = block(x)
            return x, jnp.tanh(self.pooler(x[:, 0]))

    tree = to_flax(model)
    embedder = tree["encoder"].pop("embedder")
    embedded = embedder["word"]["embedding"][ids] + embedder["position"]["embedding"][:, :20]
    embedded = embedded + embedder["type"]["embedding"][0]
    embedded = linen.LayerNorm(epsilon=1e-12).apply({"params": embedder["layer_norm"]}, embedded)
    embedded = linen.Dense(32).apply({"params": embedder["hidden_mapping_in"]}, embedded)
    hidden, pooled = Text().apply({"params": tree["encoder"]}, embedded)
    ours = jax.vmap(model)(ids)
    np.testing.assert_allclose(ours.hidden, hidden, atol=1e-5)
    np.testing.assert_allclose(ours.pooled, pooled, atol=1e-5)

    file = tmp_path / "checkpoint"
    file.write_bytes(serialization.msgpack_serialize({"optimizer": {"target": to_flax(model)}}))
    loaded = load_flax(file)
    for a, b in zip(parameter_paths(model).values(), parameter_paths(loaded).values()):
        np.testing.assert_array_equal(a, b)


def test_damaged_flax_checkpoints_are_refused(tmp_path):
    with pytest.raises(FileFormatError, match="does not exist"):
        load_flax(tmp_path / "nothing")
    (tmp_path / "noise").write_bytes(b"\xc1\x00noise")
    with pytest.raises(FileFormatError, match="not a Flax msgpack checkpoint"):
        load_flax(tmp_path / "noise")
    (tmp_path / "empty").write_bytes(b"\x80")
    with pytest.raises(FileFormatError, match="no parameters under a key 'encoder'"):
        load_flax(tmp_path / "empty")
    tree = to_flax(Encoder(SMALL, key=jax.random.key(0)))
    del tree["encoder"]["pooler"]["kernel"]
    with pytest.raises(FileFormatError, match="lack encoder/pooler/kernel"):
        from_flax(tree)
    with pytest.raises(UnsupportedError, match="no place for"):
        to_flax(Encoder(SMALL.replace(mixers="random"), key=jax.random.key(0)))


def test_own_folders_keep_every_kind_of_encoder(tmp_path):
    config = SMALL.replace(mixers=("hartley", "attention"), padding="exact", orthonormal=True)
    model = Classifier(Encoder(config, key=jax.random.key(0)), 7, key=jax.random.key(1))
    save_encoder(model, tmp_path / "model")
    again = load_encoder(tmp_path / "model")
    assert again.encoder.config == config
    for a, b in zip(parameter_paths(model).values(), parameter_paths(again).values()):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(model(jnp.arange(9)), again(jnp.arange(9)))
    with pytest.raises(UnsupportedError, match="Use save_encoder"):
        save_huggingface(model, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_fresh_head_needs_a_key(tmp_path):
    save_huggingface(Encoder(SMALL, key=jax.random.key(0)), tmp_path / "m")
    with pytest.raises(FileFormatError, match=r"lacks classifier\.weight, classifier\.bias"):
        load_huggingface(tmp_path / "m", "classifier")
    fresh = load_huggingface(tmp_path / "m", "classifier", key=jax.random.key(2))
    assert isinstance(fresh, Classifier)


def test_damaged_folders_are_refused(tmp_path):
    folder = tmp_path / "m"
    with pytest.raises(FileFormatError, match="does not exist"):
        load_huggingface(folder)
    save_huggingface(Encoder(SMALL, key=jax.random.key(0)), folder)
    settings = json.loads((folder / "config.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(FileFormatError, match="is damaged"):
        load_huggingface(folder)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text(json.dumps(settings | {"hidden_size": 16}))
    with pytest.raises(FileFormatError, match="has shape"):
        load_huggingface(folder)
    (folder / "config.json").write_text(json.dumps(settings | {"model_type": "gpt2"}))
    with pytest.raises(UnsupportedError, match="gpt2"):
        load_huggingface(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(FileFormatError, match="not valid JSON"):
        load_huggingface(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "fnet"}))
    with pytest.raises(FileFormatError, match="has no entry"):
        load_huggingface(folder)
    with pytest.raises(FileFormatError, match="load_huggingface"):
        load_encoder(folder)
