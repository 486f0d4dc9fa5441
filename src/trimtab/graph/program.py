"""The program graph: a closed jaxpr with named parameters that can be called, priced, rewritten."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.export
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path

from trimtab.errors import DtypeError, InputError, ShapeError, UnsupportedError
from trimtab.graph import _jax
from trimtab.graph.cost import Cost, price
from trimtab.graph.flat import Body, flatten
from trimtab.graph.replay import Replacement, Watch, replay
from trimtab.graph.site_rules import find_sites
from trimtab.graph.sites import Site, select

if TYPE_CHECKING:
    from trimtab.graph.draw import Drawing


@runtime_checkable
class Rewrite(Protocol):
    """Turns a program into a cheaper one that answers nearly the same."""

    def sites(self, program: Program) -> list[Site]:
        """Return the sites that the rewrite would change."""
        ...

    def apply(self, program: Program, sites: Sequence[Site]) -> Program:
        """Return the program with those sites changed."""
        ...


class Program(eqx.Module):
    """A model as a graph: a jaxpr whose first inputs are named parameters.

    A program is a pytree whose leaves are its parameters, so it can be passed to ``jax.jit``,
    ``jax.grad``, ``jax.vmap`` and ``shard_map`` like any Equinox module, and called as a function.
    Under ``shard_map`` pass ``check_vma=False``: a captured jaxpr does not carry the marks of
    device-varying values that JAX's check looks for.
    Make one with :func:`trimtab.capture` or :func:`trimtab.load`.

    Args:
        parameters: name (``/``-joined pytree path) to array.
        jaxpr: closed jaxpr of ``(*parameters in order of parameter_names, *flat inputs)``.
        parameter_names: order of the parameters in the jaxpr.
        in_tree: structure of the positional inputs.
        out_tree: structure of the result.
        name: what was captured, for reports.
        exported: the serialised StableHLO of a program that was loaded from disk; its jaxpr then
            is a single call that cannot be looked into.

    >>> import jax.numpy as jnp
    >>> from trimtab import capture
    >>> double = capture(lambda weights, x: x @ weights["w"], jnp.ones((3, 2)),
    ...                  parameters={"w": jnp.ones((2, 4))})
    >>> double(jnp.ones((3, 2))).shape, list(double.parameters)
    ((3, 4), ['w'])
    """

    parameters: dict[str, Any]
    jaxpr: _jax.ClosedJaxpr = eqx.field(static=True)
    parameter_names: tuple[str, ...] = eqx.field(static=True)
    in_tree: Any = eqx.field(static=True)
    out_tree: Any = eqx.field(static=True)
    name: str = eqx.field(static=True, default="program")
    exported: _Exported | None = eqx.field(static=True, default=None)

    # By identity, so that jax.jit takes a program as it takes any function.
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def __call__(self, *inputs: Any) -> Any:
        """Run the program.

        Args:
            inputs: positional inputs with the structure, shapes and dtypes of the capture.

        Raises:
            InputError: the inputs have another structure than at capture.
            ShapeError: an input has another shape.
            DtypeError: an input has a dtype that does not convert safely.
        """
        flat = self._check(inputs)
        values = [self.parameters[name] for name in self.parameter_names]
        if self.exported is not None:
            outputs = self.exported.call(values, flat)
        elif self.is_symbolic:
            outputs = _call_symbolic(self.jaxpr, values, flat)
        else:
            outputs = _run(self.jaxpr, values, flat)
        return jax.tree.unflatten(self.out_tree, outputs)

    @property
    def inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shape and dtype of each flat input."""
        count = len(self.parameter_names)
        return tuple(
            jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in self.jaxpr.in_avals[count:]
        )

    @property
    def outputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shape and dtype of each flat output."""
        return tuple(jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in self.jaxpr.out_avals)

    @property
    def is_symbolic(self) -> bool:
        """Whether an input has a symbolic dimension, such as a batch of any size."""
        return any(not isinstance(size, int) for spec in self.inputs for size in spec.shape)

    @property
    def body(self) -> Body:
        """The flat view of the jaxpr, for analysis."""
        return _flat(self.jaxpr)

    def sites(self, kind: str | None = None, glob: str = "**") -> list[Site]:
        """Return the places where methods can apply, in order of execution.

        Args:
            kind: ``"linear"``, ``"convolution"``, ``"embedding"``, ``"attention"`` or
                ``"normalization"``; all kinds by default.
            glob: comma-separated patterns on the site's path and its parameters' paths; a leading
                ``!`` excludes.

        Raises:
            UnknownNameError: the kind does not exist.
            UnsupportedError: the program was loaded from disk, where only StableHLO is kept.
        """
        self._look_inside("find sites in")
        return select(_sites(self.jaxpr, self.parameter_names), kind, glob)

    def cost(self, *, while_trips: float = 1.0) -> Cost:
        """Return operations, memory traffic, live memory and parameters, by site and in total.

        Args:
            while_trips: trip count for while loops whose count is not in the program.

        Raises:
            UnsupportedError: the program is symbolic or was loaded from disk.
        """
        self._look_inside("price")
        if self.is_symbolic:
            raise UnsupportedError(
                "A program with symbolic dimensions has no single cost. Capture it with the sizes "
                "to be priced."
            )
        sites = _sites(self.jaxpr, self.parameter_names)
        return price(self.body, self.parameter_names, sites, while_trips=while_trips)

    def rewrite(self, *rewrites: Rewrite) -> Program:
        """Return the program with each rewrite applied in turn to the sites it matches."""
        program = self
        for rewrite in rewrites:
            program = rewrite.apply(program, rewrite.sites(program))
        return program

    def replace(self, replacements: Sequence[Replacement]) -> Program:
        """Return the program with equations replaced; rewrites are written with this.

        Parameters that nothing reads afterwards are gone from the result.

        Args:
            replacements: what runs in place of which equation, and the parameters that it brings.

        Raises:
            InputError: two parameters would have the same name.
            ShapeError: a replacement's result has another shape or dtype than the original.
        """
        self._look_inside("rewrite")
        extras: dict[str, Any] = {}
        for change in replacements:
            clash = (set(extras) | set(self.parameters)) & set(change.extras)
            if clash:
                raise InputError(
                    f"Two parameters would be called {sorted(clash)[0]!r}. Name the replacement's "
                    "parameters after its site and method."
                )
            extras.update(change.extras)
        count, added, old = len(self.parameter_names), len(extras), self.jaxpr

        def rebuilt(*arguments: Any) -> list[Any]:
            values = [*arguments[:count], *arguments[count + added :]]
            given = dict(zip(extras, arguments[count : count + added]))
            return replay(old, self.body, values, replacements, extras=given)[0]

        avals = [*map(_spec, old.in_avals[:count]), *map(_spec, extras.values())]
        jaxpr = _jax.trace(rebuilt, *avals, *map(_spec, old.in_avals[count:]))
        for was, now in zip(old.out_avals, jaxpr.out_avals):
            if was.shape != now.shape or was.dtype != now.dtype:
                raise ShapeError(
                    f"A replacement changed an output of the program from {was} to {now}; it must "
                    "return what the equation returned."
                )
        names = (*self.parameter_names, *extras)
        return self._pruned(jaxpr, names, {**self.parameters, **extras}, self.out_tree)

    def tap(
        self,
        observe: Callable[..., Any],
        sites: Sequence[Site],
        *inputs: Any,
        roles: Sequence[str] = ("input",),
    ) -> tuple[Any, dict[str, Any]]:
        """Run the program and report values at sites; calibration is written with this.

        Args:
            observe: ``observe(site, *values)`` -> any pytree of arrays; it runs inside the program,
                so a summary (a Gram matrix, a maximum) costs no more memory than itself.
            sites: where to look.
            inputs: the program's inputs.
            roles: which of a site's values to hand over, such as ``("query", "key")``.

        Returns:
            The program's result, and the reports by site path (``path``, ``path#1``, ... where a
            path has several sites). Reports from inside a scan gain its length as leading axis.

        Raises:
            UnsupportedError: a site stands inside a while loop or a branch.
        """
        self._look_inside("tap")
        flat = self._check(inputs)
        watches, seen = [], dict[str, int]()
        for site in sites:
            number = seen.get(site.path, 0)
            seen[site.path] = number + 1
            watches.append(
                Watch(
                    f"{site.path}#{number}" if number else site.path,
                    site.address,
                    tuple(site.values[role] for role in roles),
                    partial(observe, site),
                )
            )

        @jax.jit
        def run(values: list[Any], given: list[Any]) -> tuple[list[Any], dict[str, Any]]:
            return replay(self.jaxpr, self.body, [*values, *given], watches=watches)

        outputs, reports = run([self.parameters[name] for name in self.parameter_names], flat)
        return jax.tree.unflatten(self.out_tree, outputs), reports

    def dce(self, outputs: Sequence[int] | None = None) -> Program:
        """Return the program without the work that some outputs do not need.

        Args:
            outputs: positions of the flat outputs to keep; all by default. When given, the result
                of the program is a tuple of them.
        """
        self._look_inside("prune")
        count = len(self.jaxpr.out_avals)
        kept = list(range(count)) if outputs is None else list(outputs)
        if kept != sorted(set(kept)) or any(not 0 <= position < count for position in kept):
            raise InputError(
                f"The program has outputs 0..{count - 1}; name the ones to keep once and in rising "
                f"order, not {kept}."
            )
        jaxpr = _jax.keep_outputs(self.jaxpr, kept)
        tree = self.out_tree if outputs is None else jax.tree.structure((0,) * len(kept))
        return self._pruned(jaxpr, self.parameter_names, self.parameters, tree)

    def with_parameters(self, parameters: Mapping[str, Any]) -> Program:
        """Return the program with some parameters replaced by arrays of the same shape.

        Raises:
            InputError: a name is not a parameter of the program.
            ShapeError: an array has another shape.
        """
        for name, array in parameters.items():
            if name not in self.parameters:
                raise InputError(f"The program has no parameter {name!r}.")
            if np.shape(array) != np.shape(self.parameters[name]):
                raise ShapeError(
                    f"Parameter {name!r} has shape {np.shape(self.parameters[name])}; "
                    f"the array given has {np.shape(array)}."
                )
        merged = {**self.parameters, **parameters}
        return eqx.tree_at(lambda program: program.parameters, self, merged)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the program to a folder: StableHLO, safetensors and a JSON manifest."""
        from trimtab.graph.save import save

        save(self, path)

    def draw(self, path: str | os.PathLike[str] | None = None, *, depth: int = 2) -> Drawing:
        """Draw the graph in layers, collapsed by layer name.

        Args:
            path: an ``.svg`` or ``.html`` file to write; the HTML page opens and closes levels.
            depth: how many parts of the names to show.
        """
        from trimtab.graph.draw import draw

        drawing = draw(self, depth=depth)
        if path is not None:
            drawing.save(path)
        return drawing

    def __str__(self) -> str:
        given = ", ".join(f"{spec.dtype}{list(spec.shape)}" for spec in self.inputs)
        made = ", ".join(f"{spec.dtype}{list(spec.shape)}" for spec in self.outputs)
        total = sum(int(np.size(array)) for array in self.parameters.values())
        return f"Program {self.name}: ({given}) -> ({made}), {total:,} parameters"

    def _pruned(
        self,
        jaxpr: _jax.ClosedJaxpr,
        names: tuple[str, ...],
        parameters: Mapping[str, Any],
        out_tree: Any,
    ) -> Program:
        unwanted = [False] * len(names) + [True] * (len(jaxpr.in_avals) - len(names))
        jaxpr, used = _jax.remove_dead(jaxpr, keep_inputs=unwanted)
        left = tuple(name for name, is_used in zip(names, used) if is_used)
        return Program(
            parameters={name: parameters[name] for name in left},
            jaxpr=jaxpr,
            parameter_names=left,
            in_tree=self.in_tree,
            out_tree=out_tree,
            name=self.name,
        )

    def _look_inside(self, verb: str) -> None:
        if self.exported is not None:
            raise UnsupportedError(
                f"Cannot {verb} a program loaded from disk: it is compiled StableHLO. Capture the "
                "model again, or save after rewriting."
            )

    def _check(self, inputs: tuple[Any, ...]) -> list[Any]:
        leaves, tree = tree_flatten_with_path(inputs)
        if tree != self.in_tree:
            raise InputError(
                f"{self.name} takes inputs of structure {self.in_tree}; it was given {tree}."
            )
        flat, sizes = [], dict[str, int]()
        for (path, leaf), spec in zip(leaves, self.inputs):
            where = f"Input {keystr(path, simple=True, separator='/')} of {self.name}"
            flat.append(_converted(where, leaf, spec, sizes))
        return flat


