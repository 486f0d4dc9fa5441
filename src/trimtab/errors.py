"""Every error that Trimtab raises on purpose: what was given, what was expected, what to do."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class TrimtabError(Exception):
    """Base of all errors raised by this package; the command prints it without a traceback."""


class InputError(TrimtabError, ValueError):
    """An argument has a value that cannot be used."""


class ShapeError(InputError):
    """An array has the wrong shape."""


class DtypeError(InputError):
    """An array has the wrong element type."""


class UnknownNameError(InputError):
    """A name is not among the known ones."""


class FileFormatError(TrimtabError, ValueError):
    """A file is missing a part, is truncated, or is not of the format it should be."""


class UnsupportedError(TrimtabError, NotImplementedError):
    """The request is meaningful but this program, model or platform cannot serve it."""


class DeviceError(TrimtabError, RuntimeError):
    """A device (GPU, instruction set, mesh) that the request needs is absent."""


class MissingExtraError(TrimtabError, ImportError):
    """An optional dependency is not installed."""


def unknown_name(kind: str, given: str, known: Iterable[str]) -> UnknownNameError:
    """Build the error for a name that is not among the known ones, with the nearest match.

    Args:
        kind: what the name denotes, such as ``"system"``.
        given: the name as the user wrote it.
        known: the names that would have been accepted.
    """
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UnknownNameError(f"Unknown {kind} {given!r}.{hint} Known: {', '.join(names)}.")


def require_extra(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional module, or say in one sentence which extra brings it.

    Args:
        module: dotted module name, such as ``"torch"``.
        extra: the name of the extra in ``pip install 'trimtab[extra]'``.
        purpose: what the caller wanted it for, as the subject of the sentence.

    Raises:
        MissingExtraError: the module cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs the package {module.partition('.')[0]!r}, which is not installed. "
            f"Run: pip install 'trimtab[{extra}]'"
        ) from error
