"""From GGUF's keys and tensor names to a decoder's configuration and parameters, and back."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.errors import FileFormatError, InputError, UnsupportedError, require_extra
from trimtab.generate.checkpoint import Checkpoint, Vocabulary
from trimtab.generate.gguf_file import GGUFFile, StoredTensor, read_gguf, write_gguf
from trimtab.kernels.block_formats import BLOCK_FORMATS
from trimtab.models.decoder.config import DecoderConfig, Rotary, every_sixth_global
from trimtab.models.decoder.weights import Tensor, check_tensors, pack_ternary
from trimtab.progress import Progress, silent

# Our name -> the name inside GGUF's `blk.{layer}.`.
_BLOCK_NAMES = {
    "attention_norm": "attn_norm",
    "attention/query": "attn_q",
    "attention/key": "attn_k",
    "attention/value": "attn_v",
    "attention/output": "attn_output",
    "attention/query_norm": "attn_q_norm",
    "attention/key_norm": "attn_k_norm",
    "attention/sub_norm": "attn_sub_norm",
    "post_attention_norm": "post_attention_norm",
    "feed_forward_norm": "ffn_norm",
    "feed_forward/gate": "ffn_gate",
    "feed_forward/up": "ffn_up",
    "feed_forward/down": "ffn_down",
    "feed_forward/sub_norm": "ffn_sub_norm",
    "post_feed_forward_norm": "post_ffw_norm",
}
_TOP_NAMES = {"embedding": "token_embd", "final_norm": "output_norm", "head": "output"}
_FROM_GGUF = {theirs: ours for ours, theirs in _BLOCK_NAMES.items()}

# llama.cpp computes with these fields; a file that sets one describes a model we would get wrong.
_UNHANDLED = (
    "expert_count",
    "ssm.state_size",
    "attn_logit_softcapping",
    "rope.scaling.yarn_factor",
)

# Architectures whose converters permute query and key rows to adjacent rotary pairs.
_ADJACENT = ("llama",)


def read_gguf_model(path: str | os.PathLike[str], progress: Progress = silent) -> Checkpoint:
    """Open a GGUF model.

    Tensors of the formats that kernels serve stay memory-mapped and packed; others are unpacked.

    Args:
        path: the file.
        progress: told how many tensors have been mapped.

    Raises:
        FileFormatError: the file is damaged or lacks a part.
        UnsupportedError: the architecture or a variant of it is not served.
    """
    file = read_gguf(path)
    fields = _Fields(file)
    config = _config(file, fields)
    tensors: dict[str, Tensor] = {}
    for number, stored in enumerate(file.tensors.values()):
        progress("Mapping weights", number, len(file.tensors))
        name = _our_name(stored.name)
        if name is not None:
            tensors[name] = _tensor(stored, file.path)
    _add_bitnet_scales(file, tensors)
    check_tensors(config, tensors)
    return Checkpoint(
        path=file.path,
        name=str(file.metadata.get("general.name") or file.path.stem),
        config=config,
        tensors=tensors,
        vocabulary=_vocabulary(file),
        chat_template=file.metadata.get("tokenizer.chat_template"),
        metadata=file.metadata,
    )


class _Fields:
    """Typed access to one architecture's metadata."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.architecture = file.metadata.get("general.architecture")
        if not isinstance(self.architecture, str):
            raise FileFormatError(f"{file.path} does not say its general.architecture.")

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        name = f"{self.architecture}.{key}"
        value = self.file.metadata.get(name, default)
        if value is None:
            raise FileFormatError(f"{self.file.path} lacks the metadata field {name!r}.")
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        try:
            result = kind(value)
        except (TypeError, ValueError) as error:
            raise FileFormatError(
                f"{self.file.path}: {name} is {value!r}, expected {kind.__name__}."
            ) from error
        if kind is int and not 0 <= result < 2**31:
            raise FileFormatError(f"{self.file.path}: {name} is {result}, which cannot be.")
        return result

    def has(self, key: str) -> bool:
        return bool(self.file.metadata.get(f"{self.architecture}.{key}"))


