"""Writes the reference pages: one a room, with what its ``__init__`` re-exports, and no more."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from sphinx.application import Sphinx

import trimtab

# Modules that stand beside the rooms.
_MODULES = ("errors", "files", "progress", "hardware")
# Re-exported in the package's own front door, documented in their rooms.
_SKIPPED = {"trimtab.cli"}


def public_names(module: str) -> list[str]:
    """Return a module's public names, in the order in which it lists them.

    A room lists them by hand: as keys of ``_EXPORTS``, or by importing them ``as`` themselves. A
    plain module's are what it defines without a leading underscore.
    """
    spec = importlib.util.find_spec(module)
    assert spec
    assert spec.origin
    tree = ast.parse(Path(spec.origin).read_text())
    if not spec.submodule_search_locations:
        kinds = (ast.FunctionDef, ast.ClassDef)
        return [n.name for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_")]
    names = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    ]
    defined = [
        node.name
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
    ]
    return list(dict.fromkeys([*names, *defined]))


def modules() -> list[str]:
    """Return the rooms and the modules beside them that have something to document."""
    rooms = [
        f"trimtab.{info.name}" for info in pkgutil.iter_modules(trimtab.__path__) if info.ispkg
    ]
    beside = [f"trimtab.{name}" for name in _MODULES]
    found = [name for name in [*rooms, *beside] if name not in _SKIPPED]
    return [name for name in found if public_names(name)]


def page(module: str) -> str:
    """Return a reference page as reStructuredText."""
    lines = [module, "=" * len(module), "", f".. automodule:: {module}", ""]
    room = importlib.import_module(module)
    for name in public_names(module):
        value = getattr(room, name)
        lines += _entry(f"{module}.{name}", value)
    return "\n".join(lines)


def _entry(path: str, value: object) -> list[str]:
    if inspect.isclass(value):
        return [f".. autoclass:: {path}", "   :members:", ""]
    if callable(value) and hasattr(value, "__name__"):
        return [f".. autofunction:: {path}", ""]
    # A constant has no docstring of its own; its type's would be shown.
    lines = [f".. py:data:: {path}", ""]
    if isinstance(value, (Mapping, tuple, frozenset)):
        lines += ["   Holds " + ", ".join(f"``{item}``" for item in _items(value)) + ".", ""]
    return lines


def _items(value: Iterable[object]) -> list[str]:
    return [getattr(item, "__name__", str(item)) for item in value]


def _write(app: Sphinx) -> None:
    folder = Path(app.srcdir) / "reference" / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    pages = {f"{name}.rst": page(name) for name in modules()}
    for old in folder.glob("*.rst"):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        target = folder / name
        # An untouched file keeps its time, so that Sphinx does not read it again.
        if not target.exists() or target.read_text() != text:
            target.write_text(text)


def _shorten(app, what, name, value, options, signature, returned):  # the event's own arguments
    """Write arrays in signatures as the sources do, not by their private module."""

    def short(text: str | None) -> str | None:
        return text and text.replace("jaxlib._jax.Array", "Array").replace("jax.Array", "Array")

    return short(signature), short(returned)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("builder-inited", _write)
    app.connect("autodoc-process-signature", _shorten)
    return {"parallel_read_safe": True}
