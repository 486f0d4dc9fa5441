"""Memory, undefined behaviour and data races, as the sanitizers see them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
NATIVE = ROOT / "src" / "trimtab" / "kernels" / "native"

pytestmark = pytest.mark.skipif(
    shutil.which("c++") is None or sys.platform != "linux", reason="needs GCC or Clang on Linux"
)


@pytest.mark.slow
def test_the_thread_pool_has_no_data_race(tmp_path):
    program = tmp_path / "pool_stress"
    sources = [
        Path(__file__).parent / "pool_stress.cpp",
        NATIVE / "pool.cpp",
        NATIVE / "memory.cpp",
    ]
    flags = ["-std=gnu++17", "-O1", "-g", "-fsanitize=thread", "-Wno-psabi", "-pthread"]
    built = subprocess.run(
        ["c++", *flags, "-I", NATIVE, *sources, "-o", program], capture_output=True, text=True
    )
    if "cannot find" in built.stderr:
        pytest.skip("this compiler has no ThreadSanitizer")
    assert built.returncode == 0, built.stderr
    run = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "0"
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
def test_the_kernels_pass_the_address_and_undefined_behaviour_sanitizers():
    run = subprocess.run(
        [sys.executable, ROOT / "scripts" / "sanitize_kernels.py"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
