"""Machine profiles: interpolation, files, the roofline, and the measurement itself."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import FileFormatError, InputError, UnsupportedError
from trimtab.graph import machine
from trimtab.graph.machine import MachineProfile, measure, profile_path, roofline
from trimtab.hardware import Cache, Hardware, describe

HARDWARE = Hardware(
    processor="Test 9000",
    architecture="x86_64",
    cores=8,
    memory_bytes=2**34,
    caches=(Cache(1, "data", 2**15), Cache(3, "unified", 2**25)),
    instruction_sets=("avx2", "avx512f"),
    system="Linux 6",
)
PROFILE = MachineProfile(
    hardware=HARDWARE,
    bandwidth={1: 10e9, 2: 18e9, 8: 30e9},
    copy_bandwidth={1: 8e9, 2: 15e9, 8: 25e9},
    rates={
        "float32": {1: 100e9, 2: 200e9, 8: 800e9},
        "bfloat16": {1: 150e9, 2: 300e9, 8: 1200e9},
        "int8": {1: 200e9, 2: 400e9, 8: 1600e9},
    },
    engines={"float32": "XLA", "bfloat16": "XLA", "int8": "XLA"},
    versions={"jaxlib": "0"},
    date="2026-01-01T00:00:00Z",
    load=0.1,
    peaks={"float32": {1: 120e9, 2: 240e9, 8: 900e9}},
)


def test_a_roofline_is_bound_by_the_slower_of_arithmetic_and_memory():
    assert roofline(800e9, 1e9, "float32", PROFILE) == pytest.approx(1.0)
    assert roofline(8e9, 60e9, "float32", PROFILE) == pytest.approx(2.0)
    assert PROFILE.balance() == pytest.approx(800 / 30)


@given(st.floats(0, 1e18), st.floats(0, 1e15), st.floats(1, 10))
def test_more_work_never_takes_less_time(flops, moved, factor):
    once = roofline(flops, moved, "float32", PROFILE)
    assert roofline(flops * factor, moved, "float32", PROFILE) >= once
    assert roofline(flops, moved * factor, "float32", PROFILE) >= once
    assert roofline(flops, moved, "float32", PROFILE, cores=2) >= once


def test_rates_between_measured_cores_are_interpolated():
    assert PROFILE.read_rate(5) == pytest.approx(24e9)
    assert PROFILE.read_rate(64) == PROFILE.read_rate() == 30e9
    assert PROFILE.flop_rate("float32", 4) == pytest.approx(400e9)


@pytest.mark.parametrize(
    ("dtype", "stand_in"),
    [("uint8", "int8"), ("int4", "int8"), ("float8_e5m2", "bfloat16"), ("bool", "float32")],
)
def test_an_element_type_that_was_not_measured_has_the_rate_of_a_relative(dtype, stand_in):
    assert PROFILE.flop_rate(dtype) == PROFILE.flop_rate(stand_in)


def test_impossible_work_is_refused():
    with pytest.raises(InputError, match="cannot be negative"):
        roofline(-1, 0, "float32", PROFILE)
    with pytest.raises(InputError, match="At least one core"):
        PROFILE.read_rate(0)


def test_a_profile_survives_its_file():
    assert MachineProfile.from_json(json.loads(json.dumps(PROFILE.to_json()))) == PROFILE


@given(st.sampled_from(sorted(PROFILE.to_json())), st.none() | st.integers() | st.text())
def test_a_damaged_profile_is_one_clear_error(part, value):
    values = PROFILE.to_json()
    if part in ("date", "load", "engines", "versions"):
        del values[part]
    else:
        values[part] = value
    with pytest.raises(FileFormatError, match="trimtab machine --again"):
        MachineProfile.from_json(values)


def test_the_cache_is_used_until_asked_to_measure_again(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    measured = []

    def fake(cores):
        measured.append(cores)
        return {
            "bandwidth": 1e9 * cores,
            "copy_bandwidth": 1e9 * cores,
            "rates": {"float32": 1e11 * cores},
            "engines": {"float32": "XLA"},
            "peaks": {},
        }

    monkeypatch.setattr(machine, "_probe", fake)
    first = measure()
    counts = list(measured)
    assert counts[-1] == describe().cores == first.cores
    assert measure() == first
    assert measured == counts
    measure(again=True)
    assert measured == counts * 2
    profile_path().write_text('{"format": 0}')
    assert measure().bandwidth == first.bandwidth
    assert measured == counts * 3


def test_another_machine_or_version_has_another_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    other = dataclasses.replace(HARDWARE, cores=4)
    assert profile_path(HARDWARE) != profile_path(other)
    assert profile_path(HARDWARE).name.startswith("test-9000-")
    before = profile_path(HARDWARE)
    monkeypatch.setattr(machine, "versions", lambda: {"jaxlib": "99"})
    assert profile_path(HARDWARE) != before


@pytest.mark.parametrize(
    ("cores", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])]
)
def test_powers_of_two_and_all_cores_are_measured(cores, counts, monkeypatch):
    monkeypatch.setattr(machine.os, "sched_setaffinity", lambda *_: None, raising=False)
    assert machine._core_counts(cores) == counts


def test_a_probe_that_cannot_run_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(machine, "_PINNED_PROBE", "raise SystemExit('no BLAS here.')")
    with pytest.raises(UnsupportedError, match=r"could not be measured: no BLAS here\."):
        machine._probe(1)


def test_memory_is_read_at_a_plausible_rate(monkeypatch):
    from trimtab.graph import probe

    monkeypatch.setattr(probe, "_SAMPLE_S", 1e-3)
    read, copy = probe.memory_rates(1)
    # Between a slow phone and any single core that exists.
    assert 1e8 < read < 1e12
    assert 1e8 < copy < 1e12


def test_a_product_is_timed_at_a_size_that_a_clock_can_time(monkeypatch):
    from trimtab.graph import probe

    monkeypatch.setattr(probe, "_SAMPLE_S", 1e-3)
    sizes = []

    def product(n):
        sizes.append(n)
        square = np.ones((n, n), np.float32)
        return lambda: square @ square

    rate = probe._product_rate(product)
    assert sizes[0] == 256
    assert rate > 1e7


def test_without_native_kernels_there_are_no_peaks(monkeypatch):
    from trimtab.graph import probe
    from trimtab.kernels import _library

    monkeypatch.setattr(_library, "kernel_names", lambda: frozenset({"layer_norm"}))
    assert probe.native_rates() == {}
