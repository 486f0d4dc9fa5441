"""The native extension as a whole: loading, settings, threads, symbols, memory, emulation."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trimtab import kernels
from trimtab.errors import DeviceError, InputError, TrimtabError, UnknownNameError
from trimtab.kernels import _library
from trimtab.kernels.binding import kernel

ROOT = Path(__file__).parent.parent.parent
native = _library.extension()
needs_native = pytest.mark.skipif(native is None, reason="the native kernels are not built")


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    source = Path(kernels.__file__).parent.parent.parent
    variables = {**os.environ, "PYTHONPATH": str(source), **environment}
    return subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=120
    )


def test_the_extension_is_built_wherever_a_compiler_is():
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    assert native is not None, "run: python scripts/build_native.py"


@needs_native
def test_every_kernel_runs_at_the_scalar_level_and_at_no_level_that_is_unknown():
    assert native is not None
    for name in native.kernel_names():
        variants = native.variants(name)
        assert "scalar" in variants, name
        assert set(variants) <= set(_library.ISA_NAMES)


@needs_native
def test_a_level_without_a_variant_is_served_by_the_next_below():
    assert native is not None
    if "avx512f" not in kernels.available_isas():
        pytest.skip("this processor has no avx512f")
    with kernels.use_isa("avx512f"):
        assert native.serving_isa("layer_norm") == "avx2"
        assert kernels.active_isa() == "avx512f"


@needs_native
def test_features_agree_with_what_the_system_reports():
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("no /proc/cpuinfo")
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    assert flags is not None
    reported = set(flags.group(1).split())
    for feature, present in kernels.cpu_features().items():
        if feature != "neon":
            assert present == (feature in reported), feature


@needs_native
@pytest.mark.parametrize(
    ("variables", "error", "words"),
    [
        ({"TRIMTAB_ISA": "avx3"}, UnknownNameError, "avx512"),
        ({"TRIMTAB_THREADS": "none"}, InputError, "TRIMTAB_THREADS"),
        ({"TRIMTAB_THREADS": "0"}, InputError, "TRIMTAB_THREADS"),
    ],
)
def test_a_wrong_setting_is_named_in_one_sentence(variables, error, words):
    run = python("from trimtab import kernels; kernels.active_isa()", **variables)
    last = run.stderr.strip().splitlines()[-1]
    assert error.__name__ in last
    assert words in last


@needs_native
def test_settings_choose_level_and_threads():
    run = python(
        "from trimtab import kernels; print(kernels.active_isa(), kernels.thread_count())",
        TRIMTAB_ISA="scalar",
        TRIMTAB_THREADS="3",
    )
    assert run.stdout.split() == ["scalar", "3"]


@needs_native
def test_a_level_that_the_processor_lacks_is_refused():
    missing = [isa for isa in _library.ISA_NAMES if isa not in kernels.available_isas()]
    if not missing:
        pytest.skip("this processor has every level")
    with pytest.raises(DeviceError, match="highest level"), kernels.use_isa(missing[0]):
        pass


def test_fewer_than_one_thread_is_refused():
    with pytest.raises(InputError, match="at least one"):
        kernels.set_thread_count(0)


USE_EVERYTHING = """
import warnings, jax, jax.numpy as jnp
from trimtab import kernels
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    x = jnp.ones((2, 3, 4))
    out = kernels.fourier_mix_residual_norm(x, jnp.ones(4), jnp.zeros(4))
    grad = jax.grad(lambda x: kernels.layer_norm(x, jnp.ones(4), jnp.zeros(4)).sum())(x)
    kernels.bias_gelu(x, jnp.ones(4)).block_until_ready()
