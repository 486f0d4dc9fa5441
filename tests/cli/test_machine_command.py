"""``trimtab machine``: tables and JSON of a profile, and the warning about a busy machine."""

import pytest

from trimtab.graph import machine


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Put a quick fake in the place of the measurement."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))

    def probe(cores):
        return {
            "bandwidth": 10e9 * cores,
            "copy_bandwidth": 8e9 * cores,
            "rates": {"float32": 100e9 * cores, "int8": 250e9 * cores},
            "engines": {"float32": "NumPy", "int8": "XLA"},
            "peaks": {"int8": 900e9 * cores},
        }

    monkeypatch.setattr(machine, "_probe", probe)
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (0.0, 0.0, 0.0))


def test_json_is_the_profile_itself(trimtab_command, measured):
    shown = trimtab_command("machine", "--json")
    assert shown.code == 0
    profile = machine.MachineProfile.from_json(shown.json)
    assert profile.rates["int8"][1] == 250e9


def test_people_get_rates_by_cores(trimtab_command, measured):
    shown = trimtab_command("machine")
    assert shown.code == 0
    assert "measuring with 1 core" in shown.stderr
    lines = {line.split("  ")[0].strip(): line.split() for line in shown.stdout.splitlines()}
    assert lines["memory, read"][2] == "10.0"
    assert lines["float32 products"][-2:] == ["GFLOP/s", "NumPy"]
    assert lines["int8 products"][-2:] == ["GOP/s", "XLA"]
    assert lines["int8 in registers"][3] == "900"
    assert "10.0 float32 operations a byte" in shown.stdout
    assert "too low" not in shown.stdout


def test_a_busy_machine_is_told(trimtab_command, measured, monkeypatch):
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (999.0, 0.0, 0.0))
    assert "may be too low" in " ".join(trimtab_command("machine", "--again").stdout.split())
