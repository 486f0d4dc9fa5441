"""Hugging Face model folders, read and written: ``config.json``, safetensors, tokenizer."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.errors import FileFormatError, InputError, UnsupportedError
from trimtab.files import atomic_directory
from trimtab.generate.checkpoint import Checkpoint, Vocabulary
from trimtab.generate.safetensors_file import read_safetensors
from trimtab.models.decoder.config import DecoderConfig, Rotary, every_sixth_global
from trimtab.models.decoder.weights import (
    DENSE_KINDS,
    Tensor,
    check_tensors,
    pack_ternary,
    parameter_shapes,
    ternarize,
)
from trimtab.progress import Progress, silent

_BLOCK_NAMES = {
    "attention_norm": "input_layernorm",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/output": "self_attn.o_proj",
    "attention/query_norm": "self_attn.q_norm",
    "attention/key_norm": "self_attn.k_norm",
    "attention/sub_norm": "self_attn.attn_sub_norm",
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward/gate": "mlp.gate_proj",
    "feed_forward/up": "mlp.up_proj",
    "feed_forward/down": "mlp.down_proj",
    "feed_forward/sub_norm": "mlp.ffn_sub_norm",
}
# Gemma calls the norm after attention what others call the norm before the feed-forward layer.
_GEMMA_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "feed_forward_norm": "pre_feedforward_layernorm",
    "post_feed_forward_norm": "post_feedforward_layernorm",
}
_TOP_NAMES = {
    "embedding": "model.embed_tokens",
    "final_norm": "model.norm",
    "head": "lm_head",
}
_TERNARY_LAYERS = ("query", "key", "value", "output", "gate", "up", "down")


def read_huggingface(path: str | os.PathLike[str], progress: Progress = silent) -> Checkpoint:
    """Open a Hugging Face folder.

    Args:
        path: the folder.
        progress: told how many tensors have been mapped.

    Raises:
        FileFormatError: a part is missing or damaged.
        UnsupportedError: the architecture or a variant of it is not served.
    """
    folder = Path(path)
    settings = _json(folder / "config.json", required=True)
    config = read_config(settings)
    stored = read_safetensors(folder)
    config = config.replace(tied=config.tied or "lm_head.weight" not in stored)
    tensors = _tensors(config, settings, stored, folder, progress)
    check_tensors(config, tensors)
    generation = _json(folder / "generation_config.json")
    tokenizer = _json(folder / "tokenizer_config.json")
    return Checkpoint(
        path=folder,
        name=str(settings.get("_name_or_path") or folder.resolve().name),
        config=_rounded_embedding_scale(config, tensors),
        tensors=tensors,
        vocabulary=_vocabulary(folder, settings, generation),
        chat_template=_chat_template(folder, tokenizer),
        defaults={
            name: generation[name]
            for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
            if generation.get(name) is not None and generation.get("do_sample", True)
        },
        metadata={"config": settings, "tokenizer": tokenizer},
    )


def read_config(settings: Mapping[str, Any]) -> DecoderConfig:
    """Translate a ``config.json``.

    Raises:
        UnsupportedError: the architecture, or something it switches on, is not served.
        FileFormatError: a size is missing or impossible.
    """
    names = settings.get("architectures") or ["?"]
    if names[0] not in _FAMILIES:
        raise UnsupportedError(
            f"The folder holds a {names[0]}. This engine runs {', '.join(sorted(_FAMILIES))}: "
            "decoder-only transformers with RMSNorm, rotary positions and gated dense "
            "feed-forward layers; no mixture of experts, state spaces, encoders or images."
        )
    _refuse_variants(settings)
    try:
        heads, hidden = int(settings["num_attention_heads"]), int(settings["hidden_size"])
        kv_heads = settings.get("num_key_value_heads")
        common: dict[str, Any] = {
            "vocabulary": int(settings["vocab_size"]),
            "hidden": hidden,
            "feed_forward": int(settings["intermediate_size"]),
            "layers": int(settings["num_hidden_layers"]),
            "heads": heads,
            "kv_heads": heads if kv_heads is None else int(kv_heads),
            "head_dim": int(settings.get("head_dim") or hidden // heads),
            "context": int(settings.get("max_position_embeddings", 2048)),
            "norm_epsilon": float(settings.get("rms_norm_eps", 1e-6)),
            "rotary_layout": "half",
            "tied": bool(settings.get("tie_word_embeddings", False)),
        }
        common["rotary"] = _rotary(_rope_settings(settings, "full_attention"))
        return DecoderConfig(**(common | _FAMILIES[names[0]](settings, common)))
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise FileFormatError(f"config.json lacks a usable {error}.") from error
    except InputError as error:
        raise FileFormatError(f"config.json: {error}") from error


def _refuse_variants(settings: Mapping[str, Any]) -> None:
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "mlp_bias", "vision_config"):
        if settings.get(key):
            raise UnsupportedError(
                f"config.json sets {key}={settings[key]!r}, which this engine does not compute."
            )


def _rope_settings(settings: Mapping[str, Any], layer_type: str) -> dict[str, Any]:
    """Return base and scaling from where transformers 4 or 5 writes them."""
    scaling = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    scaling = scaling.get(layer_type, scaling)
    base = scaling.get("rope_theta") or settings.get("rope_theta", 10_000.0)
    return {**scaling, "rope_theta": float(base)}


def _rotary(scaling: Mapping[str, Any]) -> Rotary:
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return Rotary(base=scaling["rope_theta"])
    if kind == "linear":
        return Rotary(base=scaling["rope_theta"], linear_factor=float(scaling["factor"]))
    if kind == "llama3":
        bands = (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        )
        factor, low, high, original = (float(scaling[name]) for name in bands)
        return Rotary(base=scaling["rope_theta"], llama3=(factor, low, high, original))
    raise UnsupportedError(
        f"config.json scales rotary positions by {kind!r}; default, linear and llama3 are served."
    )


def _windows(
    settings: Mapping[str, Any], layers: int, fallback: tuple[int, ...]
) -> tuple[int, ...]:
    window, types = int(settings.get("sliding_window") or 0), settings.get("layer_types")
    if not window or not types:
        return fallback
    return tuple(window if kind == "sliding_attention" else 0 for kind in types[:layers])


def _require_activation(settings: Mapping[str, Any], *accepted: str) -> None:
    given = settings.get("hidden_activation") or settings.get("hidden_act", accepted[0])
    if given not in accepted:
        raise UnsupportedError(
            f"config.json asks for activation {given!r}; {' or '.join(accepted)} is served here."
        )


def _llama(settings: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    _require_activation(settings, "silu")
    if settings.get("attention_bias"):
        raise UnsupportedError("config.json sets attention_bias, which biases the output too.")
    return {"architecture": "llama"}


def _mistral(settings: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    _require_activation(settings, "silu")
    layers = common["layers"]
    everywhere = (int(settings.get("sliding_window") or 0),) * layers
    return {"architecture": "llama", "layer_windows": _windows(settings, layers, everywhere)}


def _qwen2(settings: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    _require_activation(settings, "silu")
    layers, windows = common["layers"], ()
    if settings.get("use_sliding_window"):
        first = int(settings.get("max_window_layers", layers))
        window = int(settings.get("sliding_window") or 0)
        late = tuple(window if layer >= first else 0 for layer in range(layers))
        windows = _windows(settings, layers, late)
    return {"architecture": "qwen2", "attention_bias": True, "layer_windows": windows}


def _qwen3(settings: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    if settings.get("attention_bias"):
        raise UnsupportedError("config.json sets attention_bias, which biases the output too.")
    same = _qwen2(settings, common)
    return same | {"architecture": "qwen3", "attention_bias": False, "query_key_norm": True}


def _gemma3(settings: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    _require_activation(settings, "gelu_pytorch_tanh")
    layers, window = common["layers"], int(settings.get("sliding_window") or 0)
    period = int(settings.get("sliding_window_pattern") or 6)
    windows = every_sixth_global(layers, window, period) if window else ()
    local = _rope_settings(settings, "sliding_attention")
    if "rope_parameters" not in settings:
        local = {"rope_theta": float(settings.get("rope_local_base_freq", 10_000.0))}
    return {
        "architecture": "gemma3",
        "activation": "gelu_tanh",
        "local_rotary": _rotary(local),
        "layer_windows": _windows(settings, layers, windows),
        "embedding_scale": math.sqrt(common["hidden"]),
        "score_scale": float(settings.get("query_pre_attn_scalar") or common["head_dim"]) ** -0.5,
        "query_key_norm": True,
        "sandwich_norms": True,
        "tied": bool(settings.get("tie_word_embeddings", True)),
    }


def _bitnet(settings: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    _require_activation(settings, "relu2", "silu")
    return {
        "architecture": "bitnet-b1.58",
        "activation": settings.get("hidden_act", "relu2"),
        "sub_norms": True,
        "quantize_activations": True,
    }


_FAMILIES: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]] = {
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": _mistral,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
    "Gemma3ForCausalLM": _gemma3,
    "BitNetForCausalLM": _bitnet,
}


def _their_name(ours: str, config: DecoderConfig) -> str:
    stem, _, last = ours.rpartition("/")
    if stem in _TOP_NAMES:
        return f"{_TOP_NAMES[stem]}.{last}"
    _, layer, inner = stem.split("/", 2)
    names = _BLOCK_NAMES | (_GEMMA_NAMES if config.sandwich_norms else {})
    return f"model.layers.{layer}.{names[inner]}.{last}"


def _tensors(
    config: DecoderConfig,
    settings: Mapping[str, Any],
    stored: Mapping[str, tuple[str, np.ndarray]],
    folder: Path,
    progress: Progress,
) -> dict[str, Tensor]:
    for name in stored:
        if name.endswith(("o_proj.bias", "gate_proj.bias", "up_proj.bias", "down_proj.bias")):
            raise UnsupportedError(f"{folder} holds {name!r}, a bias that is not computed here.")
    tensors: dict[str, Tensor] = {}
    wanted = list(parameter_shapes(config))
    for number, (name, shape) in enumerate(wanted):
        progress("Mapping weights", number, len(wanted))
        theirs = _their_name(name, config)
        if theirs not in stored:
            continue
        kind, data = stored[theirs]
        if kind == "u8":
            tensors[name] = _packed_ternary(theirs, data, stored, settings)
            continue
        if kind not in DENSE_KINDS:
            raise UnsupportedError(
                f"{folder}: {theirs} is stored as {kind}; float32, float16, bfloat16 and packed "
                "BitNet weights are read."
            )
        tensor = Tensor(kind, data, data.shape)
        if config.sandwich_norms and len(shape) == 1:
            tensor = Tensor("f32", tensor.float32() + 1.0, tensor.shape)
        ternary = config.quantize_activations and name.split("/")[-2] in _TERNARY_LAYERS
        tensors[name] = ternarize(tensor) if ternary else tensor
    return tensors


def _packed_ternary(
    name: str,
    data: np.ndarray,
    stored: Mapping[str, tuple[str, np.ndarray]],
    settings: Mapping[str, Any],
) -> Tensor:
    """Unpack BitNet's uint8 weights: row r + t * (out / 4) sits at bits 2t of byte row r."""
    codes = (data[None] >> np.array([0, 2, 4, 6], np.uint8)[:, None, None]) & 3
    signed = codes.reshape(data.shape[0] * 4, data.shape[1]).astype(np.int8) - 1
    scale_name = name.removesuffix("weight") + "weight_scale"
    if scale_name not in stored:
        raise FileFormatError(f"{name} is packed, but {scale_name!r} is missing.")
    kind, values = stored[scale_name]
    scale = float(Tensor(kind, values.reshape(-1), (values.size,)).float32()[0])
    quantization = settings.get("quantization_config") or {}
    # "autobitlinear" multiplies by the stored scale, the older "bitlinear" divides by it.
    if quantization.get("linear_class", "bitlinear") == "bitlinear":
        scale = 1.0 / scale
    return Tensor("ternary", pack_ternary(signed), signed.shape, scale)


