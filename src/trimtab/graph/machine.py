"""How fast this machine is: measured once, cached, and used to price programs on a roofline."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trimtab.errors import FileFormatError, InputError, UnsupportedError
from trimtab.files import atomic_file, cache_directory
from trimtab.hardware import Cache, Hardware, describe, versions
from trimtab.progress import Progress, silent

# Raised when the measurement or its file changes, so that old files are measured again.
_FORMAT = 2
# Packages whose version decides how fast a product runs.
_MEASURED_WITH = ("trimtab", "jaxlib", "numpy")
# Pins itself before anything is imported: threads that a library starts inherit it.
_PINNED_PROBE = """
import os, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:int(sys.argv[1])])
from trimtab.graph.probe import main
main()
"""
# Rates of element types that were not measured are those of a measured one of the same width.
_STAND_INS = {
    "float8_e4m3fn": "bfloat16",
    "float8_e5m2": "bfloat16",
    "uint8": "int8",
    "int4": "int8",
    "uint4": "int8",
    "complex128": "float64",
    "int64": "float64",
    "uint64": "float64",
}


@dataclass(frozen=True)
class MachineProfile:
    """The measured speed of one machine.

    Args:
        hardware: what the machine is.
        bandwidth: cores -> bytes a second that they read together from main memory.
        copy_bandwidth: cores -> bytes a second, read plus written, of a copy in main memory.
        rates: element type -> cores -> operations a second of a large matrix product
            (a multiply-add counts two).
        engines: element type -> what reached that rate on all cores.
        versions: packages that were measured.
        date: when, ISO 8601 in UTC.
        load: load average before the measurement; well above 0, the rates are too low.
        peaks: element type -> cores -> operations a second in registers, which a product reaches
            a part of; empty without the native kernels.
    """

    hardware: Hardware
    bandwidth: Mapping[int, float]
    copy_bandwidth: Mapping[int, float]
    rates: Mapping[str, Mapping[int, float]]
    engines: Mapping[str, str]
    versions: Mapping[str, str]
    date: str
    load: float | None = None
    peaks: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    @property
    def cores(self) -> int:
        """The largest number of cores that was measured."""
        return max(self.bandwidth)

    def read_rate(self, cores: int | None = None) -> float:
        """Return bytes a second from main memory.

        Args:
            cores: how many cores read; by default all. Between measured numbers the rate is
                interpolated.
        """
        return _interpolate(self.bandwidth, cores)

    def flop_rate(self, dtype: str, cores: int | None = None) -> float:
        """Return operations a second of a large matrix product.

        Args:
            dtype: name of the element type; one that was not measured counts as its nearest
                relative, at last ``"float32"``.
            cores: how many cores work; by default all.
        """
        name = dtype if dtype in self.rates else _STAND_INS.get(dtype, "float32")
        return _interpolate(self.rates[name if name in self.rates else "float32"], cores)

    def balance(self, dtype: str = "float32") -> float:
        """Return the operations per byte above which arithmetic, not memory, is the limit."""
        return self.flop_rate(dtype) / self.read_rate()

    def to_json(self) -> dict[str, Any]:
        """Return the profile as JSON values."""
        return {
            "format": _FORMAT,
            "hardware": self.hardware.to_json(),
            "bandwidth": _text_keys(self.bandwidth),
            "copy_bandwidth": _text_keys(self.copy_bandwidth),
            "rates": {name: _text_keys(rates) for name, rates in self.rates.items()},
            "engines": dict(self.engines),
            "versions": dict(self.versions),
            "date": self.date,
            "load": self.load,
            "peaks": {name: _text_keys(rates) for name, rates in self.peaks.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> MachineProfile:
        """Undo :meth:`to_json`.

        Raises:
            FileFormatError: a part is missing or is not what it should be.
        """
        try:
            if values["format"] != _FORMAT:
                raise FileFormatError(
                    f"Machine profile of format {values['format']}, expected {_FORMAT}. "
                    "Run: trimtab machine --again"
                )
            hardware = dict(values["hardware"])
            hardware["caches"] = tuple(Cache(**cache) for cache in hardware["caches"])
            hardware["instruction_sets"] = tuple(hardware["instruction_sets"])
            hardware["devices"] = tuple(hardware["devices"])
            return cls(
                hardware=Hardware(**hardware),
                bandwidth=_number_keys(values["bandwidth"]),
                copy_bandwidth=_number_keys(values["copy_bandwidth"]),
                rates={name: _number_keys(rates) for name, rates in values["rates"].items()},
                engines=dict(values["engines"]),
                versions=dict(values["versions"]),
                date=values["date"],
                load=values["load"],
                peaks={name: _number_keys(rates) for name, rates in values["peaks"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, FileFormatError):
                raise
            raise FileFormatError(
                f"The machine profile is damaged ({error}). Run: trimtab machine --again"
            ) from error


def measure(*, again: bool = False, progress: Progress = silent) -> MachineProfile:
    """Return this machine's profile, from the cache or measured now (some twenty seconds).

    The measurement runs in processes of its own, one for each number of cores, pinned to them, so
    that neither this program's threads nor its settings of XLA enter.

    Args:
        again: measure even if the cache holds a profile.
        progress: told which number of cores is being measured.

    Raises:
        UnsupportedError: the measuring process could not run.
    """
    hardware = describe()
    path = profile_path(hardware)
    if not again and path.exists():
        try:
            return MachineProfile.from_json(json.loads(path.read_text()))
        except ValueError:
            pass  # Damaged or old: measured anew below.
    profile = _measure(hardware, progress)
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(profile.to_json(), indent=1) + "\n")
    return profile


def profile_path(hardware: Hardware | None = None) -> Path:
    """Return the file that caches the profile of a machine with these package versions.

    Args:
        hardware: the machine; by default this one.
    """
    hardware = hardware or describe()
    facts = [hardware.to_json(), _measured_versions(), _FORMAT]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    slug = re.sub(r"[^a-z0-9]+", "-", hardware.processor.lower()).strip("-")
    return cache_directory("machine") / f"{slug}-{digest}.json"


def roofline(
    flops: float, bytes: float, dtype: str, profile: MachineProfile, *, cores: int | None = None
) -> float:
    """Return the seconds that work takes at best: bound by arithmetic or by main memory.

    Args:
        flops: operations; a multiply-add counts two.
        bytes: bytes read and written.
        dtype: element type of the products.
        profile: the machine.
        cores: how many cores work; by default all.

    Returns:
        ``max(flops / rate, bytes / bandwidth)`` in seconds (Williams et al., "Roofline", 2009).

    Raises:
        InputError: an amount is negative.
    """
    if flops < 0 or bytes < 0:
        raise InputError(f"Work cannot be negative: {flops:g} operations, {bytes:g} bytes.")
    return max(flops / profile.flop_rate(dtype, cores), bytes / profile.read_rate(cores))


def _measure(hardware: Hardware, progress: Progress) -> MachineProfile:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    counts = _core_counts(hardware.cores)
    found = {}
    for done, cores in enumerate(counts):
        plural = "s" * (cores != 1)
        progress(f"measuring with {cores} core{plural}", done, len(counts))
        found[cores] = _probe(cores)
    last = found[counts[-1]]
    return MachineProfile(
        hardware=hardware,
        bandwidth={cores: result["bandwidth"] for cores, result in found.items()},
        copy_bandwidth={cores: result["copy_bandwidth"] for cores, result in found.items()},
        rates={
            name: {cores: result["rates"][name] for cores, result in found.items()}
            for name in last["rates"]
        },
        engines=last["engines"],
        versions=_measured_versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        load=load,
        peaks={
            name: {cores: result["peaks"][name] for cores, result in found.items()}
            for name in last["peaks"]
        },
    )


def _core_counts(cores: int) -> list[int]:
    """Return 1, 2, 4, ... and all; only all where processes cannot be pinned."""
    if not hasattr(os, "sched_setaffinity"):
        return [cores]
    counts = [1]
    while counts[-1] * 2 < cores:
        counts.append(counts[-1] * 2)
    return counts if cores == 1 else [*counts, cores]


def _probe(cores: int) -> dict[str, Any]:
    environment = {
        name: value
        for name, value in os.environ.items()
        # Test settings such as fake devices must not enter, nor limits on threads.
        if name not in ("XLA_FLAGS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    }
    environment |= {"JAX_PLATFORMS": "cpu", "TRIMTAB_THREADS": str(cores)}
    done = subprocess.run(
        [sys.executable, "-c", _PINNED_PROBE, str(cores)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        words = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise UnsupportedError(
            f"The machine could not be measured: {words[0]} Pass a MachineProfile instead."
        ) from None


def _measured_versions() -> dict[str, str]:
    return {name: version for name, version in versions().items() if name in _MEASURED_WITH}


def _interpolate(measured: Mapping[int, float], cores: int | None) -> float:
    known = sorted(measured)
    if cores is None or cores >= known[-1]:
        return measured[known[-1]]
    if cores < 1:
        raise InputError(f"At least one core must work, not {cores}.")
    if cores <= known[0]:
        return measured[known[0]] * cores / known[0]
    above = next(count for count in known if count >= cores)
    below = max(count for count in known if count <= cores)
    if above == below:
        return measured[above]
    share = (cores - below) / (above - below)
    return measured[below] + share * (measured[above] - measured[below])


def _text_keys(values: Mapping[int, float]) -> dict[str, float]:
    return {str(cores): value for cores, value in values.items()}


def _number_keys(values: Mapping[str, float]) -> dict[int, float]:
    numbers = {int(cores): float(value) for cores, value in values.items()}
    if not numbers or min(numbers.values()) <= 0:
        raise ValueError("a rate is missing or not above 0")
    return numbers
