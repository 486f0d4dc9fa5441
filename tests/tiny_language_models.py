"""Tiny random language models with a byte tokenizer, for tests and documentation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax

from trimtab.generate.checkpoint import Checkpoint, Vocabulary
from trimtab.generate.engine import JaxEngine
from trimtab.generate.language_model import LanguageModel
from trimtab.models.decoder.config import DecoderConfig, Rotary

SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def byte_vocabulary() -> Vocabulary:
    """256 bytes and three control tokens, as a GGUF vocabulary would hold them."""
    from trimtab.generate.tokenizer import _byte_table

    letters = sorted(_byte_table(), key=_byte_table().get)
    tokens = (*letters, *SPECIAL)
    return Vocabulary(
        kind="bpe",
        pre_tokenizer="gpt-2",
        tokens=tokens,
        kinds=(1,) * 256 + (3,) * len(SPECIAL),
        ends=(256,),
    )


def tiny_config(**changes) -> DecoderConfig:
    """A decoder of two layers that compiles in a second."""
    return DecoderConfig(
        vocabulary=259, hidden=32, feed_forward=64, layers=2, heads=4, kv_heads=2, head_dim=8,
        context=256, rotary=Rotary(base=10_000.0),
    ).replace(**changes)  # fmt: skip


def tiny_checkpoint(**changes) -> Checkpoint:
    """A random model with a byte tokenizer and a chat template."""
    from trimtab.models.decoder.model import random_tensors

    config = tiny_config(**changes)
    tensors = random_tensors(config, key=jax.random.key(7))
    # Larger weights than at initialisation, so that logits differ clearly between tokens.
    grown = {
        name: tensor._replace(data=tensor.data * 8) if tensor.data.ndim == 2 else tensor
        for name, tensor in tensors.items()
    }
    return Checkpoint(
        path=Path("tiny.gguf"),
        name="tiny",
        config=config,
        tensors=grown,
        vocabulary=byte_vocabulary(),
        chat_template=TEMPLATE,
    )


def build_tiny(slots: int = 1, capacity: int = 256, **changes) -> LanguageModel:
    """A tiny model on the JAX engine with a float32 cache."""
    checkpoint = tiny_checkpoint(**changes)
    engine = JaxEngine(checkpoint, slots=slots, capacity=capacity, cache_dtype="float32")
    return LanguageModel(checkpoint, engine)


def tokenizer_json(size: int) -> str:
    """A byte-level ``tokenizer.json`` padded with unused tokens up to ``size`` ids."""
    from trimtab.generate.tokenizer import Tokenizer

    vocabulary = byte_vocabulary()
    filler = tuple(f"<|unused{index}|>" for index in range(len(vocabulary.tokens), size))
    vocabulary = dataclasses.replace(
        vocabulary,
        tokens=vocabulary.tokens + filler,
        kinds=vocabulary.kinds + (3,) * len(filler),
    )
    return Tokenizer(vocabulary).json()


def save_for_reading(model, folder: Path) -> Path:
    """Write a transformers model as a folder that has a tokenizer."""
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_json(model.config.vocab_size))
    settings = json.loads((folder / "config.json").read_text())
    assert settings["vocab_size"] >= 259
    return folder
