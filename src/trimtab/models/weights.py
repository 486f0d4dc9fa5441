"""Reading and writing encoder weights: Hugging Face folders, and folders of our own.

Weights are kept as (out, in) like PyTorch's, so names change on the way and numbers never do:
a round trip returns the same bits.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
from jaxtyping import Array, PRNGKeyArray
from safetensors import SafetensorError
from safetensors.flax import load_file, save_file

from trimtab.errors import FileFormatError, UnsupportedError, unknown_name
from trimtab.files import atomic_directory
from trimtab.models.encoder import Classifier, Encoder, EncoderConfig, PretrainingModel

Model = Encoder | PretrainingModel | Classifier
Kind = Literal["auto", "encoder", "pretraining", "classifier"]

_FORMAT = 1
_IGNORED = re.compile(r"(^|\.)(position_ids|token_type_ids)$|cls\.predictions\.decoder\.")
_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
}
_MIXING = {"fnet": "fourier", "bert": "attention"}

# Our parameter path (a regular expression), and the name in Hugging Face files.
_NAMES: tuple[tuple[str, str], ...] = (
    (r"embeddings/word/(.*)", r"embeddings.word_embeddings.\1"),
    (r"embeddings/position/(.*)", r"embeddings.position_embeddings.\1"),
    (r"embeddings/segment/(.*)", r"embeddings.token_type_embeddings.\1"),
    (r"embeddings/norm/(.*)", r"embeddings.LayerNorm.\1"),
    (r"embeddings/projection/(.*)", r"embeddings.projection.\1"),
    (r"layers/(\d+)/mixing_norm/(.*)", r"encoder.layer.\1.MIXING.output.LayerNorm.\2"),
    (r"layers/(\d+)/mixer/(query|key|value)/(.*)", r"encoder.layer.\1.attention.self.\2.\3"),
    (r"layers/(\d+)/mixer/output/(.*)", r"encoder.layer.\1.attention.output.dense.\2"),
    (r"layers/(\d+)/feed_forward/intermediate/(.*)", r"encoder.layer.\1.intermediate.dense.\2"),
    (r"layers/(\d+)/feed_forward/output/(.*)", r"encoder.layer.\1.output.dense.\2"),
    (r"layers/(\d+)/output_norm/(.*)", r"encoder.layer.\1.output.LayerNorm.\2"),
    (r"pooler/(.*)", r"pooler.dense.\1"),
)
_HEAD_NAMES: tuple[tuple[str, str], ...] = (
    (r"masked_tokens/transform/(.*)", r"cls.predictions.transform.dense.\1"),
    (r"masked_tokens/norm/(.*)", r"cls.predictions.transform.LayerNorm.\1"),
    (r"masked_tokens/bias", r"cls.predictions.bias"),
    (r"order/(.*)", r"cls.seq_relationship.\1"),
    (r"classification/(.*)", r"classifier.\1"),
)


def parameter_paths(model: Any) -> dict[str, Any]:
    """Return every array of a model by its ``/``-joined path."""
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(model, _is_array))
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}


def huggingface_name(path: str, family: str, *, prefix: bool) -> str:
    """Return a parameter's name in Hugging Face files.

    Args:
        path: ours, such as ``"encoder/layers/3/feed_forward/output/weight"``.
        family: ``"fnet"`` or ``"bert"``.
        prefix: whether encoder names start with the family, as they do where there are heads.
    """
    for pattern, name in _HEAD_NAMES:
        if match := re.fullmatch(pattern, path):
            return match.expand(name)
    inner = path.removeprefix("encoder/")
    for pattern, name in _NAMES:
        if match := re.fullmatch(pattern, inner):
            full = match.expand(name).replace("MIXING", _MIXING[family])
            return f"{family}.{full}" if prefix else full
    raise UnsupportedError(f"Hugging Face's {family} files have no place for the parameter {path}.")


def load_huggingface(
    folder: str | os.PathLike[str],
    kind: Kind = "auto",
    *,
    key: PRNGKeyArray | None = None,
    **changes: object,
) -> Model:
    """Read an FNet or BERT folder of `transformers` (config.json and safetensors).

    Args:
        folder: the folder.
        kind: what to build; ``"auto"`` takes what the file holds.
        key: draws the parameters that the file lacks (a fresh head); without it they are an error.
        changes: fields of :class:`EncoderConfig` to set, such as ``padding="exact"``.

    Returns:
        an :class:`Encoder`, :class:`PretrainingModel` or :class:`Classifier`.

    Raises:
        FileFormatError: a file or a tensor is missing, damaged or of the wrong shape.
        UnsupportedError: the folder holds another kind of model.
    """
    folder = Path(folder)
    settings = _read_json(folder / "config.json")
    config = _config_from_huggingface(settings, folder).replace(**changes)
    tensors = {n: t for n, t in _read_tensors(folder).items() if not _IGNORED.search(n)}
    family = settings["model_type"]
    chosen = _kind_of(tensors) if kind == "auto" else kind
    classes = tensors["classifier.weight"].shape[0] if "classifier.weight" in tensors else None
    prefixed = any(name.startswith(f"{family}.") for name in tensors)

    def name(path: str) -> str:
        return huggingface_name(path, family, prefix=prefixed)

    return _fill(
        chosen, config, classes or settings.get("num_labels", 2), tensors, name, key, folder
    )


def save_huggingface(model: Model, folder: str | os.PathLike[str]) -> None:
    """Write a folder that `transformers` opens; it appears whole or not at all.

    Raises:
        UnsupportedError: `transformers` has no such model: hybrids, mixers other than Fourier and
            attention, orthonormal scaling, or embeddings narrower than the layers.
    """
    config = model.config if isinstance(model, Encoder) else model.encoder.config
    family, settings = _config_to_huggingface(config)
    suffix, prefixed = {
        Encoder: ("Model", False),
        PretrainingModel: ("ForPreTraining", True),
        Classifier: ("ForSequenceClassification", True),
    }[type(model)]
    settings["architectures"] = [{"fnet": "FNet", "bert": "Bert"}[family] + suffix]
    if isinstance(model, Classifier):
        classes = model.classification.weight.shape[0]
        settings["id2label"] = {str(i): f"LABEL_{i}" for i in range(classes)}
        settings["label2id"] = {f"LABEL_{i}": i for i in range(classes)}
    tensors = {
        huggingface_name(path, family, prefix=prefixed): array
        for path, array in parameter_paths(model).items()
    }
    settings["dtype"] = str(next(iter(tensors.values())).dtype)
    _write(folder, tensors, settings)


def save_encoder(model: Model, folder: str | os.PathLike[str]) -> None:
    """Write any encoder of this room: safetensors named by parameter path, and config.json."""
    config = model.config if isinstance(model, Encoder) else model.encoder.config
    settings: dict[str, Any] = {
        "model_type": "trimtab-encoder",
        "format": _FORMAT,
        "kind": {Encoder: "encoder", PretrainingModel: "pretraining", Classifier: "classifier"}[
            type(model)
        ],
        "encoder": dataclasses.asdict(config),
    }
    if isinstance(model, Classifier):
        settings["classes"] = model.classification.weight.shape[0]
    _write(folder, parameter_paths(model), settings)


def load_encoder(folder: str | os.PathLike[str]) -> Model:
    """Read what :func:`save_encoder` wrote.

    Raises:
        FileFormatError: a file or a tensor is missing, damaged or of the wrong shape.
    """
    folder = Path(folder)
    settings = _read_json(folder / "config.json")
    if settings.get("model_type") != "trimtab-encoder" or settings.get("format") != _FORMAT:
        raise FileFormatError(
            f"{folder} does not hold an encoder saved by this version; for Hugging Face folders "
            "use load_huggingface."
        )
    fields = dict(settings["encoder"])
    if isinstance(fields.get("mixers"), list):
        fields["mixers"] = tuple(fields["mixers"])
    try:
        config = EncoderConfig(**fields)
    except TypeError as error:
        raise FileFormatError(f"{folder / 'config.json'} has unknown fields: {error}.") from error
    tensors = _read_tensors(folder)
    return _fill(
        settings["kind"], config, settings.get("classes", 2), tensors, lambda p: p, None, folder
    )


def build(kind: str, config: EncoderConfig, classes: int, *, key: PRNGKeyArray) -> Model:
    """Build a model with fresh parameters.

    Args:
        kind: ``"encoder"``, ``"pretraining"`` or ``"classifier"``.
        config: sizes and choices.
        classes: outputs of a classifier.
        key: consumed.

    Raises:
        UnknownNameError: no such kind.
    """
    if kind == "encoder":
        return Encoder(config, key=key)
    if kind == "pretraining":
        return PretrainingModel(config, key=key)
    if kind == "classifier":
        encoder_key, head_key = jax.random.split(key)
        return Classifier(Encoder(config, key=encoder_key), classes, key=head_key)
    raise unknown_name("kind of model", kind, ("encoder", "pretraining", "classifier"))


def fill(model: Model, arrays: Mapping[str, Array]) -> Model:
    """Return the model with its arrays replaced by those given for every parameter path."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            arrays[jax.tree_util.keystr(path, simple=True, separator="/")]
            if _is_array(leaf)
            else leaf
        ),
        model,
    )


