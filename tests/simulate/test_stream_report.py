"""Reports for people and tools, and the command."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner

import trimtab
from trimtab.cli import group
from trimtab.simulate.stream import (
    dot_graph,
    naive_attention,
    report,
    simulate,
    write_trace,
    write_vcd,
)
from trimtab.simulate.stream.display.timeline import busy_spans


def attention(query, key, value):
    return jax.nn.softmax(query @ key.T) @ value


@pytest.fixture(scope="module")
def result():
    return report(attention, *[jax.ShapeDtypeStruct((32, 8), jnp.float32)] * 3)


def test_text_page_and_data_tell_the_same_figures(result):
    text, page, data = result.text(), result.html(), result.to_json()
    assert f"{result.run.cycles:,}" in text
    assert f"{result.run.cycles:,}" in page
    assert data["cycles"] == data["unbounded_cycles"] == result.run.cycles
    assert data["full_throughput"] is True
    assert "query->" in text
    assert page.count("<svg") == 2
    assert "<script" not in page
    json.dumps(data)


def test_names_are_escaped_on_the_page():
    result = report(lambda x: jnp.exp(x["<b>"]), {"<b>": jnp.ones(4)})
    assert "<b>-" not in result.html()
    assert "&lt;b&gt;" in result.html()


def test_a_deadlock_is_part_of_the_report():
    shapes = [jax.ShapeDtypeStruct((32, 8), jnp.float32)] * 3
    result = report(attention, *shapes, depth=9)
    assert result.deadlock is not None
    assert "Deadlock at cycle" in result.text()
    assert "Raise" in result.html()
    assert result.run.efficiency == 0


def test_trace_events_cover_every_firing(tmp_path):
    run = simulate(naive_attention(12, 12, long=14), record=True)
    write_trace(run, tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    busy = {index: 0 for index in range(len(run.network.units))}
    for event in events:
        if event["ph"] == "X":
            busy[event["tid"]] += event["dur"]
    assert list(busy.values()) == [unit.firings for unit in run.network.units]
    levels = [event["args"]["tokens"] for event in events if event["ph"] == "C"]
    assert min(levels) == 0
    for unit, spans in zip(run.network.units, busy_spans(run)):
        assert (spans[1:, 0] >= spans[:-1, 1]).all(), unit.name


def test_a_wave_viewer_file_holds_a_signal_per_unit_and_fifo(tmp_path):
    pytest.importorskip("vcd")
    run = simulate(naive_attention(8, 8, long=10), record=True)
    write_vcd(run, tmp_path / "run.vcd")
    text = (tmp_path / "run.vcd").read_text()
    assert text.count("$var") == len(run.network.units) + len(run.network.fifos)
    assert "$enddefinitions" in text


def test_a_graph_in_dot_names_units_and_depths():
    text = dot_graph(naive_attention(8, 8, long=10))
    assert text.startswith("digraph")
    assert '"maximum (reduce)"' in text
    assert text.count("->") == 12


def test_a_captured_program_shows_its_parameters_by_name():
    program = trimtab.capture(
        lambda weights, x: jnp.tanh(x @ weights["kernel"]),
        jax.ShapeDtypeStruct((6, 4), jnp.float32),
        parameters={"kernel": jnp.ones((4, 3))},
    )
    result = trimtab.stream.report(program)
    assert result.full_throughput
    assert result.network.memory_bits >= 4 * 3 * 32  # the resident kernel


def test_the_command_prints_json_and_writes_files(tmp_path):
    run = CliRunner().invoke(
        group,
        ["simulate", "stream", "attention", "--shape", "64,4", "--shape", "64,4", "--shape",
         "64,4", "--rewrite", "--json", "-q", "--html", str(tmp_path / "r.html"),
         "--trace", str(tmp_path / "t.json"), "--dot", str(tmp_path / "g.dot")],
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    data = json.loads(run.stdout)
    assert data["full_throughput"] is True
    assert any("running max" in step for step in data["rewrites"])
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "t.json").exists()
    assert (tmp_path / "g.dot").exists()


def test_the_command_takes_functions_from_modules_and_files(tmp_path):
    runner = CliRunner()
    done = runner.invoke(
        group, ["simulate", "stream", "jax.nn:softmax", "--shape", "8,16:bfloat16", "-q"]
    )
    assert done.exit_code == 0, done.output
    assert "full throughput" in done.stdout
    (tmp_path / "mine.py").write_text("def double(x):\n    return x * 2\n")
    done = runner.invoke(
        group, ["simulate", "stream", f"{tmp_path}/mine.py:double", "--shape", "8", "-q"]
    )
    assert done.exit_code == 0, done.output


def test_the_command_fails_on_a_deadlock_and_explains_misuse():
    runner = CliRunner()
    stuck = runner.invoke(group, ["simulate", "stream", "attention", "--depth", "4", "-q"])
    assert stuck.exit_code == 1
    assert "Deadlock at cycle" in stuck.stdout
    assert runner.invoke(group, ["simulate", "stream", "attention", "--depth", "x"]).exit_code == 2
    assert runner.invoke(group, ["simulate", "stream", "attention", "--shape", "a"]).exit_code == 2
    unknown = runner.invoke(group, ["simulate", "stream", "atention"])
    assert "Did you mean 'attention'" in str(unknown.exception)


def test_occupancy_is_left_out_where_a_run_is_too_long_to_record(monkeypatch):
    monkeypatch.setattr("trimtab.simulate.stream.reporting.RECORDED_TOKENS", 10)
    result = report(jnp.exp, jax.ShapeDtypeStruct((4, 8), jnp.float32))
    assert result.occupancy is None
    assert result.critical is None
    assert "Timeline" not in result.html()
    assert np.isfinite(result.run.cycles)
