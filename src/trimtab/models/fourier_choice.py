"""Choosing how to compute the Fourier mixing: by cost measured on this machine, else by rule.

A :class:`MixingProfile` holds times of every path at a few shapes. :func:`measure_mixing` makes one
and :func:`save_profile` keeps it in the cache directory, where :func:`choose_path` finds it.
Without one the committed rule applies: on CPUs this package's native transform at all lengths, or
XLA's real transform where it is not built; on GPUs XLA's (matrices never won on the CPUs measured,
see the FNet page); on TPUs matrices up to 4,096 tokens, where the paper's code uses them too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import jax
import numpy as np

from trimtab.errors import FileFormatError, unknown_name
from trimtab.files import atomic_file, cache_directory
from trimtab.models.fourier_paths import PATHS

MATMUL_TOKENS_ON_TPU = 4096


@dataclass(frozen=True)
class MixingProfile:
    """Measured times of the mixing paths on one device.

    Args:
        device: the device's kind, as JAX names it.
        milliseconds: path -> {(tokens, width): milliseconds for one example}.
    """

    device: str
    milliseconds: Mapping[str, Mapping[tuple[int, int], float]]

    def estimate(self, path: str, tokens: int, width: int) -> float | None:
        """Milliseconds at a shape: measured there, else the nearest shape's time scaled by work.

        Returns:
            None if the path was not measured at all.
        """
        measured = self.milliseconds.get(path)
        if not measured:
            return None
        if (tokens, width) in measured:
            return measured[tokens, width]
        here = np.log([tokens, width])
        near = min(measured, key=lambda shape: float(np.abs(np.log(shape) - here).sum()))
        work = PATHS[path].work
        return measured[near] * work(tokens, width) / work(*near)


def choose_path(
    tokens: int,
    width: int,
    path: str = "auto",
    *,
    backend: str | None = None,
    profile: MixingProfile | None = None,
    transforms: bool = True,
) -> str:
    """Return the name of the quickest path for a shape.

    Args:
        tokens: length of the sequence axis.
        width: length of the feature axis.
        path: ``"auto"``, or a name that is checked and returned.
        backend: ``"cpu"``, ``"gpu"`` or ``"tpu"``; JAX's default backend if None.
        profile: measured times; the saved profile of this device if None and there is one.
        transforms: whether FFT instructions are allowed; False for exports without them.

    Raises:
        UnknownNameError: ``path`` is neither ``"auto"`` nor known.
    """
    if path != "auto":
        if path not in PATHS:
            raise unknown_name("mixing path", path, [*PATHS, "auto"])
        return path
    backend = backend or jax.default_backend()
    known = {
        name: p
        for name, p in PATHS.items()
        if p.serves(backend) and (transforms or not p.transforms)
    }
    profile = profile or load_profile(backend)
    if profile is not None:
        times = {name: profile.estimate(name, tokens, width) for name in known}
        timed = {name: value for name, value in times.items() if value is not None}
        if timed:
            return min(timed, key=lambda name: timed[name])
    return _by_rule(tokens, backend, transforms)


def _by_rule(tokens: int, backend: str, transforms: bool) -> str:
    if not transforms or (backend == "tpu" and tokens <= MATMUL_TOKENS_ON_TPU):
        return "folded_matmul"
    if PATHS["native"].serves(backend):
        return "native"
    return "real_fft"


def measure_mixing(
    shapes: Sequence[tuple[int, int]],
    *,
    paths: Sequence[str] = tuple(PATHS),
    repeats: int = 5,
    longest_matmul: int = 2048,
) -> MixingProfile:
    """Time the paths on the default device.

    Args:
        shapes: (tokens, width) pairs; one example each.
        paths: which paths.
        repeats: timed calls after the compiling one; the median counts.
        longest_matmul: the full and folded matrices are not tried on longer sequences, where
            they would need minutes and gigabytes.
    """
    backend = jax.default_backend()
    table: dict[str, dict[tuple[int, int], float]] = {}
    for name in paths:
        if not PATHS[name].serves(backend):
            continue
        for tokens, width in shapes:
            if not PATHS[name].transforms and tokens > longest_matmul and "matmul" in name:
                continue
            x = jax.random.normal(jax.random.key(0), (1, tokens, width))
            table.setdefault(name, {})[tokens, width] = _median_ms(
                jax.jit(PATHS[name].run), x, repeats
            )
    return MixingProfile(_device_kind(), table)


def _median_ms(run, x: jax.Array, repeats: int) -> float:
    run(x).block_until_ready()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run(x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def save_profile(profile: MixingProfile) -> Path:
    """Keep a profile in the cache directory, where :func:`choose_path` looks; return the file."""
    path = _profile_file(profile.device)
    rows = [
        {"path": name, "tokens": tokens, "width": width, "ms": ms}
        for name, cells in profile.milliseconds.items()
        for (tokens, width), ms in cells.items()
    ]
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps({"device": profile.device, "times": rows}, indent=1))
    load_profile.cache_clear()
    return path


@lru_cache(maxsize=8)
def load_profile(backend: str) -> MixingProfile | None:
    """Return the saved profile of this machine's device, or None if there is none.

    Raises:
        FileFormatError: the saved file cannot be read.
    """
    if backend != jax.default_backend():
        return None
    path = _profile_file(_device_kind())
    if not path.exists():
        return None
    try:
        saved = json.loads(path.read_text())
        table: dict[str, dict[tuple[int, int], float]] = {}
        for row in saved["times"]:
            table.setdefault(row["path"], {})[row["tokens"], row["width"]] = float(row["ms"])
        return MixingProfile(str(saved["device"]), table)
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(
            f"The mixing profile {path} is damaged ({error}). Delete it or measure again."
        ) from error


def _profile_file(device: str) -> Path:
    name = "".join(c if c.isalnum() else "-" for c in device)
    return cache_directory("mixing") / f"{name}.json"


def _device_kind() -> str:
    return f"{jax.default_backend()} {jax.devices()[0].device_kind}"
