"""Low-rank adapters that recover a pruned model's quality and keep every zero.

An adapted layer computes with ``W + (W != 0) * (alpha / rank) * B A``: the update passes through
the mask, so merging it leaves dropped weights at exactly zero.

Source: the SparsePEFT rule of SQFT (Munoz et al., arXiv 2410.03750).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trimtab.errors import InputError
from trimtab.graph import Program, Replacement, Site, linear_weight
from trimtab.reduce.calibration import keys
from trimtab.reduce.sparsity.rewrite import restore_layout

_DOWN, _UP = "adapter/down", "adapter/up"


def add_adapters(
    program: Program,
    sites: Sequence[Site],
    *,
    rank: int = 16,
    alpha: float = 32.0,
    key: jax.Array,
) -> Program:
    """Give linear sites trainable low-rank updates that pass through their sparsity mask.

    Args:
        program: a pruned program with dense arrays (``sparsify(...)``).
        sites: its linear sites to adapt.
        rank: rank of each update.
        alpha: the update is scaled by ``alpha / rank``.
        key: draws the down projections; the up projections start at zero, so the program's answer
            does not change.

    Returns:
        A program with parameters ``PATH/adapter/down`` (rank, inputs) and ``PATH/adapter/up``
        (outputs, rank); train those and keep the others frozen (see :func:`adapter_names`).

    Raises:
        InputError: the rank is not positive, or a site's weight is not one plain matrix.
    """
    if rank < 1:
        raise InputError(f"The rank of an adapter must be at least 1, not {rank}.")
    changes = []
    for name, site, site_key in zip(keys(sites), sites, jax.random.split(key, len(sites))):
        if site.attributes["weight_batch"]:
            raise InputError(f"{site.path} multiplies by a batch of matrices; it takes no adapter.")
        parameter = program.parameters[site.parameters["weight"]]
        shape = jax.eval_shape(lambda p, s=site: linear_weight(s, p), parameter).shape
        *loops, outputs, inputs = shape
        down = jax.random.normal(site_key, (*loops, rank, inputs)) / np.sqrt(inputs)
        changes.append(
            Replacement(
                site.address,
                (site.values["input"], site.values["weight"]),
                _adapted(site, name, alpha / rank),
                {
                    f"{name}/{_DOWN}": down.astype(jnp.float32),
                    f"{name}/{_UP}": jnp.zeros((*loops, outputs, rank)),
                },
                site.provenance["weight"].loops,
            )
        )
    return program.replace(changes)


def adapter_names(program: Program) -> list[str]:
    """Return the names of the adapters' parameters."""
    return [name for name in program.parameters if name.endswith((_DOWN, _UP))]


def merge_adapters(
    program: Program,
    parameters: Mapping[str, Any],
    *,
    alpha: float = 32.0,
) -> Program:
    """Add trained adapters into the weights of the program that they were made for.

    Args:
        program: the pruned program, without adapters.
        parameters: the parameters of the adapted program after training.
        alpha: as given to :func:`add_adapters`.

    Returns:
        The pruned program with updated weights; every zero is where it was.
    """
    sites = program.sites("linear")
    merged: dict[str, Any] = {}
    for name, site in zip(keys(sites), sites):
        if f"{name}/{_UP}" not in parameters:
            continue
        up, down = parameters[f"{name}/{_UP}"], parameters[f"{name}/{_DOWN}"]
        weight = site.parameters["weight"]
        before = merged.get(weight, program.parameters[weight])
        matrix = linear_weight(site, before).astype(jnp.float32)
        update = (alpha / down.shape[-2]) * (up @ down)
        merged[weight] = restore_layout(site, before, jnp.where(matrix != 0, matrix + update, 0.0))
    return program.with_parameters(merged)


def _adapted(site: Site, name: str, scale: float) -> Any:
    attributes = site.attributes
    side = attributes["weight_operand"]
    weight_contracts = attributes["weight_contracts"]
    shape = site.shapes["weight"]
    free = [axis for axis in range(len(shape)) if axis not in weight_contracts]
    order = [*free, *weight_contracts]
    back = [order.index(axis) for axis in range(len(shape))]

    def apply(extras: Mapping[str, Any], x: Any, weight: Any) -> Any:
        update = scale * (extras[f"{name}/{_UP}"] @ extras[f"{name}/{_DOWN}"])
        laid = update.reshape([shape[axis] for axis in order]).transpose(*back)
        adapted = jnp.where(weight != 0, weight + laid.astype(weight.dtype), weight)
        assert site.node is not None
        operands = (adapted, x) if side == 0 else (x, adapted)
        return jax.lax.dot_general(
            *operands,
            site.node.params["dimension_numbers"],
            preferred_element_type=site.node.params["preferred_element_type"],
        )

    return apply
