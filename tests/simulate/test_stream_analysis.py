"""Occupancy, stalls, the critical cycle, deadlocks and their smallest fixes."""

import importlib.util
import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from trimtab.errors import InputError
from trimtab.kernels.stream import stream_engine_available
from trimtab.simulate.stream import (
    NetworkBuilder,
    critical_cycle,
    cycle_time,
    explain_deadlock,
    fill_latency,
    first_of,
    last_of,
    linear_program,
    naive_attention,
    pareto_front,
    peak_occupancy,
    running_attention,
    simulate,
    size_fifos,
    unit_reports,
)
from trimtab.simulate.stream.analysis import occupancy_changes

_spec = importlib.util.spec_from_file_location(
    "stream_networks", Path(__file__).parent / "stream_networks.py"
)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
random_network = _module.random_network

native = pytest.mark.skipif(not stream_engine_available(), reason="the extension is not built")


def test_occupancy_counts_visible_tokens_that_were_not_yet_received():
    run = simulate(naive_attention(24, 24, long=26), record=True)
    for index, fifo in enumerate(run.network.fifos):
        visible, received = run.visible_at[index], run.received_at[index]
        moments = np.unique(np.concatenate([visible, received]))
        brute = max(int((visible <= t).sum() - (received <= t).sum()) for t in moments)
        assert peak_occupancy(run)[index] == brute, fifo.name
        times, levels = occupancy_changes(run, index)
        assert levels.max(initial=0) == brute
        assert (np.diff(times) > 0).all()


def test_stalls_name_the_fifo_that_caused_them():
    run = simulate(naive_attention(64, 64, long=64), record=True)
    reports = {report.name: report for report in unit_reports(run)}
    assert "whole row" in reports["score"].blocked
    assert set(reports["shifted"].starved) <= {"maximum->shifted", "whole row"}
    assert reports["sink"].blocked == {}
    assert fill_latency(run) == run.visible_at[-1][0]
    with pytest.raises(InputError, match="record=True"):
        peak_occupancy(simulate(naive_attention(8, 8), engine="native"))


@pytest.mark.parametrize(
    ("depth", "expected"), [(1, (7, 2)), (2, (7, 3)), (4, (7, 5)), (6, (1, 1))]
)
def test_the_critical_cycle_has_the_pace_of_the_run(depth, expected):
    network = running_attention(32, 96, score_latency=5, scan_latency=5, depth=depth)
    run = simulate(network, record=True)
    pace = Fraction(*expected)
    assert cycle_time(network) == pace
    assert critical_cycle(run).pace == pace
    assert abs(run.cycles - pace * 32 * 96) < 20
    if depth == 2:
        assert any("is full (depth 2)" in step for step in critical_cycle(run).steps)


def test_predicted_cycle_time_equals_the_simulated_one_on_random_pipelines():
    for seed in range(25):
        state = np.random.default_rng(seed)
        build = NetworkBuilder()
        units = [
            build.unit(
                f"u{i}",
                firings=400,
                latency=int(state.integers(1, 7)),
                interval=int(state.integers(1, 4)),
            )
            for i in range(5)
        ]
        edges = [(int(state.integers(0, i)), i) for i in range(1, 5)] + [(0, 4), (1, 3)]
        for producer, consumer in edges:
            build.connect(units[producer], units[consumer], depth=int(state.integers(1, 7)))
        network = build.build()
        short = simulate(network).cycles
        longer = next(unit.firings for unit in network.units)
        predicted = cycle_time(network)
        assert abs(short - predicted * longer) <= 60, seed


@pytest.mark.parametrize("rows", [24])
def test_a_naive_deadlock_names_its_cycle_and_the_smallest_fix(rows):
    run = simulate(naive_attention(rows, rows, long=rows - 1))
    deadlock = explain_deadlock(run)
    assert set(deadlock.units) == {"score", "shifted", "maximum"}
    assert deadlock.full_fifos == ("whole row",)
    assert "and so round" in str(deadlock)
    fix = deadlock.fix()
    assert fix.depths == {"whole row": rows, "whole row.1": rows}
    assert "Raise 'whole row' to depth 24" in str(fix)
    assert simulate(run.network.with_depths(fix.depths)).completed


