"""How sparse each layer may be, so that the whole stays within a quality budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trimtab.errors import InputError
from trimtab.graph import Program, Site, linear_weight
from trimtab.graph.segments import split
from trimtab.progress import Progress, silent
from trimtab.reduce.calibration import calibrate, keys
from trimtab.reduce.sparsity.pruning import Method, prune
from trimtab.reduce.sparsity.rewrite import Sparsify, block_cuts, sparsify

LEVELS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def allocate(
    program: Program,
    batches: Iterable[Any],
    loss: Callable[[Program], float],
    *,
    budget: float,
    method: Method = "wanda",
    where: str = "**",
    levels: Sequence[float] = LEVELS,
    rounds: int = 7,
    progress: Progress = silent,
) -> dict[str, float]:
    """Choose a fraction for every layer so that the pruned program's loss stays within a budget.

    Each layer's relative output error is measured at every level from its calibration inputs.
    A price on error then decides all layers at once (each takes the level with the least bytes plus
    priced error), and the price is bisected until the measured loss just fits.

    Args:
        program: the dense program.
        batches: calibration inputs.
        loss: measures a program, lower is better (mean negative log-likelihood, for example).
        budget: allowed growth of the loss, as a fraction: 0.02 for two percent.
        method: how layers are pruned.
        where: which layers may be pruned.
        levels: fractions to choose from, rising.
        rounds: bisection steps; each prunes once and measures once.
        progress: told about each step.

    Returns:
        Weight name to fraction, for :func:`sparsify`.

    Raises:
        InputError: the budget is negative or a batch is missing.
    """
    if budget < 0:
        raise InputError(f"The budget must not be negative; it is {budget}.")
    given = list(batches)
    plan = sparsify(0.5, method=method, calibrate=given, where=where)
    sites = {site.parameters["weight"]: site for site in plan.sites(program)}
    errors = layer_errors(program, given, list(sites.values()), method, levels, progress)
    sizes = {name: float(np.prod(program.parameters[name].shape)) for name in sites}
    allowed = loss(program) * (1 + budget)
    best = {name: float(levels[0]) for name in sites}
    low, high = -12.0, 12.0
    for step in range(rounds):
        price = 10.0 ** ((low + high) / 2)
        choice = _choose(errors, sizes, levels, price)
        lean = program.rewrite(Sparsify(choice, method, tuple(given), where))
        measured = loss(lean)
        progress(f"loss {measured:.4g} of {allowed:.4g} allowed", step + 1, rounds)
        if measured <= allowed:
            best, high = choice, (low + high) / 2
        else:
            low = (low + high) / 2
    return best


def layer_errors(
    program: Program,
    batches: Sequence[Any],
    sites: Sequence[Site],
    method: Method,
    levels: Sequence[float],
    progress: Progress = silent,
) -> dict[str, np.ndarray]:
    """Return, by weight name, the relative squared output error of the layer at every level.

    The error of a matrix with Gram matrix G of its inputs is
    ``trace(D G Dᵀ) / trace(W G Wᵀ)`` with D the change of W.
    """
    wanted = {site.parameters["weight"] for site in sites}
    values = [tuple(jax.tree.leaves(batch)) for batch in batches]
    errors: dict[str, np.ndarray] = {}
    parts = split(program, block_cuts(sites))
    for index, part in enumerate(parts):
        here = [s for s in part.sites("linear") if s.parameters["weight"] in wanted - set(errors)]
        if here:
            grams = calibrate(part, values, here, "gram")
            for key, site in zip(keys(here), here):
                name = site.parameters["weight"]
                errors[name] = _error_curve(site, part.parameters[name], grams[key], method, levels)
        progress("measuring layers", index + 1, len(parts))
        if index + 1 < len(parts):
            values = [tuple(part(*batch)) for batch in values]
    return errors


def _error_curve(
    site: Site, parameter: Any, gram: Any, method: Method, levels: Sequence[float]
) -> np.ndarray:
    matrices = linear_weight(site, parameter)
    matrices = matrices.reshape(-1, *matrices.shape[-2:]).astype(jnp.float32)
    grams = jnp.asarray(gram, jnp.float32).reshape(len(matrices), *gram.shape[-2:])
    curve = np.zeros(len(levels))
    for matrix, moment in zip(matrices, grams):
        statistic = moment if method == "sparsegpt" else jnp.diag(moment)
        scale = jnp.sum((matrix @ moment) * matrix)
        for position, level in enumerate(levels):
            change = prune(matrix, level, method, statistic) - matrix
            curve[position] += float(jnp.sum((change @ moment) * change) / scale)
    return curve / len(matrices)


def _choose(
    errors: dict[str, np.ndarray],
    sizes: dict[str, float],
    levels: Sequence[float],
    price: float,
) -> dict[str, float]:
    total = sum(sizes.values())
    fractions = np.asarray(levels)
    return {
        name: float(fractions[np.argmin(sizes[name] / total * (1 - fractions) + price * curve)])
        for name, curve in errors.items()
    }
