"""Race the native kernels with PyTorch and JAX on the same arrays, at one and all threads.

Fourier mixing (alone, and fused with residual and normalisation) against `torch.fft.rfftn` and
`torch.fft.fftn` alone and XLA's transform; layer normalisation and bias + GELU against the fused
functions of PyTorch and compiled JAX, forward and backward. The last table holds what the machine
reaches at most, to see how near each kernel comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from race import Outcome, Race, command
from trimtab import kernels
from trimtab.reproduce.race import Contestant

MIX_SHAPES = (
    (128, 768),
    (512, 768),
    (509, 768),
    (2048, 768),
    (4096, 768),
    (4093, 768),
    (512, 1024),
)
ROW_SHAPES = ((512, 768), (4096, 3072))


def main(quick: bool) -> Iterator[Outcome]:
    """Yield every outcome."""
    every = kernels.thread_count()
    for threads in sorted({1, every}):
        torch.set_num_threads(threads)
        kernels.set_thread_count(threads)
        suffix = f"{threads} thread{'s' if threads > 1 else ''}"
        for shape in MIX_SHAPES[:2] if quick else MIX_SHAPES:
            yield mixing(shape, suffix, threads, quick)
        for shape in ROW_SHAPES[:1] if quick else ROW_SHAPES:
            yield normalisation(shape, suffix, threads, quick)
            yield activation(shape, suffix, threads, quick)
        yield limits(suffix, quick)


def mixing(shape: tuple[int, int], suffix: str, threads: int, quick: bool) -> Outcome:
    """One example of tokens by width; the half-spectrum transform is the least that any must do."""
    x, tensor = arrays(1, *shape)
    scale, bias = jnp.ones(shape[1]), jnp.zeros(shape[1])
    fused = jax.jit(kernels.fourier_mix_residual_norm)
    alone = jax.jit(kernels.fourier_mix)
    plain = jax.jit(lambda x: jnp.fft.fftn(x, axes=(1, 2)).real)
    contest = Race(f"Fourier mixing {shape[0]} x {shape[1]}, {suffix}", unit="ms")
    contest.enter("fused with residual and norm", lambda: wait(fused(x, scale, bias)))
    contest.enter("mixing alone", lambda: wait(alone(x)))
    contest.enter("torch.fft.rfftn (half output)", lambda: torch.fft.rfftn(tensor, dim=(1, 2)))
    contest.enter("torch.fft.fftn, real part", lambda: torch.fft.fftn(tensor, dim=(1, 2)).real)
    if threads > 1:  # XLA's own pool cannot be limited after it has started.
        contest.enter("JAX fftn, real part", lambda: wait(plain(x)))
    return contest.run(quick=quick)


def normalisation(shape: tuple[int, int], suffix: str, threads: int, quick: bool) -> Outcome:
    """Forward and backward of layer normalisation of a sum."""
    x, _ = arrays(*shape)
    residual = x * 0.5
    scale, bias = jnp.ones(shape[1]), jnp.zeros(shape[1])

    def ours(x, residual, scale, bias):
        return kernels.layer_norm(x, scale, bias, residual=residual)

    def theirs(x, residual, scale, bias):
        with kernels.reference_only():
            return kernels.layer_norm(x, scale, bias, residual=residual)

    contest = Race(f"layer norm of a sum {shape[0]} x {shape[1]}, {suffix}", unit="ms")
    arguments = (x, residual, scale, bias)
    enter_jax(contest, ours, theirs, arguments, threads)
    tensors = [torch.from_numpy(np.array(a)).requires_grad_() for a in arguments]

    def peer(x, residual, scale, bias):
        return torch.nn.functional.layer_norm(x + residual, (shape[1],), scale, bias, 1e-12)

    enter_torch(contest, peer, tensors)
    return contest.run(quick=quick)


def activation(shape: tuple[int, int], suffix: str, threads: int, quick: bool) -> Outcome:
    """Forward and backward of gelu(x + bias), tanh form."""
    x, tensor = arrays(*shape)
    bias = jnp.full(shape[1], 0.1)

    def theirs(x, bias):
        return jax.nn.gelu(x + bias, approximate=True)

    contest = Race(f"bias and GELU {shape[0]} x {shape[1]}, {suffix}", unit="ms")
    enter_jax(contest, kernels.bias_gelu, theirs, (x, bias), threads)
    tensors = [tensor.clone().requires_grad_(), torch.full((shape[1],), 0.1, requires_grad=True)]
    enter_torch(contest, lambda x, b: torch.nn.functional.gelu(x + b, approximate="tanh"), tensors)
    return contest.run(quick=quick)


def enter_jax(contest: Race, ours: Any, theirs: Any, arguments: Any, threads: int) -> None:
    """Enter both forms, forward plus backward with a cotangent of ones."""
    for name, function in (("ours", ours), ("JAX, compiled", theirs)):
        if function is theirs and threads == 1:
            continue

        def both(*arguments: Any, function: Any = function) -> Any:
            out, pull = jax.vjp(function, *arguments)
            return out, pull(out)

        compiled = jax.jit(both)
        contest.enter(name, lambda compiled=compiled: wait(compiled(*arguments)))


def enter_torch(contest: Race, peer: Any, tensors: Any) -> None:
    """Enter PyTorch's functions, forward plus backward with the output as cotangent."""

    def both() -> None:
        out = peer(*tensors)
        torch.autograd.grad(out, tensors, out.detach())

    contest.enter("PyTorch", both)


def limits(suffix: str, quick: bool) -> Outcome:
    """Peak rates of this machine: not a race, but the ruler for the others."""
    samples = 2 if quick else 12
    rates = {
        "read GB/s": kernels.read_bandwidth(samples=samples) / 1e9,
        "copy GB/s": kernels.copy_bandwidth(samples=samples) / 1e9,
        **{
            f"{dtype} GFLOP/s": kernels.operation_rate(dtype, samples=samples) / 1e9
            for dtype in ("float32", "bfloat16", "int8")
        },
    }
    rows = tuple(
        Contestant(name, rate, rate, rate, rate, 1.0, 1.0, 1.0, samples, 1)
        for name, rate in rates.items()
    )
    return Outcome(f"limits of the machine, {suffix}", "G/s", "higher", rows, None, None)


def arrays(*shape: int) -> tuple[jax.Array, torch.Tensor]:
    """The same random numbers for both frameworks."""
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return jnp.asarray(values), torch.from_numpy(values.copy())


def wait(out: Any) -> Any:
    """Until the result is there."""
    return jax.block_until_ready(out)


if __name__ == "__main__":
    command(__doc__, "kernels", main)
