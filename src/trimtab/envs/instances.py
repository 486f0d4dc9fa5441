"""Instances in files, and environments whose episodes start from stored ones."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from trimtab.envs.protocol import Environment, Table, TimeStep
from trimtab.envs.sampling import below
from trimtab.envs.wrappers.base import Wrapper
from trimtab.errors import FileFormatError
from trimtab.files import atomic_file


class Instances(NamedTuple):
    """Stacked states, and the observation of each."""

    state: Any
    observation: Any


def save_instances(path: str | Path, instances: Instances) -> None:
    """Write instances, an array for each leaf under its path; random keys are left out.

    Args:
        path: an ``.npz`` file.
        instances: with a leading axis on every leaf.
    """
    arrays = {name: np.asarray(leaf) for name, leaf in _named(instances) if not _is_key(leaf)}
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_instances(path: str | Path, env: Environment, *, key: Array) -> Instances:
    """Read instances that :func:`save_instances` wrote.

    Args:
        path: the file.
        env: an environment with the same settings.
        key: the states' random keys are split from it.

    Raises:
        FileFormatError: the file is damaged, or of another environment or other settings.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise FileFormatError(f"{path} is not a file of instances: {error}") from error
    lengths = {array.shape[:1] for array in arrays.values()}
    if len(lengths) != 1:
        raise FileFormatError(f"{path} holds no arrays, or arrays of different lengths.")
    state, timestep = jax.eval_shape(env.reset, jax.random.key(0))
    template = Instances(state, timestep.observation)
    keys = jax.random.split(key, lengths.pop()[0])

    def leaf(name: str, model: Any) -> Array:
        if _is_key(model):
            return keys
        if name not in arrays or arrays[name].shape[1:] != model.shape:
            raise FileFormatError(
                f"{path} has no {name} of shape {model.shape}; it was written by another "
                "environment or with other settings."
            )
        return jnp.asarray(arrays[name], model.dtype)

    leaves = [leaf(name, model) for name, model in _named(template)]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


@dataclasses.dataclass(frozen=True)
class FromInstances(Wrapper):
    """Start every episode from a stored instance, drawn uniformly.

    Args:
        env: the environment that the instances are of.
        tables: the leaves of the instances without random keys; see :func:`from_instances`.
    """

    env: Environment
    tables: tuple[Table, ...] = ()

    def reset(self, key: Array) -> tuple[Any, TimeStep]:
        """Start from a stored instance."""
        key, draw_key = jax.random.split(key)
        state, first = self.env.reset(draw_key)
        chosen = below(jax.random.uniform(draw_key), self.tables[0].values.shape[0])
        stored = iter(self.tables)

        def leaf(model: Array) -> Array:
            return key if _is_key(model) else jnp.asarray(next(stored).values)[chosen]

        state, observation = jax.tree.map(leaf, Instances(state, first.observation))
        return state, first._replace(observation=observation)


def from_instances(env: Environment, instances: Instances) -> FromInstances:
    """Start every episode of an environment from one of the instances."""
    leaves = [leaf for _, leaf in _named(instances) if not _is_key(leaf)]
    return FromInstances(env, tuple(Table(leaf) for leaf in leaves))


def _named(instances: Instances) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(where, simple=True, separator="/"), leaf)
        for where, leaf in jax.tree_util.tree_leaves_with_path(instances)
    ]


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
