"""Prune the linear layers of any program, part by part."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np

from trimtab.errors import InputError, unknown_name
from trimtab.graph import Program, Replacement, Site, linear_weight
from trimtab.graph.segments import split
from trimtab.progress import Progress, silent
from trimtab.reduce.calibration import calibrate, keys
from trimtab.reduce.sparsity.pruning import METHODS, Method, Pattern, check_pattern, prune

# Statistic that each method needs of the inputs.
_STATISTIC: dict[Method, Literal["norms", "gram"] | None] = {
    "magnitude": None,
    "wanda": "norms",
    "sparsegpt": "gram",
}


@dataclass(frozen=True)
class Sparsify:
    """Drop weights of every product with a constant operand; see :func:`sparsify`."""

    pattern: Pattern | Mapping[str, float]
    method: Method
    batches: tuple[Any, ...] = field(repr=False)
    where: str
    progress: Progress = field(repr=False, default=silent)

    def sites(self, program: Program) -> list[Site]:
        """Return the linear sites that match, whose weight is one plain matrix."""
        return [site for site in program.sites("linear", self.where) if is_matrix(site)]

    def apply(self, program: Program, sites: Sequence[Site]) -> Program:
        """Return the program with those sites pruned; dropped weights are zeros in dense arrays."""
        for site in sites:
            check_pattern(self.pattern_of(site), site_features(site), site.path)
        wanted = {site.parameters["weight"] for site in sites}
        pruned = prune_parameters(program, self, wanted)
        return program.with_parameters(pruned)

    def pattern_of(self, site: Site) -> Pattern:
        """Return the pattern for one site: the same for all, or looked up by weight name."""
        if isinstance(self.pattern, Mapping):
            return self.pattern.get(site.parameters["weight"], 0.0)
        return self.pattern


def sparsify(
    pattern: Pattern | Mapping[str, float],
    *,
    method: str | None = None,
    calibrate: Iterable[Any] = (),
    where: str = "**",
    progress: Progress = silent,
) -> Sparsify:
    """Make a rewrite that prunes linear layers.

    Args:
        pattern: fraction of weights to drop, :class:`Keep` for groups, or a fraction by weight
            name (from :func:`trimtab.reduce.sparsity.allocate`).
        method: ``"magnitude"``, ``"wanda"`` or ``"sparsegpt"``; by default Wanda where calibration
            batches are given and magnitude otherwise.
        calibrate: input tuples (or single inputs) of the program; about 128 sequences are usual.
        where: globs on layer and parameter names; ``!`` excludes.
        progress: told about each layer.

    Returns:
        A rewrite for ``Program.rewrite``. Layers are pruned in order of execution, each seeing
        inputs that have passed through the pruned layers before it, in memory for one part of the
        program at a time.

    Raises:
        UnknownNameError: the method does not exist.
        InputError: the method needs calibration batches and none are given.

    >>> import equinox as eqx, jax, trimtab as tt
    >>> model = eqx.nn.Linear(8, 4, key=jax.random.key(0))
    >>> program = tt.capture(model, jax.numpy.ones((2, 8)), batched=True)
    >>> lean = program.rewrite(sparsify(0.5))
    >>> int((lean.parameters["weight"] == 0).sum())
    16
    """
    batches = tuple(calibrate)
    name = method or ("wanda" if batches else "magnitude")
    if name not in METHODS:
        raise unknown_name("pruning method", name, METHODS)
    chosen = cast(Method, name)
    if _STATISTIC[chosen] is not None and not batches:
        raise InputError(
            f"{chosen} weighs weights by the inputs that they meet: pass calibrate=batches, or "
            "method='magnitude'."
        )
    return Sparsify(pattern, chosen, batches, where, progress)


def prune_parameters(program: Program, plan: Sparsify, wanted: set[str]) -> dict[str, Any]:
    """Prune the named weights of a program, part by part.

    Returns:
        Parameter name to its pruned array, laid out as the program holds it.
    """
    sites = [site for site in program.sites("linear") if site.parameters["weight"] in wanted]
    parts = split(program, block_cuts(sites)) if _STATISTIC[plan.method] else [program]
    batches = [jax.tree.leaves(batch) for batch in plan.batches]
    pruned: dict[str, Any] = {}
    for index, part in enumerate(parts):
        here = [s for s in part.sites("linear") if s.parameters["weight"] in wanted - set(pruned)]
        statistic = _STATISTIC[plan.method]
        measured: dict[str, Any] = {}
        if statistic is not None and here:
            measured = calibrate(part, [tuple(batch) for batch in batches], here, statistic)
        for key, site in zip(keys(here), here):
            name = site.parameters["weight"]
            if name in pruned:
                continue
            matrix = _prune_site(site, part.parameters[name], plan, measured.get(key))
            pruned[name] = matrix
        plan.progress(f"pruned part {index + 1}", index + 1, len(parts))
        if statistic is not None and index + 1 < len(parts):
            done = {name: pruned[name] for name in part.parameters if name in pruned}
            lean = part.with_parameters(done)
            batches = [list(lean(*batch)) for batch in batches]
    return pruned


def site_features(site: Site) -> int:
    """Return the number of inputs of a linear site."""
    shape = site.shapes["weight"]
    return int(np.prod([shape[axis] for axis in site.attributes["weight_contracts"]]))


def is_matrix(site: Site) -> bool:
    """Say whether the weight's layout can be undone, so that zeros can go back in place."""
    steps = site.provenance["weight"].steps
    plain = all(step.name in _INVERTIBLE for step in steps)
    return plain and not site.attributes["weight_batch"]