def _fill(kind, config, classes, tensors, name, key, folder) -> Model:
    shapes = eqx.filter_eval_shape(build, kind, config, classes, key=jax.random.key(0))
    wanted = parameter_paths(shapes)
    missing = [path for path in wanted if name(path) not in tensors]
    if missing and key is None:
        raise FileFormatError(
            f"{folder} lacks {_some(name(p) for p in missing)}, needed for a {kind} model. "
            "Pass key= to draw fresh values, or ask for another kind."
        )
    arrays = {path: tensors[name(path)] for path in wanted if path not in missing}
    for path, array in arrays.items():
        if array.shape != wanted[path].shape:
            raise FileFormatError(
                f"{folder}: {name(path)} has shape {array.shape}, but the configuration asks for "
                f"{wanted[path].shape}."
            )
    if missing:
        fresh = parameter_paths(build(kind, config, classes, key=key))
        arrays |= {path: fresh[path] for path in missing}
    return fill(shapes, arrays)


def _kind_of(tensors: Mapping[str, Array]) -> str:
    if "classifier.weight" in tensors:
        return "classifier"
    return "pretraining" if "cls.predictions.bias" in tensors else "encoder"


def _config_from_huggingface(settings: Mapping[str, Any], folder: Path) -> EncoderConfig:
    family = settings.get("model_type")
    if family not in _MIXING:
        raise UnsupportedError(
            f"{folder} holds a model of type {family!r}; only 'fnet' and 'bert' can be read here."
        )
    if settings.get("position_embedding_type", "absolute") != "absolute":
        raise UnsupportedError(f"{folder} uses relative positions, which this encoder has not.")
    act = settings.get("hidden_act", "gelu_new" if family == "fnet" else "gelu")
    if act not in _ACTIVATIONS:
        raise UnsupportedError(f"{folder} uses the activation {act!r}, which this encoder has not.")
    try:
        return EncoderConfig(
            vocabulary=settings["vocab_size"],
            width=settings["hidden_size"],
            feed_forward=settings["intermediate_size"],
            depth=settings["num_hidden_layers"],
            heads=settings.get("num_attention_heads", max(1, settings["hidden_size"] // 64)),
            max_tokens=settings["max_position_embeddings"],
            segments=settings["type_vocab_size"],
            mixers=_MIXING[family],
            projection=family == "fnet",
            activation=_ACTIVATIONS[act],
            dropout=float(settings.get("hidden_dropout_prob", 0.1)),
            attention_output_dropout=(
                0.0 if family == "fnet" else float(settings.get("hidden_dropout_prob", 0.1))
            ),
            epsilon=float(settings.get("layer_norm_eps", 1e-12)),
            padding_id=settings.get("pad_token_id"),
        )
    except KeyError as error:
        raise FileFormatError(f"{folder / 'config.json'} has no entry {error}.") from error


def _config_to_huggingface(config: EncoderConfig) -> tuple[str, dict[str, Any]]:
    mixers = set(config.layer_mixers)
    only = next(iter(mixers)) if len(mixers) == 1 else "hybrid"
    family = {"fourier": "fnet", "attention": "bert"}.get(only)
    plain = config.embedding_width in (None, config.width) and not config.orthonormal
    if family is None or not plain or config.projection != (family == "fnet"):
        raise UnsupportedError(
            f"transformers has no encoder with mixers {', '.join(sorted(mixers))}, "
            f"projection={config.projection} and orthonormal={config.orthonormal}. "
            "Use save_encoder, whose folders this package reads."
        )
    settings: dict[str, Any] = {
        "model_type": family,
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.feed_forward,
        "num_hidden_layers": config.depth,
        "max_position_embeddings": config.max_tokens,
        "type_vocab_size": config.segments,
        "hidden_act": {"gelu_tanh": "gelu_new"}.get(config.activation, config.activation),
        "hidden_dropout_prob": config.dropout,
        "layer_norm_eps": config.epsilon,
        "pad_token_id": config.padding_id,
        "tie_word_embeddings": True,
    }
    if family == "bert":
        settings["num_attention_heads"] = config.heads
        settings["attention_probs_dropout_prob"] = config.dropout
    return family, settings


def _write(folder: str | os.PathLike[str], tensors: dict[str, Array], settings: dict) -> None:
    with atomic_directory(folder) as temporary:
        # save_file turns the values of the dictionary it is given into NumPy arrays.
        save_file(dict(tensors), str(temporary / "model.safetensors"), metadata={"format": "pt"})
        (temporary / "config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileFormatError(
            f"{path} does not exist; give a folder with config.json and safetensors."
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileFormatError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise FileFormatError(f"{path} should hold one JSON object.")
    return value


def _read_tensors(folder: Path) -> dict[str, Array]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = sorted(set(_read_json(index).get("weight_map", {}).values()))
    else:
        files = ["model.safetensors"]
    tensors: dict[str, Array] = {}
    for file in files:
        path = folder / Path(file).name
        if not path.exists():
            raise FileFormatError(f"{path} does not exist; only safetensors weights are read.")
        try:
            tensors |= load_file(str(path))
        except (SafetensorError, ValueError) as error:
            raise FileFormatError(f"{path} is damaged: {error}.") from error
    return tensors


def _is_array(leaf: object) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct) or eqx.is_array(leaf)


def _some(names: Iterable[str], limit: int = 3) -> str:
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
