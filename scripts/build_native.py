"""Build the kernels into the source tree: python scripts/build_native.py

Keeps its objects in build/native, so that a second run compiles only what changed. The finished
extension replaces the old one in one step; processes that already loaded the old one keep it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Let one build at a time use a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w") as lock:
        with contextlib.suppress(ImportError):  # Windows has no fcntl, and no native build either.
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(directory: Path, sanitize: str, without: str, jobs: int) -> Path:
    """Configure and compile; return the path of the extension in the build directory."""
    options = [
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DTRIMTAB_SANITIZE={sanitize}",
        f"-DTRIMTAB_WITHOUT={without.replace(',', ';')}",
        "-DCMAKE_BUILD_TYPE=Release",
    ]
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = ["cmake", "-S", str(_ROOT), "-B", str(directory), *generator, *options]
    subprocess.run([*configure, "--log-level=WARNING"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", str(directory), "--parallel", str(jobs)], check=True)
    return max(directory.glob("_native*.so"), key=lambda path: path.stat().st_mtime)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sanitize", default="", help="such as address,undefined")
    parser.add_argument("--without", default="", help="kernel files to leave out, comma-separated")
    parser.add_argument("--directory", type=Path, help="where objects are kept")
    parser.add_argument("--output", type=Path, help="folder that receives the extension")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    directory = options.directory or _ROOT / "build" / (
        "sanitized" if options.sanitize else "native"
    )
    output = options.output or _ROOT / "src" / "trimtab" / "kernels"
    with exclusive(directory):
        try:
            extension = build(directory, options.sanitize, options.without, options.jobs)
        except subprocess.CalledProcessError as error:
            print(
                f"The build failed ({error.returncode}); the old extension stays.", file=sys.stderr
            )
            return 1
        output.mkdir(parents=True, exist_ok=True)
        temporary = output / f".{extension.name}.new"
        shutil.copy2(extension, temporary)
        os.replace(temporary, output / extension.name)
    print(output / extension.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
