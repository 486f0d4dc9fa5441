"""A2C and PPO: rollouts outside the gradient, on one device or a mesh of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from trimtab.envs import Environment
from trimtab.errors import InputError
from trimtab.progress import Progress, silent
from trimtab.train.reinforcement.networks import ActorCritic, make_network
from trimtab.train.reinforcement.returns import advantages
from trimtab.train.reinforcement.rollouts import Experience, collect, policy, training_batch
from trimtab.train.reinforcement.settings import Settings, settings_for

AXIS = "lanes"
Log = Callable[[int, Mapping[str, float]], None]


class TrainingState(NamedTuple):
    """Everything a run needs to go on."""

    network: ActorCritic
    optimizer: Any
    state: Any
    observation: Any
    key: Array
    updates: Array


class Learning(NamedTuple):
    """One sample of a minibatch: experience, advantage and value target."""

    experience: Experience
    advantage: Array
    target: Array


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Trains one network in one environment.

    Args:
        env: the environment.
        settings: see :class:`Settings`.
        updates: rollouts of the whole run, for the learning rate.
        devices: how many devices share the lanes.
    """

    env: Environment
    settings: Settings
    updates: int
    devices: int = 1

    def __post_init__(self) -> None:
        if self.settings.lanes % self.devices:
            raise InputError(
                f"{self.settings.lanes} lanes cannot be shared by {self.devices} devices equally."
            )
        if self.devices > jax.device_count():
            raise InputError(
                f"{self.devices} devices were asked for; this process has {jax.device_count()}."
            )

    @cached_property
    def mesh(self) -> Mesh:
        """The devices."""
        return Mesh(np.array(jax.devices()[: self.devices]), (AXIS,))

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam with clipped gradients."""
        settings = self.settings
        count = self.updates
        if settings.algorithm == "ppo":
            count *= settings.passes * settings.minibatches
        rate: Any = settings.learning_rate
        if settings.anneal:
            rate = optax.linear_schedule(settings.learning_rate, 0.0, max(count, 1))
        return optax.chain(optax.clip_by_global_norm(settings.max_norm), optax.adam(rate, eps=1e-5))

    def initial(self, key: Array) -> TrainingState:
        """Networks, optimizer and lanes at the start."""
        network_key, lane_key, key = jax.random.split(key, 3)
        network = make_network(
            self.env, key=network_key, width=self.settings.width, depth=self.settings.depth
        )
        lanes = jax.random.split(lane_key, self.settings.lanes)
        state, timestep = jax.jit(training_batch(self.env).reset)(lanes)
        moments = self.optimizer.init(eqx.filter(network, eqx.is_array))
        spread = NamedSharding(self.mesh, P(AXIS))
        state, observation = jax.device_put((state, timestep.observation), spread)
        return TrainingState(network, moments, state, observation, key, jnp.int32(0))

    @cached_property
    def update(self) -> Callable[[TrainingState], tuple[TrainingState, dict[str, Array]]]:
        """The compiled step: a rollout, then learning from it."""

        def run(state: TrainingState) -> tuple[TrainingState, dict[str, Array]]:
            arrays, rest = eqx.partition(state.network, eqx.is_array)

            def local(arrays: Any, moments: Any, lanes: Any, seen: Any, key: Array) -> Any:
                network = eqx.combine(arrays, rest)
                return self._local_update(network, moments, lanes, seen, key)

            shared = jax.shard_map(
                local,
                mesh=self.mesh,
                in_specs=(P(), P(), P(AXIS), P(AXIS), P()),
                out_specs=(P(), P(), P(AXIS), P(AXIS), P()),
                check_vma=False,
            )
            key, update_key = jax.random.split(state.key)
            arrays, moments, lanes, seen, metrics = shared(
                arrays, state.optimizer, state.state, state.observation, update_key
            )
            network = eqx.combine(arrays, rest)
            done = TrainingState(network, moments, lanes, seen, key, state.updates + 1)
            return done, metrics

        return eqx.filter_jit(run)

    def _local_update(
        self, network: ActorCritic, moments: Any, lanes: Any, seen: Any, key: Array
    ) -> Any:
        """What one device does; gradients and metrics are averaged over all."""
        settings = self.settings
        key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))
        play_key, learn_key = jax.random.split(key)
        batch = training_batch(self.env)
        lanes, seen, played = collect(network, batch, lanes, seen, play_key, settings.steps)
        gains = advantages(
            played.reward * settings.reward_scale,
            played.discount,
            played.ended,
            played.value,
            played.next_value,
            gamma=settings.gamma,
            trace=settings.trace,
        )
        learning = Learning(played, gains, gains + played.value)
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), learning)
        network, moments, losses = self._learn(network, moments, flat, learn_key)
        ends = jax.lax.psum(played.ended.sum(), AXIS)

        def at_ends(values: Array) -> Array:
            total = jax.lax.psum(jnp.where(played.ended, values, 0).sum(), AXIS)
            return jnp.where(ends > 0, total / jnp.maximum(ends, 1), jnp.nan)

        metrics = {
            **jax.lax.pmean(losses, AXIS),
            "episode_return": at_ends(played.episode_return),
            "episode_length": at_ends(played.episode_length),
            "episodes": ends,
            "reward": jax.lax.pmean(played.reward.mean(), AXIS),
        }
        arrays = eqx.filter(network, eqx.is_array)
        return arrays, moments, lanes, seen, metrics

    def _learn(
        self, network: ActorCritic, moments: Any, flat: Learning, key: Array
    ) -> tuple[ActorCritic, Any, dict[str, Array]]:
        settings = self.settings
        arrays, rest = eqx.partition(network, eqx.is_array)
        count = flat.advantage.shape[0]
        ppo = settings.algorithm == "ppo"
        parts = settings.minibatches if ppo else 1

        def descend(carry: tuple[Any, Any], index: Array) -> tuple[tuple[Any, Any], Any]:
            arrays, moments = carry
            part = jax.tree.map(lambda leaf: leaf[index], flat)

            def loss(arrays: Any) -> tuple[Array, dict[str, Array]]:
                return self._loss(eqx.combine(arrays, rest), part)

            (_, losses), gradient = jax.value_and_grad(loss, has_aux=True)(arrays)
            gradient = jax.lax.pmean(gradient, AXIS)
            change, moments = self.optimizer.update(gradient, moments, arrays)
            return (optax.apply_updates(arrays, change), moments), losses

        def sweep(carry: tuple[Any, Any], pass_key: Array) -> tuple[tuple[Any, Any], Any]:
            order = jax.random.permutation(pass_key, count) if ppo else jnp.arange(count)
            return jax.lax.scan(descend, carry, order.reshape(parts, -1))

        keys = jax.random.split(key, settings.passes if ppo else 1)
        (arrays, moments), losses = jax.lax.scan(sweep, (arrays, moments), keys)
        return eqx.combine(arrays, rest), moments, jax.tree.map(jnp.mean, losses)

    def _loss(self, network: ActorCritic, part: Learning) -> tuple[Array, dict[str, Array]]:
        settings = self.settings
        played = part.experience

        def judge(observation: Any, action: Array) -> tuple[Array, Array, Array]:
            distribution, value = policy(network, self.env, observation)
            return distribution.log_prob(action), distribution.entropy(), value

        log_prob, entropy, value = jax.vmap(judge)(played.observation, played.action)
        gain = part.advantage
        if settings.normalize_advantage:
            gain = (gain - gain.mean()) / (gain.std() + 1e-8)
        if settings.algorithm == "ppo":
            ratio = jnp.exp(log_prob - played.log_prob)
            clipped = jnp.clip(ratio, 1 - settings.clip, 1 + settings.clip)
            policy_loss = -jnp.minimum(ratio * gain, clipped * gain).mean()
        else:
            policy_loss = -(log_prob * gain).mean()
        value_loss = jnp.square(value - part.target).mean()
        mean_entropy = entropy.mean()
        loss = policy_loss + settings.value_weight * value_loss - settings.entropy * mean_entropy
        return loss, {
            "loss": loss,
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": mean_entropy,
        }


def train(
    env: Environment,
    *,
    total_steps: int,
    key: Array,
    settings: Settings | None = None,
    devices: int = 1,
    log: Log | None = None,
    log_every: int = 10,
    checkpoints: str | Path | None = None,
    checkpoint_every: int = 100,
    progress: Progress = silent,
) -> ActorCritic:
    """Train a network and return it.

    Args:
        env: the environment.
        total_steps: environment steps over all lanes.
        key: a typed random key.
        settings: tuned ones for the environment when None.
        devices: how many devices share the lanes.
        log: called with the number of steps and metrics.
        log_every: rollouts between logs.
        checkpoints: directory to save to and, if it holds a run, to resume from.
        checkpoint_every: rollouts between checkpoints.
        progress: told how far the run is.
    """
    settings = settings or settings_for(env)
    per_update = settings.lanes * settings.steps
    updates = max(1, total_steps // per_update)
    trainer = Trainer(env, settings, updates, devices)
    state = trainer.initial(key)
    store = None
    if checkpoints is not None:
        from trimtab.train.checkpoint import Checkpoints

        store = Checkpoints(checkpoints, asynchronous=False)
        if store.latest() is not None:
            state = _unpacked(store.restore(_packed(state)).state, state)
    began = time.perf_counter()
    window: list[dict[str, Array]] = []
    first = int(state.updates)
    for number in range(first + 1, updates + 1):
        state, metrics = trainer.update(state)
        window.append(metrics)
        if number % log_every == 0 or number == updates:
            report = _summary(window)
            window = []
            seconds = time.perf_counter() - began
            report["steps_per_second"] = (number - first) * per_update / seconds
            if log is not None:
                log(number * per_update, report)
            progress(f"return {report['episode_return']:.3g}", number, updates)
        if store is not None and (number % checkpoint_every == 0 or number == updates):
            store.save(number, _packed(state))
    if store is not None:
        store.wait()
        store.close()
    return state.network


def _packed(state: TrainingState) -> TrainingState:
    """Keys as plain arrays, for files."""

    def plain(leaf: Any) -> Any:
        is_key = eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    return jax.tree.map(plain, state)


def _unpacked(state: TrainingState, like: TrainingState) -> TrainingState:
    """The reverse of :func:`_packed`, on the devices of ``like``."""

    def typed(leaf: Any, model: Any) -> Any:
        if not eqx.is_array(model):
            return leaf
        if jnp.issubdtype(model.dtype, jax.dtypes.prng_key):
            leaf = jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(model))
        return jax.device_put(leaf, model.sharding)

    return jax.tree.map(typed, state, like)


def _summary(window: list[dict[str, Array]]) -> dict[str, float]:
    """Means over rollouts; episode figures count each episode once."""
    gathered = {name: np.array([float(m[name]) for m in window]) for name in window[0]}
    episodes = gathered.pop("episodes")
    report = {"episodes": float(episodes.sum())}
    for name, values in gathered.items():
        if name.startswith("episode_"):
            weights = np.where(np.isnan(values), 0.0, episodes)
            total = float((np.nan_to_num(values) * weights).sum())
            report[name] = total / weights.sum() if weights.sum() else float("nan")
        else:
            report[name] = float(values.mean())
    return report
