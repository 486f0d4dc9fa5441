"""Job-shop instances: random ones, ones of known best makespan, and classic text files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from trimtab.envs.protocol import Table
from trimtab.errors import FileFormatError, InputError

_Operations = tuple[Int[Array, "jobs operations"], Int[Array, "jobs operations"]]


@dataclasses.dataclass(frozen=True)
class RandomJobs:
    """Uniform machines, durations and numbers of operations, all independent.

    Args:
        num_jobs: jobs.
        num_machines: machines.
        max_num_ops: most operations of a job; the number is uniform from 1.
        max_op_duration: longest duration; it is uniform from 1.
    """

    num_jobs: int = 20
    num_machines: int = 10
    max_num_ops: int = 8
    max_op_duration: int = 6

    def __post_init__(self) -> None:
        _check_sizes(self.num_jobs, self.num_machines, self.max_num_ops, self.max_op_duration)

    def __call__(self, key: Array) -> _Operations:
        """Draw machine ids and durations, -1 where a job has no more operations."""
        machine_key, duration_key, count_key = jax.random.split(key, 3)
        shape = (self.num_jobs, self.max_num_ops)
        machines = jax.random.randint(machine_key, shape, 0, self.num_machines)
        durations = jax.random.randint(duration_key, shape, 1, self.max_op_duration + 1)
        counts = jax.random.randint(count_key, (self.num_jobs, 1), 1, self.max_num_ops + 1)
        real = np.arange(self.max_num_ops) < counts
        return jnp.where(real, machines, -1), jnp.where(real, durations, -1)


@dataclasses.dataclass(frozen=True)
class KnownMakespan:
    """Instances made from a schedule in which no machine ever waits, hence of known optimum.

    Time is cut into ``max_num_ops`` blocks of random lengths; in each block every machine works
    on another job. The best makespan is the sum of the lengths, since it is every machine's load.

    Args:
        num_jobs: jobs, at least as many as machines.
        num_machines: machines.
        max_num_ops: blocks, which is the most operations of a job.
        max_op_duration: longest block.
    """

    num_jobs: int = 20
    num_machines: int = 10
    max_num_ops: int = 8
    max_op_duration: int = 6

    def __post_init__(self) -> None:
        _check_sizes(self.num_jobs, self.num_machines, self.max_num_ops, self.max_op_duration)
        if self.num_jobs < self.num_machines:
            raise InputError(
                f"{self.num_jobs} jobs cannot keep {self.num_machines} machines busy; give at "
                "least as many jobs as machines."
            )

    def __call__(self, key: Array) -> _Operations:
        """Draw machine ids and durations."""
        machines, durations, _ = self.with_optimum(key)
        return machines, durations

    def with_optimum(self, key: Array) -> tuple[Array, Array, Array]:
        """Draw machine ids, durations and the best makespan."""
        length_key, job_key = jax.random.split(key)
        blocks = self.max_num_ops
        lengths = jax.random.randint(length_key, (blocks,), 1, self.max_op_duration + 1)
        orders = jax.vmap(lambda block_key: jax.random.permutation(block_key, self.num_jobs))(
            jax.random.split(job_key, blocks)
        )
        # Machine of each job in each block; jobs beyond the machines rest.
        machine = jnp.where(orders < self.num_machines, orders, -1).T
        works = machine >= 0
        position = jnp.where(works, jnp.cumsum(works, axis=1) - 1, blocks)
        row = np.arange(self.num_jobs)[:, None]
        empty = jnp.full((self.num_jobs, blocks), -1, jnp.int32)
        machines = empty.at[row, position].set(machine, mode="drop")
        durations = empty.at[row, position].set(
            jnp.broadcast_to(lengths, machine.shape), mode="drop"
        )
        return machines, durations, lengths.sum()


@dataclasses.dataclass(frozen=True)
class FixedJobs:
    """Always the same instance.

    Args:
        machines: machine ids, -1 where a job has no more operations.
        durations: durations, -1 likewise.
        num_machines: machines.
    """

    machines: Table
    durations: Table
    num_machines: int

    @property
    def num_jobs(self) -> int:
        """Jobs."""
        return self.machines.values.shape[0]

    @property
    def max_num_ops(self) -> int:
        """Most operations of a job."""
        return self.machines.values.shape[1]

    @property
    def max_op_duration(self) -> int:
        """Longest duration."""
        return int(self.durations.values.max())

    def __call__(self, key: Array) -> _Operations:
        """The instance; the key is ignored."""
        return (
            jnp.asarray(self.machines.values, jnp.int32),
            jnp.asarray(self.durations.values, jnp.int32),
        )


def toy_jobs(seed: int = 0) -> FixedJobs:
    """Five jobs on four machines; the best makespan is known by construction."""
    generator = KnownMakespan(num_jobs=5, num_machines=4, max_num_ops=4, max_op_duration=4)
    machines, durations = jax.jit(generator)(jax.random.key(seed))
    return FixedJobs(Table(machines), Table(durations), 4)


def read_standard(path: str | Path) -> FixedJobs:
    """Read the classic text form: ``jobs machines``, then a line of machine-duration pairs a job.

    Raises:
        FileFormatError: a number is missing or not an integer.
    """
    lines = [line.split() for line in Path(path).read_text().splitlines()]
    lines = [line for line in lines if line and not line[0].startswith("#")]
    try:
        jobs, machines = (int(field) for field in lines[0][:2])
        rows = [[int(field) for field in line] for line in lines[1 : jobs + 1]]
    except (ValueError, IndexError) as error:
        raise FileFormatError(
            f"{path} should begin with the numbers of jobs and machines, followed by integers."
        ) from error
    if len(rows) != jobs or any(len(row) % 2 or not row for row in rows):
        raise FileFormatError(
            f"{path} should have {jobs} lines of pairs of a machine and a duration."
        )
    longest = max(len(row) for row in rows) // 2
    table = np.full((jobs, longest, 2), -1, np.int32)
    for job, row in enumerate(rows):
        table[job, : len(row) // 2] = np.reshape(row, (-1, 2))
    return FixedJobs(Table(table[..., 0]), Table(table[..., 1]), machines)


def _check_sizes(*sizes: int) -> None:
    if min(sizes) < 1:
        raise InputError(
            f"Jobs, machines, operations and longest duration are {sizes}; each must be at least 1."
        )
