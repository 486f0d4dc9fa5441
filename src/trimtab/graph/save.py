"""Programs on disk: a folder of StableHLO, safetensors and a JSON manifest.

The folder holds ``program.stablehlo`` (as ``jax.export`` serialises it, with its first derivative),
``parameters.safetensors`` and ``manifest.json``. Nothing is pickled, and the folder appears only
when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from trimtab.errors import FileFormatError, InputError, UnsupportedError
from trimtab.files import atomic_directory
from trimtab.graph import _jax
from trimtab.graph.program import Program, _Exported

FORMAT = "trimtab-program"
VERSION = 1
_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def save(program: Program, path: str | os.PathLike[str]) -> None:
    """Write a program to a folder, whole or not at all.

    Args:
        program: what to write; its parameters must be arrays.
        path: the folder; an earlier program there is replaced when the new one is complete.

    Raises:
        InputError: the path is a file, or a folder that holds something else.
        UnsupportedError: the program's result is not made of tuples, lists, dicts and arrays.
    """
    target = Path(path)
    if target.exists() and not (target.is_dir() and _is_replaceable(target)):
        raise InputError(f"{target} exists and is not a saved program; choose another path.")
    exported = _export(program)
    arrays = {name: np.asarray(array) for name, array in program.parameters.items()}
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "name": program.name,
        "parameters": list(program.parameter_names),
        "inputs": _describe(program.in_tree, program.inputs),
        "outputs": _describe(program.out_tree, program.outputs),
        "platforms": list(exported.platforms),
        "sha256": {},
    }
    if not program.is_symbolic and program.exported is None:
        cost = program.cost()
        manifest["cost"] = {
            "flops": cost.flops,
            "bytes_read": cost.bytes_read,
            "bytes_written": cost.bytes_written,
            "peak_bytes": cost.peak_bytes,
        }
        manifest["sites"] = [
            {"kind": site.kind, "path": site.path, "parameters": site.parameters}
            for site in program.sites()
        ]
    with atomic_directory(target) as folder:
        code = bytes(exported.serialize(vjp_order=_derivatives(program)))
        (folder / "program.stablehlo").write_bytes(code)
        save_file(arrays, folder / "parameters.safetensors")
        for name in ("program.stablehlo", "parameters.safetensors"):
            manifest["sha256"][name] = _digest(folder / name)
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))


def load(path: str | os.PathLike[str], *, verify: bool = True) -> Program:
    """Read a program that :func:`save` wrote.

    The result can be called, differentiated once, jitted, and given other parameters; its graph
    is compiled StableHLO, so it cannot be rewritten.

    Args:
        path: the folder.
        verify: compare the files with the checksums in the manifest.

    Raises:
        FileFormatError: a file is missing, damaged, or of a newer version.
    """
    folder = Path(path)
    manifest = _read_manifest(folder)
    for name, digest in manifest["sha256"].items():
        file = folder / name
        if not file.is_file():
            raise FileFormatError(f"{folder} is not a whole program: {name} is missing.")
        if verify and _digest(file) != digest:
            raise FileFormatError(f"{file} is damaged: its checksum differs. Save it again.")
    try:
        arrays = load_file(folder / "parameters.safetensors")
        exported = jax.export.deserialize(bytearray((folder / "program.stablehlo").read_bytes()))
    except (SafetensorError, ValueError, OSError, KeyError) as error:
        raise FileFormatError(f"{folder} cannot be read: {error}") from error
    names = tuple(manifest["parameters"])
    missing = [name for name in names if name not in arrays]
    if missing:
        raise FileFormatError(f"{folder} lacks parameter {missing[0]!r}.")

    def function(*arguments: Any) -> list[Any]:
        count = len(names)
        return list(exported.call(list(arguments[:count]), list(arguments[count:])))

    jaxpr = _jax.trace(
        function, *(jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in exported.in_avals)
    )
    return Program(
        parameters={name: jax.numpy.asarray(arrays[name]) for name in names},
        jaxpr=jaxpr,
        parameter_names=names,
        in_tree=jax.tree.structure(_rebuild(manifest["inputs"]["tree"])),
        out_tree=jax.tree.structure(_rebuild(manifest["outputs"]["tree"])),
        name=manifest["name"],
        exported=_Exported(exported),
    )


def _export(program: Program) -> jax.export.Exported:
    if program.exported is not None:
        return program.exported.exported
    count = len(program.parameter_names)
    specs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in program.jaxpr.in_avals]

    def function(values: list[Any], inputs: list[Any]) -> list[Any]:
        return _jax.jaxpr_as_fun(program.jaxpr)(*values, *inputs)

    foreign = sorted(_foreign_targets(program))
    checks = [jax.export.DisabledSafetyCheck.custom_call(name) for name in foreign]
    # A native kernel runs on the CPU alone; everything else is portable.
    platforms = ("cpu",) if foreign else _PLATFORMS
    try:
        return jax.export.export(jax.jit(function), platforms=platforms, disabled_checks=checks)(
            specs[:count], specs[count:]
        )
    except NotImplementedError:
        # Some operations have no lowering on some platforms: keep the one we run on.
        return jax.export.export(jax.jit(function), disabled_checks=checks)(
            specs[:count], specs[count:]
        )


def _foreign_targets(program: Program) -> set[str]:
    from trimtab.graph.flat import walk

    return {
        str(node.params["target_name"])
        for _, node, _ in walk(program.body)
        if node.name == "ffi_call"
    }


def _derivatives(program: Program) -> int:
    inputs = [*program.parameters.values(), *program.inputs]
    floating = all(jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact) for leaf in inputs)
    # Foreign calls and integer inputs cannot always be differentiated ahead of time.
    return 1 if floating and not _foreign_targets(program) else 0


def _describe(tree: Any, specs: tuple[jax.ShapeDtypeStruct, ...]) -> dict[str, Any]:
    template = jax.tree.unflatten(tree, list(range(len(specs))))
    leaves = [{"shape": [str(n) for n in s.shape], "dtype": str(s.dtype)} for s in specs]
    return {"tree": _plain(template), "leaves": leaves}


def _plain(node: Any) -> Any:
    """Write a pytree of tuples, lists, dicts and leaf numbers as JSON."""
    if type(node) is int:
        return node
    if node is None:
        return {"none": True}
    if type(node) is tuple:
        return {"tuple": [_plain(child) for child in node]}
    if type(node) is list:
        return {"list": [_plain(child) for child in node]}
    if type(node) is dict and all(isinstance(key, str) for key in node):
        return {"dict": {key: _plain(child) for key, child in node.items()}}
    raise UnsupportedError(
        f"Inputs and results of type {type(node).__name__} cannot be saved; use tuples, lists, "
        "dicts with string keys, and arrays."
    )


def _rebuild(node: Any) -> Any:
    if isinstance(node, int):
        return node
    ((kind, value),) = node.items()
    if kind == "none":
        return None
    if kind == "dict":
        return {key: _rebuild(child) for key, child in value.items()}
    children = [_rebuild(child) for child in value]
    return tuple(children) if kind == "tuple" else children


def _is_replaceable(folder: Path) -> bool:
    return not any(folder.iterdir()) or (folder / "manifest.json").is_file()


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / "manifest.json"
    if not file.is_file():
        raise FileFormatError(f"{folder} is not a saved program: manifest.json is missing.")
    try:
        manifest = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise FileFormatError(f"{file} does not describe a Trimtab program.")
    if not isinstance(manifest.get("version"), int) or manifest["version"] > VERSION:
        raise FileFormatError(
            f"{folder} was written by a newer version of the format ({manifest.get('version')}); "
            f"this release reads up to {VERSION}. Upgrade trimtab."
        )
    for key in ("name", "parameters", "inputs", "outputs", "sha256"):
        if key not in manifest:
            raise FileFormatError(f"{file} lacks {key!r}.")
    return manifest


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
