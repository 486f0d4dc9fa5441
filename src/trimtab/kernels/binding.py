"""One native function and its JAX reference as a single differentiable operation.

``kernel("name", reference=f)`` gives a callable for JAX arrays and PyTorch tensors. Under JAX it
is a foreign call with a ``custom_vjp`` and a batching rule; under PyTorch an operator of
``torch.library`` with autograd and a fake implementation. Where the extension is absent, or the
data types are not among those it takes, the reference runs. Native code never has a gradient of
its own: ``backward`` is written in terms of other kernels, or is the reference's derivative.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from trimtab.errors import DtypeError, InputError
from trimtab.kernels import _library

FLOATS = frozenset({"float32", "bfloat16", "float16"})

_registry: dict[str, Kernel] = {}


class Shaped(NamedTuple):
    """Shape and data type name of an array of any framework."""

    shape: tuple[int, ...]
    dtype: str


# Result i looks like argument results[i]; or a function of Shaped arguments and attributes.
ResultRule = tuple[int, ...] | Callable[..., tuple[Shaped, ...]]


def only_floats(*arguments: Shaped, **_: Any) -> bool:
    """Whether every argument is float32, bfloat16 or float16."""
    return all(argument.dtype in FLOATS for argument in arguments)


def check_floats(function: str, *arrays: Any) -> None:
    """Refuse arrays of integers, booleans or complex numbers, of either framework.

    Raises:
        DtypeError: one of them is not of a floating-point type.
    """
    for array in arrays:
        name = str(array.dtype).removeprefix("torch.")
        if not name.startswith(("float", "bfloat")):
            raise DtypeError(
                f"{function} takes floating-point arrays, not {name}; convert the array first."
            )


@dataclass(frozen=True)
class Kernel:
    """A native function with its reference; make one with :func:`kernel`.

    Attributes:
        name: entry of the native table, and of the torch operator ``trimtab::name``.
        reference: pure JAX function of the arrays (positional) and attributes (keyword-only).
        backward: ``(arrays, cotangents, **attributes) -> gradients`` built from kernels, with None
            for arrays that have none; None differentiates the reference.
        batching: ``vmap_method`` of the foreign call; see :func:`jax.pure_callback`.
        results: how result shapes follow from arguments.
        result_count: how many arrays come back.
        accepts: whether the native side takes these arguments.
        operations: floating-point operations for these arguments, for cost estimates.
    """

    name: str
    reference: Callable[..., Any]
    backward: Callable[..., tuple[Any, ...]] | None
    batching: str
    results: ResultRule | None
    result_count: int
    accepts: Callable[..., bool]
    operations: Callable[..., float] | None = None

    def __call__(self, *arrays: Any, **attributes: Any) -> Any:
        """Run on JAX arrays (or NumPy, or tracers) or on PyTorch tensors."""
        if is_torch(arrays):
            from trimtab.kernels import _torch

            return _torch.call(self, arrays, attributes)
        import jax.numpy as jnp

        return _differentiable(self, tuple(sorted(attributes.items())))(
            *(jnp.asarray(array) for array in arrays)
        )

    def runs_natively(self, arguments: Sequence[Shaped], attributes: dict[str, Any]) -> bool:
        """Whether native code would serve this call on the CPU."""
        return (
            not _reference_mode().value
            and self.name in _library.kernel_names()
            and self.accepts(*arguments, **attributes)
        )

    def result_shapes(
        self, arguments: Sequence[Shaped], attributes: dict[str, Any]
    ) -> tuple[Shaped, ...]:
        """Shapes and data types of the results, as a tuple even for one."""
        if callable(self.results):
            return self.results(*arguments, **attributes)
        if self.results is not None:
            return tuple(arguments[index] for index in self.results)
        return _shapes_by_tracing(self, tuple(arguments), tuple(sorted(attributes.items())))


def kernel(
    name: str,
    *,
    reference: Callable[..., Any],
    backward: Callable[..., tuple[Any, ...]] | None = None,
    batching: str = "sequential",
    results: ResultRule | None = None,
    result_count: int = 1,
    accepts: Callable[..., bool] = only_floats,
    operations: Callable[..., float] | None = None,
) -> Kernel:
    """Bind a native function to its reference, once per name.

    Args:
        name: entry exported by ``native/*.inl.h``.
        reference: pure JAX function; positional parameters are arrays, keyword-only ones numbers.
        backward: gradient rule over kernels; None takes the reference's derivative.
        batching: ``"broadcast_all"`` if the native code accepts the same leading axes on every
            array, else ``"sequential"``.
        results: indices of the arguments that results look like, or a function of
            :class:`Shaped`; None traces the reference.
        result_count: number of arrays returned; read off ``results`` where that holds indices.
        accepts: predicate over :class:`Shaped` arguments; others go to the reference.
        operations: number of floating-point operations from :class:`Shaped` arguments; what a
            program's cost counts for the foreign call.

    Raises:
        InputError: the name is taken.
    """
    if name in _registry:
        raise InputError(f"There is a kernel {name!r} already; give this one another name.")
    count = len(results) if isinstance(results, tuple) else result_count
    made = Kernel(name, reference, backward, batching, results, count, accepts, operations)
    _registry[name] = made
    if (torch_side := sys.modules.get(f"{__package__}._torch")) is not None:
        torch_side.define(made)
    return made


def registered() -> tuple[Kernel, ...]:
    """Every kernel that an imported module has bound, by name."""
    return tuple(_registry[name] for name in sorted(_registry))


def operations_of(target: str, arguments: Sequence[Any], results: Sequence[Any]) -> float | None:
    """Floating-point operations of a foreign call that a kernel put into a program.

    Args:
        target: the call's target name.
        arguments: anything with ``shape`` and ``dtype``.
        results: likewise.

    Returns:
        The count, or None if the target is not one of ours or does not say.
    """
    bound = _registry.get(target.removeprefix(_library.TARGET_PREFIX))
    if bound is None or bound.operations is None:
        return None
    return float(bound.operations(*(shaped(argument) for argument in arguments)))


def is_torch(arrays: Sequence[Any]) -> bool:
    """Whether one of the arrays is a PyTorch tensor, without importing PyTorch."""
    torch = sys.modules.get("torch")
    return torch is not None and any(isinstance(array, torch.Tensor) for array in arrays)


@functools.cache
def _reference_mode() -> Any:
    import jax

    # Part of jax.jit's cache key, so that a function traced outside is traced again inside.
    return jax.make_user_context(default_value=False)


@contextlib.contextmanager
def reference_only() -> Iterator[None]:
    """Trace every kernel as its plain JAX reference, as portable exports need."""
    with _reference_mode()(True):
        yield


def shaped(array: Any) -> Shaped:
    """Describe a JAX or NumPy array or a ShapeDtypeStruct."""
    return Shaped(tuple(array.shape), str(array.dtype))


def _primal(bound: Kernel, arrays: tuple[Any, ...], attributes: dict[str, Any]) -> Any:
    import jax

    reference = functools.partial(bound.reference, **attributes)
    if not bound.runs_natively([shaped(array) for array in arrays], attributes):
        return reference(*arrays)
    native = functools.partial(_foreign_call, bound, attributes)
    if _only_cpu():
        return native(*arrays)
    return jax.lax.platform_dependent(*arrays, cpu=native, default=reference)


@functools.cache
def _only_cpu() -> bool:
    """With nothing but CPUs the choice of platform would only clutter the program."""
    import jax.extend.backend

    return set(jax.extend.backend.backends()) == {"cpu"}


def _foreign_call(bound: Kernel, attributes: dict[str, Any], *arrays: Any) -> Any:
    import jax

    outputs = jax.eval_shape(functools.partial(bound.reference, **attributes), *arrays)
    call = jax.ffi.ffi_call(_library.ffi_target(bound.name), outputs, vmap_method=bound.batching)
    return call(*arrays, **{name: _number(value) for name, value in attributes.items()})


def _number(value: float) -> Any:
    import numpy as np

    return np.float64(value) if isinstance(value, float) else np.int64(value)


@functools.lru_cache(maxsize=1024)
def _differentiable(bound: Kernel, attribute_items: tuple[tuple[str, Any], ...]) -> Any:
    import jax

    attributes = dict(attribute_items)

    def apply(*arrays: Any) -> Any:
        return _primal(bound, arrays, attributes)

    def forward(*arrays: Any) -> Any:
        return _primal(bound, arrays, attributes), arrays

    def backward(arrays: tuple[Any, ...], cotangents: Any) -> tuple[Any, ...]:
        return gradients(bound, arrays, cotangents, attributes)

    apply.__name__ = apply.__qualname__ = bound.name
    differentiable = jax.custom_vjp(apply)
    differentiable.defvjp(forward, backward)
    return differentiable


def gradients(
    bound: Kernel, arrays: tuple[Any, ...], cotangents: Any, attributes: dict[str, Any]
) -> tuple[Any, ...]:
    """Gradients of the arrays by the kernel's own rule or by the reference's derivative.

    Returns:
        One entry an array; None for those of integers.
    """
    if bound.backward is not None:
        return bound.backward(arrays, cotangents, **attributes)
    import jax
    import jax.numpy as jnp

    smooth = [jnp.issubdtype(array.dtype, jnp.floating) for array in arrays]

    def of_floats(*floats: Any) -> Any:
        rest = iter(floats)
        every = [next(rest) if is_smooth else array for array, is_smooth in zip(arrays, smooth)]
        return bound.reference(*every, **attributes)

    floats = [array for array, is_smooth in zip(arrays, smooth) if is_smooth]
    found = iter(jax.vjp(of_floats, *floats)[1](cotangents))
    return tuple(next(found) if is_smooth else None for is_smooth in smooth)


@functools.lru_cache(maxsize=4096)
def _shapes_by_tracing(
    bound: Kernel, arguments: tuple[Shaped, ...], attribute_items: tuple[tuple[str, Any], ...]
) -> tuple[Shaped, ...]:
    import jax

    structs = [jax.ShapeDtypeStruct(argument.shape, argument.dtype) for argument in arguments]
    outputs = jax.eval_shape(functools.partial(bound.reference, **dict(attribute_items)), *structs)
    return tuple(shaped(output) for output in jax.tree.leaves(outputs))


@functools.cache
def parameters(bound: Kernel) -> tuple[tuple[str, ...], dict[str, str]]:
    """Names of the reference's arrays, and names and types (int, float, bool) of its attributes."""
    arrays, attributes = [], {}
    for parameter in inspect.signature(bound.reference).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            attributes[parameter.name] = str(parameter.annotation)
        else:
            arrays.append(parameter.name)
    return tuple(arrays), attributes