@native
@pytest.mark.parametrize("fork", ["atomic", "sequential"])
def test_every_undersized_random_network_is_reported_with_a_fix_that_works(fork):
    deadlocks = 0
    for seed in range(200):
        run = simulate(random_network(seed, tight=True), fork=fork)
        if run.completed:
            continue
        deadlocks += 1
        deadlock = explain_deadlock(run)
        assert deadlock.circular, seed
        assert deadlock.full_fifos, seed
        fix = deadlock.fix()
        assert fix.added_places > 0
        assert simulate(run.network.with_depths(fix.depths), fork=fork).completed, seed
    assert deadlocks > 5


@native
def test_no_smaller_single_change_frees_a_deadlock():
    checked = 0
    for seed in range(100):
        run = simulate(random_network(seed, tight=True))
        if run.completed:
            continue
        fix = explain_deadlock(run).fix()
        for fifo, more in itertools.product(run.network.fifos, range(1, fix.added_places)):
            if fifo.depth is not None:
                trial = run.network.with_depths({fifo.name: fifo.depth + more})
                assert simulate(trial).deadlocked, (seed, fifo.name)
        checked += 1
    assert checked > 8


def test_a_loop_without_tokens_has_no_fix():
    build = NetworkBuilder()
    one = build.unit("one", firings=3)
    two = build.unit("two", [one], firings=3)
    build.connect(two, one)
    deadlock = explain_deadlock(simulate(build.build().with_depths(2)))
    assert deadlock.circular
    assert deadlock.full_fifos == ()
    with pytest.raises(InputError, match="lacks initial tokens"):
        deadlock.fix()


# ------------------------------------------------------------------------------------- sizing
@pytest.mark.parametrize(("score", "exponential"), [(1, 1), (5, 5), (3, 7)])
def test_depths_follow_the_formula_and_none_can_be_lowered(score, exponential):
    rows = 24
    network = naive_attention(rows, rows, score_latency=score, exp_latency=exponential)
    sizing = size_fifos(network)
    assert sizing.aligned
    assert sizing.cycles == sizing.unbounded_cycles
    depths = sizing.depths
    assert depths["whole row"] == rows + score + 1
    assert depths["whole row.1"] == rows + exponential + 1
    for fifo in sizing.network.fifos:
        if (fifo.depth or 0) > 1:
            lower = sizing.network.with_depths({fifo.name: fifo.depth - 1})
            assert simulate(lower).cycles >= sizing.cycles + rows - 1 or simulate(lower).deadlocked


def test_published_depth_is_not_enough_at_other_latencies():
    rows = 64
    network = naive_attention(rows, rows, score_latency=11, exp_latency=1)
    sized = size_fifos(network)
    assert sized.depths["whole row"] == rows + 11 + 1 != rows + 2
    shallow = sized.network.with_depths({"whole row": rows + 2})
    assert simulate(shallow).cycles > sized.cycles


@native
def test_sized_random_pipelines_are_as_fast_as_unlimited_ones_and_tight():
    tight = 0
    for seed in range(12):
        state = np.random.default_rng(seed)
        build = NetworkBuilder()
        length = int(state.integers(3, 9))
        source = build.unit("source", firings=length * 12, latency=int(state.integers(1, 5)))
        total = build.unit(
            "total", [source], rate=last_of(length), latency=int(state.integers(1, 5))
        )
        scaled = build.unit(
            "scaled", [(total, first_of(length)), source], latency=int(state.integers(1, 5))
        )
        other = build.unit("other", [scaled, source])
        build.unit("sink", [other, scaled])
        sizing = size_fifos(build.build())
        assert sizing.cycles == sizing.unbounded_cycles, seed
        tight += all(
            simulate(sizing.network.with_depths({fifo.name: fifo.depth - 1})).cycles
            != sizing.cycles
            for fifo in sizing.network.fifos
            if fifo.depth > 1
        )
    assert tight == 12


def test_the_program_alone_finds_depth_one_more_than_the_latency():
    depths = linear_program(running_attention(64, 64, score_latency=5, scan_latency=5))
    assert max(depths) == 6


@native
def test_a_pareto_front_trades_bits_for_cycles():
    sized = size_fifos(running_attention(48, 48, score_latency=5, scan_latency=5))
    front = pareto_front(sized.network, configurations=256)
    assert front[-1].cycles == sized.cycles
    pairs = list(itertools.pairwise(front))
    assert all(a.fifo_bits < b.fifo_bits and a.cycles > b.cycles for a, b in pairs)
    for point in front[:3]:
        assert simulate(sized.network.with_depths(point.depths)).cycles == point.cycles
    with pytest.raises(InputError, match="call size_fifos first"):
        pareto_front(running_attention(8, 8, depth=None))
