"""Random tiny models of every family against transformers, through files on disk."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from tiny_language_models import save_for_reading
from trimtab.errors import UnsupportedError
from trimtab.generate.gguf_model import read_gguf_model, write_gguf_model
from trimtab.generate.huggingface import read_config, read_huggingface, write_huggingface
from trimtab.models.decoder import Decoder

SIZES = dict(
    vocab_size=288, hidden_size=48, intermediate_size=64, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
    bos_token_id=None, eos_token_id=256, pad_token_id=None,
)  # fmt: skip
LENGTH = 130


def _config(name: str, **settings):
    return getattr(transformers, f"{name}Config")(**{**SIZES, **settings})


CASES = {
    "llama": lambda: _config("Llama", rope_theta=5000.0, tie_word_embeddings=False),
    "llama3": lambda: _config(
        "Llama",
        tie_word_embeddings=True,
        rope_theta=10_000.0,
        rope_scaling={
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    ),
    "llama-linear": lambda: _config("Llama", rope_scaling={"rope_type": "linear", "factor": 4.0}),
    "mistral": lambda: _config("Mistral", sliding_window=40, head_dim=12),
    "qwen2": lambda: _config("Qwen2", tie_word_embeddings=True),
    "qwen2-windows": lambda: _config(
        "Qwen2", use_sliding_window=True, sliding_window=24, max_window_layers=1
    ),
    "qwen3": lambda: _config("Qwen3", head_dim=20),
    "gemma3": lambda: _config(
        "Gemma3Text", num_hidden_layers=7, head_dim=16, sliding_window=32, query_pre_attn_scalar=24
    ),
    "bitnet": lambda: _config("BitNet", tie_word_embeddings=True),
}  # fmt: skip
CLASSES = {
    "llama": "LlamaForCausalLM", "llama3": "LlamaForCausalLM", "llama-linear": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen2-windows": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
    "gemma3": "Gemma3ForCausalLM", "bitnet": "BitNetForCausalLM",
}  # fmt: skip


def _random_model(case: str, **changes):
    torch.manual_seed(3)
    config = CASES[case]()
    for name, value in changes.items():
        setattr(config, name, value)
    config._attn_implementation = "eager"
    model = getattr(transformers, CLASSES[case])(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms away from one and biases away from zero, so that none can be forgotten.
            spread = 0.2 if parameter.ndim == 1 else 0.08
            parameter.add_(spread * torch.randn_like(parameter))
            assert name
    if case == "bitnet":
        _quantize_online(model)
    return model


def _quantize_online(model) -> None:
    """Give BitNet's projections their int8 activations and ternary weights."""
    from transformers.integrations.bitnet import AutoBitLinear

    for layer in model.model.layers:
        for owner in (layer.self_attn, layer.mlp):
            for name, linear in list(owner.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    bit = AutoBitLinear(
                        linear.in_features, linear.out_features, bias=False, online_quant=True
                    )
                    bit.weight = linear.weight
                    setattr(owner, name, bit)


def _tokens() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (1, LENGTH))


def _reference(model, tokens: np.ndarray) -> np.ndarray:
    # transformers compiles BitNet's rounding, which takes a minute and changes nothing.
    with torch.no_grad(), torch._dynamo.config.patch(disable=True):
        return model(torch.from_numpy(tokens)).logits.float().numpy()


def _logits(checkpoint, tokens: np.ndarray) -> np.ndarray:
    model = Decoder.from_tensors(checkpoint.config, checkpoint.tensors)
    return np.asarray(jax.jit(lambda model, ids: model(ids))(model, jnp.asarray(tokens)))


@pytest.mark.parametrize("case", CASES)
def test_logits_agree_with_transformers(case, tmp_path):
    model = _random_model(case)
    checkpoint = read_huggingface(save_for_reading(model, tmp_path))
    tokens = _tokens()
    wanted, got = _reference(model, tokens), _logits(checkpoint, tokens)
    spread = np.abs(wanted).max()
    if case == "bitnet":
        # Rounding of activations to int8 flips where the two float orders differ.
        assert np.abs(got - wanted).max() <= 0.02 * spread
        assert (got.argmax(-1) == wanted.argmax(-1)).mean() >= 0.98
    else:
        assert np.abs(got - wanted).max() <= 1e-4 * max(1.0, spread)


@pytest.mark.parametrize("case", ["llama", "llama3", "qwen2", "qwen3", "gemma3"])
def test_export_to_gguf_keeps_the_logits(case, tmp_path):
    # GGUF has no place for another score scale of Gemma's.
    changes = {"query_pre_attn_scalar": 16} if case == "gemma3" else {}
    model = _random_model(case, **changes)
    checkpoint = read_huggingface(save_for_reading(model, tmp_path / "folder"))
    write_gguf_model(tmp_path / "model.gguf", checkpoint)
    again = read_gguf_model(tmp_path / "model.gguf")
    tokens = _tokens()
    assert np.abs(_logits(again, tokens) - _logits(checkpoint, tokens)).max() <= 2e-5


@pytest.mark.parametrize("case", ["llama3", "mistral", "qwen2", "gemma3"])
def test_export_to_a_folder_opens_in_transformers(case, tmp_path):
    model = _random_model(case)
    checkpoint = read_huggingface(save_for_reading(model, tmp_path / "folder"))
    write_huggingface(tmp_path / "exported", checkpoint)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "exported", attn_implementation="eager", dtype=torch.float32
    ).eval()
    tokens = _tokens()
    assert np.abs(_reference(loaded, tokens) - _reference(model, tokens)).max() <= 1e-5


def test_export_refuses_what_gguf_cannot_say(tmp_path):
    checkpoint = read_huggingface(save_for_reading(_random_model("gemma3"), tmp_path / "folder"))
    with pytest.raises(UnsupportedError, match="score scale"):
        write_gguf_model(tmp_path / "model.gguf", checkpoint)


def test_an_unknown_architecture_is_refused_with_what_is_served():
    with pytest.raises(UnsupportedError, match=r"MambaForCausalLM.*LlamaForCausalLM"):
        read_config({"architectures": ["MambaForCausalLM"]})


def test_an_unserved_rotary_scaling_is_refused():
    settings = CASES["llama"]().to_dict()
    settings |= {
        "architectures": ["LlamaForCausalLM"],
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0},
    }
    with pytest.raises(UnsupportedError, match="yarn"):
        read_config(settings)
