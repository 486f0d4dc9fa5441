"""Saving and restoring a training run: the only door to Orbax."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from trimtab.errors import FileFormatError, InputError


class Restored(NamedTuple):
    """What a checkpoint held."""

    step: int
    state: PyTree
    position: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run in one directory.

    A checkpoint holds the arrays of a state pytree and a small JSON object (data position, early
    stop). It is written in the background under a temporary name and renamed when complete, so a
    killed process leaves the last complete one; half-written ones are removed at the next start.

    >>> import tempfile, jax.numpy as jnp
    >>> with Checkpoints(tempfile.mkdtemp()) as checkpoints:
    ...     checkpoints.save(3, {"weight": jnp.ones(2)}, {"data": 7})
    ...     checkpoints.wait()
    ...     restored = checkpoints.restore({"weight": jnp.zeros(2)})
    >>> restored.step, restored.state["weight"].tolist(), restored.position
    (3, [1.0, 1.0], {'data': 7})

    Args:
        directory: where they lie; created on demand.
        keep_last: how many of the newest to keep.
        keep_best: how many of the best by ``metric`` to keep besides.
        metric: name among the metrics given to :meth:`save`.
        mode: whether a small or a large metric is good.
        asynchronous: return from :meth:`save` before the files are written.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep_last: int = 3,
        keep_best: int = 0,
        metric: str = "validation/loss",
        mode: Literal["min", "max"] = "min",
        asynchronous: bool = True,
    ) -> None:
        if keep_last < 1:
            raise InputError(f"keep_last must be at least 1 for a run to resume, got {keep_last}.")
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

        kept: list[Any] = [policies.LatestN(keep_last)]
        if keep_best:
            kept.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics[metric],
                    reverse=mode == "min",
                    n=keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self.directory = Path(directory).absolute()
        self._metric = metric
        self._best = min if mode == "min" else max
        self._orbax = ocp
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept),
                best_fn=(lambda metrics: metrics[metric]) if keep_best else None,
                best_mode=mode,
                enable_async_checkpointing=asynchronous,
                cleanup_tmp_directories=True,
                create=True,
            ),
        )

    def save(
        self,
        step: int,
        state: PyTree,
        position: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Write a checkpoint; a step that is already there is left alone.

        Args:
            step: its number.
            state: pytree; its arrays are saved under their paths, the rest is not.
            position: JSON object kept beside the arrays.
            metrics: scalars by which the best is chosen; without the chosen one this checkpoint
                never counts as best.
        """
        if step in self._manager.all_steps():
            return
        # Copies: the caller may donate these buffers to its next step while files are written.
        arrays = {name: jnp.copy(leaf) for name, leaf in _arrays(state).items()}
        usable = dict(metrics or {})
        self._manager.save(
            step,
            args=self._orbax.args.Composite(
                state=self._orbax.args.StandardSave(arrays),
                position=self._orbax.args.JsonSave(dict(position or {})),
            ),
            metrics=usable if self._metric in usable else None,
        )

    def restore(self, like: PyTree, step: int | None = None) -> Restored:
        """Read a checkpoint into the structure of ``like``.

        Args:
            like: state of the same program: gives structure, shapes, types and shardings.
            step: which one; the newest by default.

        Raises:
            FileFormatError: there is none, or it does not fit ``like``.
        """
        step = self.latest() if step is None else step
        if step is None or step not in self._manager.all_steps():
            raise FileFormatError(
                f"{self.directory} holds no checkpoint"
                + (f" of step {step}; it has {self.steps()}." if step is not None else ".")
            )
        wanted = _arrays(like)
        try:
            saved = self._manager.item_metadata(step)["state"]
            self._check(step, wanted, saved.tree if hasattr(saved, "tree") else saved)
            restored = self._manager.restore(
                step,
                args=self._orbax.args.Composite(
                    state=self._orbax.args.StandardRestore(
                        jax.tree.map(self._orbax.utils.to_shape_dtype_struct, wanted)
                    ),
                    position=self._orbax.args.JsonRestore(),
                ),
            )
        except FileFormatError:
            raise
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise FileFormatError(
                f"Checkpoint {step} in {self.directory} cannot be read: {error}"
            ) from error
        return Restored(step, _with_arrays(like, restored["state"]), dict(restored["position"]))

    def _check(self, step: int, wanted: Mapping[str, Any], saved: Any) -> None:
        if not isinstance(saved, Mapping):
            return
        for name in sorted(set(wanted) ^ set(saved)):
            where = "the checkpoint lacks it" if name in wanted else "the program lacks it"
            raise FileFormatError(
                f"Checkpoint {step} in {self.directory} does not fit this program: {where}: "
                f"{name}. Resume with the configuration that wrote it."
            )
        for name, leaf in wanted.items():
            shape = getattr(saved[name], "shape", None)
            if shape is not None and tuple(shape) != tuple(leaf.shape):
                raise FileFormatError(
                    f"Checkpoint {step} in {self.directory} has {name} of shape {tuple(shape)}, "
                    f"this program {tuple(leaf.shape)}. Resume with the configuration it was "
                    "written with."
                )

    def steps(self) -> list[int]:
        """Return the steps that have a complete checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """Return the newest step, or None."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Return the kept step with the best metric, or None."""
        scores = {
            step: metrics[self._metric]
            for step in self.steps()
            if (metrics := self._manager.metrics(step)) and self._metric in metrics
        }
        return self._best(scores, key=scores.__getitem__) if scores else None

    def wait(self) -> None:
        """Return when every save is complete on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish saving and release the directory."""
        self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _arrays(state: PyTree) -> dict[str, Any]:
    """The state's arrays by path; random keys as their raw data."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        # Orbax makes directories of names, so the path's slashes become dots.
        jax.tree_util.keystr(path, simple=True, separator="."): _raw(leaf)
        for path, leaf in leaves
        if eqx.is_array(leaf)
    }


def _raw(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return jnp.asarray(leaf)


def _with_arrays(like: PyTree, arrays: Mapping[str, Any]) -> PyTree:
    def place(path: Any, leaf: Any) -> Any:
        if not eqx.is_array(leaf):
            return leaf
        value = arrays[jax.tree_util.keystr(path, simple=True, separator=".")]
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf))
        return value

    return jax.tree_util.tree_map_with_path(place, like)
