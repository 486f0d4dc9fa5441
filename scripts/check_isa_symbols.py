"""Fail if an object compiled for one instruction set shares code with the others.

Each kernel object may define one strong symbol, its table ``<file>_on_<isa>``. A weak one (an
inline function or template) would be merged by the linker with copies compiled under other flags,
and the surviving copy may hold instructions that the running CPU lacks.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys

_TABLE = re.compile(r"^_?[a-z0-9_]+_on_[a-z0-9]+$")


def foreign_symbols(listing: str) -> list[str]:
    """Pick the symbols that a kernel object must not define.

    Args:
        listing: what ``nm --defined-only`` prints for one object.

    Returns:
        Lines ``kind name`` of weak, unique and unexpected global symbols.
    """
    found = []
    for line in listing.splitlines():
        _, _, entry = line.partition(" ")
        kind, _, name = entry.strip().partition(" ")
        weak = kind in "WVuwv"
        if weak or (kind.isupper() and not _TABLE.match(name)):
            found.append(f"{kind} {name}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nm", default="nm", help="the symbol lister to run")
    parser.add_argument("objects", nargs="+", help="object files of kernels")
    options = parser.parse_args()
    failures = 0
    for path in options.objects:
        listing = subprocess.run(
            [options.nm, "--defined-only", path], check=True, capture_output=True, text=True
        ).stdout
        for symbol in foreign_symbols(listing):
            print(f"{path}: shared symbol {symbol}", file=sys.stderr)
            failures += 1
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
