"""Samplers against brute force, and streams of text."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trimtab.errors import InputError, UnknownNameError
from trimtab.generate.sampling import (
    GREEDY,
    LLAMA_CPP_ORDER,
    SamplingOptions,
    adjust,
    choose,
    log_softmax,
    top_log_probabilities,
    uniform,
)

LOGITS = arrays(np.float32, st.integers(2, 60), elements=st.floats(-12, 12, width=32))


def support(logits: np.ndarray, options: SamplingOptions) -> set[int]:
    """All tokens that can be drawn, found by drawing everywhere."""
    return {choose(logits, options, lambda u=u: u) for u in np.linspace(0, 0.9999, 400)}


def brute_force(logits: np.ndarray, options: SamplingOptions) -> dict[int, float]:
    """The filters in the default order, by sorting everything."""
    kept = {token: value / options.temperature for token, value in enumerate(logits.tolist())}

    def probabilities() -> dict[int, float]:
        top = max(kept.values())
        weights = {token: np.exp(value - top) for token, value in kept.items()}
        total = sum(weights.values())
        return {token: weight / total for token, weight in weights.items()}

    if options.top_k:
        best = sorted(kept, key=lambda token: (-kept[token], token))[: options.top_k]
        kept = {token: kept[token] for token in best}
    if options.top_p < 1:
        total, nucleus = 0.0, []
        for token, p in sorted(probabilities().items(), key=lambda item: (-item[1], item[0])):
            nucleus.append(token)
            total += p
            if total >= options.top_p:
                break
        kept = {token: kept[token] for token in nucleus}
    if options.min_p:
        now = probabilities()
        kept = {t: kept[t] for t in kept if now[t] >= options.min_p * max(now.values())}
    return probabilities()


@settings(max_examples=80, deadline=None)
@given(
    LOGITS,
    st.floats(0.2, 3.0),
    st.integers(0, 20),
    st.sampled_from([1.0, 0.3, 0.9]),
    st.sampled_from([0.0, 0.05, 0.4]),
)
def test_filters_keep_what_brute_force_keeps(logits, temperature, top_k, top_p, min_p):
    options = SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    wanted = brute_force(logits, options)
    got = support(logits, options)
    likely = {token for token, p in wanted.items() if p > 0.01}
    assert likely <= got | {t for t in wanted if np.sum(logits == logits[t]) > 1}
    assert all(np.any(logits[list(wanted)] == logits[token]) for token in got)


def test_draws_follow_the_probabilities():
    logits = np.log(np.asarray([0.5, 0.3, 0.15, 0.05], np.float32))
    counts = Counter(choose(logits, SamplingOptions(), lambda i=i: uniform(1, 0, i))
                     for i in range(4000))  # fmt: skip
    for token, p in enumerate((0.5, 0.3, 0.15, 0.05)):
        assert abs(counts[token] / 4000 - p) < 4 * np.sqrt(p * (1 - p) / 4000)


def test_zero_temperature_takes_the_lowest_of_equal_maxima():
    assert choose(np.asarray([0, 3, 3, 1], np.float32), GREEDY, lambda: 0.9) == 1


def test_penalties_follow_their_formulas():
    logits = np.asarray([2.0, -2.0, 1.0, 0.5], np.float32)
    options = SamplingOptions(
        repetition_penalty=2.0, repetition_window=2, presence_penalty=0.5, frequency_penalty=0.25,
        logit_bias={3: 4.0},
    )  # fmt: skip
    got = adjust(logits, options, recent=[2, 0, 1], generated={0: 2, 1: 1})
    assert np.allclose(got, [2 / 2 - 2 * 0.25 - 0.5, -2 * 2 - 0.25 - 0.5, 1.0, 4.5])
    assert np.array_equal(logits, np.asarray([2.0, -2.0, 1.0, 0.5], np.float32))


def test_a_constraint_leaves_only_allowed_tokens():
    allowed = np.asarray([False, True, False, True])
    got = adjust(np.zeros(4, np.float32), SamplingOptions(), [], {}, allowed)
    assert support(got, SamplingOptions()) == {1, 3}


def test_the_order_of_filters_is_an_option():
    logits = np.log(np.asarray([0.4, 0.3, 0.2, 0.1], np.float32))
    hot = dict(temperature=100.0, top_p=0.5)
    assert len(support(logits, SamplingOptions(**hot))) == 2
    assert support(logits, SamplingOptions(temperature=0.01, top_p=0.5)) == {0}
    assert support(logits, SamplingOptions(**hot, order=LLAMA_CPP_ORDER)) == {0, 1}
    with pytest.raises(UnknownNameError, match="top_k"):
        SamplingOptions(order=("topk",))


def test_typical_sampling_keeps_the_tokens_nearest_to_the_entropy():
    probabilities = np.asarray([0.6, 0.2, 0.1, 0.1], np.float32)
    entropy = -(probabilities * np.log(probabilities)).sum()
    order = np.argsort(np.abs(-np.log(probabilities) - entropy), kind="stable")
    got = support(np.log(probabilities), SamplingOptions(typical_p=0.15))
    assert got == {int(order[0])}


def test_numbers_depend_on_seed_stream_and_position_only():
    assert uniform(5, 0, 9) == uniform(5, 0, 9)
    assert len({uniform(s, c, p) for s in range(3) for c in range(3) for p in range(3)}) == 27


@settings(max_examples=50, deadline=None)
@given(LOGITS, st.integers(0, 20))
def test_top_log_probabilities_are_the_largest(logits, count):
    row = log_softmax(logits)
    got = top_log_probabilities(row, count)
    assert [value for _, value in got] == sorted(row.tolist(), reverse=True)[:count]
    assert np.isclose(np.exp(row).sum(), 1, atol=1e-4)


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"top_p": 2}, {"min_p": -0.1}, {"top_k": -1}])
def test_settings_outside_their_range_are_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        SamplingOptions(**bad)
