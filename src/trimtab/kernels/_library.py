"""The door to the native extension: loading it, its instruction sets, its threads."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Iterator
from types import ModuleType

from trimtab.errors import DeviceError, InputError, unknown_name

# In rising order: each level includes those before it.
ISA_NAMES = ("scalar", "avx2", "avx512f", "avx512", "amx")

# AMX kernels with the tile instructions trapped and emulated: for tests, about 1000 times slower.
EMULATED = "amx-emulated"

# What a kernel's name is preceded by in a program that calls it.
TARGET_PREFIX = "trimtab_"

# Codes of native/kernel.h.
DATA_TYPES = {
    "bool": 1,
    "int8": 2,
    "int16": 3,
    "int32": 4,
    "int64": 5,
    "uint8": 6,
    "uint16": 7,
    "uint32": 8,
    "uint64": 9,
    "float16": 10,
    "float32": 11,
    "float64": 12,
    "bfloat16": 13,
}


@functools.cache
def extension() -> ModuleType | None:
    """Load the native extension and apply ``TRIMTAB_ISA`` and ``TRIMTAB_THREADS``.

    Returns:
        The module, or None where it was not built or cannot be loaded (said once, as a warning).
        None too under ``TRIMTAB_ISA=reference``.

    Raises:
        InputError: a variable holds something else than a known name or a positive number.
        DeviceError: this processor lacks the instruction set asked for.
    """
    isa = os.environ.get("TRIMTAB_ISA", "")
    if isa == "reference":
        return None
    try:
        from trimtab.kernels import _native
    except ImportError as error:
        warnings.warn(
            f"Trimtab's native kernels are not available ({error}); their slower JAX references "
            "run instead. Install a C++17 compiler and reinstall trimtab to have them.",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    if isa:
        _native.set_isa(_usable(isa, _native))
    if threads := os.environ.get("TRIMTAB_THREADS", ""):
        if not threads.isdigit() or int(threads) < 1:
            raise InputError(f"TRIMTAB_THREADS is {threads!r}; set it to a whole number from 1 on.")
        _native.set_thread_count(int(threads))
    return _native


def _usable(isa: str, native: ModuleType) -> str:
    """Check that kernels can run at a level here, and make it so for the emulated one."""
    if isa not in (*ISA_NAMES, EMULATED):
        raise unknown_name("instruction set", isa, [*ISA_NAMES, EMULATED, "reference"])
    best = native.best_isa()
    if isa == EMULATED:
        # The AVX-512 instructions around the emulated ones are real.
        if ISA_NAMES.index(best) < ISA_NAMES.index("avx512") or not native.emulate_amx():
            raise DeviceError("Emulating AMX needs Linux on a processor with AVX512-BF16.")
        return "amx"
    if ISA_NAMES.index(isa) > ISA_NAMES.index(best):
        raise DeviceError(
            f"This processor cannot run {isa!r} kernels; the highest level it has is {best!r}."
        )
    return isa


@functools.cache
def kernel_names() -> frozenset[str]:
    """Names that the extension can run; empty without it."""
    native = extension()
    return frozenset() if native is None else frozenset(native.kernel_names())


@functools.cache
def ffi_target(name: str) -> str:
    """Register a kernel's handler with XLA for the CPU, once, and name its target."""
    import jax

    native = extension()
    assert native is not None
    target = f"{TARGET_PREFIX}{name}"
    jax.ffi.register_ffi_target(target, native.handler(name), platform="cpu")
    return target


def cpu_features() -> dict[str, bool]:
    """Vector features of this processor that the operating system lets us use.

    Returns:
        Linux feature name (``avx2``, ``avx512_bf16``, ``amx_tile``, ``neon``, ...) to presence;
        empty where the extension is not built.
    """
    native = extension()
    return {} if native is None else native.cpu_features()


def available_isas() -> tuple[str, ...]:
    """Instruction-set levels that kernels can run at here, in rising order."""
    native = extension()
    if native is None:
        return ()
    return ISA_NAMES[: ISA_NAMES.index(native.best_isa()) + 1]


def active_isa() -> str:
    """The level that kernels run at now: one of ``available_isas()``, or ``"reference"``."""
    native = extension()
    return "reference" if native is None else native.active_isa()


@contextlib.contextmanager
def use_isa(isa: str) -> Iterator[None]:
    """Run kernels at another level inside a ``with`` block; the whole process is affected.

    Args:
        isa: one of ``available_isas()``, or ``"amx-emulated"`` to test AMX kernels without AMX.

    Raises:
        UnknownNameError: no level has this name.
        DeviceError: this processor lacks it, or the extension is not built.
    """
    native = extension()
    if native is None:
        raise DeviceError("The native kernels are not built, so there is no level to choose.")
    before = native.active_isa()
    native.set_isa(_usable(isa, native))
    try:
        yield
    finally:
        native.set_isa(before)


def thread_count() -> int:
    """Threads that share a kernel's work, the caller included; 1 without the extension."""
    native = extension()
    return 1 if native is None else native.thread_count()


def set_thread_count(threads: int) -> None:
    """Choose how many threads share a kernel's work; results do not depend on it.

    Args:
        threads: 1 or more. The default is ``TRIMTAB_THREADS`` or the cores that this process may
            use by affinity and cgroup quota.

    Raises:
        InputError: fewer than one thread.
    """
    if threads < 1:
        raise InputError(f"A kernel needs at least one thread, not {threads}.")
    if (native := extension()) is not None:
        native.set_thread_count(threads)


@contextlib.contextmanager
def use_threads(threads: int) -> Iterator[None]:
    """Share kernels' work among this many threads inside a ``with`` block."""
    before = thread_count()
    set_thread_count(threads)
    try:
        yield
    finally:
        set_thread_count(before)
