"""Kernels as PyTorch operators, against PyTorch's own functions and against JAX."""

import functools

import jax
import numpy as np
import pytest
from kernel_cases import CASES, worst_error

from trimtab import kernels

torch = pytest.importorskip("torch")


def tensors(case, dtype="float32", requires_grad=True, seed=0):
    return [
        torch.from_numpy(array.astype(np.float32))
        .to(getattr(torch, dtype))
        .requires_grad_(requires_grad)
        for array in case.arguments(6, 20, "float32", seed)
    ]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_tensor_gives_the_value_and_gradient_that_an_array_gives(case):
    bound = functools.partial(case.kernel, **dict(case.attributes))
    arguments = tensors(case)
    loss = sum(out.sin().sum() for out in _many(bound(*arguments)))
    loss.backward()

    def reference_loss(*arrays):
        return sum(jax.numpy.sin(out).sum() for out in jax.tree.leaves(case.reference()(*arrays)))

    arrays = case.arguments(6, 20, "float32")
    value, gradients = jax.value_and_grad(reference_loss, tuple(range(len(arrays))))(*arrays)
    assert worst_error(loss.detach(), value) < 1e-4
    for tensor, gradient in zip(arguments, gradients):
        assert worst_error(tensor.grad, gradient) < 2e-5


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_operator_passes_the_checks_of_torch(case):
    case.kernel(*tensors(case, requires_grad=False), **dict(case.attributes))
    operator = getattr(torch.ops.trimtab, case.kernel.name)
    kinds = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if case.kernel.name in ("layer_norm_backward", "fourier_mix"):
        kinds.append("test_aot_dispatch_dynamic")  # Seconds each: one of either kind of gradient.
    checks = torch.library.opcheck(
        operator, tuple(tensors(case)), dict(case.attributes), test_utils=kinds
    )
    assert set(checks.values()) == {"SUCCESS"}


def test_functions_agree_with_torch_for_any_leading_shape_and_stride():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 7, 5, 24, generator=generator).transpose(1, 2)
    scale, bias = torch.randn(24, generator=generator), torch.randn(24, generator=generator)
    found = kernels.layer_norm(x, scale, bias, epsilon=1e-5)
    expected = torch.nn.functional.layer_norm(x, (24,), scale, bias, 1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        kernels.bias_gelu(x, bias),
        torch.nn.functional.gelu(x + bias, approximate="tanh"),
        rtol=1e-5,
        atol=1e-6,
    )
    torch.testing.assert_close(
        kernels.fourier_mix(x), torch.fft.fftn(x, dim=(-2, -1)).real, rtol=1e-5, atol=1e-5
    )


def test_the_gradient_passes_torch_gradcheck_in_single_precision():
    case = CASES[7]
    x, scale, bias = tensors(case)
    function = functools.partial(case.kernel, **dict(case.attributes))
    assert torch.autograd.gradcheck(function, (x, scale, bias), eps=1e-2, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_tensors_keep_their_type(dtype):
    case = CASES[0]
    arguments = tensors(case, dtype)
    out = case.kernel(*arguments, **dict(case.attributes))
    out.sum().backward()
    assert out.dtype == arguments[0].dtype == arguments[0].grad.dtype


def test_a_compiled_module_calls_the_operator_without_breaking_the_graph():
    def block(x, scale, bias):
        return kernels.bias_gelu(kernels.layer_norm(x, scale, bias), bias)

    arguments = tensors(CASES[0])
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), block(*arguments))


def test_vmap_of_an_operator_is_a_loop_over_examples():
    x = torch.randn(4, 6, 20)
    scale, bias = torch.randn(20), torch.randn(20)
    mapped = torch.func.vmap(lambda x: kernels.layer_norm(x, scale, bias))(x)
    torch.testing.assert_close(mapped, kernels.layer_norm(x, scale, bias))


def test_the_reference_serves_tensors_too():
    case = CASES[7]
    arguments = tensors(case)
    with kernels.reference_only():
        out = case.kernel(*arguments, **dict(case.attributes))
        out.sum().backward()
    native = tensors(case)
    again = case.kernel(*native, **dict(case.attributes))
    again.sum().backward()
    torch.testing.assert_close(out, again, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(arguments[0].grad, native[0].grad, rtol=1e-4, atol=1e-4)


def _many(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)