def _config(file: GGUFFile, fields: _Fields) -> DecoderConfig:
    if fields.architecture not in _FAMILIES:
        raise UnsupportedError(
            f"{file.path} is of architecture {fields.architecture!r}. This engine runs "
            f"{', '.join(sorted(_FAMILIES))}: decoder-only transformers with RMSNorm, rotary "
            "positions and gated dense feed-forward layers."
        )
    for key in _UNHANDLED:
        if fields.has(key):
            raise UnsupportedError(
                f"{file.path} sets {fields.architecture}.{key}, which this engine does not "
                "compute (no mixture of experts, state spaces, soft-capping or YaRN)."
            )
    if "token_embd.weight" not in file.tensors:
        raise FileFormatError(f"{file.path} holds no token_embd.weight: it is not a whole model.")
    heads, hidden = fields.get("attention.head_count", int), fields.get("embedding_length", int)
    if heads < 1:
        raise FileFormatError(f"{file.path} claims {heads} attention heads.")
    layers = fields.get("block_count", int)
    if layers > len(file.tensors):
        raise FileFormatError(
            f"{file.path} claims {layers} layers but holds {len(file.tensors)} tensors."
        )
    common: dict[str, Any] = {
        "architecture": fields.architecture,
        "vocabulary": file.tensors["token_embd.weight"].shape[0],
        "hidden": hidden,
        "feed_forward": fields.get("feed_forward_length", int),
        "layers": layers,
        "heads": heads,
        "kv_heads": fields.get("attention.head_count_kv", int, heads),
        "head_dim": fields.get("attention.key_length", int, hidden // heads),
        "context": fields.get("context_length", int, 2048),
        "norm_epsilon": fields.get("attention.layer_norm_rms_epsilon", float, 1e-5),
        "rotary": _rotary(file, fields),
        "rotary_layout": "adjacent" if fields.architecture in _ADJACENT else "half",
        "tied": "output.weight" not in file.tensors,
    }
    rotated = fields.get("rope.dimension_count", int, common["head_dim"])
    if rotated != common["head_dim"]:
        raise UnsupportedError(
            f"{file.path} rotates {rotated} of {common['head_dim']} coordinates of a head; only "
            "whole heads are rotated here."
        )
    try:
        return DecoderConfig(**(common | _FAMILIES[fields.architecture](fields, common)))
    except InputError as error:
        raise FileFormatError(f"{file.path}: {error}") from error


def _rotary(file: GGUFFile, fields: _Fields) -> Rotary:
    scaling = str(file.metadata.get(f"{fields.architecture}.rope.scaling.type", "none"))
    if scaling not in ("none", "linear"):
        raise UnsupportedError(
            f"{file.path} scales rotary positions by {scaling!r}; none, linear and stored "
            "factors are served."
        )
    linear = fields.get("rope.scaling.factor", float, 1.0) if scaling == "linear" else 1.0
    stored = file.tensors.get("rope_freqs.weight")
    factors = None
    if stored is not None:
        factors = tuple(float(value) for value in _tensor(stored, file.path).float32())
    return Rotary(
        base=fields.get("rope.freq_base", float, 10_000.0), linear_factor=linear, factors=factors
    )


def _llama(fields: _Fields, common: Mapping[str, Any]) -> dict[str, Any]:
    window = fields.get("attention.sliding_window", int, 0)
    return {"layer_windows": (window,) * common["layers"]}


def _qwen2(fields: _Fields, common: Mapping[str, Any]) -> dict[str, Any]:
    return {"attention_bias": "blk.0.attn_q.bias" in fields.file.tensors}


def _qwen3(fields: _Fields, common: Mapping[str, Any]) -> dict[str, Any]:
    return {"query_key_norm": True}


def _gemma3(fields: _Fields, common: Mapping[str, Any]) -> dict[str, Any]:
    layers, window = common["layers"], fields.get("attention.sliding_window", int, 0)
    # llama.cpp hard-codes the period, the local base and the 27B model's score scale.
    wide_score = layers == 62
    scale = (common["hidden"] / common["heads"]) if wide_score else common["head_dim"]
    return {
        "activation": "gelu_tanh",
        "local_rotary": Rotary(base=10_000.0),
        "layer_windows": every_sixth_global(layers, window) if window else (),
        "embedding_scale": math.sqrt(common["hidden"]),
        "score_scale": scale**-0.5,
        "query_key_norm": True,
        "sandwich_norms": True,
    }


def _bitnet(fields: _Fields, common: Mapping[str, Any]) -> dict[str, Any]:
    # The 2024 community models gate with SiLU; Microsoft's 2B4T with squared ReLU.
    relu2 = fields.architecture != "bitnet"
    return {
        "activation": "relu2" if relu2 else "silu",
        "sub_norms": True,
        "quantize_activations": True,
    }


_FAMILIES: dict[str, Callable[[_Fields, Mapping[str, Any]], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
    "bitnet": _bitnet,
    "bitnet-25": _bitnet,
    "bitnet-b1.58": _bitnet,
}


def _our_name(theirs: str) -> str | None:
    """Translate a tensor name, or None for tensors that are not parameters."""
    stem, _, last = theirs.rpartition(".")
    if last not in ("weight", "bias"):
        return None
    for ours, top in _TOP_NAMES.items():
        if stem == top:
            return f"{ours}/{last}"
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if match is None or match.group(2) not in _FROM_GGUF:
        return None
    return f"blocks/{int(match.group(1))}/{_FROM_GGUF[match.group(2)]}/{last}"


def _their_name(ours: str) -> str:
    stem, _, last = ours.rpartition("/")
    if stem in _TOP_NAMES:
        return f"{_TOP_NAMES[stem]}.{last}"
    _, layer, inner = stem.split("/", 2)
    return f"blk.{layer}.{_BLOCK_NAMES[inner]}.{last}"


def _tensor(stored: StoredTensor, path: Path) -> Tensor:
    dense = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}
    if stored.kind in dense:
        return Tensor(stored.kind, stored.data.view(dense[stored.kind]).reshape(stored.shape),
                      stored.shape)  # fmt: skip
    if stored.kind == "i2_s":
        return _microsoft_ternary(stored)
    rows = stored.data.reshape(*stored.shape[:-1], -1)
    if stored.kind in BLOCK_FORMATS:
        return Tensor(stored.kind, rows, stored.shape)
    return _unpack_rare(stored, rows, path)


def _unpack_rare(stored: StoredTensor, rows: np.ndarray, path: Path) -> Tensor:
    """Unpack a format without a kernel through the gguf package."""
    gguf = require_extra("gguf", "models", f"The weight format {stored.kind}")
    try:
        values = gguf.dequantize(rows, gguf.GGMLQuantizationType[stored.kind.upper()])
    except (NotImplementedError, KeyError) as error:
        raise UnsupportedError(
            f"{path}: tensor {stored.name!r} is stored as {stored.kind}, which cannot be unpacked."
        ) from error
    values = np.asarray(values, np.float32).reshape(stored.shape)
    if stored.kind in ("tq1_0", "tq2_0"):
        scale = float(np.abs(values).max())
        codes = np.rint(values / scale) if scale else values
        if stored.shape[-1] % 4 == 0 and np.array_equal(codes * np.float32(scale), values):
            return Tensor("ternary", pack_ternary(codes.astype(np.int8)), stored.shape, scale)
    return Tensor("f32", values, stored.shape)


def _microsoft_ternary(stored: StoredTensor) -> Tensor:
    """Repack type I2_S: byte p of 32 holds values p, p+32, p+64, p+96 at bits 6, 4, 2, 0."""
    count = math.prod(stored.shape)
    if count % 128 or stored.shape[-1] % 4:
        raise FileFormatError(f"Tensor {stored.name!r} of type i2_s is not in blocks of 128.")
    scale = float(stored.data[count // 4 : count // 4 + 4].view(np.float32)[0])
    packed = stored.data[: count // 4].reshape(-1, 1, 32)
    codes = (packed >> np.array([6, 4, 2, 0], np.uint8)[:, None]) & 3
    signed = codes.reshape(stored.shape).astype(np.int8) - 1
    return Tensor("ternary", pack_ternary(signed), stored.shape, scale)


def _add_bitnet_scales(file: GGUFFile, tensors: dict[str, Tensor]) -> None:
    """Fold the separate one-value ``*.scale`` tensors of some BitNet files into their weights."""
    for stored in file.tensors.values():
        stem, _, last = stored.name.rpartition(".")
        name = _our_name(f"{stem}.weight")
        if last != "scale" or name not in tensors:
            continue
        scale = float(_tensor(stored, file.path).float32().reshape(-1)[0])
        weight = tensors[name]
        if weight.kind == "ternary":
            tensors[name] = weight._replace(scale=weight.scale * scale)
        else:
            tensors[name] = Tensor("f32", weight.float32() * np.float32(scale), weight.shape)


def _vocabulary(file: GGUFFile) -> Vocabulary:
    metadata = file.metadata
    model = metadata.get("tokenizer.ggml.model")
    kinds = {"gpt2": "bpe", "llama": "sentencepiece"}
    if not isinstance(model, str) or model not in kinds:
        raise UnsupportedError(
            f"{file.path} has a tokenizer of kind {model!r}; gpt2 and llama are served."
        )
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not all(isinstance(text, str) for text in tokens):
        raise FileFormatError(f"{file.path} lacks tokenizer.ggml.tokens.")

    def identity(key: str) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{key}_token_id")
        usable = isinstance(value, int) and 0 <= value < len(tokens)
        return value if usable else None

    found = [identity(key) for key in ("eos", "eot", "eom")]
    named = {"<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end_of_text|>"}
    types = _listed(file, "tokenizer.ggml.token_type")
    control = [
        number for number, text in enumerate(tokens)
        if text in named and (number >= len(types) or types[number] != 1)
    ]  # fmt: skip
    ends = tuple(dict.fromkeys(token for token in (*found, *control) if token is not None))
    sentencepiece = kinds[model] == "sentencepiece"
    return Vocabulary(
        kind=kinds[model],
        pre_tokenizer=str(metadata.get("tokenizer.ggml.pre", "")),
        tokens=tuple(tokens),
        scores=tuple(_listed(file, "tokenizer.ggml.scores")),
        kinds=tuple(types),
        merges=tuple(str(merge) for merge in _listed(file, "tokenizer.ggml.merges")),
        begin=identity("bos"),
        ends=ends,
        unknown=identity("unknown"),
        padding=identity("padding"),
        add_begin=bool(metadata.get("tokenizer.ggml.add_bos_token", sentencepiece)),
        add_end=bool(metadata.get("tokenizer.ggml.add_eos_token", False)),
        add_space_prefix=bool(metadata.get("tokenizer.ggml.add_space_prefix", sentencepiece)),
    )


def _listed(file: GGUFFile, key: str) -> list:
    value = file.metadata.get(key, [])
    if isinstance(value, np.ndarray):
        return value.tolist()
    if not isinstance(value, list):
        raise FileFormatError(f"{file.path}: {key} should be a list.")
    return value


def permute_to_adjacent(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorder each head's rows from half-split rotary pairs to adjacent ones.

    Rows may be packed: only the first axis moves.
    """
    shape = rows.shape
    return rows.reshape(heads, 2, -1, *shape[1:]).swapaxes(1, 2).reshape(shape)


def write_gguf_model(path: str | os.PathLike[str], model: Checkpoint) -> None:
    """Write a model as GGUF, so that llama.cpp and others open it.

    Query and key rows are permuted where the architecture's readers expect that.

    Args:
        path: where to write; replaced atomically.
        model: configuration, tensors and vocabulary; a ``json`` vocabulary must be byte-level BPE.

    Raises:
        UnsupportedError: the model cannot be expressed in the file.
    """
    from trimtab.generate.tokenizer import gguf_tokenizer_fields

    config = model.config
    adjacent = config.architecture in _ADJACENT
    stored = []
    for name, tensor in model.tensors.items():
        if tensor.kind == "ternary":
            tensor = Tensor("f32", tensor.float32(), tensor.shape)
        data = np.asarray(tensor.data)
        if adjacent and config.rotary_layout == "half":
            if "/attention/query/" in name:
                data = permute_to_adjacent(data, config.heads)
            elif "/attention/key/" in name:
                data = permute_to_adjacent(data, config.kv_heads)
        raw = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
        stored.append(StoredTensor(_their_name(name), tensor.kind, tensor.shape, raw))
    factors = _stored_factors(config)
    if factors is not None:
        stored.append(factors)
    write_gguf(path, _metadata(model) | gguf_tokenizer_fields(model), stored)


def _stored_factors(config: DecoderConfig) -> StoredTensor | None:
    rotary = config.rotary
    if rotary.llama3 is None and rotary.factors is None:
        return None
    plain = Rotary(base=rotary.base, linear_factor=rotary.linear_factor)
    ratio = plain.frequencies(config.head_dim) / rotary.frequencies(config.head_dim)
    raw = ratio.astype(np.float32).view(np.uint8)
    return StoredTensor("rope_freqs.weight", "f32", ratio.shape, raw)


def _metadata(model: Checkpoint) -> dict[str, Any]:
    config = model.config
    if config.architecture not in _FAMILIES:
        raise UnsupportedError(f"GGUF has no architecture for {config.architecture!r} models.")
    prefix = config.architecture
    fields: dict[str, Any] = {
        "general.architecture": prefix,
        "general.name": model.name,
        f"{prefix}.block_count": config.layers,
        f"{prefix}.context_length": config.context,
        f"{prefix}.embedding_length": config.hidden,
        f"{prefix}.feed_forward_length": config.feed_forward,
        f"{prefix}.attention.head_count": config.heads,
        f"{prefix}.attention.head_count_kv": config.kv_heads,
        f"{prefix}.attention.key_length": config.head_dim,
        f"{prefix}.attention.value_length": config.head_dim,
        f"{prefix}.attention.layer_norm_rms_epsilon": float(config.norm_epsilon),
        f"{prefix}.rope.freq_base": float(config.rotary.base),
        f"{prefix}.rope.dimension_count": config.head_dim,
        f"{prefix}.vocab_size": config.vocabulary,
    }
    if config.rotary.linear_factor != 1.0:
        fields[f"{prefix}.rope.scaling.type"] = "linear"
        fields[f"{prefix}.rope.scaling.factor"] = float(config.rotary.linear_factor)
    _refuse_unsayable(config)
    window = max(config.layer_windows)
    if window:
        fields[f"{prefix}.attention.sliding_window"] = window
    return fields


def _refuse_unsayable(config: DecoderConfig) -> None:
    """Raise for settings that readers of the architecture take from their code, not the file."""
    assert config.score_scale is not None
    if not math.isclose(config.score_scale, config.head_dim**-0.5, rel_tol=1e-6):
        raise UnsupportedError(
            f"The score scale {config.score_scale:g} is not 1/sqrt(head_dim), and a GGUF file has "
            "no field that its readers would take it from."
        )
    window = max(config.layer_windows)
    gemma = config.architecture == "gemma3"
    if gemma and config.layer_windows != every_sixth_global(config.layers, window):
        raise UnsupportedError("GGUF readers expect every sixth layer of Gemma 3 to be global.")
    if not gemma and window:
        raise UnsupportedError(f"GGUF readers ignore windows of {config.architecture} models.")
