"""What this machine is: processor, cores, memory, caches, instruction sets. Nothing is measured."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trimtab

# Packages whose version a measured number depends on.
_PACKAGES = ("trimtab", "jax", "jaxlib", "numpy", "torch", "transformers", "equinox", "flax")
# Variables that change how fast things run, beside our own.
_VARIABLES = ("XLA_FLAGS", "JAX_PLATFORMS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")

# As /proc/cpuinfo spells them, in the order in which kernels would prefer them.
_SETS = (
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    # Arm
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
)


@dataclass(frozen=True)
class Cache:
    """A cache of the first core: its level, what it holds, and its size in bytes."""

    level: int
    kind: str
    size_bytes: int


@dataclass(frozen=True)
class Hardware:
    """The facts that a measured number depends on.

    Args:
        processor: the model as the processor names itself.
        architecture: such as ``"x86_64"``.
        cores: cores that this process may use.
        memory_bytes: memory that this process may use.
        caches: caches of the first core, smallest level first; empty where unknown.
        instruction_sets: vector and matrix extensions, in the kernel's spelling.
        system: operating system and release.
        devices: accelerators and their number, such as ``("gpu: NVIDIA H100 x1",)``.
    """

    processor: str
    architecture: str
    cores: int
    memory_bytes: int
    caches: tuple[Cache, ...]
    instruction_sets: tuple[str, ...]
    system: str
    devices: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """One line for tables: processor, cores, memory and the widest instruction sets."""
        parts = [f"{self.processor}, {self.cores} core{'s' * (self.cores != 1)}"]
        if self.memory_bytes:
            parts.append(f"{self.memory_bytes / 2**30:.0f} GiB")
        wide = [name for name in ("avx2", "avx512f", "amx_tile", "asimd", "sve") if self.has(name)]
        names = {"avx512f": "AVX-512", "amx_tile": "AMX", "avx2": "AVX2", "asimd": "NEON"}
        parts += [names.get(name, name.upper()) for name in wide[-2:]]
        return ", ".join([*parts, *self.devices])

    def has(self, name: str) -> bool:
        """Whether an instruction set, as the kernel spells it, is there."""
        return name in self.instruction_sets

    def to_json(self) -> dict[str, Any]:
        """Return the facts as JSON values."""
        values = dataclasses.asdict(self)
        values["caches"] = [dataclasses.asdict(cache) for cache in self.caches]
        values["instruction_sets"] = list(self.instruction_sets)
        values["devices"] = list(self.devices)
        return values


def describe(*, devices: bool = False) -> Hardware:
    """Look at this machine.

    Args:
        devices: also ask JAX for accelerators, which starts its backend.
    """
    fields = _cpuinfo()
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return Hardware(
        processor=_processor(fields),
        architecture=platform.machine(),
        cores=_cores(),
        memory_bytes=_memory_bytes(),
        caches=_caches(),
        instruction_sets=tuple(name for name in _SETS if name in flags),
        system=f"{platform.system()} {platform.release()}",
        devices=_devices() if devices else (),
    )


def provenance(*, devices: bool = False) -> dict[str, Any]:
    """Record what a measured number depends on, as JSON values: machine, versions, settings.

    Args:
        devices: also ask JAX for accelerators, which starts its backend.
    """
    settings = {
        name: value
        for name, value in sorted(os.environ.items())
        if name in _VARIABLES or name.startswith(("TRIMTAB_", "OPENBLAS_"))
    }
    hardware = describe(devices=devices)
    return {
        "summary": hardware.summary,
        **hardware.to_json(),
        "python": platform.python_version(),
        "versions": versions(),
        "settings": settings,
    }


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that numbers depend on."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found.setdefault("trimtab", trimtab.__version__)
    return found


def _cpuinfo(path: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    try:
        text = path.read_text()
    except OSError:
        return {}
    first = text.split("\n\n", 1)[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def _processor(fields: Mapping[str, str]) -> str:
    name = fields.get("model name") or _sysctl("machdep.cpu.brand_string") or platform.processor()
    # A virtual machine may hide the model's number; family and model still tell generations apart.
    if name and fields.get("model") and not re.search(r"\d", name):
        name = f"{name} (family {fields.get('cpu family')}, model {fields['model']})"
    return name or platform.machine()


def _sysctl(key: str) -> str:
    if platform.system() != "Darwin":
        return ""
    done = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _cores() -> int:
    """Count the cores of the affinity mask, or fewer if a container has a smaller share."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit() and int(quota[1]) > 0:
        cores = min(cores, max(1, round(int(quota[0]) / int(quota[1]))))
    return cores


def _memory_bytes() -> int:
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        memory = 0
    limit = _read("/sys/fs/cgroup/memory.max")
    return min(memory, int(limit)) if limit.isdigit() else memory


def _caches(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> tuple[Cache, ...]:
    caches = []
    for folder in sorted(root.glob("index*")):
        size = re.fullmatch(r"(\d+)([KMG]?)", _read(folder / "size"))
        level = _read(folder / "level")
        if size and level.isdigit():
            scale = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[size[2]]
            kind = _read(folder / "type").lower()
            caches.append(Cache(int(level), kind, int(size[1]) * scale))
    return tuple(caches)


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _devices() -> tuple[str, ...]:
    import jax

    kinds: dict[str, int] = {}
    for device in jax.devices():
        if device.platform != "cpu":
            label = f"{device.platform}: {device.device_kind}"
            kinds[label] = kinds.get(label, 0) + 1
    return tuple(f"{label} x{count}" for label, count in kinds.items())
