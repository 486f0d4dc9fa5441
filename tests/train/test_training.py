"""The training step and loop: equalities between settings, and what happens at the edges."""

from __future__ import annotations

import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trimtab import train
from trimtab.errors import FileFormatError, InputError, ShapeError
from trimtab.train.data import ShuffledBatches
from trimtab.train.loop import Profile
from trimtab.train.optimizers import layer_telemetry, vr
from trimtab.train.precision import LossScale, Precision, adjusted_loss_scale
from trimtab.train.step import TrainState

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 4)).astype(np.float32)
ARRAYS = {"x": X, "y": (X @ np.arange(4)).astype(np.float32)}


def loss(model: eqx.Module, batch: dict, key: jax.Array) -> tuple:
    error = jax.vmap(model)(batch["x"])[:, 0] - batch["y"]
    return error**2, {"distance": jnp.abs(error)}


def model() -> eqx.nn.MLP:
    return eqx.nn.MLP(4, 1, 8, 1, key=jax.random.key(0))


def trained(steps: int = 6, optimizer: optax.GradientTransformation | None = None, **options):
    step = train.training_step(loss, optimizer or optax.adam(0.02), **options)
    state = step.initial_state(model(), jax.random.key(1))
    batches = train.training_batches(ARRAYS, 16, seed=0, threads=0)
    return step, train.fit(step, state, batches, steps=steps)


def weights(state: TrainState) -> list[np.ndarray]:
    return [np.asarray(w) for w in jax.tree.leaves(eqx.filter(state.model, eqx.is_array))]


def test_one_step_is_what_optax_does_by_hand() -> None:
    step = train.training_step(loss, optax.adam(0.02))
    state = step.initial_state(model(), jax.random.key(1))
    after, metrics = step(state, ARRAYS)
    parameters = eqx.filter(model(), eqx.is_array)
    value, gradient = eqx.filter_value_and_grad(
        lambda m: loss(m, ARRAYS, jax.random.key(0))[0].mean()
    )(model())
    optimizer = optax.adam(0.02)
    updates, _ = optimizer.update(
        eqx.filter(gradient, eqx.is_array), optimizer.init(parameters), parameters
    )
    expected = eqx.apply_updates(model(), updates)
    for ours, theirs in zip(weights(after), jax.tree.leaves(eqx.filter(expected, eqx.is_array))):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"accumulate": 4}, {"groups": 8}, {"groups": 4, "accumulate": 2}, {"donate": True}],
    ids=str,
)
def test_settings_that_only_split_the_batch_change_nothing(options: dict) -> None:
    _, plain = trained()
    _, split = trained(**options)
    for ours, theirs in zip(weights(split.state), weights(plain.state)):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("groups", [None, 16])
def test_eight_devices_train_like_one(groups: int | None) -> None:
    mesh = jax.make_mesh((8,), ("data",))
    _, one = trained(groups=groups)
    _, many = trained(groups=groups, mesh=mesh)
    for ours, theirs in zip(weights(many.state), weights(one.state)):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_clipping_bounds_the_step_of_plain_descent() -> None:
    step = train.training_step(loss, optax.sgd(1.0), clip_norm=0.5)
    state = step.initial_state(model(), jax.random.key(1))
    after, metrics = step(state, ARRAYS)
    moved = np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(weights(after), weights(state))))
    assert metrics["gradient_norm"] > 0.5
    np.testing.assert_allclose(moved, 0.5, rtol=1e-4)


def test_half_precision_recovers_by_halving_the_loss_scale() -> None:
    precision = Precision(compute=jnp.float16, initial_scale=2.0**24, dynamic=True)
    _, result = trained(steps=40, precision=precision)
    assert float(result.state.loss_scale.value) < 2.0**24
    assert np.isfinite(result.metrics["train/loss"])
    assert all(w.dtype == np.float32 and np.isfinite(w).all() for w in weights(result.state))


def test_the_loss_scale_grows_after_enough_good_steps() -> None:
    precision = Precision(initial_scale=8.0, dynamic=True, growth_interval=2)
    scale = LossScale(jnp.asarray(8.0), jnp.asarray(0))
    for _ in range(2):
        scale = adjusted_loss_scale(scale, jnp.asarray(True), precision)
    assert float(scale.value) == 16.0
    assert float(adjusted_loss_scale(scale, jnp.asarray(False), precision).value) == 8.0


def test_a_step_that_is_not_finite_changes_only_its_count() -> None:
    step = train.training_step(loss, optax.adam(0.1), ema_decay=0.9)
    state = step.initial_state(model(), jax.random.key(1))
    bad = ARRAYS | {"y": np.full(64, np.nan, np.float32)}
    after, metrics = step(state, bad)
    assert metrics["skipped"] == 1.0
    assert int(after.step) == 1
    assert all(np.array_equal(a, b) for a, b in zip(weights(after), weights(state)))


