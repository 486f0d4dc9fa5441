"""What this machine can do at most, through the kernels' own threads and instructions.

Each figure is the best of several short samples: a preemption spoils one of them, and nothing can
make a sample too fast.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import numpy as np

from trimtab.errors import DeviceError, InputError, unknown_name
from trimtab.kernels import _library

_MIB = 1 << 20
_RATES = {"float32": "probe_float32", "bfloat16": "probe_bfloat16", "int8": "probe_int8"}


def read_bandwidth(size_bytes: int = 256 * _MIB, *, samples: int = 8) -> float:
    """Bytes a second that ``thread_count()`` threads read from one buffer on huge pages.

    Args:
        size_bytes: length of the buffer; several times the last cache to measure main memory,
            less than a cache to measure that cache.
        samples: how often to read it; the quickest counts.

    Raises:
        DeviceError: the native kernels are not built.
        InputError: less than 1 MiB.
    """
    native = _native()
    source = _buffer(size_bytes)
    source[:] = 1
    sums = np.zeros(size_bytes // _MIB, np.uint64)
    index = native.kernel_index("probe_read")
    seconds = _quickest(lambda: native.call(index, (_raw(source),), (_raw(sums),), {}), samples)
    return len(sums) * _MIB / seconds


def copy_bandwidth(size_bytes: int = 128 * _MIB, *, samples: int = 8) -> float:
    """Bytes a second read plus written when copying past the caches.

    Args:
        size_bytes: length of each of the two buffers.
        samples: how often to copy; the quickest counts.

    Raises:
        DeviceError: the native kernels are not built.
        InputError: less than 1 MiB.
    """
    native = _native()
    source, target = _buffer(size_bytes), _buffer(size_bytes)
    source[:] = 1
    target[:] = 0
    index = native.kernel_index("probe_copy")
    seconds = _quickest(lambda: native.call(index, (_raw(source),), (_raw(target),), {}), samples)
    return 2 * (size_bytes // _MIB) * _MIB / seconds


def operation_rate(dtype: str, *, sample_s: float = 0.03, samples: int = 5) -> float:
    """Operations a second in registers, a multiplication and an addition counted apart.

    ``float32`` uses fused multiply-adds; ``bfloat16`` and ``int8`` the dot products of AMX,
    AVX512-BF16 and AVX512-VNNI where the active instruction set has them. A real matrix product
    reaches a part of this.

    Args:
        dtype: ``"float32"``, ``"bfloat16"`` or ``"int8"``.
        sample_s: length of one sample.
        samples: how many; the quickest counts.

    Raises:
        DeviceError: the native kernels are not built.
        UnknownNameError: another type.
    """
    if dtype not in _RATES:
        raise unknown_name("element type", dtype, _RATES)
    native = _native()
    index = native.kernel_index(_RATES[dtype])
    result = np.zeros(2)

    def run(rounds: int) -> None:
        native.call(index, (), (_raw(result),), {"rounds": rounds, "seed": 1})

    rounds, seconds = 1, _quickest(lambda: run(1), 1)
    while seconds < sample_s / 8:
        rounds *= 4
        seconds = _quickest(functools.partial(run, rounds), 1)
    rounds = max(1, int(rounds * sample_s / seconds))
    quickest = _quickest(lambda: run(rounds), samples)
    return float(result[0]) / quickest


def _native():
    native = _library.extension()
    if native is None:
        raise DeviceError("Measuring peak rates needs the native kernels, which are not built.")
    return native


def _buffer(size_bytes: int) -> np.ndarray:
    if size_bytes < _MIB:
        raise InputError(f"A bandwidth needs a buffer of at least 1 MiB, not {size_bytes} bytes.")
    return _native().allocate(size_bytes)


def _raw(array: np.ndarray) -> tuple[int, ...]:
    return (array.ctypes.data, _library.DATA_TYPES[str(array.dtype)], *array.shape)


def _quickest(run: Callable[[], None], samples: int) -> float:
    best = float("inf")
    for _ in range(samples):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best
