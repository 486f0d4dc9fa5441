"""Kernels as PyTorch operators ``torch.ops.trimtab.*``: the only file here that knows PyTorch.

Tensors reach the native code by address, so building the extension needs no libtorch.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from trimtab.errors import UnsupportedError
from trimtab.kernels import _library
from trimtab.kernels.binding import Kernel, Shaped, gradients, parameters, registered

_DTYPE_NAMES = {getattr(torch, name): name for name in _library.DATA_TYPES}
_DTYPES = {name: dtype for dtype, name in _DTYPE_NAMES.items()}


def call(bound: Kernel, tensors: tuple[Any, ...], attributes: dict[str, Any]) -> Any:
    """Run a kernel on tensors, with autograd.

    Raises:
        UnsupportedError: a tensor lives on a device that no kernel serves.
    """
    as_tensors = [torch.as_tensor(tensor) for tensor in tensors]
    for tensor in as_tensors:
        if tensor.device.type not in ("cpu", "meta"):
            raise UnsupportedError(
                f"trimtab.kernels.{bound.name} runs on CPU tensors, not on "
                f"{tensor.device.type!r}; move the tensor with .cpu()."
            )
    return getattr(torch.ops.trimtab, bound.name)(*as_tensors, **attributes)


# Operators live as long as the library object that defined them.
_OPERATORS = torch.library.Library("trimtab", "FRAGMENT")


def define(bound: Kernel) -> None:
    """Define ``trimtab::name``: CPU and fake implementations, autograd, vmap."""
    _OPERATORS.define(_schema(bound))
    name = f"trimtab::{bound.name}"
    _OPERATORS.impl(bound.name, functools.partial(_run, bound), "CPU")
    torch.library.register_fake(name, functools.partial(_fake, bound), lib=_OPERATORS)
    torch.library.register_autograd(
        name, functools.partial(_backward, bound), setup_context=_remember, lib=_OPERATORS
    )
    torch.library.register_vmap(name, functools.partial(_one_by_one, bound), lib=_OPERATORS)
    if bound.backward is None:
        _define_derivative(bound)


def _define_derivative(bound: Kernel) -> None:
    """The reference's derivative as an operator of its own, which torch.compile need not trace."""
    _, attributes = parameters(bound)
    words = ["Tensor[] arrays", "Tensor[] cotangents"]
    if attributes:
        words += ["*", *(f"{kind} {name}" for name, kind in attributes.items())]
    name = f"{bound.name}_derivative"
    _OPERATORS.define(f"{name}({', '.join(words)}) -> Tensor[]")

    def run(arrays: Any, cotangents: Any, **values: Any) -> list[torch.Tensor]:
        function = _derivative(bound, tuple(sorted(values.items())), len(arrays))
        found = iter(_through_jax(function, (*arrays, *cotangents)))
        return [
            next(found) if array.is_floating_point() else array.new_empty(0) for array in arrays
        ]

    def fake(arrays: Any, cotangents: Any, **values: Any) -> list[torch.Tensor]:
        return [
            torch.empty_like(array) if array.is_floating_point() else array.new_empty(0)
            for array in arrays
        ]

    _OPERATORS.impl(name, run, "CPU")
    torch.library.register_fake(f"trimtab::{name}", fake, lib=_OPERATORS)


def _schema(bound: Kernel) -> str:
    arrays, attributes = parameters(bound)
    words = [f"Tensor {name}" for name in arrays]
    if attributes:
        words += ["*", *(f"{kind} {name}" for name, kind in attributes.items())]
    count = bound.result_count
    returned = "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"
    return f"{bound.name}({', '.join(words)}) -> {returned}"


def _shaped(tensor: torch.Tensor) -> Shaped:
    return Shaped(tuple(tensor.shape), _DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)))


def _empty_results(bound: Kernel, tensors: Any, attributes: dict[str, Any]) -> list[torch.Tensor]:
    shapes = bound.result_shapes([_shaped(tensor) for tensor in tensors], attributes)
    return [
        torch.empty(shape, dtype=_DTYPES[dtype], device=tensors[0].device)
        for shape, dtype in shapes
    ]


def _packed(results: list[torch.Tensor]) -> Any:
    return results[0] if len(results) == 1 else tuple(results)


