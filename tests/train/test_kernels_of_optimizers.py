"""The fused optimizer kernels against their references, optax and each other, at every level."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trimtab.errors import ShapeError, UnsupportedError
from trimtab.kernels import available_isas, reference_only, use_isa, use_threads
from trimtab.kernels.optimizer import adam_step, vr_adam_step
from trimtab.train.optimizers import fused_adam, fused_vr_adam, vr


def arrays(size: int, seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    deviations = rng.chisquare(7, size)
    mean = rng.normal(0.2, 1, size)
    deviations[: size // 7] = 0.0  # noiseless, and below also without signal
    mean[: size // 11] = 0.0
    values = {
        "parameter": rng.normal(size=size),
        "mean": mean,
        "deviations": deviations,
        "average": rng.uniform(0.1, 1, size),
        "first": rng.normal(size=size),
        "second": rng.uniform(0.1, 1, size),
    }
    return {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}


SCALARS = jnp.array([0.01, 2.0, 3.0, 8.0, 0.3])


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("size", [1, 1000, 70_001])
@pytest.mark.parametrize("average", ["float32", "bfloat16"])
def test_the_scaled_step_equals_its_reference(isa: str, size: int, average: str) -> None:
    given = arrays(size)
    given["average"] = given["average"].astype(average)
    options = {"upper": 10.0, "weight_decay": 0.1}
    with reference_only():
        expected = vr_adam_step(**given, scalars=SCALARS, **options)
    with use_isa(isa):
        ours = vr_adam_step(**given, scalars=SCALARS, **options)
    for left, right in zip(ours, expected):
        assert left.dtype == right.dtype
        tolerance = 1e-2 if left.dtype == jnp.bfloat16 else 2e-5
        np.testing.assert_allclose(
            left.astype(jnp.float32), right.astype(jnp.float32), rtol=tolerance, atol=1e-5
        )


@pytest.mark.parametrize("isa", available_isas())
def test_the_plain_step_equals_its_reference(isa: str) -> None:
    given = arrays(4099)
    arguments = [given[name] for name in ("parameter", "mean", "first", "second")]
    with reference_only():
        expected = adam_step(*arguments, SCALARS[:3], weight_decay=0.1)
    with use_isa(isa):
        ours = adam_step(*arguments, SCALARS[:3], weight_decay=0.1)
    for left, right in zip(ours, expected):
        np.testing.assert_allclose(left, right, rtol=2e-5, atol=1e-6)


def test_the_number_of_threads_changes_no_bit() -> None:
    given = arrays(200_003)
    results = []
    for threads in (1, 2):
        with use_threads(threads):
            results.append(vr_adam_step(**given, scalars=SCALARS))
    for left, right in zip(*results):
        assert np.array_equal(left, right)


@pytest.mark.parametrize("clip", ["paper", "symmetric"])
def test_the_fused_optimizer_follows_the_wrapped_one(clip: str) -> None:
    parameters = {"w": jnp.linspace(-1, 1, 300).reshape(30, 10), "b": jnp.ones(7)}
    schedule = optax.linear_schedule(0.02, 0.0, 20)
    fused = fused_vr_adam(schedule, clip=clip, weight_decay=0.01)
    chained = vr(optax.adamw(schedule, weight_decay=0.01), decay=0.9, clip=clip)
    ours, theirs = parameters, parameters
    ours_state, theirs_state = fused.init(ours), chained.init(theirs)
    apply, update = jax.jit(fused.apply), jax.jit(chained.update)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        mean = jax.tree.map(
            lambda p, r=rng: jnp.asarray(r.normal(0.3, 1, p.shape), "f"), parameters
        )
        m2 = jax.tree.map(lambda p, r=rng: jnp.asarray(r.chisquare(7, p.shape), "f"), parameters)
        extra = {"sum_sq_diff_grads": m2, "sample_size": 8}
        ours, ours_state = apply(mean, ours_state, ours, **extra)
        updates, theirs_state = update(mean, theirs_state, theirs, **extra)
        theirs = optax.apply_updates(theirs, updates)
    for left, right in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        np.testing.assert_allclose(left, right, atol=3e-6)


def test_the_plain_fused_optimizer_follows_optax_adamw() -> None:
    parameters = {"w": jnp.linspace(-1, 1, 40)}
    fused, peer = fused_adam(0.01, weight_decay=0.1), optax.adamw(0.01, weight_decay=0.1)
    ours, theirs = parameters, parameters
    ours_state, theirs_state = fused.init(ours), peer.init(theirs)
    for seed in range(5):
        gradient = {"w": jax.random.normal(jax.random.key(seed), (40,))}
        updates, ours_state = fused.update(gradient, ours_state, ours)
        ours = optax.apply_updates(ours, updates)
        updates, theirs_state = peer.update(gradient, theirs_state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    np.testing.assert_allclose(ours["w"], theirs["w"], atol=2e-6)


def test_donated_state_is_updated_in_place() -> None:
    fused = fused_vr_adam(0.01)
    parameters = jnp.ones(100_000)
    state = fused.init(parameters)
    step = jax.jit(
        lambda p, s, g, d: fused.apply(g, s, p, sum_sq_diff_grads=d, sample_size=8),
        donate_argnums=(0, 1),
    )
    compiled = step.lower(parameters, state, parameters, parameters).compile()
    memory = compiled.memory_analysis()
    # Parameter, ratio and both moments: nothing new is allocated for them.
    assert memory.alias_size_in_bytes >= 4 * 4 * 100_000
    assert memory.temp_size_in_bytes < 4 * 100_000


def test_shapes_and_types_that_do_not_fit_are_refused() -> None:
    given = arrays(10)
    given["first"] = given["first"][:5]
    with pytest.raises(ShapeError, match=r"an array of shape \(5,\)"):
        vr_adam_step(**given, scalars=SCALARS)
    with pytest.raises(UnsupportedError, match="float32 parameters, got bfloat16"):
        fused_vr_adam(0.1).init({"w": jnp.ones(3, jnp.bfloat16)})
