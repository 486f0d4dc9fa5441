"""The native engines against the plain Python rules, SimPy, and the published cycle table."""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from trimtab.errors import InputError
from trimtab.kernels.stream import stream_engine_available
from trimtab.simulate.stream import (
    EVERY,
    NetworkBuilder,
    Rate,
    last_of,
    naive_attention,
    running_attention,
    simulate,
    sweep,
)
from trimtab.simulate.stream.behaviour import (
    Closed,
    Nothing,
    Peek,
    Receive,
    Send,
    Something,
    Wait,
    WaitAny,
)

_HERE = Path(__file__).parent


def _load(name):
    spec = importlib.util.spec_from_file_location(name, _HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


random_network = _load("stream_networks").random_network
simulate_with_simpy = _load("simpy_network").simulate_with_simpy

native = pytest.mark.skipif(not stream_engine_available(), reason="the extension is not built")


def _same(one, other) -> bool:
    return (
        one.cycles == other.cycles
        and one.completed == other.completed
        and one.waiting == other.waiting
        and all(
            np.array_equal(getattr(one, name), getattr(other, name))
            for name in ("unit_time", "unit_firings", "sent", "received", "starved", "blocked")
        )
    )


@native
@pytest.mark.parametrize("fork", ["atomic", "sequential"])
@pytest.mark.parametrize("tight", [False, True], ids=["roomy", "tight"])
def test_native_times_equal_the_plain_rules_on_random_networks(fork, tight):
    for seed in range(60):
        network = random_network(seed, rounds=4 if seed % 4 else 16, tight=tight)
        plain = simulate(network, fork=fork, engine="reference")
        stepped = simulate(network, fork=fork, fast_forward=False)
        forwarded = simulate(network, fork=fork)
        recorded = simulate(network, fork=fork, record=True)
        assert _same(plain, stepped), seed
        assert _same(plain, forwarded), seed
        assert _same(plain, recorded), seed
        for mine, theirs in zip(
            (*recorded.visible_at, *recorded.received_at),
            (*plain.visible_at, *plain.received_at),
        ):
            assert np.array_equal(mine, theirs), seed


def test_cycles_equal_simpy_on_random_networks():
    compared = 0
    for seed in range(60):
        run = simulate(random_network(seed, tight=seed % 2 == 1))
        if run.completed:
            assert run.cycles == simulate_with_simpy(run.network), seed
            compared += 1
    assert compared > 45


@native
@pytest.mark.parametrize("fork", ["atomic", "sequential"])
def test_lanes_equal_single_runs_for_any_depths_latencies_and_intervals(fork):
    for seed in range(12):
        network = random_network(seed, rounds=3, tight=seed % 3 == 0)
        state = np.random.default_rng(seed)
        base = np.array([-1 if depth is None else depth for depth in network.depths])
        depths = np.where(base > 0, base + state.integers(0, 3, (11, len(base))), base)
        latencies = state.integers(0, 5, depths.shape)
        intervals = state.integers(1, 4, (11, len(network.units)))
        found = sweep(network, depths, latencies=latencies, intervals=intervals, fork=fork)
        forwarded = sweep(
            network,
            depths,
            latencies=latencies,
            intervals=intervals,
            fork=fork,
            fast_forward=True,
        )
        for index in range(11):
            fifos = [
                dataclasses.replace(
                    fifo,
                    depth=None if depths[index, f] < 0 else int(depths[index, f]),
                    latency=int(latencies[index, f]),
                )
                for f, fifo in enumerate(network.fifos)
            ]
            units = [
                dataclasses.replace(unit, interval=int(intervals[index, u]))
                for u, unit in enumerate(network.units)
            ]
            one = dataclasses.replace(network, units=tuple(units), fifos=tuple(fifos))
            run = simulate(one, fork=fork, engine="reference")
            expected = run.cycles if run.completed else -1
            assert found[index] == forwarded[index] == expected, (seed, index)


NAIVE = [
    (1, 1, 2, None, 263_174),
    (1, 1, 2, 511, "deadlock at 513"),
    (1, 1, 2, 512, 264_196),
    (1, 1, 2, 514, 263_174),
    (5, 5, 8, 511, "deadlock"),
    (5, 5, 8, 512, 266_248),
    (5, 5, 8, 518, 263_182),
]
RUNNING = [
    (1, 1, 524_292),
    (1, 2, 262_149),
    (5, 1, 917_513),
    (5, 2, 611_681),
    (5, 4, 367_013),
    (5, 6, 262_157),
]


@native
@pytest.mark.parametrize("fast_forward", [False, True], ids=["plain", "forward"])
@pytest.mark.parametrize(("score", "exponential", "short", "long", "expected"), NAIVE)
def test_naive_attention_takes_the_published_cycles(
    score, exponential, short, long, expected, fast_forward
):
    network = naive_attention(
        512, 512, score_latency=score, exp_latency=exponential, short=short, long=long
    )
    run = simulate(network, fast_forward=fast_forward)
    if isinstance(expected, str):
        assert run.deadlocked
        assert expected in (f"deadlock at {run.cycles}", "deadlock")
    else:
        assert (run.completed, run.cycles) == (True, expected)


@native
@pytest.mark.parametrize("fast_forward", [False, True], ids=["plain", "forward"])
@pytest.mark.parametrize(("latency", "depth", "expected"), RUNNING)
def test_running_attention_takes_the_published_cycles(latency, depth, expected, fast_forward):
    network = running_attention(512, 512, score_latency=latency, scan_latency=latency, depth=depth)
    run = simulate(network, fast_forward=fast_forward)
    assert (run.completed, run.cycles) == (True, expected)


@pytest.mark.parametrize(
    ("long_first", "deadlocked"), [(False, False), (True, True)], ids=["short first", "long first"]
)
def test_the_order_of_a_sequential_fork_decides_at_one_place_less_than_a_row(
    long_first, deadlocked
):
    network = naive_attention(24, 24, long=23, long_first=long_first)
    assert simulate(network, fork="sequential").deadlocked is deadlocked
    assert simulate(network, fork="atomic").deadlocked
    assert simulate(network, fork="sequential", engine="reference").deadlocked is deadlocked


@native
@pytest.mark.parametrize("size", [16, 100, 512, 2048])
def test_fast_forward_equals_the_plain_engine_bit_for_bit(size):
    for network in (
        running_attention(size, size),
        running_attention(size, size, score_latency=5, scan_latency=5, depth=2),
    ):
        forwarded = simulate(network)
        assert _same(forwarded, simulate(network, fast_forward=False))
        assert forwarded.events + forwarded.skipped == sum(
            network.tokens(fifo) for fifo in network.fifos
        )


@native
def test_fast_forward_reaches_a_closed_form_that_stepping_never_would():
    run = simulate(running_attention(65_536, 65_536))
    assert run.cycles == 65_536**2 + 5
    assert run.events < 10_000


def test_the_plain_engine_serves_where_the_extension_is_absent(monkeypatch):
    monkeypatch.setattr("trimtab.kernels.stream.stream_engine_available", lambda: False)
    monkeypatch.setattr("trimtab.simulate.stream.deadlock.stream_engine_available", lambda: False)
    network = naive_attention(12, 12, long=11)
    run = simulate(network)
    assert run.deadlocked
    depths = [[12 if fifo.name.startswith("whole") else 2 for fifo in network.fifos]]
    assert sweep(network, depths)[0] == simulate(naive_attention(12, 12, long=12)).cycles


def test_impossible_latencies_depths_and_intervals_are_refused():
    build = NetworkBuilder()
    source = build.unit("source", firings=3)
    sink = build.unit("sink", [source])
    build.connect(source, sink, send_latency=0)
    with pytest.raises(InputError, match="both must be at least 1 cycle"):
        build.build()
    with pytest.raises(InputError, match="needs at least 1"):
        naive_attention(4, 4).with_depths(0)
    with pytest.raises(InputError, match="give at least 1 cycle"):
        NetworkBuilder().unit("slow", interval=0)
    lonely = NetworkBuilder()
    lonely.unit("lonely")
    with pytest.raises(InputError, match="How often do these units fire: lonely"):
        lonely.build()
    with pytest.raises(InputError, match="raise event_limit"):
        simulate(running_attention(64, 64), event_limit=100, fast_forward=False, engine="native")


def test_rates_know_their_totals():
    rate = Rate(((2, 0), (1, 3)))
    assert [rate.tokens(n) for n in range(7)] == [0, 0, 0, 3, 3, 3, 6]
    assert rate.firings_for(3) == 5
    assert rate.firings_for(2) == 2
    assert Rate(((4, 0),)).firings_for(9) is None
    assert last_of(1) is EVERY
    with pytest.raises(InputError, match="at least one firing"):
        Rate(())


# ------------------------------------------------------------- units that decide by arrival time
def _two_sources(behaviour, first=(1, 4), second=(1, 3), outputs=1):
    build = NetworkBuilder()
    fast = build.unit("fast", firings=first[0], interval=first[1], function=lambda: ["a"])
    slow = build.unit("slow", firings=second[0], interval=second[1], function=lambda: ["b"])
    merge = build.unit("merge", [fast, slow], behaviour=behaviour, firings=0)
    for _ in range(outputs):
        sink = build.unit("sink", firings=-1)
        build.connect(merge, sink)
    return build.build().with_depths(4)


def test_a_merge_takes_tokens_in_order_of_arrival():
    seen = []

    def merge():
        while True:
            port = yield WaitAny((0, 1))
            if port is None:
                return
            token = yield Receive(port)
            seen.append(token)
            yield Send(0, token)

    run = simulate(_two_sources(merge, first=(3, 4), second=(4, 3)))
    # "a" is visible at 1, 5, 9 and "b" at 1, 4, 7, 10; the first port wins the tie at 1.
    assert "".join(seen) == "abbabab"
    assert run.completed
    assert run.values["sink"] == list("abbabab")


def test_peek_never_says_nothing_before_the_producer_has_passed():
    answers = []

    def watcher():
        for _ in range(6):
            answer = yield Peek(0)
            answers.append(type(answer))
            if isinstance(answer, Something):
                yield Receive(0)
            yield Wait(1)

    run = simulate(_two_sources(watcher, first=(2, 4), second=(1, 1), outputs=0))
    # Tokens become visible at 1 and 5; the unit looks at 0, 1, 2, 3, 4, 5.
    assert answers == [Nothing, Something, Nothing, Nothing, Nothing, Something]
    assert run.cycles >= 6


def test_peek_says_closed_after_the_last_token():
    answers = []

    def watcher():
        yield Wait(3)
        yield Receive(0)
        answers.append((yield Peek(0)))

    simulate(_two_sources(watcher, first=(1, 1), second=(1, 1), outputs=0))
    assert answers == [Closed()]


def test_two_units_that_watch_each_other_do_not_hang():
    def watcher():
        for _ in range(5):
            answer = yield Peek(0)
            assert isinstance(answer, Nothing)
            yield Wait(2)

    build = NetworkBuilder()
    one = build.unit("one", behaviour=watcher, firings=0)
    two = build.unit("two", [one], behaviour=watcher, firings=0)
    build.connect(two, one)
    assert simulate(build.build()).cycles == 10


def test_native_engines_refuse_units_that_decide_by_arrival_time():
    def idle():
        return
        yield

    with pytest.raises(InputError, match="pass engine='reference'"):
        simulate(_two_sources(idle), engine="native")
