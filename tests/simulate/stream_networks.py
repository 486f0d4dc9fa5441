"""Random cyclo-static networks for the tests of this folder."""

from __future__ import annotations

import random

from trimtab.simulate.stream.network import Network, NetworkBuilder, Stream
from trimtab.simulate.stream.rates import Rate


def random_rate(random_state: random.Random, firings: int, tokens: int) -> Rate:
    """A pattern over ``firings`` firings that moves ``tokens`` tokens in all."""
    counts = [0] * firings
    for _ in range(tokens):
        counts[random_state.randrange(firings)] += 1
    runs: list[list[int]] = []
    for count in counts:
        if runs and runs[-1][1] == count:
            runs[-1][0] += 1
        else:
            runs.append([1, count])
    return Rate(tuple((length, count) for length, count in runs))


def random_network(seed: int, *, rounds: int = 6, tight: bool = False) -> Network:
    """A connected network with forks, joins, mixed rates and sometimes a feedback loop.

    Args:
        tight: draw depths small enough that many networks deadlock.
    """
    state = random.Random(seed)
    count = state.randint(2, 7)
    per_round = [state.choice([1, 1, 2, 3, 5]) for _ in range(count)]
    build = NetworkBuilder()
    streams = [
        build.unit(
            f"u{u}",
            firings=per_round[u] * rounds,
            interval=state.choice([1, 1, 1, 2, 3]),
            latency=state.choice([0, 1, 1, 2, 5]),
        )
        for u in range(count)
    ]
    edges = [(state.randrange(u), u) for u in range(1, count)]
    edges += [tuple(sorted(state.sample(range(count), 2))) for _ in range(state.randint(0, 5))]
    for producer, consumer in edges:
        tokens = state.choice([1, per_round[producer], per_round[consumer], 3])
        _join(build, state, streams, per_round, producer, consumer, tokens, 0, tight)
    if state.random() < 0.4:
        consumer, producer = sorted(state.sample(range(count), 2))
        tokens = state.choice([1, 2, per_round[producer]])
        initial = tokens + state.randint(0, 2)
        _join(build, state, streams, per_round, producer, consumer, tokens, initial, tight)
    return build.build()


def _join(build, state, streams, per_round, producer, consumer, tokens, initial, tight) -> None:
    produce = random_rate(state, per_round[producer], tokens)
    consume = random_rate(state, per_round[consumer], tokens)
    most = max(count for rate in (produce, consume) for _, count in rate.runs)
    depth = state.choice([None, most + 1, most + 2, 2 * tokens + 2, 1000])
    if tight:
        depth = most + state.choice([0, 0, 0, 1, 3])
    build.connect(
        Stream(streams[producer].unit, produce, 32),
        streams[consumer],
        consume,
        depth=None if depth is None else max(1, depth, initial),
        initial=initial,
        send_latency=state.choice([1, 1, 2]),
        response_latency=state.choice([1, 1, 3]),
    )
