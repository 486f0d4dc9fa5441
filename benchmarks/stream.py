"""Streaming-dataflow simulation against SimPy, on the same attention graphs.

An event is one token that was sent and received. Every contestant must report the same cycles.
The peer's model is as lean as SimPy allows (one bounded store a FIFO, token = time of visibility).

    python benchmarks/stream.py --json benchmarks/results/stream.json
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import simpy

from race import Outcome, Race, command
from trimtab.simulate import stream
from trimtab.simulate.stream.deadlock import explain_deadlock
from trimtab.simulate.stream.network import Network
from trimtab.simulate.stream.processes import Block, trace_network


def with_simpy(network: Network) -> int:
    """Run a network of at most one token a port and firing in SimPy; returns its cycles."""
    env = simpy.Environment()
    stores = [simpy.Store(env, capacity=fifo.depth or float("inf")) for fifo in network.fifos]
    counts = [
        (
            fifo.produce.counts(network.units[fifo.producer].firings),
            fifo.consume.counts(network.units[fifo.consumer].firings),
        )
        for fifo in network.fifos
    ]

    def unit(index: int) -> Any:
        me = network.units[index]
        ins = [(stores[f], counts[f][1].tolist()) for f in me.inputs]
        outs = [(stores[f], network.fifos[f].latency, counts[f][0].tolist()) for f in me.outputs]
        for n in range(me.firings):
            for store, moves in ins:
                if moves[n]:
                    visible = yield store.get()
                    if visible > env.now:
                        yield env.timeout(visible - env.now)
            started = env.now
            for store, latency, moves in outs:
                if moves[n]:
                    yield store.put(started + latency)
            yield env.timeout(me.interval)

    for index in range(len(network.units)):
        env.process(unit(index))
    env.run()
    return int(env.now)


def graph(size: int) -> Network:
    """Running-statistic attention at full throughput: latency 5, depth 8."""
    return stream.running_attention(size, size, score_latency=5, scan_latency=5, depth=8)


def tokens(network: Network) -> int:
    """Events of a complete run."""
    return sum(network.tokens(fifo) for fifo in network.fifos)


def agreed(*calls: Callable[[], int]) -> None:
    """Stop unless all contestants report the same cycles."""
    cycles = [int(call()) for call in calls]
    assert len(set(cycles)) == 1, cycles


def single_graph(quick: bool) -> Outcome:
    """The generic engine, one token after another."""
    network = graph(48 if quick else 128)
    contest = Race(
        f"generic engine, {network.units[-1].firings} rows", unit="events/s", work=tokens(network)
    )

    def plain() -> int:
        return stream.simulate(network, fast_forward=False).cycles

    def reference() -> int:
        return stream.simulate(network, engine="reference").cycles

    def peer() -> int:
        return with_simpy(network)

    agreed(plain, reference, peer)
    contest.enter("worklist, native", plain, "one core, no fast-forward")
    contest.enter("plain Python rules", reference)
    contest.enter("SimPy", peer, simpy.__version__)
    return contest.run(quick=quick, rounds=7, seconds=60)


def lanes(quick: bool) -> Outcome:
    """The tape over vector lanes: many configurations of one graph."""
    network, count = graph(32 if quick else 64), 16
    depths = np.random.default_rng(0).integers(7, 16, (count, len(network.fifos)))
    contest = Race(
        f"{count} configurations, {network.units[-1].firings} rows",
        unit="events/s",
        work=count * tokens(network),
    )
    configured = [network.with_depths(row.tolist()) for row in depths]

    def ours() -> int:
        return int(stream.sweep(network, depths, fast_forward=False).sum())

    def scalar() -> int:
        return sum(stream.simulate(one, fast_forward=False).cycles for one in configured)

    def peer() -> int:
        return sum(with_simpy(one) for one in configured)

    agreed(ours, scalar, peer)
    contest.enter("tape in lanes", ours, "8 configurations a vector, all threads")
    contest.enter("worklist, native", scalar)
    contest.enter("SimPy", peer, simpy.__version__)
    return contest.run(quick=quick, rounds=5, warmup=1, seconds=60)


def forward(quick: bool) -> Outcome:
    """Exact fast-forward of a long run, against stepping through a shorter one."""
    network = graph(256 if quick else 2048)
    contest = Race(
        f"fast-forward, {network.units[-1].firings} rows", unit="events/s", work=tokens(network)
    )

    def forwarded() -> int:
        return stream.simulate(network).cycles

    def plain() -> int:
        return stream.simulate(network, fast_forward=False).cycles

    agreed(forwarded, plain)
    contest.enter("exact fast-forward", forwarded)
    contest.enter("worklist, native", plain)
    return contest.run(quick=quick, rounds=7, seconds=30)


def python_unit(quick: bool) -> Outcome:
    """A unit written in Python, in blocks: values, traced rates and native timing together."""
    rows, columns = (16, 256) if quick else (256, 1024)
    state = np.random.default_rng(0)
    scores, values = state.normal(size=(2, rows * columns))

    def attend(_: None, s: np.ndarray, v: np.ndarray) -> tuple[None, np.ndarray]:
        s, v = s.reshape(-1, columns), v.reshape(-1, columns)
        weights = np.exp(s - s.max(1, keepdims=True))
        return None, (weights * v).sum(1) / weights.sum(1)

    def run(block: int) -> Callable[[], int]:
        def source(array: np.ndarray) -> Any:
            def emit() -> Any:
                for start in range(0, len(array), block):
                    yield stream.Give("out", array[start : start + block])

            return stream.Process(emit)

        unit = Block(
            attend,
            inputs={"s": stream.EVERY, "v": stream.EVERY},
            outputs={"out": stream.last_of(columns)},
            firings=max(columns, block),
        )

        def call() -> int:
            traced = trace_network(
                {"s": source(scores), "v": source(values), "attend": unit},
                {"s.out": "attend.s", "v.out": "attend.v"},
            )
            return stream.simulate(traced.network.with_depths(4)).cycles

        return call

    contest = Race("unit written in Python", unit="events/s", work=2 * rows * columns)
    agreed(run(columns), run(64))
    contest.enter(f"blocks of {columns}", run(columns))
    contest.enter("blocks of 64", run(64))
    return contest.run(quick=quick, rounds=7, seconds=30)


def facts() -> dict[str, float]:
    """Durations that are goals in themselves, in seconds of processor time."""

    def clock(call: Callable[[], Any], repetitions: int = 5) -> float:
        call()
        best = float("inf")
        for _ in range(repetitions):
            start = time.process_time()
            call()
            best = min(best, time.process_time() - start)
        return best

    block = stream.lower(stream.from_jaxpr(jax.make_jaxpr(transformer_block)(*block_shapes())))
    sized = stream.size_fifos(block).network
    naive = stream.naive_attention(256, 256, long=255)
    stuck = stream.simulate(naive, fast_forward=False)
    complete = stream.naive_attention(256, 256, long=258)
    return {
        "fast-forward 65536 x 65536": clock(
            lambda: stream.simulate(stream.running_attention(65_536, 65_536))
        ),
        "linear program of a transformer block": clock(lambda: stream.linear_program(block)),
        "size_fifos of a transformer block, verified": clock(lambda: stream.size_fifos(block), 1),
        "Pareto front of 1024 configurations of a block": clock(
            lambda: stream.pareto_front(sized, configurations=1024), 2
        ),
        "run that completes": clock(lambda: stream.simulate(complete, fast_forward=False)),
        "run that deadlocks, explained": clock(
            lambda: explain_deadlock(stream.simulate(naive, fast_forward=False))
        ),
        "smallest fix of that deadlock": clock(lambda: explain_deadlock(stuck).fix()),
    }


def block_shapes() -> list[jax.ShapeDtypeStruct]:
    """A transformer block with the widths of SmolLM2-135M, 32 tokens."""
    shapes = [(32, 576), (576, 576), (576, 192), (576, 192), (576, 576)]
    shapes += [(576, 1536), (576, 1536), (1536, 576)]
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def transformer_block(x, query, key, value, out, gate, up, down):
    """Grouped-query attention and a gated MLP, each behind an RMS norm."""

    def norm(t):
        return t * jax.lax.rsqrt((t * t).mean(-1, keepdims=True) + 1e-5)

    y = norm(x)
    q = (y @ query).reshape(-1, 9, 64).transpose(1, 0, 2)
    k, v = (
        jnp.repeat((y @ w).reshape(-1, 3, 64), 3, axis=1).transpose(1, 0, 2) for w in (key, value)
    )
    weights = jax.nn.softmax(jnp.einsum("hid,hjd->hij", q, k) / 8.0)
    mixed = jnp.einsum("hij,hjd->hid", weights, v)
    x = x + mixed.transpose(1, 0, 2).reshape(x.shape) @ out
    y = norm(x)
    return x + (jax.nn.silu(y @ gate) * (y @ up)) @ down


def race(quick: bool) -> Iterator[Outcome]:
    """All races, and the goals that are plain durations."""
    for contest in (single_graph, lanes, forward, python_unit):
        outcome = contest(quick)
        if contest is forward:
            outcome.values.update(facts())
            for name, seconds in outcome.values.items():
                print(f"{name}: {seconds * 1e3:.2f} ms of processor time")
        yield outcome


if __name__ == "__main__":
    command(__doc__, "stream", race)
