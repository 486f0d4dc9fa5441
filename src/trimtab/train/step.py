"""One optimizer step as a function from state and batch to state and metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree, Scalar

from trimtab.errors import InputError
from trimtab.train.precision import (
    LossScale,
    Precision,
    adjusted_loss_scale,
    initial_loss_scale,
)
from trimtab.train.sharded import across_devices, device_count
from trimtab.train.statistics import (
    GradientStatistics,
    Method,
    accumulate_statistics,
    scalar_loss,
    split_batch,
    zeros_like_outputs,
)


class TrainState(eqx.Module):
    """Everything that a step reads and writes; saving it and the data position resumes exactly.

    Attributes:
        step: optimizer steps taken.
        model: the model or parameter pytree, frozen parts included.
        optimizer_state: state of the optax transformation.
        key: randomness of the whole run; a step uses it folded with its own number.
        loss_scale: scale of the loss and its history.
        average: exponential moving average of the trainable parameters, or None.
        variables: what a stateful loss carries between batches (running averages), or None.
        shift: last mean gradient, subtracted before squaring across devices, or None.
    """

    step: Scalar
    model: PyTree
    optimizer_state: PyTree
    key: Scalar
    loss_scale: LossScale
    average: PyTree = None
    variables: PyTree = None
    shift: PyTree = None


@dataclass(frozen=True)
class TrainingStep:
    """A compiled step; build it with :func:`training_step`.

    Calling it with a state and a batch returns the next state and a dictionary of scalar metrics.
    """

    loss: Callable[..., Any]
    optimizer: optax.GradientTransformationExtraArgs
    groups: int | None
    method: Method
    accumulate: int
    precision: Precision
    clip_norm: float | None
    ema_decay: float | None
    schedule: optax.Schedule | None
    trainable: Any
    stateful: bool
    mesh: jax.sharding.Mesh | None
    data_axes: tuple[str, ...]
    telemetry: Callable[[GradientStatistics], dict[str, Array]] | None
    donate: bool
    _compiled: list = field(default_factory=list, repr=False, compare=False)

    def initial_state(self, model: PyTree, key: Scalar, variables: PyTree = None) -> TrainState:
        """Return the state before the first step.

        Args:
            model: pytree with floating-point arrays to train.
            key: randomness of the run.
            variables: first value of a stateful loss's variables.
        """
        parameters, _ = self.partition(model)
        # Copies, so that donating the state never consumes the caller's model.
        model = jax.tree.map(lambda leaf: jnp.copy(leaf) if eqx.is_array(leaf) else leaf, model)
        copied, _ = self.partition(model)
        sharded = self.mesh is not None and self.groups is not None
        return TrainState(
            step=jnp.asarray(0, jnp.int32),
            model=model,
            optimizer_state=self.optimizer.init(parameters),
            key=jax.random.clone(key),
            loss_scale=initial_loss_scale(self.precision),
            average=jax.tree.map(jnp.copy, copied) if self.ema_decay is not None else None,
            variables=variables,
            shift=(
                jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), parameters)
                if sharded
                else None
            ),
        )

    def partition(self, model: PyTree) -> tuple[PyTree, PyTree]:
        """Split a model into the trained part and the rest, as ``equinox.partition`` does."""
        return eqx.partition(model, self.trainable)

    def __call__(self, state: TrainState, batch: PyTree) -> tuple[TrainState, dict[str, Array]]:
        """Take one optimizer step.

        Args:
            state: where training is; consumed when the step was built with ``donate``.
            batch: pytree whose leaves have the examples on their leading axis.

        Returns:
            The next state, and metrics with ``loss`` and ``gradient_norm`` among them.
        """
        if self.mesh is not None:
            cut = jax.sharding.PartitionSpec(self.data_axes)
            batch = jax.device_put(batch, jax.sharding.NamedSharding(self.mesh, cut))
        if not self._compiled:
            donate = "all-except-first" if self.donate else "none"
            self._compiled.append(eqx.filter_jit(self._run, donate=donate))
        return self._compiled[0](batch, state)

    def _run(self, batch: PyTree, state: TrainState) -> tuple[TrainState, dict[str, Array]]:
        parameters, frozen = self.partition(state.model)
        step_key = jax.random.fold_in(state.key, state.step)
        variables, statistics = self._gradients(parameters, frozen, state, batch, step_key)
        metrics = {"loss": statistics.loss, **statistics.metrics}
        if self.groups is not None and self.telemetry is not None:
            metrics |= self.telemetry(statistics)
        norm = optax.tree.norm(statistics.mean)
        metrics["gradient_norm"] = norm
        if self.schedule is not None:
            metrics["learning_rate"] = jnp.asarray(self.schedule(state.step), jnp.float32)

        finite = jnp.isfinite(norm) & jnp.isfinite(statistics.loss)
        if self.groups is not None:
            finite &= jnp.isfinite(optax.tree.sum(statistics.squared_deviations))
        dynamic = jax.lax.cond(
            finite,
            lambda: self._applied(state, parameters, statistics, norm, variables),
            lambda: (parameters, state.optimizer_state, state.average, state.variables),
        )
        parameters, optimizer_state, average, variables = dynamic
        metrics["skipped"] = 1.0 - finite.astype(jnp.float32)
        if self.precision.dynamic:
            metrics["loss_scale"] = state.loss_scale.value
        # After a bad step the old shift stays: a non-finite one would poison every later step.
        shift = None
        if state.shift is not None:
            shift = jax.tree.map(
                lambda old, new: jnp.where(finite, new, old), state.shift, statistics.mean
            )
        next_state = TrainState(
            step=state.step + 1,
            model=eqx.combine(parameters, frozen),
            optimizer_state=optimizer_state,
            key=state.key,
            loss_scale=adjusted_loss_scale(state.loss_scale, finite, self.precision),
            average=average,
            variables=variables,
            shift=shift,
        )
        return next_state, metrics

    def _applied(
        self,
        state: TrainState,
        parameters: PyTree,
        statistics: GradientStatistics,
        norm: Array,
        variables: PyTree,
    ) -> tuple[PyTree, PyTree, PyTree, PyTree]:
        gradient = statistics.mean
        if self.clip_norm is not None:
            factor = jnp.minimum(1.0, self.clip_norm / jnp.maximum(norm, 1e-30))
            gradient = jax.tree.map(lambda leaf: leaf * factor, gradient)
        gradient = jax.tree.map(lambda g, p: g.astype(p.dtype), gradient, parameters)
        extra: dict[str, Any] = {"value": statistics.loss}
        if self.groups is not None:
            extra["sum_sq_diff_grads"] = statistics.squared_deviations
            extra["sample_size"] = statistics.count
        # Fused optimizers write parameters in place; the others return what to add.
        fused = getattr(self.optimizer, "apply", None)
        if fused is not None:
            parameters, optimizer_state = fused(
                gradient, state.optimizer_state, parameters, **extra
            )
        else:
            updates, optimizer_state = self.optimizer.update(
                gradient, state.optimizer_state, parameters, **extra
            )
            parameters = eqx.apply_updates(parameters, updates)
        average = state.average
        if self.ema_decay is not None:
            # The first steps weigh more, so that the average forgets the initial parameters.
            steps = state.step.astype(jnp.float32)
            decay = jnp.minimum(self.ema_decay, (1.0 + steps) / (10.0 + steps))
            average = jax.tree.map(
                lambda old, new: (old + (new - old) * (1.0 - decay)).astype(old.dtype),
                average,
                parameters,
            )
        return parameters, optimizer_state, average, variables

    def _gradients(
        self, parameters: PyTree, frozen: PyTree, state: TrainState, batch: PyTree, key: Array
    ) -> tuple[PyTree, GradientStatistics]:
        if self.mesh is None:
            return self._local_gradients(
                parameters, frozen, state.loss_scale.value, state.variables, batch, key, self.groups
            )
        groups = self.groups
        if groups is not None:
            groups = groups // device_count(self.mesh, self.data_axes)
        return across_devices(
            self._local_gradients,
            self.mesh,
            self.data_axes,
            statistics=self.groups is not None,
            groups=groups,
        )(parameters, frozen, state.loss_scale.value, state.variables, batch, key, state.shift)

    def _local_gradients(
        self,
        parameters: PyTree,
        frozen: PyTree,
        scale: Array,
        variables: PyTree,
        batch: PyTree,
        key: Array,
        groups: int | None,
    ) -> tuple[PyTree, GradientStatistics]:
        """Gradients of the examples that this device holds."""

        def loss(trained: PyTree, carried: PyTree, part: PyTree, part_key: Array) -> tuple:
            model = eqx.combine(self.precision.cast(trained), self.precision.cast(frozen))
            part = self.precision.cast(part)
            if self.stateful:
                value, metrics, carried = self.loss(model, part, part_key, carried)
                mean, metrics = scalar_loss(lambda: (value, metrics))()
            else:
                mean, metrics = scalar_loss(self.loss)(model, part, part_key)
            return mean * scale, (mean, metrics, carried)

        def differentiate(carried: PyTree, part: PyTree, part_key: Array) -> tuple:
            gradient, (mean, metrics, carried) = jax.grad(loss, has_aux=True)(
                parameters, carried, part, part_key
            )
            # Unscaled in float32 before anything is squared.
            gradient = jax.tree.map(lambda g: g.astype(jnp.float32) / scale, gradient)
            return carried, gradient, mean, metrics

        def accumulated(carried: PyTree, part: PyTree, part_key: Array) -> tuple:
            if self.accumulate == 1:
                return differentiate(carried, part, part_key)
            pieces = split_batch(part, self.accumulate)
            keys = jax.random.split(part_key, self.accumulate)
            return accumulate_mean(differentiate, carried, (pieces, keys), self.accumulate)

        if groups is None:
            carried, gradient, value, metrics = accumulated(variables, batch, key)
            return carried, GradientStatistics(
                gradient, None, jnp.asarray(1.0, jnp.float32), value, metrics
            )
        parts = (split_batch(batch, groups), jax.random.split(key, groups))
        return accumulate_statistics(accumulated, variables, parts, groups, method=self.method)


def accumulate_mean(
    differentiate: Callable[..., tuple], carry: PyTree, parts: tuple, count: int
) -> tuple[PyTree, PyTree, Array, PyTree]:
    """Average ``differentiate(carry, *part)`` over the leading axis of ``parts`` by a scan.

    Returns:
        The last carry, and the means of gradient, loss and metrics.
    """
    outputs = jax.eval_shape(differentiate, carry, *jax.tree.map(lambda leaf: leaf[0], parts))
    zeros = zeros_like_outputs(outputs[1:])

    def absorb(state: tuple, part: tuple) -> tuple[tuple, None]:
        handed, sums = state
        handed, *values = differentiate(handed, *part)
        sums = jax.tree.map(
            lambda total, value: total + value.astype(jnp.float32), sums, tuple(values)
        )
        return (handed, sums), None

    (carry, sums), _ = jax.lax.scan(absorb, (carry, zeros), parts, length=count)
    return (carry, *jax.tree.map(lambda total: total / count, sums))


def training_step(
    loss: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    *,
    groups: int | None = None,
    method: Method = "scan",
    accumulate: int = 1,
    precision: Precision | None = None,
    clip_norm: float | None = None,
    ema_decay: float | None = None,
    schedule: optax.Schedule | None = None,
    trainable: Any = eqx.is_inexact_array,
    stateful: bool = False,
    mesh: jax.sharding.Mesh | None = None,
    data_axes: tuple[str, ...] = ("data",),
    telemetry: Callable[[GradientStatistics], dict[str, Array]] | None = None,
    donate: bool = False,
) -> TrainingStep:
    """Build a training step from a loss and any optax transformation.

    >>> import equinox as eqx, jax, jax.numpy as jnp, optax
    >>> step = training_step(
    ...     lambda model, batch, key: jnp.square(jax.vmap(model)(batch["x"]) - batch["y"]),
    ...     optax.sgd(0.1),
    ... )
    >>> state = step.initial_state(eqx.nn.Linear(2, 1, key=jax.random.key(0)), jax.random.key(1))
    >>> batch = {"x": jnp.ones((4, 2)), "y": jnp.ones((4, 1))}
    >>> state, metrics = step(state, batch)
    >>> int(state.step)
    1

    Args:
        loss: ``(model, batch, key)`` to a loss or to ``(loss, metrics)``; the loss is a scalar or
            one value an example. With ``stateful``: ``(model, batch, key, variables)`` to
            ``(loss, metrics, variables)``.
        optimizer: any optax transformation. It is called once a step however often gradients
            accumulate, so schedules count optimizer steps.
        groups: keep mean and squared deviations over this many equal groups of the batch and hand
            them to the optimizer, as :func:`trimtab.train.optimizers.vr` needs.
        method: how groups are differentiated: ``"scan"`` (least memory) or ``"vmap"``.
        accumulate: micro-batches that each gradient (each group's, with ``groups``) averages over.
        precision: types inside the loss and loss scaling; float32 by default.
        clip_norm: largest global norm of the mean gradient.
        ema_decay: decay of an exponential moving average of the parameters.
        schedule: learning rate by step, only to report it.
        trainable: filter specification of the trained arrays, as in ``equinox.partition``.
        stateful: whether the loss carries variables between batches.
        mesh: compute gradients by device over ``data_axes`` with replicated parameters and sum
            them in one collective. Without it XLA partitions by how arrays are placed.
        data_axes: mesh axes that the batch is cut over.
        telemetry: function of the statistics whose results join the metrics, such as
            :func:`trimtab.train.optimizers.layer_telemetry`.
        donate: reuse the buffers of the incoming state, which the caller then must not touch.

    Raises:
        InputError: a number is out of range, or groups do not divide over the devices.
    """
    if accumulate < 1:
        raise InputError(f"accumulate must be at least 1 micro-batch, got {accumulate}.")
    if groups is not None and groups < 2:
        raise InputError(f"Gradient statistics need at least 2 groups, {groups} given.")
    if ema_decay is not None and not 0.0 <= ema_decay < 1.0:
        raise InputError(f"ema_decay must lie in [0, 1), got {ema_decay}.")
    if clip_norm is not None and clip_norm <= 0:
        raise InputError(f"clip_norm must be positive, got {clip_norm}.")
    if mesh is not None and groups is not None and groups % device_count(mesh, data_axes):
        raise InputError(
            f"{groups} groups do not divide over {device_count(mesh, data_axes)} devices of the "
            f"axes {data_axes}. Choose a multiple of the device count."
        )
    return TrainingStep(
        loss=loss,
        optimizer=optax.with_extra_args_support(optimizer),
        groups=groups,
        method=method,
        accumulate=accumulate,
        precision=Precision() if precision is None else precision,
        clip_norm=clip_norm,
        ema_decay=ema_decay,
        schedule=schedule,
        trainable=trainable,
        stateful=stateful,
        mesh=mesh,
        data_axes=tuple(data_axes),
        telemetry=telemetry,
        donate=donate,
    )


def evaluation_model(step: TrainingStep, state: TrainState) -> PyTree:
    """Return the model to evaluate: an average of the parameters where the run keeps one."""
    if state.average is not None:
        _, frozen = step.partition(state.model)
        return eqx.combine(state.average, frozen)
    schedule_free = _schedule_free_state(state.optimizer_state)
    if schedule_free is None:
        return state.model
    parameters, frozen = step.partition(state.model)
    averaged = optax.contrib.schedule_free_eval_params(schedule_free, parameters)
    return eqx.combine(averaged, frozen)


def _schedule_free_state(optimizer_state: PyTree) -> Any:
    kind = optax.contrib.ScheduleFreeState
    nodes = jax.tree.leaves(optimizer_state, is_leaf=lambda node: isinstance(node, kind))
    return next((node for node in nodes if isinstance(node, kind)), None)