def test_the_moving_average_is_what_gets_evaluated() -> None:
    step, result = trained(ema_decay=0.5)
    averaged = train.evaluation_model(step, result.state)
    raw = result.state.model
    assert not np.allclose(averaged.layers[0].weight, raw.layers[0].weight)
    step, result = trained(optimizer=optax.contrib.schedule_free_adamw(0.02))
    averaged = train.evaluation_model(step, result.state)
    assert not np.allclose(averaged.layers[0].weight, result.state.model.layers[0].weight)


def test_frozen_parts_stay_and_have_no_state() -> None:
    spec = jax.tree.map(lambda _: False, model())
    spec = eqx.tree_at(lambda m: m.layers[1].bias, spec, True)
    step = train.training_step(loss, optax.adam(0.1), trainable=spec)
    state = step.initial_state(model(), jax.random.key(1))
    after, _ = step(state, ARRAYS)
    changed = [not np.array_equal(a, b) for a, b in zip(weights(after), weights(state))]
    assert changed == [False, False, False, True]
    assert sum(leaf.size for leaf in jax.tree.leaves(state.optimizer_state)) == 3


def test_a_stateful_loss_hands_its_variables_on() -> None:
    def counting(model, batch, key, seen):
        return loss(model, batch, key)[0], {}, seen + batch["x"].shape[0]

    step = train.training_step(counting, optax.sgd(0.01), stateful=True, groups=4)
    state = step.initial_state(model(), jax.random.key(1), jnp.asarray(0))
    for _ in range(2):
        state, _ = step(state, ARRAYS)
    assert int(state.variables) == 128


def test_telemetry_joins_the_metrics_by_layer() -> None:
    _, result = trained(
        optimizer=vr(optax.sgd(0.01)), groups=8, telemetry=layer_telemetry(group_size=2)
    )
    assert result.metrics["train/noise/variance"] > 0
    assert 0 < result.metrics["train/signal/layers/0/weight/factor"] <= 1


def test_schedules_count_optimizer_steps_not_micro_batches() -> None:
    schedule = optax.linear_schedule(1.0, 0.0, 4)
    step = train.training_step(loss, optax.sgd(schedule), accumulate=4, schedule=schedule)
    state = step.initial_state(model(), jax.random.key(1))
    rates = []
    for _ in range(3):
        state, metrics = step(state, ARRAYS)
        rates.append(float(metrics["learning_rate"]))
    assert rates == [1.0, 0.75, 0.5]


def test_early_stop_ends_the_run_after_its_patience() -> None:
    step = train.training_step(loss, optax.sgd(0.0))
    state = step.initial_state(model(), jax.random.key(1))
    result = train.fit(
        step, state, train.training_batches(ARRAYS, 16, seed=0, threads=0), steps=100,
        evaluate=lambda _: {"validation/loss": 1.0}, evaluate_every=2,
        early_stop=train.EarlyStop(patience=3),
    )  # fmt: skip
    assert result.stopped == "early"
    assert int(result.state.step) == 2 * (1 + 3 + 1)


def test_evaluation_counts_every_example_once_whatever_the_batch_size() -> None:
    def metrics(_: object, batch: dict) -> dict:
        return {"mean": batch["y"]}

    for size in (7, 64, 100):
        found = train.evaluate(metrics, None, train.evaluation_batches(ARRAYS, size))
        np.testing.assert_allclose(found["validation/mean"], ARRAYS["y"].mean(), rtol=1e-5)
    with pytest.raises(ShapeError, match="one value an example"):
        train.evaluate(lambda m, b: {"a": b["x"]}, None, train.evaluation_batches(ARRAYS, 8))


def test_an_epoch_is_a_permutation_and_a_position_resumes() -> None:
    source = ShuffledBatches({"x": np.arange(12)}, 4, seed=5)
    first = np.concatenate([source[i]["x"] for i in range(3)])
    second = np.concatenate([source[i]["x"] for i in range(3, 6)])
    assert sorted(first) == sorted(second) == list(range(12))
    assert not np.array_equal(first, second)
    batches = train.training_batches({"x": np.arange(12)}, 4, seed=5)
    for _ in range(4):
        next(batches)
    position = batches.get_state()
    expected = [next(batches)["x"].tolist() for _ in range(5)]
    again = train.training_batches({"x": np.arange(12)}, 4, seed=5)
    again.set_state(json.loads(json.dumps(position)))
    assert [next(again)["x"].tolist() for _ in range(5)] == expected


