"""Races: ratios, units, order, and the benchmark command around them."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from trimtab.errors import InputError
from trimtab.reproduce import race
from trimtab.reproduce.race import Race

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


class Clock:
    """A clock that only moves when a contestant works, so that no test depends on a real one."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def work(self, seconds):
        def call():
            self.now += seconds

        return call


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(race, "time", clock)
    return clock


def test_ratios_say_how_much_better_the_first_contestant_is(clock):
    contest = Race("work", unit="ms").enter("ours", clock.work(0.02))
    outcome = contest.enter("theirs", clock.work(0.06), "note").run(rounds=7)
    assert outcome.better == "lower"
    assert outcome["ours"].ratio == 1.0
    assert outcome.ratio("theirs") == pytest.approx(3.0)
    assert outcome["ours"].median == pytest.approx(20.0)
    assert outcome["theirs"].spread == pytest.approx(0.0, abs=1e-9)
    assert outcome["theirs"].note == "note"
    assert all(contestant.samples == 7 for contestant in outcome.contestants)


def test_a_rate_counts_work_a_second(clock):
    contest = Race("decode", unit="tokens/s", work=10).enter("ours", clock.work(0.04))
    outcome = contest.enter("theirs", clock.work(0.02)).run()
    assert outcome.better == "higher"
    assert outcome["ours"].median == pytest.approx(250.0)
    assert outcome.ratio("theirs") == pytest.approx(0.5)


def test_contestants_take_turns_in_changing_order(clock):
    calls = []

    def contestant(name):
        def call():
            calls.append(name)
            clock.now += 0.03

        return call

    contest = Race("turns").enter("a", contestant("a")).enter("b", contestant("b"))
    contest.run(rounds=20, warmup=1)
    timed = calls[4:]  # after a warm-up and a trial of each
    rounds = {"".join(timed[i : i + 2]) for i in range(0, 40, 2)}
    assert rounds == {"ab", "ba"}


def test_short_calls_are_timed_together(clock):
    outcome = Race("short", unit="us").enter("ours", clock.work(1e-5)).run(rounds=5)
    assert outcome["ours"].calls == 2000
    assert outcome["ours"].median == pytest.approx(10.0)


def test_a_race_stops_when_its_time_is_spent_but_not_before_five_rounds(clock):
    slow = Race("slow").enter("ours", clock.work(30.0)).run(rounds=21, seconds=20.0)
    assert slow["ours"].samples == 5
    even = Race("even").enter("ours", clock.work(1.0)).run(rounds=21, seconds=8.5)
    assert even["ours"].samples == 9


def test_bad_races_are_refused():
    with pytest.raises(InputError, match="no contestant"):
        Race("empty").run()
    with pytest.raises(InputError, match="two contestants called 'a'"):
        Race("twice").enter("a", lambda: None).enter("a", lambda: None)
    outcome = Race("one").enter("a", lambda: None).run(rounds=5)
    with pytest.raises(InputError, match="no contestant 'b'"):
        outcome.ratio("b")


@pytest.fixture
def race_module():
    spec = importlib.util.spec_from_file_location("race", BENCHMARKS / "race.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_benchmark_writes_its_results_with_the_machine(
    race_module, tmp_path, monkeypatch, capsys
):
    target = tmp_path / "results" / "nothing.json"
    monkeypatch.setattr(sys, "argv", ["nothing.py", "--quick", "--json", str(target)])

    def contest(quick):
        yield Race("nothing", values={"length": 512}).enter("ours", lambda: None).run(quick=quick)

    race_module.command("Races nothing.", "nothing", contest)
    document = json.loads(target.read_text())
    assert document["quick"] is True
    assert document["machine"]["cores"] >= 1
    assert document["races"][0]["values"] == {"length": 512}
    assert document["races"][0]["contestants"][0]["samples"] == 5
    assert "nothing" in capsys.readouterr().out


def test_a_benchmark_that_fails_writes_nothing(race_module, tmp_path, monkeypatch, capsys):
    target = tmp_path / "nothing.json"
    monkeypatch.setattr(sys, "argv", ["nothing.py", "--json", str(target)])

    def contest(quick):
        raise InputError("The peer is missing. Install it.")
        yield

    with pytest.raises(SystemExit) as stop:
        race_module.command(None, "nothing", contest)
    assert stop.value.code == 1
    assert "The peer is missing." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


TEXTS = {path.stem: path.read_text() for path in BENCHMARKS.glob("*.py")}
# A file that another one imports, such as the driver of a peer, is a part and not a benchmark.
PROGRAMS = sorted(
    name
    for name, text in TEXTS.items()
    if '"__main__"' in text
    and not any(re.search(rf"(from|import) {name}\b", t) for t in TEXTS.values())
)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_benchmark_has_the_options_of_a_race(name):
    text = TEXTS[name]
    assert "from race import" in text or ("--json" in text and "--quick" in text)