_INVERTIBLE = {"transpose", "reshape", "squeeze", "convert_element_type", "copy", "copy_p"}


def block_cuts(sites: Sequence[Site]) -> list[int]:
    """Cut before the first site of each numbered block, or of each layer where none is numbered."""
    cuts: dict[str, int] = {}
    for site in sites:
        match = re.match(r"(.*?(?:^|/)\d+)(?:/|$)", site.path)
        cuts.setdefault(match.group(1) if match else site.path, site.address[0])
    return sorted(set(cuts.values()))


def _prune_site(site: Site, parameter: Any, plan: Sparsify, statistic: Any) -> Any:
    source = site.provenance["weight"]
    matrix = linear_weight(site, parameter)
    pattern = plan.pattern_of(site)
    if not source.loops:
        kept = prune(matrix, pattern, plan.method, _array(statistic)) if pattern != 0 else matrix
    else:
        flat = matrix.reshape(-1, *matrix.shape[-2:])
        each = [None] * len(flat)
        if statistic is not None:
            statistic = np.asarray(statistic)
            width = statistic.shape[len(source.loops) :]
            each = list(statistic.reshape(-1, *width))
        done = [prune(m, pattern, plan.method, _array(s)) for m, s in zip(flat, each)]
        kept = jnp.stack(done).reshape(matrix.shape)
    return restore_layout(site, parameter, kept)


def _array(statistic: Any) -> Any:
    return None if statistic is None else jnp.asarray(statistic, jnp.float32)


def restore_layout(site: Site, parameter: Any, matrix: Any) -> Any:
    """Undo :func:`trimtab.graph.linear_weight`: lay a matrix out as the parameter is.

    The layout is linear, so its transpose undoes it.

    Args:
        site: the linear site.
        parameter: the parameter's present array, for shape and dtype.
        matrix: ``(*loops, outputs, inputs)``.
    """

    def layout(array: Any) -> Any:
        return linear_weight(site, array.astype(parameter.dtype)).astype(jnp.float32)

    spec = jax.ShapeDtypeStruct(parameter.shape, jnp.float32)
    back = jax.linear_transpose(layout, spec)
    return back(matrix.astype(jnp.float32))[0].astype(parameter.dtype)


def product_replacement(
    site: Site, extras: Mapping[str, Any], product: Any, loops: bool = True
) -> Replacement:
    """Replace a linear site by ``product(extras, rows) -> (rows, outputs)``.

    Args:
        site: the linear site; its weight must be one plain matrix.
        extras: new parameters by name.
        product: takes the extras and the site's input as ``(rows, inputs)``.
        loops: whether the extras have a leading axis for each scan around the site.
    """
    contracts = site.attributes["input_contracts"]
    side = site.attributes["weight_operand"]
    input_shape, weight_shape = site.shapes["input"], site.shapes["weight"]
    kept = [axis for axis in range(len(input_shape)) if axis not in contracts]
    free = [a for a in range(len(weight_shape)) if a not in site.attributes["weight_contracts"]]
    lead = tuple(input_shape[axis] for axis in kept)
    tail = tuple(weight_shape[axis] for axis in free)

    def apply(own: Mapping[str, Any], x: Any) -> Any:
        rows = x.transpose(*kept, *contracts).reshape(int(np.prod(lead)), -1)
        result = product(own, rows).reshape(*lead, *tail)
        if side == 0:
            # The weight stood left of the input, so its free axes come first.
            order = [*range(len(lead), len(lead) + len(tail)), *range(len(lead))]
            result = result.transpose(*order)
        return result.astype(site.dtype)

    return Replacement(
        site.address,
        (site.values["input"],),
        apply,
        extras,
        site.provenance["weight"].loops if loops else (),
    )
