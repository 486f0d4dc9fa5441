"""Schedule the operations of jobs on machines in the shortest time."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from trimtab.envs import specs
from trimtab.envs.packing.job_shop_generators import RandomJobs
from trimtab.envs.protocol import Environment, Generator, TimeStep, restart, transition


class Observation(NamedTuple):
    """Operations (-1 is padding), what is left of them, and what the machines are doing."""

    ops_machine_ids: Int[Array, "jobs operations"]
    ops_durations: Int[Array, "jobs operations"]
    ops_mask: Bool[Array, "jobs operations"]
    machines_job_ids: Int[Array, " machines"]
    machines_remaining_times: Int[Array, " machines"]
    action_mask: Bool[Array, "machines jobs_and_none"]


class State(NamedTuple):
    """A partial schedule."""

    ops_machine_ids: Int[Array, "jobs operations"]
    ops_durations: Int[Array, "jobs operations"]
    ops_mask: Bool[Array, "jobs operations"]
    machines_job_ids: Int[Array, " machines"]
    machines_remaining_times: Int[Array, " machines"]
    action_mask: Bool[Array, "machines jobs_and_none"]
    step_count: Int[Array, ""]
    scheduled_times: Int[Array, "jobs operations"]
    key: Array


@dataclasses.dataclass(frozen=True)
class JobShop(Environment):
    """The action gives each machine a job to start, or ``num_jobs`` for none.

    Each step costs 1. An illegal choice of any machine, or a step after which all machines are
    idle while work is left, terminates with reward ``-jobs * operations * longest_duration``.
    The episode terminates when everything is done, so its return is minus the makespan.

    Args:
        generator: makes ``(machine ids, durations)`` from a key and knows the sizes.
    """

    generator: Generator = RandomJobs()

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Jobs, machines, operations per job, longest duration."""
        source = self.generator
        return (
            source.num_jobs,  # pyright: ignore[reportFunctionMemberAccess]
            source.num_machines,  # pyright: ignore[reportFunctionMemberAccess]
            source.max_num_ops,  # pyright: ignore[reportFunctionMemberAccess]
            source.max_op_duration,  # pyright: ignore[reportFunctionMemberAccess]
        )

    @cached_property
    def observation_spec(self) -> specs.Spec:
        """Operations, machines and mask."""
        jobs, machines, operations, longest = self.sizes
        return specs.nest(
            Observation,
            ops_machine_ids=specs.integers((jobs, operations), -1, machines - 1),
            ops_durations=specs.integers((jobs, operations), -1, longest),
            ops_mask=specs.booleans(jobs, operations),
            machines_job_ids=specs.integers((machines,), 0, jobs),
            machines_remaining_times=specs.integers((machines,), 0, longest),
            action_mask=specs.booleans(machines, jobs + 1),
        )

    @cached_property
    def action_spec(self) -> specs.MultiDiscreteArray:
        """A job, or none, for each machine."""
        jobs, machines, _, _ = self.sizes
        return specs.MultiDiscreteArray((jobs + 1,) * machines, name="action")

    def reset(self, key: Array) -> tuple[State, TimeStep]:
        """Start with nothing scheduled."""
        key, jobs_key = jax.random.split(key)
        machine_ids, durations = self.generator(jobs_key)
        jobs, machines, _, _ = self.sizes
        state = State(
            ops_machine_ids=machine_ids,
            ops_durations=durations,
            ops_mask=machine_ids >= 0,
            machines_job_ids=jnp.full(machines, jobs, jnp.int32),
            machines_remaining_times=jnp.zeros(machines, jnp.int32),
            action_mask=jnp.zeros((machines, jobs + 1), bool),
            step_count=jnp.int32(0),
            scheduled_times=jnp.full(machine_ids.shape, -1, jnp.int32),
            key=key,
        )
        state = state._replace(action_mask=legal_choices(state))
        return state, restart(_observe(state))

    def step(self, state: State, action: Array) -> tuple[State, TimeStep]:
        """Start the chosen jobs and let one unit of time pass."""
        jobs, _machines, operations, longest = self.sizes
        chosen_legally = (np.arange(jobs + 1) == action[:, None]) & state.action_mask
        legal = chosen_legally.any(axis=1).all()
        starts = action[None, :] == np.arange(jobs)[:, None]  # job x machine
        job_starts = starts.any(axis=1)
        upcoming = jnp.argmax(state.ops_mask, axis=1)
        started = job_starts[:, None] & (np.arange(operations) == upcoming[:, None])
        duration = jnp.where(started, state.ops_durations, 0).sum(axis=1, dtype=jnp.int32)
        machine_duration = jnp.where(starts, duration[:, None], 0).sum(axis=0, dtype=jnp.int32)
        nothing = action == jobs
        waiting = state.machines_remaining_times == 0
        job_ids = jnp.where(
            nothing, jnp.where(waiting, jobs, state.machines_job_ids), action
        ).astype(jnp.int32)
        remaining = jnp.where(nothing, state.machines_remaining_times, machine_duration)
        remaining = jnp.maximum(remaining - 1, 0)
        state = state._replace(
            ops_mask=state.ops_mask & ~started,
            machines_job_ids=job_ids,
            machines_remaining_times=remaining,
            step_count=state.step_count + 1,
            scheduled_times=jnp.where(started, state.step_count, state.scheduled_times),
        )
        state = state._replace(action_mask=legal_choices(state))
        idle = ((job_ids == jobs) & (remaining == 0)).all()
        finished = ~state.ops_mask.any() & (remaining == 0).all()
        penalty = -float(jobs * operations * longest)
        reward = jnp.where(~legal | idle, penalty, -1.0)
        return state, transition(_observe(state), reward, terminated=~legal | idle | finished)


def legal_choices(state: State) -> Bool[Array, "machines jobs_and_none"]:
    """A free machine may start a job whose next operation it does, if the job is not running."""
    jobs, operations = state.ops_machine_ids.shape
    machines = state.machines_job_ids.shape[0]
    upcoming = state.ops_mask & (
        jnp.argmax(state.ops_mask, axis=1)[:, None] == np.arange(operations)
    )
    wanted = jnp.where(upcoming, state.ops_machine_ids, 0).sum(axis=1, dtype=jnp.int32)
    unfinished = state.ops_mask.any(axis=1)
    busy = state.machines_remaining_times > 0
    running = (busy[:, None] & (state.machines_job_ids[:, None] == np.arange(jobs))).any(axis=0)
    fits = wanted[None, :] == np.arange(machines)[:, None]
    starts = fits & (unfinished & ~running)[None, :] & ~busy[:, None]
    return jnp.concatenate([starts, jnp.ones((machines, 1), bool)], axis=1)


def _observe(state: State) -> Observation:
    return Observation(
        state.ops_machine_ids,
        state.ops_durations,
        state.ops_mask,
        state.machines_job_ids,
        state.machines_remaining_times,
        state.action_mask,
    )
