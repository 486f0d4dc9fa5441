"""Rows and figures: what they accept, refuse and become as JSON."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import InputError, UnknownNameError, UnsupportedError
from trimtab.reproduce import SYSTEMS, Figure, Result, Row, compared, find, load
from trimtab.reproduce.numbers import readable
from trimtab.reproduce.outcome import SystemOutcome, pack, unpack


@pytest.mark.parametrize(
    ("better", "baseline", "ours", "ratio"),
    [("lower", 30.0, 20.0, 1.5), ("higher", 20.0, 30.0, 1.5), ("lower", 20.0, 30.0, 2 / 3)],
)
def test_a_ratio_above_one_means_better(better, baseline, ours, ratio):
    row = compared("m", "u", baseline=baseline, ours=ours, better=better)
    assert row.ratio == pytest.approx(ratio)
    assert row.holds is None


def test_a_claim_holds_from_its_own_ratio_on():
    def holds(ours):
        return compared("m", "u", baseline=10, ours=ours, better="higher", at_least=1.5).holds

    assert [holds(15), holds(14.99)] == [True, False]


@pytest.mark.parametrize("ours", [math.nan, math.inf])
def test_a_figure_that_is_not_finite_never_holds_and_becomes_null(ours):
    row = compared("m", "u", baseline=10, ours=ours, better="higher", at_least=0.1)
    assert row.holds is False
    values = json.loads(json.dumps(row.to_json(), allow_nan=False))
    assert values["ours"] is None
    assert values["ratio"] is None


def test_a_baseline_of_nothing_has_no_ratio():
    assert compared("m", "u", baseline=0, ours=1, better="higher", at_least=1).ratio is None


def test_array_scalars_become_plain_numbers():
    row = compared(
        "m", "u", baseline=np.float32(1.5), ours=jnp.float32(3.0), better="higher", at_least=2
    )
    assert json.loads(json.dumps(row.to_json())) == row.to_json()
    assert (row.baseline, row.ours, row.ratio, row.holds) == (1.5, 3.0, 2.0, True)
    assert type(row.ours) is float


def test_a_row_without_a_metric_is_refused():
    with pytest.raises(InputError, match="A row needs a metric"):
        Row("", "ms")


@pytest.mark.parametrize(
    ("figure", "sentence"),
    [
        ({"data": "<svg/>", "alt": ""}, "needs a text alternative"),
        ({"data": "<div/>", "alt": "a"}, "text that is not SVG"),
        ({"data": b"GIF89a", "alt": "a"}, "bytes that are not PNG"),
    ],
)
def test_a_figure_that_no_page_can_show_is_refused(figure, sentence):
    with pytest.raises(InputError, match=sentence):
        Figure("title", **figure)


figures = st.floats(allow_nan=False, allow_infinity=False) | st.none() | st.text(max_size=20)
rows = st.builds(
    Row,
    metric=st.text(min_size=1),
    unit=st.text(),
    paper=figures,
    baseline=figures,
    ours=figures,
    ratio=st.none() | st.floats(0, 1e300),
    holds=st.sampled_from([True, False, None]),
    seeds=st.lists(st.integers(0, 2**40)).map(tuple),
    command=st.text(),
    note=st.text(),
    where=st.text(),
)
pictures = st.builds(
    Figure,
    title=st.text(),
    alt=st.text(min_size=1),
    data=st.just("<svg/>") | st.binary().map(lambda end: b"\x89PNG\r\n\x1a\n" + end),
    table=st.lists(st.tuples(figures, figures)).map(tuple),
)


@given(st.lists(rows, max_size=3), st.lists(pictures, max_size=2))
def test_a_result_survives_the_way_between_processes(some_rows, some_figures):
    result = Result(tuple(some_rows), tuple(some_figures))
    assert unpack(json.loads(json.dumps(pack(result), allow_nan=False))) == result


def test_an_outcome_counts_its_verdicts():
    outcome = SystemOutcome(
        "fnet",
        "ok",
        rows=(Row("a", "", holds=True), Row("b", "", holds=True), Row("c", "")),
    )
    assert [outcome.count(holds) for holds in (True, False, None)] == [2, 0, 1]


def test_every_system_has_a_module_name_of_its_own():
    modules = {system.module for system in SYSTEMS}
    assert len(modules) == len(SYSTEMS) == 13
    assert "trimtab.reproduce.streaming_sdpa" in modules


@pytest.mark.parametrize("system", [system for system in SYSTEMS if system.available], ids=str)
def test_an_experiment_that_has_landed_describes_itself(system):
    experiment = load(system.name)
    assert experiment.system == system.name
    for part in ("title", "source", "claim", "baseline", "quick", "full"):
        assert getattr(experiment, part).strip(), part


def test_an_unknown_system_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'katago'"):
        find("katgo")


def test_a_system_that_has_not_landed_says_so(fake_systems):
    with pytest.raises(UnsupportedError, match="katago is not available"):
        load("katago")


@given(st.floats(-1e300, 1e300))
def test_a_readable_figure_is_within_four_digits(value):
    text = readable(value).replace(",", "")
    assert float(text) == pytest.approx(value, rel=6e-3, abs=1e-300)