def _rounded_embedding_scale(config: DecoderConfig, tensors: Mapping[str, Tensor]) -> DecoderConfig:
    """Round Gemma's embedding factor to the weights' type, as its reference code does."""
    if config.embedding_scale == 1.0 or tensors["embedding/weight"].kind != "bf16":
        return config
    import ml_dtypes

    return config.replace(embedding_scale=float(ml_dtypes.bfloat16(config.embedding_scale)))


def _vocabulary(
    folder: Path, settings: Mapping[str, Any], generation: Mapping[str, Any]
) -> Vocabulary:
    path = folder / "tokenizer.json"
    if not path.exists():
        raise FileFormatError(
            f"{folder} lacks tokenizer.json. Save it with "
            "`AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`."
        )
    ends: list[int] = []
    for source in (generation, settings):
        found = source.get("eos_token_id")
        ends += found if isinstance(found, list) else [] if found is None else [found]
    return Vocabulary(
        kind="json",
        json=path.read_text("utf-8"),
        begin=settings.get("bos_token_id"),
        ends=tuple(dict.fromkeys(ends)),
        padding=settings.get("pad_token_id"),
        add_begin=True,
    )


def _chat_template(folder: Path, tokenizer: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text("utf-8")
    template = tokenizer.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        return named.get("default") or next(iter(named.values()), None)
    return template


def _json(path: Path, *, required: bool = False) -> dict[str, Any]:
    if not path.exists():
        if required:
            raise FileFormatError(f"{path.parent} lacks {path.name}: not a Hugging Face model.")
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise FileFormatError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise FileFormatError(f"{path} should hold a JSON object.")
    return value


_CLASS_NAMES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text"),
}


