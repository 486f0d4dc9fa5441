"""Capture a model, from whichever library it comes, as a :class:`Program`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path

from trimtab.errors import InputError, UnsupportedError
from trimtab.graph import _jax
from trimtab.graph.frontends import Captured, from_linen, from_nnx, from_torch, library_of
from trimtab.graph.program import Program


def capture(
    model: Any,
    *inputs: Any,
    parameters: Any = None,
    batched: bool = False,
    name: str | None = None,
    **options: Any,
) -> Program:
    """Capture a model as a program graph.

    Args:
        model: an Equinox module, a Flax NNX module, a Flax Linen module (with ``parameters``), a
            ``torch.nn.Module``, or a function. A function with ``parameters`` is called as
            ``model(parameters, *inputs)``.
        inputs: example inputs: arrays, pytrees of arrays, or ``jax.ShapeDtypeStruct``, whose shape
            may hold symbolic dimensions from ``jax.export.symbolic_shape``. For torch modules,
            torch tensors or arrays.
        parameters: the parameter pytree of a function or the variables of a Linen module.
        batched: map the model over the leading axis of every input, for modules that see one
            example, as Equinox's do.
        name: what to call the program; by default the class or function name.
        options: keyword arguments passed on to the model at capture (``train=False``).

    Returns:
        A program with one parameter per array in the model, named by its ``/``-joined path.

    Raises:
        InputError: no example input, or the model is not callable.
        UnsupportedError: the model cannot be traced; the sentence says where.
        MissingExtraError: a torch module without the ``torch`` extra.

    >>> import equinox as eqx, jax
    >>> layer = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    >>> program = capture(layer, jax.ShapeDtypeStruct((5, 3), "float32"), batched=True)
    >>> [(site.kind, site.path) for site in program.sites()]
    [('linear', 'weight')]
    """
    captured = _front_end(model, inputs, parameters, options)
    if not captured.inputs:
        raise InputError(f"Capturing {captured.name} needs at least one example input.")
    leaves, tree = tree_flatten_with_path(captured.parameters)
    names = [keystr(path, simple=True, separator="/") or "parameter" for path, _ in leaves]
    if len(set(names)) != len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise InputError(f"Two parameters are called {repeated!r}; rename one of them.")
    flat_inputs, in_tree = jax.tree.flatten(captured.inputs)
    call = captured.call
    if batched:
        call = _over_leading_axis(call)
    out_trees = []

    def flat(*arguments: Any) -> list[Any]:
        values = jax.tree.unflatten(tree, arguments[: len(names)])
        given = jax.tree.unflatten(in_tree, arguments[len(names) :])
        outputs, out_tree = jax.tree.flatten(call(values, *given))
        out_trees.append(out_tree)
        return outputs

    specs = [_abstract(leaf) for _, leaf in leaves] + [_abstract(leaf) for leaf in flat_inputs]
    jaxpr = _trace(flat, specs, captured.name)
    jaxpr, hoisted = _hoist_constants(jaxpr, len(names))
    # Tracing leaves equations that nothing reads, such as the last forward layer of a gradient.
    jaxpr, _ = _jax.remove_dead(jaxpr, keep_inputs=[True] * len(jaxpr.in_avals))
    arrays = dict(zip(names, (leaf for _, leaf in leaves)))
    return Program(
        parameters={**arrays, **hoisted},
        jaxpr=jaxpr,
        parameter_names=(*names, *hoisted),
        in_tree=in_tree,
        out_tree=out_trees[0],
        name=name or captured.name,
    )


def insert(model: Any, parameters: Mapping[str, Any]) -> Any:
    """Return an Equinox module or parameter pytree with arrays replaced by name.

    Args:
        model: what was captured.
        parameters: name to array, as ``Program.parameters`` holds them; other leaves stay.

    Raises:
        InputError: a name is not a leaf of the model.
    """
    leaves, tree = tree_flatten_with_path(model)
    names = [keystr(path, simple=True, separator="/") for path, _ in leaves]
    for name in parameters:
        if name not in names:
            raise InputError(f"The model has no parameter {name!r}.")
    return jax.tree.unflatten(
        tree, [parameters.get(name, leaf) for name, (_, leaf) in zip(names, leaves)]
    )


def _front_end(
    model: Any, inputs: tuple[Any, ...], parameters: Any, options: dict[str, Any]
) -> Captured:
    library = library_of(model)
    if library == "torch":
        return from_torch(model, inputs, options)
    if library == "nnx":
        return from_nnx(model, inputs, options)
    if library == "linen":
        return from_linen(model, inputs, parameters, options)
    if not callable(model):
        raise InputError(
            f"Cannot capture a {type(model).__name__}: pass a function, an Equinox or Flax module, "
            "or a torch.nn.Module."
        )
    label = getattr(model, "__name__", type(model).__name__)
    arrays, rest = eqx.partition(model if parameters is None else parameters, _is_parameter)

    def call(values: Any, *given: Any) -> Any:
        whole = eqx.combine(values, rest)
        if parameters is None:
            return whole(*given, **options)
        return model(whole, *given, **options)

    return Captured(arrays, call, inputs, label)


def _is_parameter(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, np.ndarray | jax.ShapeDtypeStruct)


def _over_leading_axis(call: Callable[..., Any]) -> Callable[..., Any]:
    def mapped(values: Any, *given: Any) -> Any:
        return jax.vmap(lambda *one: call(values, *one))(*given)

    return mapped


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        extended = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.extended)
        dtype = leaf.dtype if extended else jax.dtypes.canonicalize_dtype(leaf.dtype)
        return jax.ShapeDtypeStruct(leaf.shape, dtype)
    if isinstance(leaf, bool | int | float | complex | np.generic):
        return jax.ShapeDtypeStruct((), jax.dtypes.canonicalize_dtype(np.result_type(leaf)))
    raise InputError(
        f"An example input is a {type(leaf).__name__}; give arrays or jax.ShapeDtypeStruct."
    )


def _trace(
    function: Callable[..., Any], specs: list[jax.ShapeDtypeStruct], label: str
) -> _jax.ClosedJaxpr:
    try:
        return _jax.trace(function, *specs)
    except jax.errors.JAXTypeError as error:
        raise UnsupportedError(
            f"{label} cannot be traced, because its Python code depends on the values of arrays: "
            f"{str(error).splitlines()[0]} Use jax.lax.cond or jnp.where, or pass the value as an "
            "option."
        ) from error


def _hoist_constants(
    jaxpr: _jax.ClosedJaxpr, count: int
) -> tuple[_jax.ClosedJaxpr, dict[str, Any]]:
    """Turn arrays that a function closes over into parameters called ``constants/0``, ..."""
    if not jaxpr.consts:
        return jaxpr, {}
    constants = {f"constants/{index}": value for index, value in enumerate(jaxpr.consts)}
    added = len(constants)

    def function(*arguments: Any) -> list[Any]:
        inner = _jax.ClosedJaxpr(jaxpr.jaxpr, list(arguments[count : count + added]))
        return _jax.jaxpr_as_fun(inner)(*arguments[:count], *arguments[count + added :])

    specs = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in jaxpr.in_avals]
    middle = [_abstract(value) for value in constants.values()]
    return _jax.trace(function, *specs[:count], *middle, *specs[count:]), constants
