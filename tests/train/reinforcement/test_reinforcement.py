"""Actor-critic training: exact values, truncation, all networks, several devices, resuming."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trimtab.envs import Environment, TimeLimit, make, restart, specs, transition
from trimtab.errors import InputError, UnsupportedError
from trimtab.train.reinforcement import (
    Settings,
    Trainer,
    evaluate,
    greedy_agent,
    learned_agent,
    make_network,
    random_agent,
    settings_for,
    train,
)
from trimtab.train.reinforcement.distributions import (
    Categorical,
    Factorised,
    SquashedNormal,
    action_distribution,
)
from trimtab.train.reinforcement.features import VIEWS, AgentsView
from trimtab.train.reinforcement.layers import Convolutions
from trimtab.train.reinforcement.returns import advantages
from trimtab.train.reinforcement.rollouts import collect, policy, training_batch

IDS = (
    "Game2048-v1 GraphColoring-v1 Minesweeper-v0 RubiksCube-v0 SlidingTilePuzzle-v0 Sudoku-v0 "
    "BinPack-v2 FlatPack-v0 JobShop-v0 Knapsack-v1 Tetris-v0 Cleaner-v0 Connector-v3 CVRP-v1 "
    "LevelBasedForaging-v0 Maze-v0 MMST-v0 MultiCVRP-v0 PacMan-v1 RobotWarehouse-v0 Snake-v1 "
    "Sokoban-v0 TSP-v1 SearchAndRescue-v0"
).split()


class Seen(NamedTuple):
    where: Any


class Walker(NamedTuple):
    where: Any
    key: Any


@dataclasses.dataclass(frozen=True)
class TwoStates(Environment):
    """Action 1 pays 1 and stays, action 0 pays nothing; it never ends by itself."""

    @property
    def observation_spec(self):
        return specs.nest(Seen, where=specs.integers((), 0, 1))

    @property
    def action_spec(self):
        return specs.DiscreteArray(2)

    def reset(self, key):
        state = Walker(jnp.int32(0), key)
        return state, restart(Seen(state.where))

    def step(self, state, action):
        state = Walker(1 - state.where, state.key)
        reward = (action == 1).astype(jnp.float32)
        return state, transition(Seen(state.where), reward, terminated=jnp.array(False))


@pytest.fixture(autouse=True)
def _view_of_the_two_states(monkeypatch):
    def view(env, observation):
        return AgentsView(jax.nn.one_hot(observation.where, 2)[None])

    monkeypatch.setitem(VIEWS, "TwoStates", view)


def test_advantages_equal_the_definition():
    rng = np.random.default_rng(0)
    steps, gamma, trace = 7, 0.9, 0.8
    reward, value, following = rng.normal(size=(3, steps, 1)).astype(np.float32)
    ended = np.zeros((steps, 1), bool)
    ended[[2, 4]] = True
    discount = np.ones((steps, 1), np.float32)
    discount[2] = 0  # a termination; the end at 4 is a truncation
    expected = np.zeros((steps, 1))
    for start in range(steps):
        weight = 1.0
        for step in range(start, steps):
            delta = reward[step] + gamma * discount[step] * following[step] - value[step]
            expected[start] += weight * delta
            if ended[step]:
                break
            weight *= gamma * trace
    got = advantages(
        *map(jnp.asarray, (reward, discount, ended, value, following)), gamma=gamma, trace=trace
    )
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_truncated_episodes_learn_the_value_of_going_on_for_ever():
    """With reward 1 a step and gamma 0.9 the value is 10, although episodes stop after 3 steps."""
    env = TimeLimit(TwoStates(), steps=3)
    settings = Settings(
        algorithm="a2c", lanes=16, steps=8, gamma=0.9, entropy=0.0, learning_rate=0.01, anneal=False
    )
    network = train(env, total_steps=16 * 8 * 300, key=jax.random.key(0), settings=settings)
    for where in (0, 1):
        head, value = network(Seen(jnp.int32(where)))
        assert float(jax.nn.softmax(head.reshape(-1))[1]) > 0.95
        assert abs(float(value) - 10) < 0.7


def test_bootstrap_values_are_those_of_the_observation_before_the_reset():
    env = TimeLimit(TwoStates(), steps=3)
    network = make_network(env, key=jax.random.key(0), width=4)
    batch = training_batch(env)
    state, timestep = batch.reset(jax.random.split(jax.random.key(1), 2))
    _, _, played = collect(network, batch, state, timestep.observation, jax.random.key(2), 4)
    assert played.ended[:, 0].tolist() == [False, False, True, False]
    last = network(Seen(jnp.int32(1)))[1]  # 0, 1, 0 and then 1 at the end
    np.testing.assert_allclose(played.next_value[2], [last, last], rtol=1e-5)


@pytest.mark.parametrize(
    "distribution",
    [
        Categorical(jnp.array([0.3, -1.0, 2.0])),
        Categorical(jnp.array([[0.3, -1.0], [0.0, 1.0]])),
        Factorised(jnp.arange(6.0).reshape(2, 3) / 5),
    ],
)
def test_probabilities_sum_to_one_and_give_the_entropy(distribution):
    logits = distribution.logits
    if isinstance(distribution, Factorised):
        actions = np.argwhere(np.ones(logits.shape))
    elif logits.ndim == 1:
        actions = np.arange(3)
    else:
        actions = np.argwhere(np.ones((2, 2)))
    logs = np.array([float(distribution.log_prob(jnp.asarray(a))) for a in actions])
    np.testing.assert_allclose(np.exp(logs).sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(-(np.exp(logs) * logs).sum(), distribution.entropy(), rtol=1e-5)
    best = np.asarray(actions[logs.argmax()])
    assert (np.asarray(distribution.mode()) == best).all()


def test_masked_actions_are_never_drawn():
    mask = jnp.array([[True, False, True], [False, False, True]])
    spec = specs.MultiDiscreteArray((2, 3))
    distribution = action_distribution(spec, jnp.zeros((2, 3)), mask)
    draws = jax.vmap(distribution.sample)(jax.random.split(jax.random.key(0), 200))
    assert np.asarray(mask[draws[:, 0], draws[:, 1]]).all()
    assert float(distribution.entropy()) == pytest.approx(np.log(3), rel=1e-5)


def test_squashed_normal_densities_integrate_to_one():
    distribution = SquashedNormal(jnp.array([0.3]), jnp.array([-0.7]))
    grid = jnp.linspace(-0.9985, 0.9985, 20001)
    density = jnp.exp(jax.vmap(lambda a: distribution.log_prob(a[None]))(grid))
    assert float(density.mean() * (grid[-1] - grid[0])) == pytest.approx(1, abs=0.01)


def test_shifted_products_equal_a_convolution():
    layer = Convolutions((3, 5), key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (6, 4, 3))
    dimensions = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(
        x[None], layer.weights[0], (1, 1), "SAME", dimension_numbers=dimensions
    )[0]
    np.testing.assert_allclose(layer(x), jax.nn.relu(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("id", IDS)
def test_every_environment_has_a_network_with_finite_gradients(id):
    env = make(id)
    network = make_network(env, key=jax.random.key(0), width=8, depth=1)

    @eqx.filter_jit
    def probe(network, key):
        _, timestep = env.reset(key)

        def loss(network):
            distribution, value = policy(network, env, timestep.observation)
            action = distribution.sample(key)
            return distribution.log_prob(action) + distribution.entropy() + value

        return eqx.filter_value_and_grad(loss)(network)

    value, gradient = probe(network, jax.random.key(3))
    leaves = jax.tree.leaves(eqx.filter(gradient, eqx.is_array))
    assert np.isfinite(float(value))
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert any(np.abs(leaf).max() > 0 for leaf in leaves)


def test_environments_without_a_view_are_refused():
    @dataclasses.dataclass(frozen=True)
    class Unknown(TwoStates):
        """No view is registered for this one."""

    with pytest.raises(UnsupportedError, match=r"features\.VIEWS"):
        make_network(Unknown(), key=jax.random.key(0))


def test_training_beats_random_play_on_knapsack():
    env = make("Knapsack-v1")
    settings = settings_for(env, lanes=64, steps=16, learning_rate=2e-3, width=16)
    network = train(env, total_steps=50 * 1024, key=jax.random.key(0), settings=settings)
    learned = evaluate(env, learned_agent(network, env), key=jax.random.key(1), episodes=128)
    chance = evaluate(env, random_agent(env), key=jax.random.key(1), episodes=128)
    assert abs(chance.mean_return - 13.54) < 4 * chance.standard_error + 0.1
    assert learned.mean_return > chance.mean_return + 2


def test_greedy_play_beats_random_play_where_rewards_are_near():
    env = make("Knapsack-v1")
    greedy = evaluate(env, greedy_agent(env), key=jax.random.key(1), episodes=64)
    chance = evaluate(env, random_agent(env), key=jax.random.key(1), episodes=64)
    assert greedy.mean_return > chance.mean_return


@pytest.mark.parametrize("algorithm", ["a2c", "ppo"])
def test_several_devices_take_equal_steps(algorithm):
    env = make("TSP-v1")
    settings = Settings(algorithm=algorithm, lanes=16, steps=8, minibatches=2, width=8, depth=1)
    trainer = Trainer(env, settings, updates=2, devices=4)
    state, metrics = trainer.update(trainer.initial(jax.random.key(0)))
    assert np.isfinite(float(metrics["loss"]))
    assert len(state.state.key.sharding.device_set) == 4
    copies = state.network.network.embed.layers[0].weight.addressable_shards
    for copy in copies[1:]:
        np.testing.assert_array_equal(copy.data, copies[0].data)


def test_interrupted_runs_end_like_uninterrupted_ones(tmp_path):
    env = make("TSP-v1")
    settings = Settings(lanes=8, steps=8, minibatches=2, passes=1, width=8, depth=1, anneal=False)
    common = {"key": jax.random.key(0), "settings": settings}
    whole = train(env, total_steps=64 * 4, **common)
    train(env, total_steps=64 * 2, checkpoints=tmp_path / "run", **common)
    resumed = train(env, total_steps=64 * 4, checkpoints=tmp_path / "run", **common)
    for ours, theirs in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed)):
        if eqx.is_array(ours):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_impossible_settings_are_refused():
    with pytest.raises(InputError, match="minibatches"):
        Settings(lanes=3, steps=3, minibatches=4)
    with pytest.raises(InputError, match="3 devices"):
        Trainer(make("TSP-v1"), Settings(lanes=16), updates=1, devices=3)


def test_the_recipe_trains_evaluates_and_writes_its_run(tmp_path):
    import json

    from trimtab.train.recipes.supervised import Context
    from trimtab.train.reinforcement.recipe import configuration, run

    config = dataclasses.replace(
        configuration("TSP-v1", steps=256, output=str(tmp_path / "run")),
        data={"env": "TSP-v1", "episodes": 8},
        model={"lanes": 8, "steps": 8, "minibatches": 2, "passes": 1, "width": 8, "depth": 1},
    )
    summary = run(Context(config))
    assert summary.notes["environment"] == "TSP-v1"
    assert {"return/random", "return/greedy", "return/learned"} <= set(summary.metrics)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["return/random"] < 0
    assert (tmp_path / "run" / "config.toml").exists()