def _fake(bound: Kernel, *tensors: torch.Tensor, **attributes: Any) -> Any:
    return _packed(_empty_results(bound, tensors, attributes))


def _run(bound: Kernel, *tensors: torch.Tensor, **attributes: Any) -> Any:
    if not bound.runs_natively([_shaped(tensor) for tensor in tensors], attributes):
        return _through_jax(_reference(bound, tuple(sorted(attributes.items()))), tensors)
    native = _library.extension()
    assert native is not None
    dense = [tensor.contiguous() for tensor in tensors]
    results = _empty_results(bound, dense, attributes)
    native.call(
        _index(bound.name),
        tuple(_raw(tensor) for tensor in dense),
        tuple(_raw(tensor) for tensor in results),
        attributes,
    )
    return _packed(results)


def _raw(tensor: torch.Tensor) -> tuple[int, ...]:
    code = _library.DATA_TYPES[_DTYPE_NAMES[tensor.dtype]]
    return (tensor.data_ptr(), code, *tensor.shape)


@functools.cache
def _index(name: str) -> int:
    native = _library.extension()
    assert native is not None
    return native.kernel_index(name)


@functools.lru_cache(maxsize=256)
def _reference(bound: Kernel, attribute_items: tuple[tuple[str, Any], ...]) -> Any:
    import jax

    return jax.jit(functools.partial(bound.reference, **dict(attribute_items)))


@functools.lru_cache(maxsize=256)
def _derivative(bound: Kernel, attribute_items: tuple[tuple[str, Any], ...], arrays: int) -> Any:
    import jax

    def pull(*values: Any) -> Any:
        cotangents = values[arrays] if len(values) == arrays + 1 else values[arrays:]
        found = gradients(bound, values[:arrays], cotangents, dict(attribute_items))
        return [gradient for gradient in found if gradient is not None]

    return jax.jit(pull)


def _through_jax(function: Any, tensors: Any) -> Any:
    """Call a JAX function on tensors; memory is shared both ways where it can be."""
    import jax

    arrays = [jax.dlpack.from_dlpack(tensor.detach().contiguous()) for tensor in tensors]
    outputs = function(*arrays)
    if isinstance(outputs, (tuple, list)):
        return tuple(torch.from_dlpack(array) for array in outputs)
    return torch.from_dlpack(outputs)


def _remember(ctx: Any, inputs: Any, output: Any, keyword_only_inputs: Any = None) -> None:
    ctx.save_for_backward(*inputs)
    ctx.attributes = dict(keyword_only_inputs or {})
    outputs = output if isinstance(output, tuple) else (output,)
    ctx.result_shapes = [(tuple(result.shape), result.dtype) for result in outputs]


def _backward(bound: Kernel, ctx: Any, *cotangents: torch.Tensor | None) -> Any:
    tensors = ctx.saved_tensors
    dense = [
        torch.zeros(shape, dtype=dtype) if cotangent is None else cotangent
        for cotangent, (shape, dtype) in zip(cotangents, ctx.result_shapes)
    ]
    if bound.backward is not None:
        result = bound.backward(tensors, _packed(dense), **ctx.attributes)
    else:
        derivative = getattr(torch.ops.trimtab, f"{bound.name}_derivative")
        found = derivative(list(tensors), dense, **ctx.attributes)
        result = [
            gradient if tensor.is_floating_point() else None
            for tensor, gradient in zip(tensors, found)
        ]
    return result[0] if len(tensors) == 1 else tuple(result)


def _one_by_one(bound: Kernel, info: Any, in_dims: Any, *tensors: Any, **attributes: Any) -> Any:
    """Vmap rule: one call an example; kernels are large, so a loop costs little."""

    def example(index: int) -> Any:
        return getattr(torch.ops.trimtab, bound.name)(
            *(
                tensor if dim is None else tensor.select(dim, index)
                for tensor, dim in zip(tensors, in_dims)
            ),
            **attributes,
        )

    outputs = [example(index) for index in range(info.batch_size)]
    if isinstance(outputs[0], tuple):
        return tuple(torch.stack(column) for column in zip(*outputs)), (0,) * len(outputs[0])
    return torch.stack(outputs), 0


# Not on first use: that may happen inside torch.compile, which cannot trace a definition.
for _bound in registered():
    define(_bound)
