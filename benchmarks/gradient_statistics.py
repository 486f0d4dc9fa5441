"""What gradient statistics and signal-to-noise steps cost beside what they replace.

Statistics: mean and squared deviations over K groups by a scan, against plain accumulation of the
same micro-batches, and against differentiating all groups at once. Memory is what XLA plans for.
Optimizer step: the fused native kernels against each other and the optax chains, 16M parameters.

    python benchmarks/gradient_statistics.py --json benchmarks/results/gradient_statistics.json
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from race import Outcome, Race, command
from trimtab.train import gradient_statistics
from trimtab.train.optimizers import fused_adam, fused_vr_adam, vr
from trimtab.train.statistics import split_batch
from trimtab.train.step import accumulate_mean


def _network(width: int, depth: int) -> list[dict[str, jax.Array]]:
    keys = jax.random.split(jax.random.key(0), depth)
    return [
        {"weight": 0.05 * jax.random.normal(key, (width, width)), "bias": jnp.zeros(width)}
        for key in keys
    ]


def _loss(parameters: Any, batch: jax.Array) -> jax.Array:
    hidden = batch
    for layer in parameters:
        hidden = jax.nn.relu(hidden @ layer["weight"] + layer["bias"])
    return jnp.square(hidden).sum(1)


def _plain(parameters: Any, batch: jax.Array, groups: int) -> Any:
    """Plain gradient accumulation over the same micro-batches."""

    def differentiate(carry: None, part: jax.Array) -> tuple:
        value, gradient = jax.value_and_grad(lambda p: _loss(p, part).mean())(parameters)
        return carry, gradient, value, {}

    return accumulate_mean(differentiate, None, (split_batch(batch, groups),), groups)[1:3]


def _statistics(parameters: Any, batch: jax.Array, groups: int, method: str) -> Any:
    found = gradient_statistics(_loss, parameters, batch, groups=groups, method=method)  # pyright: ignore
    return found.mean, found.squared_deviations, found.loss


def statistics(width: int, depth: int, batch_size: int, groups: int, quick: bool) -> Outcome:
    """Race the ways to get group statistics of one network."""
    parameters = _network(width, depth)
    batch = jax.random.normal(jax.random.key(1), (batch_size, width))
    forms: dict[str, Callable[..., Any]] = {
        "statistics, scan": functools.partial(_statistics, groups=groups, method="scan"),
        "plain accumulation": functools.partial(_plain, groups=groups),
        "statistics, vmap": functools.partial(_statistics, groups=groups, method="vmap"),
    }
    compiled = {
        name: jax.jit(form).lower(parameters, batch).compile() for name, form in forms.items()
    }
    size = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    values = {
        f"{name}, temporaries MiB": round(each.memory_analysis().temp_size_in_bytes / 2**20, 2)
        for name, each in compiled.items()
    }
    race = Race(
        f"statistics, {size / 1e6:.2f}M parameters, batch {batch_size}, K={groups}",
        unit="ms",
        values=values,
    )
    for name, each in compiled.items():
        race.enter(name, functools.partial(each, parameters, batch))
    return race.run(quick=quick)


class _Stepper:
    """A compiled optimizer step that donates its state and keeps the new one."""

    def __init__(self, step: Callable[..., Any], state: Any, given: tuple) -> None:
        self._step = jax.jit(step, donate_argnums=(0, 1))
        self._carried = (jnp.copy(given[0]), state)
        self._given = given[1:]

    def __call__(self) -> Any:
        self._carried = self._step(*self._carried, *self._given)
        return self._carried


def steps(size: int, quick: bool) -> Outcome:
    """Race whole optimizer steps on one parameter of ``size`` elements."""
    keys = jax.random.split(jax.random.key(2), 3)
    parameter, mean = (jax.random.normal(key, (size,)) for key in keys[:2])
    deviations = 7.0 * jnp.square(jax.random.normal(keys[2], (size,))) + 0.1
    given = (parameter, mean, deviations)

    def fused(optimizer: Any) -> Callable[..., Any]:
        return lambda p, s, g, d: optimizer.apply(g, s, p, sum_sq_diff_grads=d, sample_size=8)

    def chained(optimizer: Any) -> Callable[..., Any]:
        optimizer = optax.with_extra_args_support(optimizer)

        def step(p: Any, s: Any, g: Any, d: Any) -> Any:
            updates, s = optimizer.update(g, s, p, sum_sq_diff_grads=d, sample_size=8)
            return optax.apply_updates(p, updates), s

        return step

    half = fused_vr_adam(1e-3, momentum_dtype=jnp.bfloat16)
    scaled, plain = fused_vr_adam(1e-3), fused_adam(1e-3)
    scaled_chain, chain = vr(optax.adam(1e-3), decay=0.9), optax.adam(1e-3)
    race = Race(f"optimizer step, {size / 1e6:.0f}M parameters", unit="ms")
    for name, step, optimizer in (
        ("fused VR-Adam", fused(scaled), scaled),
        ("fused Adam", fused(plain), plain),
        ("fused VR-Adam, bfloat16 ratio", fused(half), half),
        ("vr(optax.adam), jit", chained(scaled_chain), scaled_chain),
        ("optax.adam, jit", chained(chain), chain),
    ):
        race.enter(name, _Stepper(step, optimizer.init(parameter), given))
    return race.run(quick=quick)


def contests(quick: bool) -> Iterator[Outcome]:
    """Run all races."""
    yield statistics(width=96, depth=6, batch_size=8192, groups=32, quick=quick)
    yield statistics(width=560, depth=6, batch_size=2048, groups=8, quick=quick)
    yield steps(2_000_000 if quick else 16_000_000, quick)


if __name__ == "__main__":
    command(__doc__, "gradient_statistics", contests)
