"""Run the kernel tests with AddressSanitizer and UndefinedBehaviorSanitizer.

    python scripts/sanitize_kernels.py [PYTEST ARGUMENTS]

Builds a second extension in build/sanitized and puts it in the place of the ordinary one, in one
process only. Without arguments the tests of kernels against their references run.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_FOLDER = _ROOT / "build" / "sanitized" / "extension"
_TESTS = ["tests/kernels", "-k", "not torch and not process and not forked and not wheel"]
_MARK = "TRIMTAB_SANITIZED_RUN"


def sanitizer_runtime(name: str) -> str:
    """Path of a sanitizer's shared library, which has to be loaded before Python's own code."""
    return subprocess.run(
        ["c++", f"-print-file-name={name}"], check=True, capture_output=True, text=True
    ).stdout.strip()


def launch(arguments: list[str]) -> int:
    """Build, then start this script again with the sanitizers in place."""
    build = [sys.executable, str(_ROOT / "scripts" / "build_native.py")]
    build += ["--sanitize", "address,undefined", "--output", str(_FOLDER)]
    if subprocess.run(build, stdout=subprocess.DEVNULL).returncode:
        return 1
    environment = {
        **os.environ,
        _MARK: "1",
        "LD_PRELOAD": f"{sanitizer_runtime('libasan.so')} {sanitizer_runtime('libubsan.so')}",
        # Python and XLA keep memory until the process ends, and XLA handles its own signals.
        "ASAN_OPTIONS": "detect_leaks=0:handle_segv=0:allow_user_segv_handler=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONPATH": str(_ROOT / "src"),
    }
    return subprocess.run([sys.executable, __file__, *arguments], env=environment).returncode


def run_tests(arguments: list[str]) -> int:
    """Load the sanitized extension under the ordinary one's name and start pytest."""
    name = "trimtab.kernels._native"
    (path,) = _FOLDER.glob("_native*.so")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module

    import pytest

    os.chdir(_ROOT)
    return int(pytest.main(arguments or _TESTS))


if __name__ == "__main__":
    run = run_tests if os.environ.get(_MARK) else launch
    sys.exit(run(sys.argv[1:]))
