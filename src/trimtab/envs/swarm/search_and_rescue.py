"""Searchers steer over a torus to find drifting targets."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from trimtab.envs import specs
from trimtab.envs.protocol import (
    Environment,
    Generator,
    TimeLimitMode,
    TimeStep,
    restart,
    transition,
)
from trimtab.errors import InputError


class Observation(NamedTuple):
    """Views (other searchers, found and lost targets along rays), and what is left to find."""

    searcher_views: Float[Array, "searchers channels rays"]
    targets_remaining: Float[Array, ""]
    step: Int[Array, ""]
    positions: Float[Array, "searchers 2"]


class State(NamedTuple):
    """Searchers and targets; angles in radians."""

    positions: Float[Array, "searchers 2"]
    headings: Float[Array, " searchers"]
    speeds: Float[Array, " searchers"]
    target_positions: Float[Array, "targets 2"]
    target_velocities: Float[Array, "targets 2"]
    found: Bool[Array, " targets"]
    step: Int[Array, ""]
    key: Array


class TargetMotion(NamedTuple):
    """The chance event of a step: where the targets go, and how fast."""

    positions: Float[Array, "targets 2"]
    velocities: Float[Array, "targets 2"]


class Instance(NamedTuple):
    """Searchers and targets at the start; ``speed_share`` lies in [0, 1]."""

    positions: Float[Array, "searchers 2"]
    headings: Float[Array, " searchers"]
    speed_share: Float[Array, " searchers"]
    target_positions: Float[Array, "targets 2"]


@dataclasses.dataclass(frozen=True)
class UniformStart:
    """Everything uniform; targets at rest.

    Args:
        num_targets: targets.
        num_searchers: searchers.
        env_size: side of the torus.
    """

    num_targets: int = 40
    num_searchers: int = 2
    env_size: float = 1.0

    def __post_init__(self) -> None:
        if self.num_targets < 1 or self.num_searchers < 1 or self.env_size <= 0:
            raise InputError(f"{self}: expected searchers, targets and a positive size.")

    def __call__(self, key: Array) -> Instance:
        """Draw the start."""
        place_key, heading_key, speed_key, target_key = jax.random.split(key, 4)
        count = self.num_searchers
        return Instance(
            jax.random.uniform(place_key, (count, 2), maxval=self.env_size),
            jax.random.uniform(heading_key, (count,), maxval=2 * np.pi),
            jax.random.uniform(speed_key, (count,)),
            jax.random.uniform(target_key, (self.num_targets, 2), maxval=self.env_size),
        )


@dataclasses.dataclass(frozen=True)
class RandomDrift:
    """Velocities change by normal noise and are capped.

    Args:
        acceleration: standard deviation of the change of each component.
        max_speed: greatest speed.
    """

    acceleration: float = 0.0001
    max_speed: float = 0.002

    def __call__(self, key: Array, state: State, env_size: float) -> TargetMotion:
        """Draw the targets' motion."""
        noise = jax.random.normal(key, state.target_positions.shape)
        velocities = state.target_velocities + self.acceleration * noise
        speed = jnp.sqrt(jnp.square(velocities).sum(axis=1, keepdims=True))
        velocities = jnp.where(
            speed > self.max_speed, self.max_speed * velocities / speed, velocities
        )
        return TargetMotion((state.target_positions + velocities) % env_size, velocities)


@dataclasses.dataclass(frozen=True)
class FindReward:
    """Each newly found target is worth 1.

    Args:
        split: searchers that find it together share it; otherwise each gets all of it.
        scale: let the worth fall linearly to 0 at the time limit.
    """

    split: bool = True
    scale: bool = True

    def __call__(self, found: Array, step: Array, time_limit: int) -> Array:
        """Rewards by searcher.

        Args:
            found: searcher x target flags of targets found in this step.
            step: steps before this one.
            time_limit: steps of the longest episode.
        """
        worth = found.astype(jnp.float32)
        if self.split:
            worth = worth / jnp.maximum(worth.sum(axis=0), 1.0)
        rewards = worth.sum(axis=1)
        return rewards * ((time_limit - step) / time_limit) if self.scale else rewards


