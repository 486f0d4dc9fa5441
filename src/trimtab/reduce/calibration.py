"""Statistics of the activations that enter each site, gathered inside the running program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from trimtab.errors import InputError
from trimtab.graph import Program, Site
from trimtab.progress import Progress, silent

Statistic = Literal["norms", "gram", "largest"]


def calibrate(
    program: Program,
    batches: Iterable[Any],
    sites: Sequence[Site],
    statistic: Statistic | Callable[[Site, Any], Any] = "norms",
    *,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Average a statistic of each linear site's input over batches.

    Args:
        program: the program to run.
        batches: input tuples (or single inputs).
        sites: linear sites to look at; one entry of the result for each.
        statistic: ``"norms"`` gives the mean square of each input feature, ``"gram"`` the mean
            outer product of input vectors, ``"largest"`` the largest magnitude of each feature
            (not averaged). A function ``(site, inputs as (rows, features)) -> array`` is averaged.
        progress: told after each batch.

    Returns:
        Site key (see :func:`keys`) to float32 array: ``(features,)`` or ``(features, features)``,
        with a leading axis for each scan around the site. Means are over all input rows.

    Raises:
        InputError: no batch is given.
    """
    measure = _STATISTICS[statistic] if isinstance(statistic, str) else statistic
    largest = statistic == "largest"

    def observe(site: Site, value: Any) -> Any:
        rows = input_rows(site, value)
        return measure(site, rows), jnp.float32(rows.shape[0])

    given = list(batches)
    if not given:
        raise InputError("Calibration needs at least one batch of inputs.")
    totals: dict[str, Any] | None = None
    for index, batch in enumerate(given):
        inputs = batch if isinstance(batch, tuple) else (batch,)
        _, reports = program.tap(observe, sites, *inputs)
        new = {key: (np.asarray(sums), np.asarray(count)) for key, (sums, count) in reports.items()}
        if totals is None:
            totals = new
        elif largest:
            totals = {
                key: (np.maximum(sums, new[key][0]), count) for key, (sums, count) in totals.items()
            }
        else:
            totals = {
                key: (sums + new[key][0], count + new[key][1])
                for key, (sums, count) in totals.items()
            }
        progress("calibrating", index + 1, len(given))
    assert totals is not None
    if largest:
        return {key: sums for key, (sums, _) in totals.items()}
    return {
        key: sums / count.reshape(count.shape + (1,) * (sums.ndim - count.ndim))
        for key, (sums, count) in totals.items()
    }


def keys(sites: Sequence[Site]) -> list[str]:
    """Return the key of each site in calibration results: its path, numbered where repeated."""
    seen: dict[str, int] = {}
    names = []
    for site in sites:
        number = seen.get(site.path, 0)
        seen[site.path] = number + 1
        names.append(f"{site.path}#{number}" if number else site.path)
    return names


def input_rows(site: Site, value: Any) -> jax.Array:
    """Lay a linear site's input out as float32 ``(rows, features)``, batch axes among the rows."""
    contracts = site.attributes["input_contracts"]
    rest = [axis for axis in range(value.ndim) if axis not in contracts]
    features = int(np.prod([value.shape[axis] for axis in contracts]))
    return value.transpose(*rest, *contracts).reshape(-1, features).astype(jnp.float32)


def _norms(site: Site, rows: Any) -> Any:
    return jnp.sum(rows * rows, 0)


def _gram(site: Site, rows: Any) -> Any:
    return jnp.matmul(rows.T, rows, precision="highest")


def _largest(site: Site, rows: Any) -> Any:
    return jnp.max(jnp.abs(rows), 0)


_STATISTICS: dict[str, Callable[[Site, Any], Any]] = {
    "norms": _norms,
    "gram": _gram,
    "largest": _largest,
}
