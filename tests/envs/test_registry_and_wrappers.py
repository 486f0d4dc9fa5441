"""Names, specs, wrappers and adapters, on small environments and a toy one."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trimtab.envs import (
    AutoReset,
    Batch,
    Environment,
    EpisodeStatistics,
    ScalarReward,
    TimeLimit,
    make,
    register,
    registered_environments,
    restart,
    sample_action,
    transition,
)
from trimtab.envs import specs as S
from trimtab.envs.sampling import choose_distinct, choose_subset, choose_true, nth_true
from trimtab.envs.wrappers.agents import ParallelAgents, to_agent_dictionary
from trimtab.envs.wrappers.gymnasium import gymnasium_vector_env, torch_vector_env
from trimtab.errors import DtypeError, InputError, ShapeError, UnknownNameError


class Seen(NamedTuple):
    count: Any


class Counting(NamedTuple):
    count: Any
    key: Any


@dataclasses.dataclass(frozen=True)
class Counter(Environment):
    """Counts its steps; action 1 terminates. Small enough to know every value."""

    start: int = 0

    @property
    def observation_spec(self):
        return S.nest(Seen, count=S.integers((), 0, 1000))

    @property
    def action_spec(self):
        return S.DiscreteArray(2)

    def reset(self, key):
        state = Counting(jnp.int32(self.start), key)
        return state, restart(Seen(state.count))

    def step(self, state, action):
        state = Counting(state.count + 1, state.key)
        return state, transition(Seen(state.count), 1.0, terminated=action == 1)


def test_unknown_ids_name_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'Snake-v1'"):
        make("Snake-v2")


def test_ids_must_have_a_version_and_be_new():
    with pytest.raises(InputError, match="'-v' and an integer"):
        register("Counter", f"{__name__}:Counter")
    with pytest.raises(InputError, match="already registered"):
        register("Snake-v1", f"{__name__}:Counter")


def test_settings_override_the_registered_ones():
    assert make("Snake-v1", num_rows=6).num_rows == 6
    assert len(registered_environments()) >= 26


def test_specs_reject_wrong_shapes_types_and_values():
    spec = S.integers((2,), 0, 3)
    spec.validate(np.array([0, 3], np.int32))
    with pytest.raises(ShapeError, match=r"\(3,\)"):
        spec.validate(np.zeros(3, np.int32))
    with pytest.raises(DtypeError, match="float"):
        spec.validate(np.zeros(2, np.float32))
    with pytest.raises(InputError, match=r"\[0, 3\]"):
        spec.validate(np.array([0, 4], np.int32))
    assert S.MultiDiscreteArray((2, 3)).generate_value().shape == (2,)


def test_auto_reset_keeps_the_end_and_shows_the_next_beginning():
    env = AutoReset(Counter(start=5), final_observation=True)
    state, _ = env.reset(jax.random.key(0))
    state, timestep = env.step(state, jnp.int32(0))
    assert int(timestep.observation.count) == 6
    state, timestep = env.step(state, jnp.int32(1))
    assert bool(timestep.terminated)
    assert float(timestep.discount) == 0
    assert int(timestep.observation.count) == 5
    assert int(timestep.extras["final_observation"].count) == 7
    assert int(state.count) == 5


def test_time_limits_truncate_and_keep_the_discount():
    env = TimeLimit(Counter(), steps=2)
    state, _ = env.reset(jax.random.key(0))
    state, timestep = env.step(state, jnp.int32(0))
    assert not bool(timestep.last)
    state, timestep = env.step(state, jnp.int32(0))
    assert bool(timestep.truncated)
    assert float(timestep.discount) == 1
    _, timestep = env.step(state, jnp.int32(1))
    assert bool(timestep.terminated)
    assert not bool(timestep.truncated)


def test_statistics_add_up_rewards_and_steps():
    batch = Batch(EpisodeStatistics(TimeLimit(Counter(), steps=3)), lanes_at_once=1)
    state, _ = batch.reset(jax.random.split(jax.random.key(0), 2))
    lengths = []
    for _ in range(4):
        state, timestep = batch.step(state, jnp.array([0, 0]))
        lengths.append(int(timestep.extras["episode_length"][0]))
        assert float(timestep.extras["episode_return"][0]) == lengths[-1]
    assert lengths == [1, 2, 3, 1]


def test_per_agent_rewards_become_scalars():
    env = ScalarReward(make("Connector-v3"), reward="mean")
    state, first = env.reset(jax.random.key(0))
    assert first.reward.shape == ()
    _, timestep = env.step(state, jnp.zeros(10, jnp.int32))
    np.testing.assert_allclose(timestep.reward, -0.03, rtol=1e-6)


def test_agents_get_dictionaries_of_their_own_rows():
    agents = ParallelAgents(make("LevelBasedForaging-v0"))
    observations, _ = agents.reset(seed=0)
    assert sorted(observations) == ["agent_0", "agent_1"]
    assert observations["agent_1"]["action_mask"].shape == (6,)
    actions = {name: agents.action_space(name).sample() for name in agents.agents}
    _, rewards, terminated, truncated, _ = agents.step(actions)
    assert set(rewards) == set(terminated) == set(truncated) == {"agent_0", "agent_1"}
    with pytest.raises(InputError, match="one action"):
        ParallelAgents(make("Maze-v0"))
    assert list(to_agent_dictionary(jnp.zeros((2, 3)), ["a", "b"])) == ["a", "b"]


@pytest.mark.parametrize("mode", ["next_step", "same_step", "disabled"])
def test_vector_environments_reset_as_declared(mode):
    env = gymnasium_vector_env(TimeLimit(Counter(start=3), steps=2), 2, auto_reset=mode)
    seen, _ = env.reset(seed=1)
    assert seen["count"].tolist() == [3, 3]
    counts, ends = [], []
    for _ in range(3):
        seen, _, _, truncated, info = env.step(np.array([0, 0]))
        counts.append(int(seen["count"][0]))
        ends.append(bool(truncated[0]))
    expected = {
        "next_step": ([4, 5, 3], [False, True, False]),
        "same_step": ([4, 3, 4], [False, True, False]),
        "disabled": ([4, 5, 6], [False, True, True]),
    }
    assert (counts, ends) == expected[mode]
    if mode == "same_step":
        assert "final_obs" in info


def test_torch_gets_tensors():
    torch = pytest.importorskip("torch")
    env = torch_vector_env(make("TSP-v1"), 3)
    seen, _ = env.reset(seed=0)
    assert seen["action_mask"].dtype == torch.bool
    seen, reward, _terminated, _truncated, _ = env.step(torch.tensor([0, 1, 2]))
    assert reward.shape == (3,)
    assert seen["position"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("length", [1, 5, 64, 65, 1000])
def test_the_nth_true_entry_is_found_in_short_and_long_vectors(length):
    flags = np.random.default_rng(length).random(length) < 0.5
    flags[0] = True
    where = np.flatnonzero(flags)
    found = jax.vmap(lambda rank: nth_true(jnp.asarray(flags), rank))(jnp.arange(len(where)))
    np.testing.assert_array_equal(found, where)


def test_random_choices_are_uniform():
    keys = jax.random.split(jax.random.key(0), 8000)
    flags = jnp.zeros(100, bool).at[jnp.array([3, 50, 99])].set(True)
    chosen = np.asarray(jax.vmap(lambda key: choose_true(key, flags))(keys))
    counts = [(chosen == place).sum() for place in (3, 50, 99)]
    assert sum(counts) == 8000
    assert max(counts) - min(counts) < 300  # six standard deviations
    subset = np.asarray(jax.vmap(lambda key: choose_subset(key, 6, 2))(keys))
    assert (subset.sum(axis=1) == 2).all()
    assert abs(subset.mean(axis=0) - 1 / 3).max() < 0.03
    order = np.asarray(jax.vmap(lambda key: choose_distinct(key, 5, 3))(keys))
    assert (np.sort(order, axis=1)[:, 1:] != np.sort(order, axis=1)[:, :-1]).all()
    for column in order.T:
        assert abs(np.bincount(column, minlength=5) / 8000 - 0.2).max() < 0.03


def test_real_actions_are_drawn_between_their_bounds():
    spec = S.BoundedArray((4,), np.float32, -1.0, 1.0)
    action = sample_action(jax.random.key(0), spec)
    spec.validate(np.asarray(action))


def test_a_batch_draws_a_mosaic():
    batch = Batch(make("Maze-v0"))
    state, _ = batch.reset(jax.random.split(jax.random.key(0), 5))
    assert batch.render(state).shape[2] == 3


def test_instances_survive_a_file_and_start_episodes(tmp_path):
    from trimtab.envs.instances import Instances, from_instances, load_instances, save_instances
    from trimtab.errors import FileFormatError

    env = make("TSP-v1", generator=_cities(4))
    states, first = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 3))
    save_instances(tmp_path / "bank.npz", Instances(states, first.observation))
    loaded = load_instances(tmp_path / "bank.npz", env, key=jax.random.key(1))
    np.testing.assert_array_equal(loaded.state.coordinates, states.coordinates)

    bank = from_instances(env, loaded)
    state, timestep = bank.reset(jax.random.key(5))
    stored = [np.array_equal(state.coordinates, known) for known in states.coordinates]
    assert sum(stored) == 1
    np.testing.assert_array_equal(timestep.observation.coordinates, state.coordinates)

    with pytest.raises(FileFormatError, match="other settings"):
        load_instances(tmp_path / "bank.npz", make("TSP-v1"), key=jax.random.key(1))
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 not an archive")
    with pytest.raises(FileFormatError, match="not a file of instances"):
        load_instances(tmp_path / "bad.npz", env, key=jax.random.key(1))


def _cities(count):
    from trimtab.envs.routing.tsp import UniformCities

    return UniformCities(count)
