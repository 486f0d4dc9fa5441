"""The signal-to-noise scaling against NumPy in float64, its invariances and its noise law."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import InputError, ShapeError
from trimtab.train.optimizers import gradient_ratios, vr, vr_aggregator
from trimtab.train.statistics import accumulate_statistics, statistics_of_stacked

BASES = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "lars": optax.lars(0.1, weight_decay=1e-4),
    "adam": optax.adam(0.01),
    "lamb": optax.lamb(0.01, weight_decay=1e-2),
    "muon": optax.contrib.muon(0.01),
    "schedule-free": optax.contrib.schedule_free_adamw(0.01),
}


def reference_ratios(groups: np.ndarray, gamma: float, clip: str) -> np.ndarray:
    """Steps 1 to 4 of the method for one leaf without degenerate entries, in float64."""
    groups = groups.astype(np.float64)
    ratio = groups.mean(0) ** 2 / groups.var(0)
    ratio = ratio / ratio.mean()
    clipped = np.clip(ratio, gamma, 1 / gamma if clip == "symmetric" else 1.0)
    return clipped / clipped.mean() if clip == "renormalised" else clipped


def summarised(groups: np.ndarray) -> dict:
    stats = statistics_of_stacked({"w": jnp.asarray(groups)})
    return {
        "mean": stats.mean,
        "squared_deviations": stats.squared_deviations,
        "count": stats.count,
    }


@pytest.mark.parametrize("clip", ["paper", "symmetric", "renormalised"])
def test_ratios_equal_the_float64_reference(clip: str) -> None:
    groups = np.random.default_rng(0).normal(0.3, 1.0, (8, 40, 7)).astype(np.float32)
    ours = gradient_ratios(**summarised(groups), gamma=0.1, clip=clip)["w"]
    np.testing.assert_allclose(ours, reference_ratios(groups, 0.1, clip), rtol=1e-4)


def reference_vr_adam(sequence: np.ndarray, rate: float, gamma: float, decay: float) -> np.ndarray:
    """VR-Adam written out in float64 with zero start and bias correction everywhere."""
    p = m = v = np.zeros(sequence.shape[2:])
    theta = np.zeros(sequence.shape[2:])
    for t, groups in enumerate(sequence, start=1):
        mean = groups.astype(np.float64).mean(0)
        p = decay * p + (1 - decay) * reference_ratios(groups, gamma, "paper")
        g = p / (1 - decay**t) * mean
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        theta = theta - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return theta


def test_vr_adam_follows_the_written_out_recurrence() -> None:
    sequence = np.random.default_rng(1).normal(0.2, 1.0, (12, 8, 50)).astype(np.float32)
    optimizer = vr(optax.adam(0.01), gamma=0.1, decay=0.9)
    parameters = {"w": jnp.zeros(50)}
    state = optimizer.init(parameters)
    for groups in sequence:
        stats = statistics_of_stacked({"w": jnp.asarray(groups)})
        updates, state = optimizer.update(
            stats.mean,
            state,
            parameters,
            sum_sq_diff_grads=stats.squared_deviations,
            sample_size=stats.count,
        )
        parameters = optax.apply_updates(parameters, updates)
    expected = reference_vr_adam(sequence, 0.01, 0.1, 0.9)
    np.testing.assert_allclose(parameters["w"], expected, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("steps", [5, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", BASES)
def test_gamma_one_is_the_base_optimizer_whatever_the_statistics(name: str, steps: int) -> None:
    base = BASES[name]
    wrapped = vr(base, gamma=1.0, decay=0.9)
    start = {"w": jax.random.normal(jax.random.key(0), (6, 5)), "b": jnp.ones(5)}

    plain, plain_state, scaled, scaled_state = start, base.init(start), start, wrapped.init(start)
    # Operation by operation: compiled, XLA contracts multiply and add differently in either one.
    with jax.disable_jit():
        for step_key in jax.random.split(jax.random.key(1), steps):
            groups = jax.random.normal(step_key, (8, 5))
            stats = statistics_of_stacked({"w": groups[:, None] + start["w"], "b": groups})
            updates, plain_state = base.update(stats.mean, plain_state, plain)
            plain = optax.apply_updates(plain, updates)
            updates, scaled_state = wrapped.update(
                stats.mean,
                scaled_state,
                scaled,
                sum_sq_diff_grads=stats.squared_deviations,
                sample_size=stats.count,
            )
            scaled = optax.apply_updates(scaled, updates)
    for ours, theirs in zip(jax.tree.leaves(scaled), jax.tree.leaves(plain)):
        error = np.abs(ours - theirs).max() / np.abs(theirs).max()
        assert error <= 2e-7


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    scale=st.floats(1e-4, 1e4),
    leaf_scale=st.floats(1e-3, 1e3),
    clip=st.sampled_from(["paper", "symmetric", "renormalised"]),
)
def test_ratios_ignore_loss_scale_group_order_and_leaf_scale(
    seed: int, scale: float, leaf_scale: float, clip: str
) -> None:
    rng = np.random.default_rng(seed)
    groups = {name: rng.normal(0.2, 1, (8, 30)).astype(np.float32) for name in ("a", "b")}

    def ratios(tree: dict, count_offset: float = 0.0) -> dict:
        stats = statistics_of_stacked(jax.tree.map(jnp.asarray, tree))
        return gradient_ratios(
            stats.mean, stats.squared_deviations, stats.count + count_offset, clip=clip
        )

    original = ratios(groups)
    changed = {
        "scaled loss": ratios({k: g * np.float32(scale) for k, g in groups.items()}),
        "permuted": ratios({k: g[rng.permutation(8)] for k, g in groups.items()}),
        "one group fewer counted": ratios(groups, -1.0),
        "scaled leaf": ratios({"a": groups["a"] * np.float32(leaf_scale), "b": groups["b"]}),
    }
    for name, other in changed.items():
        for leaf in ("a", "b"):
            np.testing.assert_allclose(other[leaf], original[leaf], rtol=2e-5, err_msg=name)


def test_nearly_noiseless_gradients_keep_their_ratio() -> None:
    """At a deviation of 1e-4 of the mean the textbook formula has no digit left."""
    rng = np.random.default_rng(3)
    centre = rng.uniform(0.5, 2.0, 1000)
    groups64 = centre * (1 + 1e-4 * rng.normal(size=(32, 1000)))
    groups = groups64.astype(np.float32)
    expected = groups.astype(np.float64).var(0)

    def differentiate(carry: None, group: jax.Array) -> tuple:
        return carry, {"w": group}, jnp.float32(0.0), {}

    bars = {"vmap": 1e-5, "compensated": 1e-5, "scan": 2e-3}
    for method, bar in bars.items():
        _, stats = accumulate_statistics(differentiate, None, (groups,), 32, method=method)
        measured = np.asarray(stats.squared_deviations["w"], np.float64) / 32
        assert np.max(np.abs(measured / expected - 1)) < bar, method
    literal = np.mean(groups**2, 0, dtype=np.float32) - np.mean(groups, 0, dtype=np.float32) ** 2
    assert np.median(np.abs(literal / expected - 1)) > 0.1


# Expected mean after the clip, share at gamma, share at 1, from 4 million Monte-Carlo draws.
NOISE_LAW = {8: (0.49, 0.28, 0.28), 32: (0.525, 0.254, 0.31), 64: (0.53, 0.251, 0.315)}


@pytest.mark.parametrize("groups", NOISE_LAW)
def test_pure_noise_follows_the_f_distribution(groups: int) -> None:
    noise = np.random.default_rng(groups).standard_normal((groups, 200_000), np.float32)
    ratios = np.asarray(gradient_ratios(**summarised(noise), gamma=0.1)["w"])
    measured = (ratios.mean(), (ratios <= 0.1).mean(), (ratios >= 1.0).mean())
    np.testing.assert_allclose(measured, NOISE_LAW[groups], atol=0.01)


def test_raw_ratios_under_noise_pass_a_kolmogorov_test_against_scipy() -> None:
    stats_module = pytest.importorskip("scipy.stats")
    groups = 16
    noise = np.random.default_rng(5).standard_normal((groups, 20_000)).astype(np.float32)
    stats = statistics_of_stacked({"w": jnp.asarray(noise)})
    ratio = np.asarray(stats.mean["w"] ** 2 / (stats.squared_deviations["w"] / groups))
    result = stats_module.kstest((groups - 1) * ratio, stats_module.f(1, groups - 1).cdf)
    assert result.pvalue > 0.01


def test_entries_without_noise_or_signal_stay_out_of_the_mean() -> None:
    mean = {"w": jnp.array([1.0, 1.0, 1.0, 0.0])}
    deviations = {"w": jnp.array([0.0, 8.0, 8.0, 0.0])}
    ratios = gradient_ratios(mean, deviations, 8.0, gamma=0.1, clip="symmetric")["w"]
    np.testing.assert_allclose(ratios, [10.0, 1.0, 1.0, 0.1])
    everything = gradient_ratios(mean, deviations, 8.0, clip="symmetric", mean_over="all")["w"]
    np.testing.assert_allclose(everything, [10.0, 1.5, 1.5, 0.1])


def test_a_row_that_one_group_touched_has_ratio_one_over_k_minus_one() -> None:
    groups = np.zeros((8, 1), np.float32)
    groups[3] = 5.0
    stats = statistics_of_stacked({"w": jnp.asarray(groups)})
    ratio = stats.mean["w"] ** 2 / (stats.squared_deviations["w"] / 8)
    np.testing.assert_allclose(ratio, 1 / 7, rtol=1e-6)


def test_a_single_element_has_ratio_one() -> None:
    groups = np.random.default_rng(0).normal(size=(8, 1)).astype(np.float32)
    np.testing.assert_allclose(gradient_ratios(**summarised(groups))["w"], 1.0, rtol=1e-6)


def test_stacked_leaves_are_normalised_slice_by_slice() -> None:
    rng = np.random.default_rng(4)
    groups = rng.normal(0.3, 1, (8, 3, 20)).astype(np.float32)
    groups[:, 1] *= 1 + rng.normal(size=20).astype(np.float32) ** 2
    together = gradient_ratios(**summarised(groups), stacked={"w": 1})["w"]
    for index in range(3):
        apart = gradient_ratios(**summarised(groups[:, index]))["w"]
        np.testing.assert_allclose(together[index], apart, rtol=1e-6)


def test_module_layers_share_one_mean_and_tree_layers_another() -> None:
    rng = np.random.default_rng(6)
    tree = {
        "first": {"w": rng.normal(1.0, 1, (8, 9)), "b": rng.normal(0.0, 1, (8, 3))},
        "second": {"w": rng.normal(0.1, 1, (8, 5))},
    }
    stats = statistics_of_stacked(jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree))
    raw = jax.tree.map(lambda a: a.mean(0) ** 2 / a.var(0), tree)
    arguments = (stats.mean, stats.squared_deviations, stats.count)
    module = gradient_ratios(*arguments, gamma=1e-3, clip="symmetric", layer="module")
    first = np.concatenate([raw["first"]["w"], raw["first"]["b"]])
    np.testing.assert_allclose(
        module["first"]["w"], np.clip(raw["first"]["w"] / first.mean(), 1e-3, 1e3), rtol=1e-4
    )
    whole = gradient_ratios(*arguments, gamma=1e-3, clip="symmetric", layer="tree")
    everything = np.concatenate([first, raw["second"]["w"]])
    np.testing.assert_allclose(
        whole["second"]["w"],
        np.clip(raw["second"]["w"] / everything.mean(), 1e-3, 1e3),
        rtol=1e-4,
    )


@pytest.mark.parametrize("normaliser", ["median", "trimmed"])
def test_robust_normalisers_survive_one_nearly_noiseless_entry(normaliser: str) -> None:
    groups = np.random.default_rng(7).normal(1.0, 1, (8, 101)).astype(np.float32)
    groups[:, 0] = 3.0 + 1e-5 * np.arange(8)
    crushed = gradient_ratios(**summarised(groups))["w"]
    robust = gradient_ratios(**summarised(groups), normaliser=normaliser)["w"]
    assert (crushed[1:] <= 0.1).all()
    assert (robust[1:] > 0.1).mean() > 0.8


def test_the_aggregator_over_four_calls_equals_one_call() -> None:
    groups = np.random.default_rng(8).normal(0.2, 1, (5, 16, 12)).astype(np.float32)
    parameters = {"w": jnp.ones(12)}
    results = []
    for steps in (1, 4):
        aggregator = vr_aggregator(optax.adam(0.01), accumulation_steps=steps, decay=0.9)
        state, current = aggregator.init(parameters), parameters
        update = jax.jit(aggregator.update)
        for batch in groups:
            for part in np.split(batch, steps):
                updates, state = update({"w": jnp.asarray(part)}, state, current)
                current = optax.apply_updates(current, updates)
        results.append(current["w"])
    np.testing.assert_allclose(results[0], results[1], atol=1e-6)


def test_statistics_equal_those_of_optax_aggregating() -> None:
    groups = {"w": jnp.asarray(np.random.default_rng(9).normal(size=(6, 4, 3)), jnp.float32)}
    peer = optax.experimental.aggregating.get_per_element_mean_and_sum_sq_diff_grads(0)
    (mean, extra), _ = peer.update(groups, peer.init(groups), None)
    ours = statistics_of_stacked(groups)
    np.testing.assert_allclose(ours.mean["w"], mean["w"], rtol=1e-6)
    np.testing.assert_allclose(
        ours.squared_deviations["w"], extra["sum_sq_diff_grads"]["w"], rtol=1e-5
    )


def test_statistics_that_are_not_finite_change_nothing() -> None:
    optimizer = vr(optax.adam(0.1), decay=0.9)
    parameters = jnp.ones(3)
    state = optimizer.init(parameters)
    updates, after = optimizer.update(
        jnp.array([1.0, jnp.nan, 1.0]),
        state,
        parameters,
        sum_sq_diff_grads=jnp.ones(3),
        sample_size=8,
    )
    assert not np.any(updates)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(after)))


@pytest.mark.parametrize("control", ["shuffled", "constant"])
def test_controls_keep_the_mean_of_the_ratio(control: str) -> None:
    groups = np.random.default_rng(2).normal(0.3, 1, (8, 50)).astype(np.float32)
    stats = statistics_of_stacked({"w": jnp.asarray(groups)})
    optimizer = vr(optax.sgd(1.0), control=control)
    updates, _ = optimizer.update(
        stats.mean,
        optimizer.init(stats.mean),
        sum_sq_diff_grads=stats.squared_deviations,
        sample_size=8,
    )
    used = -np.asarray(updates["w"] / stats.mean["w"])
    honest = np.asarray(gradient_ratios(**summarised(groups))["w"])
    np.testing.assert_allclose(used.mean(), honest.mean(), rtol=1e-5)
    if control == "shuffled":
        np.testing.assert_allclose(np.sort(used), np.sort(honest), rtol=1e-5)
        assert not np.allclose(used, honest)
    else:
        np.testing.assert_allclose(used, honest.mean(), rtol=1e-5)


def test_multisteps_around_it_is_refused_with_the_remedy() -> None:
    optimizer = optax.MultiSteps(vr(optax.sgd(0.1)), 4)
    parameters = jnp.ones(3)
    with pytest.raises(InputError, match=r"MultiSteps drops them; accumulate with training_step"):
        optimizer.update(parameters, optimizer.init(parameters), parameters)


def test_one_group_is_refused() -> None:
    optimizer = vr(optax.sgd(0.1))
    with pytest.raises(InputError, match="at least 2 groups, got 1"):
        optimizer.update(
            jnp.ones(2), optimizer.init(jnp.ones(2)), sum_sq_diff_grads=jnp.ones(2), sample_size=1
        )


def test_bad_options_name_themselves() -> None:
    with pytest.raises(InputError, match=r"gamma must lie in \(0, 1\], got 0"):
        vr(optax.sgd(0.1), gamma=0.0)
    with pytest.raises(ShapeError, match="no 2 stacked leading axes"):
        gradient_ratios({"w": jnp.ones(3)}, {"w": jnp.ones(3)}, 8, stacked={"w": 2})