class _Exported:
    """A deserialised StableHLO function; compared by identity, as static data of a program."""

    def __init__(self, exported: jax.export.Exported) -> None:
        self.exported = exported

    def call(self, parameters: list[Any], inputs: list[Any]) -> list[Any]:
        return list(self.exported.call(parameters, inputs))


def _converted(where: str, leaf: Any, spec: jax.ShapeDtypeStruct, sizes: dict[str, int]) -> Any:
    shape = np.shape(leaf)
    matching = len(shape) == len(spec.shape)
    for given, wanted in zip(shape, spec.shape):
        if isinstance(wanted, int):
            matching = matching and given == wanted
        else:
            matching = matching and sizes.setdefault(str(wanted), given) == given
    if not matching:
        raise ShapeError(f"{where} has shape {tuple(shape)}; the program expects {spec.shape}.")
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        leaf = np.asarray(leaf)
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
    if dtype != spec.dtype:
        same_kind = not jax.numpy.issubdtype(dtype, jax.dtypes.extended) and np.can_cast(
            dtype, spec.dtype, casting="same_kind"
        )
        if not same_kind:
            raise DtypeError(f"{where} has dtype {dtype}; the program expects {spec.dtype}.")
    return jax.numpy.asarray(leaf, spec.dtype) if dtype != spec.dtype else leaf