def test_checkpoints_keep_the_last_and_the_best(tmp_path: Path) -> None:
    state = {"w": jnp.arange(3.0), "key": jax.random.key(7), "name": "static"}
    with train.Checkpoints(tmp_path, keep_last=2, keep_best=1, metric="loss") as checkpoints:
        for step, value in enumerate([5.0, 1.0, 3.0, 4.0, 2.0]):
            checkpoints.save(step, state, {"n": step}, {"loss": value})
        checkpoints.wait()
        assert checkpoints.steps() == [1, 3, 4]
        assert checkpoints.best() == 1
        restored = checkpoints.restore(state, 3)
        assert restored.position == {"n": 3}
        assert np.array_equal(
            jax.random.key_data(restored.state["key"]), jax.random.key_data(state["key"])
        )
        with pytest.raises(FileFormatError, match="no checkpoint of step 9; it has"):
            checkpoints.restore(state, 9)
        with pytest.raises(FileFormatError, match=r"has w of shape \(3,\), this program \(4,\)"):
            checkpoints.restore(state | {"w": jnp.zeros(4)})
        with pytest.raises(FileFormatError, match="the checkpoint lacks it: v"):
            checkpoints.restore(state | {"v": jnp.zeros(4)})


def test_a_half_written_metrics_line_is_dropped_and_a_resume_rewinds(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = train.JsonLines(path)
    for step in (1, 2, 3):
        sink(step, {"train/loss": 1.0 / step, "bad": float("nan")})
    sink.close()
    with path.open("a") as file:
        file.write('{"step": 4, "train/lo')
    assert [r["step"] for r in train.read_metrics(path)] == [1, 2, 3]
    sink.rewind(2)
    sink(3, {"train/loss": 9.0})
    sink.close()
    records = train.read_metrics(path)
    assert [r["step"] for r in records] == [1, 2, 3]
    assert records[2]["train/loss"] == 9.0
    assert records[0]["bad"] is None


def test_tensorboard_files_hold_the_scalars(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    sink = train.TensorBoard(tmp_path)
    sink(1, {"train/loss": 0.5})
    sink.close()
    (events,) = tmp_path.iterdir()
    assert b"train/loss" in events.read_bytes()


def test_a_profile_is_recorded(tmp_path: Path) -> None:
    step = train.training_step(loss, optax.sgd(0.01))
    state = step.initial_state(model(), jax.random.key(1))
    batches = train.training_batches(ARRAYS, 16, seed=0, threads=0)
    train.fit(step, state, batches, steps=3, profile=Profile(tmp_path, first=1, steps=1))
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_progress_tells_throughput_and_time_left() -> None:
    messages = []
    step = train.training_step(loss, optax.sgd(0.01))
    train.fit(
        step, step.initial_state(model(), jax.random.key(1)),
        train.training_batches(ARRAYS, 16, seed=0, threads=0), steps=2, log_every=1,
        progress=lambda message, done=0.0, total=0.0: messages.append((message, done, total)),
    )  # fmt: skip
    assert [m[1:] for m in messages] == [(1, 2), (2, 2)]
    assert "examples/s" in messages[0][0]
    assert messages[0][0].endswith("left")


def test_misuse_says_what_to_do() -> None:
    step = train.training_step(loss, optax.sgd(0.01))
    state = step.initial_state(model(), jax.random.key(1))
    with pytest.raises(InputError, match="The batches ended after 1 of 5 steps"):
        train.fit(step, state, iter([ARRAYS]), steps=5)
    with pytest.raises(InputError, match="accumulate must be at least 1"):
        train.training_step(loss, optax.sgd(0.1), accumulate=0)
    with pytest.raises(InputError, match="10 groups do not divide over 8 devices"):
        train.training_step(loss, optax.sgd(0.1), groups=10, mesh=jax.make_mesh((8,), ("data",)))


def test_a_flax_module_trains_through_split_and_merge() -> None:
    nnx = pytest.importorskip("flax.nnx")
    graph, parameters = nnx.split(nnx.Linear(4, 1, rngs=nnx.Rngs(0)))

    def flax_loss(parameters, batch, key):
        return jnp.square(nnx.merge(graph, parameters)(batch["x"])[:, 0] - batch["y"])

    step = train.training_step(flax_loss, vr(optax.sgd(0.05)), groups=4)
    state = step.initial_state(parameters, jax.random.key(0))
    first = None
    for _ in range(30):
        state, metrics = step(state, ARRAYS)
        first = first if first is not None else metrics["loss"]
    assert metrics["loss"] < 0.2 * first
