"""``trimtab reproduce`` as people and scripts use it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from trimtab.reproduce import SYSTEMS

KEYS = {"metric", "unit", "paper", "baseline", "ours", "ratio", "holds", "seeds", "command"}


def test_the_registry_names_the_thirteen_systems_in_order(trimtab_command):
    listed = trimtab_command("reproduce", "--list", "--json").json["systems"]
    assert " ".join(listed) == (
        "fnet lookupvit vrgd sparamx mixpe deltallm redco pockengine tensorflow streaming-sdpa "
        "jumanji katago biggan"
    )


def test_the_list_says_which_systems_are_ready(trimtab_command, fake_systems):
    shown = trimtab_command("reproduce", "--list")
    lines = {line.split()[0]: line for line in shown.stdout.splitlines() if line.strip()}
    assert "ready" in lines["fnet"]
    assert "not available" in lines["katago"]
    assert set(lines) >= {system.name for system in SYSTEMS}


def test_json_is_one_document_of_the_promised_form(trimtab_command, fake_systems):
    shown = trimtab_command("reproduce", "fnet", "--json", "--seed", 7)
    assert shown.code == 0
    assert set(shown.json) >= {"machine", "systems"}
    system = shown.json["systems"]["fnet"]
    assert system["status"] == "ok"
    assert system["seconds"] > 0
    step, accuracy, parameters = system["rows"]
    assert set(step) >= KEYS
    assert step["ratio"] == pytest.approx(2.0)
    assert [row["holds"] for row in system["rows"]] == [True, False, None]
    assert step["seeds"] == [7]
    assert accuracy["seeds"] == [7, 8]
    assert accuracy["where"] == "a simulated mesh of 8 devices"
    assert parameters["where"] == shown.json["machine"]["summary"]
    assert parameters["ratio"] is None


def test_a_claim_that_does_not_hold_is_no_failure(trimtab_command, fake_systems):
    assert trimtab_command("reproduce", "fnet", "--quiet").code == 0


def test_a_failing_system_hides_no_other_and_sets_the_exit_code(trimtab_command, fake_systems):
    shown = trimtab_command(
        "reproduce", "vrgd", "fnet", "sparamx", "mixpe", "deltallm", "katago", "--json"
    )
    assert shown.code == 1
    systems = shown.json["systems"]
    assert list(systems) == ["fnet", "vrgd", "sparamx", "mixpe", "deltallm", "katago"]
    assert {name: system["status"] for name, system in systems.items()} == {
        "fnet": "ok",
        "vrgd": "failed",
        "sparamx": "failed",
        "mixpe": "unavailable",
        "deltallm": "failed",
        "katago": "unavailable",
    }
    assert systems["vrgd"]["error"] == "ValueError: shapes (3, 4) and (5,) do not match [oops]"
    assert "ended by signal 6" in systems["sparamx"]["error"]
    assert "pip install 'trimtab[hardware]'" in systems["mixpe"]["error"]
    assert systems["deltallm"]["error"] == "RuntimeError: broken while importing"
    assert all(system["rows"] == [] for name, system in systems.items() if name != "fnet")


def test_people_get_a_table_with_notes_and_the_reasons(trimtab_command, fake_systems):
    shown = trimtab_command("reproduce", "fnet", "vrgd", "mixpe", "--quiet")
    assert shown.code == 1
    assert shown.stderr == ""
    out = " ".join(shown.stdout.split())
    assert "training step, length 512 (ms)" in out
    assert "2.00x ✓ holds" in out
    assert "0.96x ✗ misses" in out
    assert "batch 8, float32 <compiled>" in out
    assert "measured on a simulated mesh of 8 devices" in out
    assert "vrgd failed: ValueError: shapes (3, 4) and (5,) do not match [oops]" in out
    assert "pip install 'trimtab[hardware]'" in out
    assert "Measured on" in out
    assert "a line that must not reach" not in out


def test_progress_goes_to_standard_error(trimtab_command, fake_systems):
    shown = trimtab_command("reproduce", "fnet", "--json")
    assert "fnet: timing both" in shown.stderr
    assert "fnet" in json.loads(shown.stdout)["systems"]


def test_an_unknown_system_is_misuse_and_suggests_the_nearest(trimtab_command):
    shown = trimtab_command("reproduce", "fnett")
    assert shown.code == 2
    assert "Unknown system 'fnett'. Did you mean 'fnet'?" in shown.stderr


def test_a_report_is_written_in_full(trimtab_command, fake_systems, tmp_path):
    folder = tmp_path / "new" / "report"
    shown = trimtab_command("reproduce", "fnet", "katago", "--out", folder)
    assert f"report: {folder / 'report.html'}" in "".join(shown.stdout.splitlines())
    written = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert written == [
        "figures/fnet-1.svg",
        "figures/fnet-2.svg",
        "figures/fnet-3.png",
        "report.html",
        "report.json",
    ]
    document = json.loads((folder / "report.json").read_text())
    assert document["systems"]["fnet"]["rows"][0]["metric"] == "training step, length 512"


def test_out_over_a_file_is_misuse(trimtab_command, fake_systems, tmp_path):
    (tmp_path / "taken").write_text("")
    assert trimtab_command("reproduce", "katago", "--out", tmp_path / "taken").code == 2


def test_an_interruption_shows_what_was_measured_and_exits_with_130(fake_systems, tmp_path):
    code = (
        "import trimtab.reproduce as r, sys\n"
        "import trimtab.reproduce.report, trimtab.reproduce.runner\n"
        "from trimtab.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "reproduce", "fnet", "redco", "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "120"},
    )
    assert process.stderr
    for line in process.stderr:
        if "redco: waiting" in line:
            break
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "training step, length 512" in out
    assert "Traceback" not in errors
    assert (tmp_path / "out" / "report.html").exists()