@partial(jax.jit, static_argnums=0)
def _run(jaxpr: _jax.ClosedJaxpr, values: list[Any], inputs: list[Any]) -> list[Any]:
    return _jax.jaxpr_as_fun(jaxpr)(*values, *inputs)


def _call_symbolic(jaxpr: _jax.ClosedJaxpr, values: list[Any], inputs: list[Any]) -> list[Any]:
    return list(_export_symbolic(jaxpr, len(values)).call(values, inputs))


@lru_cache(maxsize=64)
def _flat(jaxpr: _jax.ClosedJaxpr) -> Body:
    return flatten(jaxpr)


@lru_cache(maxsize=64)
def _sites(jaxpr: _jax.ClosedJaxpr, names: tuple[str, ...]) -> list[Site]:
    return find_sites(_flat(jaxpr), names)


@lru_cache(maxsize=64)
def _export_symbolic(jaxpr: _jax.ClosedJaxpr, count: int) -> jax.export.Exported:
    def function(values: list[Any], inputs: list[Any]) -> list[Any]:
        return _jax.jaxpr_as_fun(jaxpr)(*values, *inputs)

    specs = list(map(_spec, jaxpr.in_avals))
    return jax.export.export(jax.jit(function))(specs[:count], specs[count:])


def _spec(array: Any) -> jax.ShapeDtypeStruct:
    if hasattr(array, "shape") and hasattr(array, "dtype"):
        return jax.ShapeDtypeStruct(array.shape, array.dtype)
    return jax.ShapeDtypeStruct(np.shape(array), np.result_type(array))