print(kernels.active_isa(), out.shape, [str(w.message) for w in caught if "native" in str(w)])
"""


def test_without_the_extension_references_run_and_one_warning_says_so():
    hidden = "import sys; sys.modules['trimtab.kernels._native'] = None\n"
    run = python(hidden + USE_EVERYTHING)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("reference (2, 3, 4) [")
    assert run.stdout.count("C++17 compiler") == 1


def test_native_code_can_be_switched_off_without_a_warning():
    run = python(USE_EVERYTHING, TRIMTAB_ISA="reference")
    assert run.stdout.strip() == "reference (2, 3, 4) []", run.stderr


def test_importing_the_room_loads_neither_jax_nor_torch_nor_the_extension():
    run = python(
        "import sys, trimtab.kernels\n"
        "print([m for m in ('jax', 'torch', 'trimtab.kernels._native') if m in sys.modules])"
    )
    assert run.stdout.strip() == "[]", run.stderr


def test_no_module_hides_a_public_function():
    exported = set(kernels._EXPORTS)
    modules = {path.stem for path in Path(kernels.__file__).parent.glob("*.py")}
    assert not exported & modules
    for name in kernels._EXPORTS:
        assert callable(getattr(kernels, name)), name


@needs_native
def test_the_stub_lists_what_the_extension_has():
    stub = (Path(kernels.__file__).parent / "_native.pyi").read_text()
    stated = set(re.findall(r"^def (\w+)", stub, re.MULTILINE))
    assert stated == {name for name in dir(native) if not name.startswith("_")}


def test_a_kernel_name_is_bound_once():
    import trimtab.kernels.normalization  # noqa: F401

    with pytest.raises(InputError, match="already"):
        kernel("layer_norm", reference=lambda x: x)


@needs_native
def test_a_forked_child_gets_a_pool_of_its_own():
    run = python(
        "import os, sys; sys.path.insert(0, 'tests/kernels')\n"
        "from kernel_cases import CASES, run_raw\n"
        "from trimtab import kernels\n"
        "kernels.set_thread_count(3)\n"
        "case = CASES[6]\n"
        "x = case.arguments(200, 96, 'float32')\n"
        "call = lambda: run_raw(case.kernel, x, {'factor': 1.0})[0].tobytes()\n"
        "parent = call()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if all(call() == parent for _ in range(20)) else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), call() == parent)\n",
    )
    assert run.stdout.split() == ["0", "True"], run.stderr


@needs_native
def test_allocated_memory_is_aligned_and_freed_with_its_array():
    assert native is not None
    small, large = native.allocate(100), native.allocate(3 << 20)
    assert small.ctypes.data % 64 == 0
    assert large.ctypes.data % (2 << 20) == 0
    large[-1] = 7
    view = large[5:]
    del large
    assert view[-1] == 7
    with pytest.raises(MemoryError):
        native.allocate(1 << 62)


@needs_native
def test_bad_raw_calls_raise_instead_of_crashing():
    assert native is not None
    index = native.kernel_index("layer_norm")
    x = np.ones((2, 4), np.int32)
    raw = (x.ctypes.data, _library.DATA_TYPES["int32"], 2, 4)
    with pytest.raises(ValueError, match="float32"):
        native.call(index, (raw, raw, raw), (raw,), {})
    with pytest.raises(IndexError):
        native.call(10_000, (), (), {})
    with pytest.raises(KeyError):
        native.kernel_index("no such kernel")


@needs_native
def test_probes_report_plausible_rates():
    size = 4 << 20
    assert 1e8 < kernels.read_bandwidth(size, samples=2) < 1e13
    assert 1e8 < kernels.copy_bandwidth(size, samples=2) < 1e13
    for dtype in ("float32", "bfloat16", "int8"):
        assert 1e8 < kernels.operation_rate(dtype, sample_s=0.002, samples=2) < 1e16
    with pytest.raises(TrimtabError, match="float32"):
        kernels.operation_rate("float33")
    with pytest.raises(InputError, match="1 MiB"):
        kernels.read_bandwidth(10)


@needs_native
@pytest.mark.parametrize("isa", kernels.available_isas())
def test_the_read_probe_reads_every_byte(isa):
    assert native is not None
    source = native.allocate(2 << 20)
    source[:] = np.random.default_rng(0).integers(0, 256, source.size, dtype=np.uint8)
    target = native.allocate(2 << 20)
    sums = np.zeros(2, np.uint64)
    raw = [
        (array.ctypes.data, _library.DATA_TYPES[str(array.dtype)], *array.shape)
        for array in (source, sums, target)
    ]
    with kernels.use_isa(isa):
        native.call(native.kernel_index("probe_read"), (raw[0],), (raw[1],), {})
        native.call(native.kernel_index("probe_copy"), (raw[0],), (raw[2],), {})
    expected = np.bitwise_xor.reduce(source.view(np.uint64).reshape(2, -1), axis=1)
    np.testing.assert_array_equal(sums, expected)
    np.testing.assert_array_equal(source, target)


def test_operations_of_a_foreign_call_follow_from_its_shapes():
    import trimtab.kernels.fourier  # noqa: F401

    x = np.ones((16, 32), np.float32)
    found = kernels.operations_of("trimtab_fourier_mix", [x], [x])
    assert found == 2.5 * 512 * 9
    assert kernels.operations_of("somebody_else", [x], [x]) is None


# ---- symbols ------------------------------------------------------------------------------------

sys.path.insert(0, str(ROOT / "scripts"))
needs_compiler = pytest.mark.skipif(
    shutil.which("c++") is None or shutil.which("nm") is None, reason="no compiler or nm"
)


@needs_compiler
def test_the_symbol_check_finds_an_inline_function_that_objects_would_share(tmp_path):
    check = importlib.import_module("check_isa_symbols")
    source = tmp_path / "shared.cpp"
    source.write_text(
        "inline int twice(int x) { return x + x; }\n"
        "namespace { int own(int x) { return x; } }\n"
        "int (*keep)(int) = twice;\n"
        'extern "C" const int family_on_avx2 = 0; int use() { return own(1); }\n'
    )
    subprocess.run(["c++", "-c", source, "-o", tmp_path / "shared.o"], check=True)
    listing = subprocess.run(
        ["nm", "--defined-only", tmp_path / "shared.o"], check=True, capture_output=True, text=True
    ).stdout
    found = check.foreign_symbols(listing)
    assert any("twice" in symbol for symbol in found)
    assert not any("own" in symbol or "family_on_avx2" in symbol for symbol in found)


@needs_compiler
def test_objects_of_one_instruction_set_share_nothing_with_the_others():
    check = importlib.import_module("check_isa_symbols")
    objects = sorted((ROOT / "build" / "native").glob("CMakeFiles/*_on_*.dir/**/*.o"))
    if not objects:
        pytest.skip("no build folder here; the build itself makes the same check")
    for path in objects:
        listing = subprocess.run(
            ["nm", "--defined-only", path], check=True, capture_output=True, text=True
        ).stdout
        assert check.foreign_symbols(listing) == [], path


# ---- AMX by emulation ---------------------------------------------------------------------------


@needs_native
def test_emulated_tile_instructions_give_the_products_of_the_manual():
    if "avx512" not in kernels.available_isas() or sys.platform != "linux":
        pytest.skip("emulation needs AVX512-BF16 and Linux")
    assert native is not None
    code = (
        "import numpy as np\n"
        "from trimtab import kernels\n"
        "from trimtab.kernels import _library\n"
        "native = _library.extension()\n"
        "result = np.zeros(2)\n"
        "raw = (result.ctypes.data, _library.DATA_TYPES['float64'], 2)\n"
        "with kernels.use_isa('amx-emulated'):\n"
        "    for name in ('probe_bfloat16', 'probe_int8'):\n"
        "        assert native.serving_isa(name) == 'amx'\n"
        "        native.call(native.kernel_index(name), (), (raw,), {'rounds': 3, 'seed': 1})\n"
        "        print(result[1] / kernels.thread_count())\n"
    )
    run = python(code)
    assert run.returncode == 0, run.stderr
    # A row of 1.0f is 0x0000, 0x3F80 in bfloat16: 16 odd products of 1 a round.
    # Bytes 5, 3, 2, 1: 16 times 25 + 9 + 4 + 1 a round.
    assert [float(word) for word in run.stdout.split()] == [3 * 16.0, 3 * 16 * 39.0]


@pytest.mark.slow
def test_a_build_without_a_compiler_gives_a_pure_wheel(tmp_path):
    pytest.importorskip("scikit_build_core")
    pip = [sys.executable, "-m", "pip"]
    run = subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT],
        env={**os.environ, "CC": "/bin/false", "CXX": "/bin/false"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("py3-none-any.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "-q", "--no-deps", "-t", site, wheel], check=True)
    code = f"import sys; sys.path.insert(0, {str(site)!r})\n" + USE_EVERYTHING
    used = python(code, PYTHONPATH=str(site))
    assert used.stdout.startswith("reference"), used.stderr
