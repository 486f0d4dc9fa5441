"""The places in a program where a method can apply: linear layers, attention, norms and others.

Sites are found in the jaxpr, not by the names of layers: a linear layer is a product of an
activation with a value that comes from a parameter, whatever library wrote it.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from trimtab.errors import unknown_name
from trimtab.graph.flat import Address, Node, Value
from trimtab.graph.provenance import Provenance

SiteKind = Literal["linear", "convolution", "embedding", "attention", "normalization"]
KINDS: tuple[SiteKind, ...] = (
    "linear",
    "convolution",
    "embedding",
    "attention",
    "normalization",
)


@dataclass(frozen=True, eq=False)
class Site:
    """One place in a program.

    Args:
        kind: what stands there.
        path: its name: the parameter path that feeds it, without the last part where that part
            names the weight (``blocks/3/attention/query``); for attention, the common prefix of
            the parameters that make its query, key and value.
        parameters: role (``weight``, ``bias``, ``scale``) to parameter path.
        address: where the site's last equation stands in the jaxpr.
        values: role to the value number that plays it (``input``, ``query``, ``key``, ...).
        shapes: role to shape, for one run of the site; a size may be symbolic.
        dtype: element type of the result.
        repeats: how many times one call of the program runs the site (scan lengths multiplied).
        loops: addresses of the scans around the site, outermost first.
        attributes: facts of the kind (``scale``, ``causal``, contraction dimensions, groups).
    """

    kind: SiteKind
    path: str
    parameters: dict[str, str]
    address: Address
    values: dict[str, Value]
    shapes: dict[str, tuple[Any, ...]]
    dtype: Any
    repeats: int
    loops: tuple[Address, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Provenance] = field(default_factory=dict, repr=False)
    node: Node | None = field(default=None, repr=False)

    def __str__(self) -> str:
        shapes = ", ".join(f"{role} {'x'.join(map(str, s))}" for role, s in self.shapes.items())
        times = f" x{self.repeats}" if self.repeats > 1 else ""
        return f"{self.kind} {self.path} ({shapes}){times}"


def matches(path: str, patterns: str) -> bool:
    """Say whether a path is selected by comma-separated globs; those after ``!`` exclude.

    ``**`` crosses ``/`` and so does ``*``, as in shell patterns on whole names.

    >>> matches("blocks/0/attention/query", "blocks/*,!*/key")
    True
    """
    return matches_any([path], patterns)


def matches_any(paths: Sequence[str], patterns: str) -> bool:
    """Say whether one of the paths is selected and none is excluded; see :func:`matches`."""
    parts = [part.strip() for part in patterns.split(",") if part.strip()]
    wanted = [part for part in parts if not part.startswith("!")] or ["**"]
    unwanted = [part[1:] for part in parts if part.startswith("!")]
    return any(_glob(path, part) for path in paths for part in wanted) and not any(
        _glob(path, part) for path in paths for part in unwanted
    )


def _glob(path: str, pattern: str) -> bool:
    # "**/weight" also matches a top-level "weight".
    return fnmatch.fnmatchcase(path, pattern) or (
        pattern.startswith("**/") and fnmatch.fnmatchcase(path, pattern[3:])
    )


def select(sites: list[Site], kind: str | None, glob: str) -> list[Site]:
    """Keep the sites of a kind whose path, or a parameter path, matches the globs.

    Raises:
        UnknownNameError: the kind does not exist.
    """
    if kind is not None and kind not in KINDS:
        raise unknown_name("kind of site", kind, KINDS)
    return [
        site
        for site in sites
        if (kind is None or site.kind == kind)
        and matches_any([site.path, *site.parameters.values()], glob)
    ]


def owner(path: str) -> str:
    """Name the layer that owns a parameter: its path without the last part."""
    return path.rpartition("/")[0] or path


def linear_weight(site: Site, parameter: Any) -> Any:
    """Lay a linear site's parameter out as a matrix (outputs, inputs).

    Args:
        site: a linear site.
        parameter: the parameter's array, as the program holds it.

    Returns:
        Array ``(*loops, *batch, outputs, inputs)`` in the dtype that the product uses.
    """
    operand = site.provenance["weight"].value(parameter)
    lead = len(site.provenance["weight"].loops)
    batch = [lead + axis for axis in site.attributes["weight_batch"]]
    inputs = [lead + axis for axis in site.attributes["weight_contracts"]]
    outputs = [
        axis for axis in range(lead, operand.ndim) if axis not in batch and axis not in inputs
    ]
    sizes = [operand.shape[axis] for axis in (*range(lead), *batch)]
    laid = operand.transpose(*range(lead), *batch, *outputs, *inputs)
    count = math.prod(operand.shape[axis] for axis in outputs)
    return laid.reshape(*sizes, count, -1)
