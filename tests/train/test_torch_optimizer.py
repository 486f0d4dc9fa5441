"""The PyTorch wrapper against the JAX one, and alone."""

from __future__ import annotations

import copy

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trimtab.errors import InputError
from trimtab.train.optimizers import vr
from trimtab.train.optimizers.torch import VrOptimizer
from trimtab.train.statistics import statistics_of_stacked

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("clip", ["paper", "symmetric", "renormalised"])
def test_five_adam_steps_equal_those_under_jax(clip: str) -> None:
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 40))
    wrapped = VrOptimizer(torch.optim.Adam([parameter], lr=0.01), decay=0.9, clip=clip)
    ours = {"w": jnp.linspace(-1, 1, 40)}
    optimizer = vr(optax.adam(0.01), decay=0.9, clip=clip)
    state = optimizer.init(ours)
    for seed in range(5):
        groups = np.random.default_rng(seed).normal(0.3, 1, (8, 40)).astype(np.float32)
        for group in groups:
            parameter.grad = torch.from_numpy(group.copy())
            wrapped.accumulate()
        assert wrapped.step()
        stats = statistics_of_stacked({"w": jnp.asarray(groups)})
        updates, state = optimizer.update(
            stats.mean, state, ours,
            sum_sq_diff_grads=stats.squared_deviations, sample_size=stats.count,
        )  # fmt: skip
        ours = optax.apply_updates(ours, updates)
    np.testing.assert_allclose(parameter.detach().numpy(), ours["w"], atol=2e-5)


def test_gamma_one_is_the_base_optimizer() -> None:
    first, second = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    base = torch.optim.SGD([first], lr=0.1, momentum=0.9)
    wrapped = VrOptimizer(torch.optim.SGD([second], lr=0.1, momentum=0.9), gamma=1.0)
    for seed in range(4):
        groups = torch.from_numpy(np.random.default_rng(seed).normal(size=(4, 5)).astype("f"))
        first.grad = groups.mean(0)
        base.step()
        for group in groups:
            second.grad = group.clone()
            wrapped.accumulate()
        wrapped.step()
    np.testing.assert_allclose(first.detach(), second.detach(), atol=1e-6)


def test_state_survives_a_save_and_bad_gradients_are_skipped() -> None:
    parameter = torch.nn.Parameter(torch.ones(5))
    wrapped = VrOptimizer(torch.optim.Adam([parameter], lr=0.1), decay=0.9)

    def step(scale: float) -> bool:
        for index in range(4):
            parameter.grad = torch.arange(5.0) * scale + index
            wrapped.accumulate()
        return wrapped.step()

    assert step(1.0)
    # As everywhere in PyTorch a state dictionary shares memory until it is saved or copied.
    saved, before = copy.deepcopy(wrapped.state_dict()), parameter.detach().clone()
    assert not step(float("nan"))
    assert torch.equal(parameter.detach(), before)
    assert step(2.0)
    after = parameter.detach().clone()
    with torch.no_grad():
        parameter.copy_(before)
    wrapped.load_state_dict(saved)
    assert step(2.0)
    np.testing.assert_allclose(parameter.detach(), after, atol=1e-7)


def test_stepping_without_groups_says_what_to_call() -> None:
    wrapped = VrOptimizer(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1))
    with pytest.raises(InputError, match=r"Call accumulate\(\) after each backward"):
        wrapped.step()