def write_huggingface(path: str | os.PathLike[str], model: Checkpoint) -> None:
    """Write a model as a Hugging Face folder that transformers opens; packed weights are unpacked.

    Args:
        path: the folder; replaced atomically.
        model: configuration, tensors and vocabulary.

    Raises:
        UnsupportedError: transformers has no class for the model.
    """
    from safetensors.numpy import save_file

    from trimtab.generate.tokenizer import Tokenizer

    config = model.config
    if config.architecture not in _CLASS_NAMES:
        raise UnsupportedError(f"Models of family {config.architecture!r} are not exported.")
    tensors = {
        _their_name(name, config): _to_half_layout(name, tensor, config)
        for name, tensor in model.tensors.items()
    }
    with atomic_directory(path) as folder:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(write_config(model), indent=2))
        Tokenizer(model.vocabulary).save(folder / "tokenizer.json")
        if model.chat_template:
            (folder / "chat_template.jinja").write_text(model.chat_template, "utf-8")
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
        )


def _to_half_layout(name: str, tensor: Tensor, config: DecoderConfig) -> np.ndarray:
    values = tensor.float32()
    if config.sandwich_norms and values.ndim == 1:
        values = values - 1.0
    if config.rotary_layout == "adjacent":
        for part, heads in (("query", config.heads), ("key", config.kv_heads)):
            if f"/attention/{part}/" in name:
                shape = values.shape
                values = values.reshape(heads, -1, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
    return np.ascontiguousarray(values)


def write_config(model: Checkpoint) -> dict[str, Any]:
    """Return the ``config.json`` of a model, in the form both transformers 4 and 5 read."""
    config = model.config
    class_name, model_type = _CLASS_NAMES[config.architecture]
    window = max(config.layer_windows)
    if config.architecture == "llama" and window:
        class_name, model_type = "MistralForCausalLM", "mistral"
    settings: dict[str, Any] = {
        "architectures": [class_name],
        "model_type": model_type,
        "vocab_size": config.vocabulary,
        "hidden_size": config.hidden,
        "intermediate_size": config.feed_forward,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rotary.base,
        "tie_word_embeddings": config.tied,
        "bos_token_id": model.vocabulary.begin,
        "eos_token_id": list(model.vocabulary.ends) or None,
        "sliding_window": window or None,
        "dtype": "float32",
    }
    if config.rotary.factors is not None:
        raise UnsupportedError("Rotary factors stored as a list have no form in config.json.")
    if config.rotary.linear_factor != 1.0:
        settings["rope_scaling"] = {"rope_type": "linear", "factor": config.rotary.linear_factor}
    if config.rotary.llama3 is not None:
        names = (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        )
        bands = dict(zip(names, config.rotary.llama3, strict=True))
        settings["rope_scaling"] = {"rope_type": "llama3", **bands}
    if any(config.layer_windows) and config.architecture != "llama":
        settings["layer_types"] = [
            "sliding_attention" if layer else "full_attention" for layer in config.layer_windows
        ]
        settings["use_sliding_window"] = True
    if config.architecture == "gemma3":
        assert config.score_scale is not None
        assert config.local_rotary is not None
        settings["query_pre_attn_scalar"] = round(config.score_scale**-2)
        settings["rope_local_base_freq"] = config.local_rotary.base
        settings["hidden_activation"] = "gelu_pytorch_tanh"
    return settings
