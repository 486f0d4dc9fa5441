"""What the machine says about itself, on machines of many kinds."""

import json
import os

import pytest

import trimtab
from trimtab import hardware
from trimtab.hardware import describe, provenance, versions

CPUINFO = """\
processor\t: 0
model name\t: {name}
cpu family\t: 25
model\t\t: 17
flags\t\t: fpu sse4_2 avx avx2 fma avx512f amx_tile

processor\t: 1
model name\t: Other
flags\t\t: none
"""


def test_the_description_of_this_machine_is_json():
    facts = describe().to_json()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cores"] >= 1
    assert facts["memory_bytes"] > 2**28
    assert facts["processor"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Example(R) Gold 6430", "Example(R) Gold 6430"),
        ("AMD EPYC", "AMD EPYC (family 25, model 17)"),
    ],
)
def test_a_processor_without_a_number_is_told_by_family_and_model(tmp_path, name, shown):
    (tmp_path / "cpuinfo").write_text(CPUINFO.format(name=name))
    fields = hardware._cpuinfo(tmp_path / "cpuinfo")
    assert hardware._processor(fields) == shown
    assert "amx_tile" in fields["flags"].split()


def test_a_system_without_cpuinfo_has_no_fields(tmp_path):
    assert hardware._cpuinfo(tmp_path / "missing") == {}


def test_caches_are_read_from_the_kernel(tmp_path):
    for index, (level, kind, size) in enumerate(
        [("1", "Data", "48K"), ("2", "Unified", "2M"), ("", "", "")]
    ):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(f"{text}\n")
    assert hardware._caches(tmp_path) == (
        hardware.Cache(1, "data", 48 * 1024),
        hardware.Cache(2, "unified", 2 * 2**20),
    )


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("", 8)]
)
def test_a_containers_share_limits_the_cores(monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(hardware, "_read", lambda _: quota)
    assert hardware._cores() == cores


def test_the_summary_fits_a_line_and_names_the_widest_vectors():
    machine = hardware.Hardware(
        "Test 9000",
        "x86_64",
        1,
        2**34,
        (),
        ("avx2", "avx512f", "amx_tile"),
        "Linux",
        ("gpu: X x1",),
    )
    assert machine.summary == "Test 9000, 1 core, 16 GiB, AVX-512, AMX, gpu: X x1"


def test_provenance_holds_versions_and_only_settings_that_matter(monkeypatch):
    monkeypatch.setenv("TRIMTAB_THREADS", "3")
    monkeypatch.setenv("SECRET_TOKEN", "x")
    facts = provenance()
    assert facts["versions"]["trimtab"] == versions()["trimtab"] == trimtab.__version__
    assert facts["settings"]["TRIMTAB_THREADS"] == "3"
    assert "SECRET_TOKEN" not in json.dumps(facts)
