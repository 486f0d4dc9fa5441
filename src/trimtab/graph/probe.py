"""The measurement behind a machine profile; ``trimtab.graph.machine`` runs it in a new process."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from trimtab.hardware import describe

# Long enough for a clock, short enough that a preemption spoils one sample and not all.
_SAMPLE_S = 0.04
_DTYPES = ("float32", "bfloat16", "float16", "int8", "float64")
_PEAKS = ("float32", "bfloat16", "int8")


def probe(cores: int) -> dict[str, Any]:
    """Measure on that many cores of this process.

    Args:
        cores: how many the process is pinned to; it must have been pinned before NumPy and JAX
            started their threads.

    Returns:
        ``bandwidth`` and ``copy_bandwidth`` in bytes a second, ``rates`` of products and ``peaks``
        in registers in operations a second by element type, and ``engines``, what reached each
        rate. Peaks need the native kernels and are empty without them.
    """
    read, copy = memory_rates(cores)
    native = native_rates()
    rates, engines = {}, {}
    for dtype in _DTYPES:
        found = {"XLA": _xla_rate(dtype)}
        if dtype in ("float32", "float64"):
            found["NumPy"] = _numpy_rate(dtype)
        if native and dtype in ("float32", "bfloat16"):
            found["kernels"] = _kernel_rate(dtype)
        engines[dtype] = max(found, key=lambda engine: found[engine])
        rates[dtype] = found[engines[dtype]]
    return {
        "bandwidth": max(read, native.get("read", 0.0)),
        "copy_bandwidth": max(copy, native.get("copy", 0.0)),
        "rates": rates,
        "engines": engines,
        "peaks": {name: native[name] for name in _PEAKS if name in native},
    }


def native_rates() -> dict[str, float]:
    """Return what the kernels' own probe reaches: ``read``, ``copy``, and peaks by element type.

    Empty where those kernels are not built.
    """
    from trimtab.kernels import _library
    from trimtab.kernels import probe as kernels

    # Builds may leave families of kernels out.
    if not {"probe_read", "probe_copy", *(f"probe_{name}" for name in _PEAKS)} <= (
        _library.kernel_names()
    ):
        return {}
    return {
        "read": kernels.read_bandwidth(_beyond_caches()),
        "copy": kernels.copy_bandwidth(_beyond_caches() // 2),
        **{name: kernels.operation_rate(name) for name in _PEAKS},
    }


def memory_rates(cores: int) -> tuple[float, float]:
    """Return bytes a second of reading and of copying (read plus written) main memory.

    Args:
        cores: number of threads, each with a part of its own.
    """
    part = _beyond_caches() // cores // 8
    sources = [np.ones(part, np.float64) for _ in range(cores)]
    targets = [np.zeros(part, np.float64) for _ in range(cores)]
    with ThreadPoolExecutor(cores) as pool:
        read = _best(lambda: list(pool.map(np.max, sources)))
        copy = _best(lambda: list(pool.map(np.copyto, targets, sources)))
    return part * 8 * cores / read, 2 * part * 8 * cores / copy


def _beyond_caches() -> int:
    """Return bytes that are several times the last cache, or the cache would be measured."""
    caches = [cache.size_bytes for cache in describe().caches]
    return max(256 * 2**20, 6 * max(caches, default=0))


def _kernel_rate(dtype: str) -> float:
    import jax
    import jax.numpy as jnp

    from trimtab.kernels import dense_linear

    def product(n: int) -> Callable[[], Any]:
        square = jnp.ones((n, n), dtype)
        multiply = jax.jit(dense_linear)
        return lambda: jax.block_until_ready(multiply(square, square))

    return _product_rate(product)


def _xla_rate(dtype: str) -> float:
    import jax
    import jax.numpy as jnp

    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    accumulate = jnp.int32 if dtype == "int8" else None

    def product(n: int) -> Callable[[], Any]:
        square = jnp.ones((n, n), dtype)
        multiply = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=accumulate))
        return lambda: jax.block_until_ready(multiply(square, square))

    return _product_rate(product)


def _numpy_rate(dtype: str) -> float:
    def product(n: int) -> Callable[[], Any]:
        square = np.ones((n, n), dtype)
        return lambda: square @ square

    return _product_rate(product)


def _product_rate(product: Callable[[int], Callable[[], Any]]) -> float:
    """Return the rate of square products, grown until one takes a sample's time."""
    n = 256
    while True:
        call = product(n)
        call()
        start = time.perf_counter()
        call()
        if time.perf_counter() - start > _SAMPLE_S or n >= 4096:
            return 2 * n**3 / _best(call)
        n *= 2


def _best(call: Callable[[], Any]) -> float:
    """Return the seconds of the fastest call: the machine's own limit, not its other work."""
    call()
    best, spent = float("inf"), 0.0
    while spent < 15 * _SAMPLE_S:
        start = time.perf_counter()
        call()
        taken = time.perf_counter() - start
        best, spent = min(best, taken), spent + taken
    return best


def main() -> None:
    """Measure and print the result as one JSON line."""
    print(json.dumps(probe(int(sys.argv[1]))))
