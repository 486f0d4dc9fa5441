"""Experiments in processes of their own, and what becomes of those that break."""

import sys

import pytest

from trimtab.errors import UnknownNameError
from trimtab.reproduce import Experiment, Result, Row
from trimtab.reproduce.runner import run_here, run_isolated


def experiment(run):
    return Experiment("fnet", "t", "s", "c", "b", "q", "f", run)


def test_progress_crosses_the_process(fake_systems):
    heard = []

    def hear(message, done=0.0, total=0.0):
        heard.append((message, done, total))

    outcome = run_isolated("fnet", progress=hear, seed=3)
    assert outcome.status == "ok"
    assert ("timing both", 1.0, 2.0) in heard
    assert outcome.rows[0].seeds == (3,)
    assert [figure.kind for figure in outcome.figures] == ["svg", "svg", "png"]
    assert outcome.about["title"] == "Mixing tokens with Fourier transforms"


def test_the_last_words_of_a_dead_process_are_kept(fake_systems):
    outcome = run_isolated("sparamx")
    assert outcome.status == "failed"
    assert "last words" in outcome.details


def test_an_exception_keeps_its_traceback(fake_systems):
    outcome = run_isolated("vrgd")
    assert "in run" in outcome.details
    assert "ValueError" in outcome.details


@pytest.mark.parametrize("exit_code", [0, 3])
def test_a_process_that_says_nothing_has_failed(fake_systems, exit_code):
    outcome = run_isolated("fnet", command=[sys.executable, "-c", f"raise SystemExit({exit_code})"])
    assert outcome.status == "failed"
    assert f"with exit code {exit_code}" in outcome.error


def test_an_unknown_system_starts_no_process():
    with pytest.raises(UnknownNameError):
        run_isolated("fnett")


def test_an_interruption_ends_the_process(fake_systems):
    def interrupt(message, done=0.0, total=0.0):
        if message == "waiting":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_isolated("redco", progress=interrupt)


def test_an_experiment_runs_in_this_process_too():
    def run(progress, seed, full=False):
        return Result((Row("size", "", ours=float(full)), Row("seed", "", ours=seed)))

    outcome = run_here(experiment(run), seed=5, full=True)
    assert [row.ours for row in outcome.rows] == [1.0, 5]


def test_a_long_error_becomes_one_short_line():
    def run(progress, seed, full=False):
        raise RuntimeError("a\n" * 1000)

    outcome = run_here(experiment(run))
    assert len(outcome.error) < 330
    assert "\n" not in outcome.error
    assert outcome.error.startswith("RuntimeError: a a")
