"""What every environment promises, checked for each of them by one table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rollouts import IDS, LANES, STEPS, _roll, environment, pick, roll

from trimtab.envs import Batch, compiled_reset, compiled_step, make
from trimtab.envs.sampling import is_joint
from trimtab.envs.specs import BoundedArray, MultiDiscreteArray, Spec

gymnasium = pytest.importorskip("gymnasium")


def violations(spec, values, leading: int, path: str = "") -> list[str]:
    """Shapes, dtypes and bounds of stacked observations."""
    if isinstance(spec, Spec):
        found = [
            violations(s, getattr(values, n), leading, f"{path}/{n}") for n, s in spec.children
        ]
        return [line for lines in found for line in lines]
    problems = []
    if values.shape[leading:] != spec.shape:
        problems.append(f"{path}: shape {values.shape[leading:]}, spec {spec.shape}")
    if values.dtype != spec.dtype:
        problems.append(f"{path}: dtype {values.dtype}, spec {spec.dtype}")
    if isinstance(spec, BoundedArray) and not problems:
        low, high = np.asarray(spec.minimum), np.asarray(spec.maximum)
        if (values < low).any() or (values > high).any():
            problems.append(f"{path}: values {values.min()}..{values.max()}, spec {low}..{high}")
    return problems


@pytest.mark.parametrize("id", IDS)
def test_observations_and_actions_fit_their_specs(id):
    env, rollout = environment(id), roll(id)
    assert violations(env.observation_spec, rollout.timestep.observation, 2) == []
    assert violations(env.observation_spec, rollout.seen, 2) == []
    assert violations(env.action_spec, rollout.action, 2) == []
    assert violations(env.reward_spec, rollout.timestep.reward, 2) == []
    assert violations(env.discount_spec, rollout.timestep.discount, 2) == []
    env.observation_spec.validate(env.observation_spec.generate_value())
    env.action_spec.validate(env.action_spec.generate_value())


@pytest.mark.parametrize("id", IDS)
def test_ends_are_terminations_or_truncations_and_only_the_former_cut_the_discount(id):
    timestep = roll(id).timestep
    discount = timestep.discount.reshape(STEPS, LANES, -1)
    assert not (timestep.terminated & timestep.truncated).any()
    assert (discount[timestep.terminated] == 0).all()
    assert not timestep.first.any()
    assert np.isfinite(timestep.reward).all()
    step_type = np.where(timestep.terminated | timestep.truncated, 2, 1)
    assert (jax.vmap(lambda t: t.step_type)(timestep) == step_type).all()
    if environment(id).num_agents is None:
        assert (discount[~timestep.terminated] == 1).all()


@pytest.mark.parametrize("id", IDS)
def test_sampled_actions_are_legal_and_masks_never_empty_while_going_on(id):
    env, rollout = environment(id), roll(id)
    mask = getattr(rollout.seen, "action_mask", None)
    if mask is None:
        pytest.skip("no mask")
    action = rollout.action
    if isinstance(env.action_spec, MultiDiscreteArray) and not is_joint(
        env.action_spec, mask[0, 0]
    ):
        legal = np.take_along_axis(mask, action[..., None].astype(int), axis=-1)[..., 0]
        needed = mask.any(axis=-1)
        assert legal[needed].all()
        return
    flat = mask.reshape(STEPS, LANES, -1)
    joint = action[..., None] if action.ndim == 2 else action
    index = np.ravel_multi_index(tuple(np.moveaxis(joint, -1, 0)), mask.shape[2:])
    possible = flat.any(axis=-1)
    assert np.take_along_axis(flat, index[..., None], axis=-1)[possible].all()
    # FlatPack goes on to its last step even when nothing fits any more.
    assert possible.all() or id == "FlatPack-v0"


@pytest.mark.parametrize("id", IDS)
def test_the_same_seed_gives_the_same_episode_without_compiling_again(id):
    first = roll(id)
    compiled = _roll._cache_size()
    again = jax.tree.map(
        lambda leaf: leaf, _roll(make(id), jax.random.key(0), LANES, STEPS).timestep
    )
    assert _roll._cache_size() == compiled, "an equal environment compiled again"
    for ours, theirs in zip(jax.tree.leaves(first.timestep), jax.tree.leaves(again)):
        np.testing.assert_array_equal(ours, theirs)
    other = roll(id, seed=1)
    assert any(
        not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other))
    )


@pytest.mark.parametrize("id", IDS)
def test_every_renderer_draws_every_environment(id, tmp_path):
    env = environment(id)
    states = [pick(roll(id).after, step, 0) for step in (0, 3, 8)]
    image = env.render(states[1])
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 1
    assert env.render(states[1], "svg").startswith("<svg")
    assert "▀" in env.render(states[1], "ansi")
    assert env.animate(states).count('class="frame"') == 3
    assert env.animate(states, tmp_path / "episode.svg").read_text().count("<animate ") == 3


# Each costs two more compilations; these six have every kind of spec between them.
_QUICK = ("Game2048-v1", "RubiksCube-v0", "Connector-v3", "MultiCVRP-v0", "PacMan-v1")
_QUICK += ("SearchAndRescue-v0",)
_ADAPTED = [id if id in _QUICK else pytest.param(id, marks=pytest.mark.slow) for id in IDS]


@pytest.mark.parametrize("id", _ADAPTED)
def test_gymnasium_and_dm_env_accept_the_adapters(id):
    from dm_env import StepType
    from gymnasium.utils.env_checker import check_env

    from trimtab.envs.wrappers.dm_env import dm_env_environment
    from trimtab.envs.wrappers.gymnasium import gymnasium_env

    env = environment(id)
    check_env(gymnasium_env(env), skip_render_check=True)

    adapter = dm_env_environment(env)
    timestep = adapter.reset()
    assert timestep.step_type is StepType.FIRST
    for _ in range(3):
        timestep = adapter.step(env.action_spec.generate_value())
        for name, spec in env.observation_spec.to_dm_env().items():
            if not isinstance(spec, dict):
                spec.validate(timestep.observation[name])
        if timestep.step_type is not StepType.FIRST:
            adapter.reward_spec().validate(timestep.reward)
            adapter.discount_spec().validate(timestep.discount)


@pytest.mark.parametrize(
    ("id", "settings"),
    [
        ("Maze-v0", {"time_limit": 15}),
        ("TSP-v1", {}),
        ("Minesweeper-v0", {}),
        ("Connector-v3", {"time_limit": 12}),
        ("Snake-v1", {}),
    ],
)
def test_lazy_resets_equal_eager_ones_bit_for_bit(id, settings):
    env = make(id, **settings)

    @functools.partial(jax.jit, static_argnums=0)
    def play(batch, keys, actions):
        state, _first = batch.reset(keys)
        advance = lambda state, action: batch.step(state, action)  # noqa: E731
        return jax.lax.scan(advance, state, actions)

    actions = jnp.asarray(roll(id, seed=3).action)
    keys = jax.random.split(jax.random.key(5), LANES)
    lazy = play(Batch(env, lanes_at_once=2, final_observation=True), keys, actions)
    eager = play(Batch(env, auto_reset="eager", final_observation=True), keys, actions)
    assert bool(lazy[1].last.any())
    for ours, theirs in zip(jax.tree.leaves(lazy), jax.tree.leaves(eager)):
        if jax.dtypes.issubdtype(ours.dtype, jax.dtypes.prng_key):
            ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
        np.testing.assert_array_equal(ours, theirs)


def test_equal_environments_share_compiled_functions():
    first, second = make("TSP-v1"), make("TSP-v1")
    assert first == second
    assert hash(first) == hash(second)
    state, _ = compiled_reset(first, jax.random.key(0))
    compiled_step(first, state, jnp.int32(0))
    before = compiled_step._cache_size()
    compiled_step(second, state, jnp.int32(1))
    assert compiled_step._cache_size() == before
