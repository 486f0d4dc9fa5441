"""``trimtab doctor``: what is installed, what is set, what is cached, and what is wrong."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from trimtab.cli.output import Output, examples, output_options
from trimtab.errors import TrimtabError

# Every variable that the package reads, and what it does.
VARIABLES = {
    "TRIMTAB_ISA": "highest instruction set of the kernels, or reference",
    "TRIMTAB_THREADS": "threads of the kernels; by default all usable cores",
    "TRIMTAB_CACHE": "folder of caches; by default in the user's cache folder",
    "NO_COLOR": "no colour in the terminal",
}


@click.command(epilog=examples("trimtab doctor", "trimtab doctor --json | jq .kernels"))
@output_options
def command(output: Output) -> None:
    """Show versions, extras, settings, instruction sets and caches, and what is wrong with them.

    The exit code is 1 if something is wrong.
    """
    report = examine()
    if output.json:
        output.document(report)
    else:
        output.print(*_pages(report))
    if report["problems"]:
        raise click.exceptions.Exit(1)


def examine() -> dict[str, Any]:
    """Look at the installation and return what was found as JSON values."""
    from trimtab.hardware import describe, versions

    problems: list[str] = []
    devices = _devices(problems)
    kernels = _kernels(problems)
    return {
        "versions": {"python": platform.python_version(), **versions()},
        "python": sys.executable,
        "machine": describe().to_json() | {"summary": describe().summary},
        "devices": devices,
        "kernels": kernels,
        "extras": _extras(),
        "variables": {
            name: {"value": os.environ.get(name), "meaning": meaning}
            for name, meaning in VARIABLES.items()
        },
        "cache": _cache(problems),
        "problems": problems,
    }


def _devices(problems: list[str]) -> list[str]:
    try:
        import jax

        return [f"{device.platform}: {device.device_kind}" for device in jax.devices()]
    except Exception as error:
        # A broken JAX is what a doctor must report, whatever it raises.
        problems.append(f"JAX does not start: {error}")
        return []


def _kernels(problems: list[str]) -> dict[str, Any]:
    """Describe the native kernels; a wrong setting is a problem, a missing build is told."""
    from trimtab.kernels import _library

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            return {
                "native": _library.extension() is not None,
                "isa": _library.active_isa(),
                "available_isas": list(_library.available_isas()),
                "threads": _library.thread_count(),
                "names": sorted(_library.kernel_names()),
                "note": str(caught[0].message) if caught else "",
            }
        except TrimtabError as error:
            problems.append(str(error))
            return {"native": False, "note": str(error)}


def _extras() -> dict[str, dict[str, str | None]]:
    """Return extra -> package -> installed version, as the installed metadata lists them."""
    try:
        requirements = importlib.metadata.requires("trimtab") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    extras: dict[str, dict[str, str | None]] = {}
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
        if name and extra and name[0] != "trimtab":
            extras.setdefault(extra[1], {})[name[0]] = _version(name[0])
    return extras


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cache(problems: list[str]) -> dict[str, Any]:
    from trimtab.files import cache_directory

    try:
        root = cache_directory()
    except OSError as error:
        problems.append(f"The cache folder cannot be made: {error}. Set TRIMTAB_CACHE.")
        return {"folder": None, "bytes": 0, "parts": {}}
    parts = {entry.name: sum(_sizes(entry)) for entry in sorted(root.iterdir()) if entry.is_dir()}
    return {"folder": str(root), "bytes": sum(_sizes(root)), "parts": parts}


def _sizes(folder: Path) -> Iterator[int]:
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                yield (Path(parent) / name).stat().st_size
            except OSError:
                continue


def _pages(report: Mapping[str, Any]) -> list[Any]:
    from rich.markup import escape

    kernels = report["kernels"]
    native = (
        f"{kernels['isa']} (of {', '.join(kernels['available_isas'])}), "
        f"{kernels['threads']} threads, {len(kernels['names'])} kernels"
        if kernels["native"]
        else f"not in use. {kernels['note']}"
    )
    cache = report["cache"]
    parts = ", ".join(f"{name} {_megabytes(size)}" for name, size in cache["parts"].items())
    held = f"{cache['folder']}, {_megabytes(cache['bytes'])}" + (f" ({parts})" if parts else "")
    lines = [
        ("machine", report["machine"]["summary"]),
        ("vectors", ", ".join(report["machine"]["instruction_sets"]) or "unknown"),
        ("devices", ", ".join(report["devices"]) or "none"),
        ("python", report["python"]),
        ("kernels", native.strip()),
        ("cache", held),
    ]
    pages: list[Any] = [f"[bold]{name:<9}[/]{escape(str(value))}" for name, value in lines]
    pages += ["", _versions(report), "", _extras_table(report), "", _variables(report)]
    if report["problems"]:
        pages += ["", *(f"[red]problem:[/] {escape(line)}" for line in report["problems"])]
    else:
        pages += ["", "[green]No problems found.[/]"]
    return pages


def _versions(report: Mapping[str, Any]) -> str:
    versions = report["versions"].items()
    return "[bold]versions[/] " + ", ".join(f"{name} {version}" for name, version in versions)


def _extras_table(report: Mapping[str, Any]) -> Any:
    from rich import box
    from rich.table import Table

    if not report["extras"]:
        return "[bold]extras[/]   unknown: trimtab runs from a source folder, not installed"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("extra", "state", "packages"):
        table.add_column(name)
    for extra, packages in report["extras"].items():
        missing = [name for name, version in packages.items() if version is None]
        state = f"[yellow]pip install 'trimtab\\[{extra}]'[/]" if missing else "[green]ready[/]"
        cells = ", ".join(
            f"{name} {version or '[yellow]-[/]'}" for name, version in packages.items()
        )
        table.add_row(extra, state, cells)
    return table


def _variables(report: Mapping[str, Any]) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("variable", "value", "what it does"):
        table.add_column(name)
    for name, facts in report["variables"].items():
        value = "[dim]not set[/]" if facts["value"] is None else escape(facts["value"])
        table.add_row(name, value, facts["meaning"])
    return table


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