@dataclasses.dataclass(frozen=True)
class SearchAndRescue(Environment):
    """Each searcher turns and accelerates by two numbers in [-1, 1].

    A target is found when a searcher has it within reach and ahead. Rewards and discounts have
    an entry per searcher. The episode terminates when all targets are found.

    Args:
        target_contact_range: reach of a searcher, and radius of everything seen.
        searcher_max_rotate: greatest turn a step, in units of pi.
        searcher_max_accelerate: greatest change of speed a step.
        searcher_min_speed: least speed.
        searcher_max_speed: greatest speed.
        time_limit: steps of the longest episode.
        target_dynamics: ``(key, state, env_size) -> TargetMotion``.
        generator: makes an :class:`Instance` from a key and knows the sizes.
        reward_fn: ``(found, step, time_limit) -> rewards``.
        num_vision: rays of a view.
        searcher_vision_range: how far other searchers are seen.
        target_vision_range: how far targets are seen.
        view_angle: half the width of a view, in units of pi.
        time_limit_mode: whether the limit truncates or terminates.
    """

    target_contact_range: float = 0.02
    searcher_max_rotate: float = 0.25
    searcher_max_accelerate: float = 0.005
    searcher_min_speed: float = 0.005
    searcher_max_speed: float = 0.02
    time_limit: int = 400
    target_dynamics: RandomDrift = RandomDrift()
    generator: Generator = UniformStart()
    reward_fn: FindReward = FindReward()
    num_vision: int = 128
    searcher_vision_range: float = 0.4
    target_vision_range: float = 0.1
    view_angle: float = 0.4
    time_limit_mode: TimeLimitMode = "truncate"

    @property
    def start(self) -> UniformStart:
        """The generator with its sizes."""
        return self.generator  # pyright: ignore[reportReturnType]

    @property
    def num_agents(self) -> int:
        """Searchers."""
        return self.start.num_searchers

    @cached_property
    def observation_spec(self) -> specs.Spec:
        """Views, share of targets left, clock and positions."""
        return specs.nest(
            Observation,
            searcher_views=specs.reals((self.num_agents, 3, self.num_vision), -1.0, 1.0),
            targets_remaining=specs.reals(()),
            step=specs.integers((), 0, self.time_limit),
            positions=specs.reals((self.num_agents, 2)),
        )

    @cached_property
    def action_spec(self) -> specs.BoundedArray:
        """Turn and acceleration of each searcher."""
        return specs.BoundedArray((self.num_agents, 2), np.float32, -1.0, 1.0, "action")

    def reset(self, key: Array) -> tuple[State, TimeStep]:
        """Start with no target found."""
        key, start_key = jax.random.split(key)
        instance: Instance = self.generator(start_key)
        slow, fast = self.searcher_min_speed, self.searcher_max_speed
        state = State(
            positions=instance.positions,
            headings=instance.headings,
            speeds=slow + (fast - slow) * instance.speed_share,
            target_positions=instance.target_positions,
            target_velocities=jnp.zeros_like(instance.target_positions),
            # Always false, but not a constant, whose view XLA would compute while compiling.
            found=instance.target_positions[:, 0] < 0,
            step=jnp.int32(0),
            key=key,
        )
        return state, restart(self._observe(state), shape=(self.num_agents,))

    def step(self, state: State, action: Array) -> tuple[State, TimeStep]:
        """Steer, let the targets drift, and look for contacts."""
        key, drift_key = jax.random.split(state.key)
        motion = self.target_dynamics(drift_key, state, self.start.env_size)
        return self.step_with(state._replace(key=key), action, motion)

    def step_with(self, state: State, action: Array, draw: TargetMotion) -> tuple[State, TimeStep]:
        """As :meth:`step`, with the targets' motion given."""
        action = jnp.clip(action, -1.0, 1.0)
        turn = action[:, 0] * self.searcher_max_rotate * jnp.pi
        headings = (state.headings + turn) % (2 * jnp.pi)
        speeds = jnp.clip(
            state.speeds + action[:, 1] * self.searcher_max_accelerate,
            self.searcher_min_speed,
            self.searcher_max_speed,
        )
        ahead = jnp.stack([speeds * jnp.cos(headings), speeds * jnp.sin(headings)], axis=1)
        positions = (state.positions + ahead) % self.start.env_size

        apart, bearing = self._sight(positions, headings, draw.positions)
        visible = jnp.abs(bearing) <= self.view_angle * jnp.pi
        found = (apart <= self.target_contact_range) & visible & ~state.found
        rewards = self.reward_fn(found, state.step, self.time_limit)
        state = State(
            positions=positions,
            headings=headings,
            speeds=speeds,
            target_positions=draw.positions,
            target_velocities=draw.velocities,
            found=state.found | found.any(axis=0),
            step=state.step + 1,
            key=state.key,
        )
        return state, transition(
            self._observe(state),
            rewards,
            terminated=state.found.all(),
            at_limit=state.step >= self.time_limit,
            mode=self.time_limit_mode,
        )

    def _sight(self, positions: Array, headings: Array, others: Array) -> tuple[Array, Array]:
        """Distance of each other thing from each searcher, and its bearing from the heading."""
        offset = wrapped(others[None] - positions[:, None], self.start.env_size)
        apart = jnp.sqrt(jnp.square(offset).sum(axis=-1))
        angle = jnp.arctan2(offset[..., 1], offset[..., 0]) % (2 * jnp.pi)
        return apart, wrapped(headings[:, None] - angle, 2 * jnp.pi)

    def _observe(self, state: State) -> Observation:
        reach, far = self.target_vision_range, self.searcher_vision_range
        apart, bearing = self._sight(state.positions, state.headings, state.target_positions)
        near = apart <= reach
        found = self._nearest(apart, bearing, near & state.found, reach)
        lost = self._nearest(apart, bearing, near & ~state.found, reach)
        apart, bearing = self._sight(state.positions, state.headings, state.positions)
        near = (apart <= far) & ~np.eye(self.num_agents, dtype=bool)
        others = self._nearest(apart, bearing, near, far)
        views = jnp.stack([others, found, lost], axis=1)
        return Observation(
            searcher_views=jnp.where(jnp.isinf(views), -1.0, views),
            targets_remaining=1.0 - state.found.sum() / jnp.float32(self.start.num_targets),
            step=state.step,
            positions=state.positions / self.start.env_size,
        )

    def _nearest(self, apart: Array, bearing: Array, seen: Array, reach: float) -> Array:
        """Distance in units of ``reach`` to the nearest thing on each ray, or infinity."""
        edge = self.view_angle * jnp.pi
        rays = jnp.linspace(-edge, edge, self.num_vision)
        width = jnp.arctan2(self.target_contact_range, apart)
        left, right = jnp.where(seen, bearing - width, jnp.inf), bearing + width
        covers = (left[..., None] < rays) & (rays < right[..., None])
        return jnp.where(covers, (apart / reach)[..., None], jnp.inf).min(axis=1)


def wrapped(difference: Array, period: float) -> Array:
    """The shorter way around a circle of the given length."""
    other = jnp.sign(difference) * (jnp.abs(difference) - period)
    return jnp.where(jnp.abs(difference) < jnp.abs(other), difference, other)
