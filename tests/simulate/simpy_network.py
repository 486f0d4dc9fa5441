"""Streaming networks in SimPy: the oracle for cycles, and the peer in speed."""

from __future__ import annotations

from typing import Any

import simpy

from trimtab.simulate.stream.network import Network


def simulate_with_simpy(network: Network) -> int:
    """Run any network of fixed rates that completes with atomic forks, and return its cycles.

    A process takes its tokens one after another as time goes on, so that a network which completes
    only thanks to that completes here too. A FIFO is a store of tokens (with the time at which
    they become visible) and a store of places (with the time at which they become free).
    """
    env = simpy.Environment()
    tokens = [simpy.Store(env) for _ in network.fifos]
    places = [simpy.Store(env) for _ in network.fifos]
    for fifo, token_store, place_store in zip(network.fifos, tokens, places):
        token_store.items.extend([0] * fifo.initial)
        if fifo.depth is not None:
            place_store.items.extend([0] * (fifo.depth - fifo.initial))
    finished = []

    def until(time: float) -> Any:
        return env.timeout(max(0, time - env.now))

    def unit(index: int) -> Any:
        me = network.units[index]
        ins = [(f, network.fifos[f].consume.counts(me.firings)) for f in me.inputs]
        outs = [(f, network.fifos[f].produce.counts(me.firings)) for f in me.outputs]
        for n in range(me.firings):
            for f, counts in ins:
                for _ in range(counts[n]):
                    visible = yield tokens[f].get()
                    yield until(visible)
                    if network.fifos[f].depth is not None:
                        yield places[f].put(env.now + network.fifos[f].response_latency)
            started = env.now
            for f, counts in outs:
                if network.fifos[f].depth is not None:
                    for _ in range(counts[n]):
                        free = yield places[f].get()
                        yield until(free)
            for f, counts in outs:
                fifo = network.fifos[f]
                for _ in range(counts[n]):
                    yield tokens[f].put(max(started + fifo.latency, env.now + fifo.send_latency))
            yield env.timeout(me.interval)
        finished.append(env.now)

    for index in range(len(network.units)):
        env.process(unit(index))
    env.run()
    if len(finished) < len(network.units):
        return -1
    return int(max(finished, default=0))
