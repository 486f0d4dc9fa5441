"""The parameter layout of FNet's own Flax code: nested dictionaries with (in, out) kernels.

Layout facts: every module that the encoder creates is a child of ``encoder``, also those handed to
blocks (``encoder/feed_forward_0``, ``encoder/self_attention_0``); attention kernels are split by
head; the position table has a leading axis of one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import msgpack
import numpy as np

from trimtab.errors import FileFormatError, UnsupportedError
from trimtab.models.encoder import Encoder, EncoderConfig
from trimtab.models.weights import Model, _some, build, fill, parameter_paths

Tree = Mapping[str, Any]

# Our path inside the encoder, the Flax path inside "encoder"; "T" marks transposed matrices,
# "P" a position table, "H" a matrix into heads, "O" one out of heads, "B" a bias of heads.
_NAMES: tuple[tuple[str, str, str], ...] = (
    (r"embeddings/word/weight", r"embedder/word/embedding", ""),
    (r"embeddings/position/weight", r"embedder/position/embedding", "P"),
    (r"embeddings/segment/weight", r"embedder/type/embedding", ""),
    (r"embeddings/norm/weight", r"embedder/layer_norm/scale", ""),
    (r"embeddings/norm/bias", r"embedder/layer_norm/bias", ""),
    (r"embeddings/projection/weight", r"embedder/hidden_mapping_in/kernel", "T"),
    (r"embeddings/projection/bias", r"embedder/hidden_mapping_in/bias", ""),
    (r"layers/(\d+)/mixing_norm/weight", r"encoder_\1/mixing_layer_norm/scale", ""),
    (r"layers/(\d+)/mixing_norm/bias", r"encoder_\1/mixing_layer_norm/bias", ""),
    (r"layers/(\d+)/output_norm/weight", r"encoder_\1/output_layer_norm/scale", ""),
    (r"layers/(\d+)/output_norm/bias", r"encoder_\1/output_layer_norm/bias", ""),
    (
        r"layers/(\d+)/feed_forward/(intermediate|output)/weight",
        r"feed_forward_\1/\2/kernel",
        "T",
    ),
    (r"layers/(\d+)/feed_forward/(intermediate|output)/bias", r"feed_forward_\1/\2/bias", ""),
    (r"layers/(\d+)/mixer/(query|key|value)/weight", r"self_attention_\1/\2/kernel", "H"),
    (r"layers/(\d+)/mixer/(query|key|value)/bias", r"self_attention_\1/\2/bias", "B"),
    (r"layers/(\d+)/mixer/output/weight", r"self_attention_\1/out/kernel", "O"),
    (r"layers/(\d+)/mixer/output/bias", r"self_attention_\1/out/bias", ""),
    (r"layers/(\d+)/mixer/token_weight", r"linear_transform_\1/seq_kernel", ""),
    (r"layers/(\d+)/mixer/width_weight", r"linear_transform_\1/hidden_kernel", "T"),
    (r"pooler/weight", r"pooler/kernel", "T"),
    (r"pooler/bias", r"pooler/bias", ""),
)
_HEAD_NAMES: tuple[tuple[str, str, str], ...] = (
    (r"masked_tokens/transform/weight", r"predictions_dense/kernel", "T"),
    (r"masked_tokens/transform/bias", r"predictions_dense/bias", ""),
    (r"masked_tokens/norm/weight", r"predictions_layer_norm/scale", ""),
    (r"masked_tokens/norm/bias", r"predictions_layer_norm/bias", ""),
    (r"masked_tokens/bias", r"predictions_output/output_bias", ""),
    (r"(?:order|classification)/weight", r"classification/output_kernel", ""),
    (r"(?:order|classification)/bias", r"classification/output_bias", ""),
)


def to_flax(model: Model) -> dict[str, Any]:
    """Return the model's parameters as the nested dictionary of FNet's Flax code.

    Args:
        model: an encoder, pre-training model or classifier; a lone encoder is put under
            ``"encoder"`` too.

    Raises:
        UnsupportedError: a random mixer, which that code rebuilds from a seed and never stores.
    """
    config = (model if isinstance(model, Encoder) else model.encoder).config
    if "random" in config.layer_mixers:
        raise UnsupportedError(
            "FNet's Flax layout has no place for a random mixer's matrices: its code draws them "
            "from a seed. Use save_encoder."
        )
    heads = config.heads
    tree: dict[str, Any] = {}
    for path, array in parameter_paths(model).items():
        name, form = _flax_name(path)
        *folders, last = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = _to_form(np.asarray(array), form, heads)
    return tree


def from_flax(tree: Tree, *, mixer: str = "fourier", **changes: object) -> Model:
    """Build a model from a nested dictionary in FNet's Flax layout; sizes come from its shapes.

    Args:
        tree: the dictionary, with ``"encoder"`` at its top.
        mixer: what layers without mixing parameters do: ``"fourier"``, ``"hartley"`` or
            ``"identity"``.
        changes: fields of :class:`EncoderConfig` to set.

    Returns:
        a :class:`PretrainingModel` if it has the masked-token head, else a classifier or encoder.

    Raises:
        FileFormatError: a parameter is missing or of the wrong shape.
    """
    flat = _flatten(tree)
    config = _infer_config(flat, mixer).replace(**changes)
    kind = "encoder"
    if "predictions_output/output_bias" in flat:
        kind = "pretraining"
    elif "classification/output_kernel" in flat:
        kind = "classifier"
    classes = flat["classification/output_kernel"].shape[0] if kind == "classifier" else 2
    shapes = eqx.filter_eval_shape(build, kind, config, classes, key=jax.random.key(0))
    arrays = {}
    for path, shape in parameter_paths(shapes).items():
        name, form = _flax_name(path)
        if name not in flat:
            raise FileFormatError(f"The Flax parameters lack {name}, needed for a {kind} model.")
        value = _from_form(np.asarray(flat[name]), form)
        if value.shape != shape.shape:
            raise FileFormatError(
                f"The Flax parameter {name} has shape {flat[name].shape}, which does not give "
                f"the expected {shape.shape}."
            )
        arrays[path] = jnp.asarray(value)
    return fill(shapes, arrays)


def load_flax(path: str | os.PathLike[str], *, mixer: str = "fourier", **changes: object) -> Model:
    """Read a Flax msgpack checkpoint of FNet's code; see :func:`from_flax`.

    Raises:
        FileFormatError: the file is not such a checkpoint.
    """
    path = Path(path)
    try:
        content = msgpack.unpackb(
            path.read_bytes(), ext_hook=_decode, raw=False, strict_map_key=False
        )
    except FileNotFoundError as error:
        raise FileFormatError(f"{path} does not exist.") from error
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise FileFormatError(f"{path} is not a Flax msgpack checkpoint: {error}.") from error
    tree = _find_encoder(content)
    if tree is None:
        raise FileFormatError(f"{path} holds no parameters under a key 'encoder'.")
    return from_flax(tree, mixer=mixer, **changes)


def _decode(code: int, data: bytes) -> Any:
    if code == 1:
        shape, dtype, buffer = msgpack.unpackb(data, raw=False)
        return np.frombuffer(buffer, dtype=jnp.dtype(dtype)).reshape(shape)
    if code == 2:
        return complex(*msgpack.unpackb(data))
    if code == 3:
        dtype, buffer = msgpack.unpackb(data, raw=False)[1:]
        return np.frombuffer(buffer, dtype=jnp.dtype(dtype))[0]
    raise ValueError(f"unknown extension type {code}")


def _find_encoder(node: Any) -> Tree | None:
    if not isinstance(node, Mapping):
        return None
    if "encoder" in node:
        return node
    # Optimiser states hold dictionaries of the same names; parameters are under these keys.
    for name in ("params", "target", "optimizer", "model"):
        found = _find_encoder(node.get(name))
        if found is not None:
            return found
    return None


def _flatten(tree: Tree, prefix: str = "") -> dict[str, np.ndarray]:
    flat: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and "__msgpack_chunked_array__" in value:
            shape = [value["shape"][k] for k in sorted(value["shape"], key=int)]
            chunks = [value["chunks"][k] for k in sorted(value["chunks"], key=int)]
            flat[prefix + name] = np.concatenate(chunks).reshape(shape)
        elif isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = np.asarray(value)
    return flat


def _flax_name(path: str) -> tuple[str, str]:
    for pattern, name, form in _HEAD_NAMES:
        if re.fullmatch(pattern, path):
            return name, form
    inner = path.removeprefix("encoder/")
    for pattern, name, form in _NAMES:
        if match := re.fullmatch(pattern, inner):
            return "encoder/" + match.expand(name), form
    raise UnsupportedError(f"FNet's Flax layout has no place for the parameter {path}.")


def _to_form(array: np.ndarray, form: str, heads: int) -> np.ndarray:
    if form == "T":
        return array.T
    if form == "P":
        return array[None]
    if form == "H":
        return array.T.reshape(array.shape[1], heads, -1)
    if form == "B":
        return array.reshape(heads, -1)
    if form == "O":
        return array.T.reshape(heads, -1, array.shape[0])
    return array


def _from_form(array: np.ndarray, form: str) -> np.ndarray:
    if form == "T":
        return array.T
    if form == "P":
        return array[0]
    if form == "H":
        return array.reshape(array.shape[0], -1).T
    if form == "B":
        return array.reshape(-1)
    if form == "O":
        return array.reshape(-1, array.shape[-1]).T
    return array


def _infer_config(flat: Mapping[str, np.ndarray], mixer: str) -> EncoderConfig:
    layers = {int(m[1]) for n in flat if (m := re.match(r"encoder/feed_forward_(\d+)/", n))}
    needed = [
        "encoder/embedder/word/embedding",
        "encoder/embedder/position/embedding",
        "encoder/embedder/type/embedding",
        "encoder/feed_forward_0/intermediate/kernel",
    ]
    missing = [name for name in needed if name not in flat]
    if missing:
        raise FileFormatError(f"The Flax parameters lack {_some(missing)}.")
    words, positions, types, widen = (flat[name] for name in needed)
    depth = 1 + max(layers)
    mixers, heads = [], None
    for layer in range(depth):
        attention = flat.get(f"encoder/self_attention_{layer}/query/kernel")
        if attention is not None:
            heads = attention.shape[1]
        linear = f"encoder/linear_transform_{layer}/seq_kernel" in flat
        mixers.append("attention" if attention is not None else "linear" if linear else mixer)
    return EncoderConfig(
        vocabulary=words.shape[0],
        embedding_width=words.shape[1],
        width=widen.shape[0],
        feed_forward=widen.shape[1],
        depth=depth,
        heads=heads or max(1, widen.shape[0] // 64),
        max_tokens=positions.shape[-2],
        segments=types.shape[0],
        mixers=tuple(mixers) if len(set(mixers)) > 1 else mixers[0],
    )
