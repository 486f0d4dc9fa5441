"""How models of other libraries become a parameter pytree and a pure function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from trimtab.errors import InputError, UnsupportedError, require_extra


@dataclass(frozen=True)
class Captured:
    """A model taken apart.

    Args:
        parameters: pytree of arrays.
        call: pure function ``call(parameters, *inputs)``.
        inputs: the example inputs, as JAX can trace them.
        name: what the model is called.
    """

    parameters: Any
    call: Callable[..., Any]
    inputs: tuple[Any, ...]
    name: str


def library_of(model: Any) -> Literal["torch", "nnx", "linen"] | None:
    """Tell which library a model's class comes from, without importing that library."""
    for base in type(model).__mro__:
        module = base.__module__
        if base.__name__ == "Module" and module.startswith("torch.nn"):
            return "torch"
        if base.__name__ == "Module" and module.startswith("flax.nnx"):
            return "nnx"
        if base.__name__ == "Module" and module.startswith("flax.linen"):
            return "linen"
    return None


def from_nnx(model: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> Captured:
    """Split a Flax NNX module into its state (named by path) and its graph definition."""
    from flax import nnx

    definition, state = nnx.split(model)
    parameters = nnx.to_pure_dict(state)

    def call(values: Any, *given: Any) -> Any:
        filled = jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(values))
        return nnx.merge(definition, filled)(*given, **options)

    if jax.tree.structure(parameters).num_leaves != jax.tree.structure(state).num_leaves:
        raise UnsupportedError(
            f"{type(model).__name__} shares or hides variables in a way that nnx.to_pure_dict does "
            "not list; capture a function of its parameters instead."
        )
    return Captured(parameters, call, inputs, type(model).__name__)


def from_linen(
    model: Any, inputs: tuple[Any, ...], variables: Any, options: dict[str, Any]
) -> Captured:
    """Take a Flax Linen module and its variables.

    Raises:
        InputError: the variables are missing.
    """
    if variables is None:
        raise InputError(
            f"{type(model).__name__} is a Flax Linen module, whose variables live outside it. "
            "Pass parameters=variables, as model.init returned them."
        )
    only_params = isinstance(variables, dict) and set(variables) == {"params"}
    tree = variables["params"] if only_params else variables

    def call(values: Any, *given: Any) -> Any:
        return model.apply({"params": values} if only_params else values, *given, **options)

    return Captured(tree, call, inputs, type(model).__name__)


def from_torch(model: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> Captured:
    """Export a torch module and turn it into a JAX function that shares its weights.

    The weights are views of the torch tensors' memory where DLPack allows it, and are named as in
    ``state_dict`` with ``/`` for ``.``.

    Raises:
        MissingExtraError: torch or torchax is not installed.
        UnsupportedError: ``torch.export`` or torchax cannot handle the module.
    """
    torch = require_extra("torch", "torch", "Capturing a torch.nn.Module")
    # torchax sets JAX options when it is imported; nothing of ours may depend on that.
    exporter = require_extra("torchax.export", "torch", "Capturing a torch.nn.Module")
    label = type(model).__name__
    examples = jax.tree.map(lambda leaf: _to_tensor(torch, leaf), inputs)
    if model.training:
        raise UnsupportedError(
            f"{label} is in training mode, whose dropout and batch statistics cannot be exported. "
            "Call model.eval() first."
        )
    try:
        exported = torch.export.export(model, examples, options or None)
        exporter.torchax.default_env()  # registers torchax's table of operators
        names, states, function = exporter.exported_program_to_jax(exported, export_raw=True)
    except Exception as error:
        raise UnsupportedError(
            f"torch.export cannot capture {label}: {_first_line(error)} "
            "Rewrite the named operation, or capture a part of the model."
        ) from error
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    lifted = [f"constants.{index}" for index in range(len(states) - len(names))]
    order = tuple(name.replace(".", "/") for name in (*names, *lifted))
    parameters = {
        name.replace(".", "/"): _to_array(tensors.get(name, state))
        for name, state in zip((*names, *lifted), states)
    }
    given = jax.tree.map(_to_spec, examples)

    def call(values: Any, *arguments: Any) -> Any:
        # A dict is flattened in sorted order, while the function counts on torch's.
        results = function([values[name] for name in order], jax.tree.leaves(arguments))
        result = torch.utils._pytree.tree_unflatten(results, exported.call_spec.out_spec)
        return dict(result) if isinstance(result, dict) else result

    try:
        jax.eval_shape(call, parameters, *given)
    except Exception as error:
        raise UnsupportedError(
            f"{label} uses a torch operator that torchax cannot turn into JAX: {_first_line(error)}"
        ) from error
    return Captured(parameters, call, given, label)


def _to_tensor(torch: Any, leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return torch.zeros(leaf.shape, dtype=getattr(torch, str(leaf.dtype)))
    return torch.from_numpy(np.array(leaf))


def _to_spec(tensor: Any) -> jax.ShapeDtypeStruct:
    dtype = str(tensor.dtype).removeprefix("torch.")
    canonical = jax.dtypes.canonicalize_dtype(
        np.dtype(dtype) if dtype != "bfloat16" else "bfloat16"
    )
    return jax.ShapeDtypeStruct(tuple(tensor.shape), canonical)


def _to_array(tensor: Any) -> Any:
    detached = tensor.detach().contiguous()
    try:
        return jax.dlpack.from_dlpack(detached)
    except Exception:  # an alignment or dtype that JAX will not share
        if str(detached.dtype) == "torch.bfloat16":
            return jax.numpy.asarray(detached.float().numpy(), "bfloat16")
        return jax.numpy.asarray(detached.numpy())


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__).rstrip(".") + "."
