"""Units written in Python: values in blocks, rates by tracing, times that no block size changes."""

import numpy as np
import pytest

from trimtab.errors import InputError
from trimtab.simulate.stream import Block, Give, Process, Rate, Take, last_of, simulate
from trimtab.simulate.stream.processes import trace_network

ROWS, COLUMNS = 6, 24


def emit(tokens, block):
    def run():
        for start in range(0, len(tokens), block):
            yield Give("out", tokens[start : start + block])

    return Process(run)


def running_softmax(block):
    """The online softmax of one row after another, token by token inside a block."""

    def run():
        maximum, total, mixed, column = -np.inf, 0.0, 0.0, 0
        while (scores := (yield Take("score", block))) is not None:
            values = yield Take("value", len(scores))
            results, counts = [], []
            for score, value in zip(scores, values):
                larger = max(maximum, score)
                scale, weight = np.exp(maximum - larger), np.exp(score - larger)
                total, mixed = total * scale + weight, mixed * scale + weight * value
                maximum, column = larger, column + 1
                counts.append(int(column % COLUMNS == 0))
                if counts[-1]:
                    results.append(mixed / total)
                    maximum, total, mixed = -np.inf, 0.0, 0.0
            yield Give("out", np.array(results), counts)

    return Process(run, ("score", "value"), latency=5)


@pytest.fixture
def streams():
    state = np.random.default_rng(0)
    return state.normal(size=(2, ROWS * COLUMNS))


def build(streams, block):
    scores, values = streams
    return trace_network(
        {
            "scores": emit(scores, block),
            "values": emit(values, block),
            "softmax": running_softmax(block),
        },
        {"scores.out": "softmax.score", "values.out": "softmax.value"},
    )


def test_block_size_changes_neither_times_nor_rates_nor_values(streams):
    scores, values = (s.reshape(ROWS, COLUMNS) for s in streams)
    weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    reference = simulate(build(streams, 1).network.with_depths(3), record=True)
    for block in (1, 7, 64, 500):
        traced = build(streams, block)
        run = simulate(traced.network.with_depths(3), record=True)
        assert run.cycles == reference.cycles
        for mine, theirs in zip(run.visible_at, reference.visible_at):
            assert np.array_equal(mine, theirs)
        np.testing.assert_allclose(traced.values["softmax.out"], (weights * values).sum(1))


def test_a_block_function_has_the_rates_it_declares(streams):
    def add_up(state, tokens):
        return state, tokens.reshape(-1, COLUMNS).sum(1)

    total = Block(add_up, outputs={"out": last_of(COLUMNS)}, firings=2 * COLUMNS)
    double = Block(lambda state, x: (state, 2 * x))
    traced = trace_network(
        {"source": emit(streams[0], 10), "total": total, "double": double},
        {"source.out": "total.in", "total.out": "double.in"},
    )
    into, onward = traced.network.fifos
    assert into.consume == Rate(((1, 1),))
    assert onward.produce == last_of(COLUMNS)
    expected = 2 * streams[0].reshape(-1, COLUMNS).sum(1)
    np.testing.assert_allclose(traced.values["double.out"], expected)
    assert simulate(traced.network.with_depths(2)).completed


def test_rates_that_depend_on_data_are_replayed():
    tokens = np.arange(20)

    def keep_even():
        while (block := (yield Take("in", 4))) is not None:
            kept = block % 2 == 0
            yield Give("out", block[kept], kept.astype(int))

    traced = trace_network(
        {"source": emit(tokens, 4), "filter": Process(keep_even, ("in",))},
        {"source.out": "filter.in"},
    )
    assert traced.values["filter.out"].tolist() == list(range(0, 20, 2))


def test_an_operand_ahead_of_its_block_belongs_to_the_first_firing(streams):
    def scale():
        while True:
            factor = yield Take("factor", 1, ahead=True)
            if factor is None:
                return
            tokens = yield Take("in", COLUMNS)
            yield Give("out", tokens * factor)

    traced = trace_network(
        {
            "factors": emit(np.arange(1.0, ROWS + 1), 2),
            "source": emit(streams[0], 24),
            "scale": Process(scale, ("in", "factor")),
        },
        {"factors.out": "scale.factor", "source.out": "scale.in"},
    )
    held = next(f for f in traced.network.fifos if f.name.startswith("factors"))
    assert held.consume == Rate(((1, 1), (COLUMNS - 1, 0)))


def test_wrong_wires_and_ambiguous_blocks_are_refused(streams):
    source = emit(streams[0], 4)
    with pytest.raises(InputError, match=r"There is no input 'nobody\.in'"):
        trace_network({"source": source}, {"source.out": "nobody.in"})
    sink = Process(lambda: iter(()), ("in",), ())
    with pytest.raises(InputError, match=r"Nothing feeds sink\.in"):
        trace_network({"source": source, "sink": sink}, {})

    def halve():
        yield Take("in", 4)
        yield Give("out", np.zeros(2))

    with pytest.raises(InputError, match="pass counts="):
        trace_network(
            {"source": source, "halve": Process(halve, ("in",))}, {"source.out": "halve.in"}
        )

    def echo():
        while (token := (yield Take("in", 1))) is not None:
            yield Give("out", token)

    loop = {"one": Process(echo, ("in",)), "two": Process(echo, ("in",))}
    with pytest.raises(InputError, match="wait for one another for ever: one, two"):
        trace_network(loop, {"one.out": "two.in", "two.out": "one.in"})
