"""Group statistics are the same however they are computed, and travel as cheaply as they can."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from trimtab.errors import InputError, ShapeError
from trimtab.train import gradient_statistics, merge_statistics, training_step
from trimtab.train.optimizers import gradient_ratios, trust_ratio, vr
from trimtab.train.sharded import (
    gather_shards,
    merge_across,
    own_shards,
    scatter_statistics,
    sharded_update,
)

BATCH, GROUPS = 64, 16


def problem() -> tuple[dict, dict]:
    rng = np.random.default_rng(0)
    parameters = {"w": rng.normal(size=(6, 5)), "b": rng.normal(size=5)}
    batch = {"x": rng.normal(size=(BATCH, 6)), "y": rng.normal(size=(BATCH, 5))}
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (parameters, batch))


def loss(parameters: dict, batch: dict) -> jax.Array:
    return jnp.square(jnp.tanh(batch["x"] @ parameters["w"]) + parameters["b"] - batch["y"]).sum(1)


def brute_force() -> tuple[dict, dict]:
    """Mean and squared deviations from one gradient a group, in float64."""
    parameters, batch = problem()
    size = BATCH // GROUPS
    gradients = [
        jax.grad(lambda p, part: loss(p, part).mean())(
            parameters, jax.tree.map(lambda a, g=group: a[g * size : (g + 1) * size], batch)
        )
        for group in range(GROUPS)
    ]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves).astype(np.float64), *gradients)
    return (
        jax.tree.map(lambda a: a.mean(0), stacked),
        jax.tree.map(lambda a: ((a - a.mean(0)) ** 2).sum(0), stacked),
    )


def close(statistics: object, atol: float = 1e-6) -> None:
    mean, deviations = brute_force()
    for ours, theirs in ((statistics.mean, mean), (statistics.squared_deviations, deviations)):
        for name in ("w", "b"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-6, atol=atol)


@pytest.mark.parametrize("method", ["scan", "compensated", "vmap"])
def test_every_method_gives_the_brute_force_statistics(method: str) -> None:
    close(gradient_statistics(loss, *problem(), groups=GROUPS, method=method))


def test_two_halves_merge_into_the_whole() -> None:
    parameters, batch = problem()
    halves = [
        gradient_statistics(
            loss, parameters, jax.tree.map(lambda a, h=half: a[32 * h : 32 * h + 32], batch),
            groups=GROUPS // 2, norms=True,
        )
        for half in (0, 1)
    ]  # fmt: skip
    merged = merge_statistics(*halves)
    close(merged)
    assert merged.group_square_norms.shape == (GROUPS,)


def test_group_norms_of_single_examples_are_gradient_norms() -> None:
    parameters, batch = problem()
    whole = gradient_statistics(loss, parameters, batch, groups=BATCH, norms=True)
    each = jax.vmap(
        jax.grad(lambda p, x, y: loss(p, {"x": x[None], "y": y[None]})[0]), (None, 0, 0)
    )
    gradients = each(parameters, batch["x"], batch["y"])
    expected = sum(jnp.sum(g**2, axis=tuple(range(1, g.ndim))) for g in gradients.values())
    np.testing.assert_allclose(whole.group_square_norms, expected, rtol=1e-5)


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((8,), ("data",))


def local_statistics(parameters: dict, batch: dict) -> object:
    parameters = jax.lax.pcast(parameters, ("data",), to="varying")
    return gradient_statistics(loss, parameters, batch, groups=GROUPS // 8)


@pytest.mark.parametrize("shifted", [False, True])
def test_eight_devices_give_the_same_statistics(mesh: jax.sharding.Mesh, shifted: bool) -> None:
    parameters, batch = problem()
    shift = jax.tree.map(lambda p: p * 0.1, parameters) if shifted else None

    def body(parameters: dict, batch: dict) -> object:
        return merge_across(local_statistics(parameters, batch), ("data",), shift)

    run = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(P(), P("data")), out_specs=P()))
    close(run(parameters, jax.device_put(batch, jax.NamedSharding(mesh, P("data")))))


def test_scattered_statistics_gather_to_the_same(mesh: jax.sharding.Mesh) -> None:
    parameters, batch = problem()

    def body(parameters: dict, batch: dict) -> tuple:
        merged = scatter_statistics(local_statistics(parameters, batch), "data")
        return (
            gather_shards(merged.mean, parameters, "data"),
            gather_shards(merged.squared_deviations, parameters, "data"),
        )

    run = jax.shard_map(body, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=False)
    batch = jax.device_put(batch, jax.NamedSharding(mesh, P("data")))
    mean, deviations = jax.jit(run)(parameters, batch)
    close(type("Both", (), {"mean": mean, "squared_deviations": deviations})())


def placed(mesh: jax.sharding.Mesh, specs: tuple, arguments: tuple) -> tuple:
    """Put arguments where their specifications say."""
    return tuple(
        jax.tree.map(
            lambda s, a: jax.device_put(a, jax.NamedSharding(mesh, s)),
            jax.tree.map(lambda _, s=spec: s, argument) if isinstance(spec, P) else spec,
            argument,
            is_leaf=lambda node: isinstance(node, P),
        )
        for spec, argument in zip(specs, arguments)
    )


def collectives(text: str) -> dict[str, list[int]]:
    """Elements of every collective's results in compiled HLO, by kind."""
    found: dict[str, list[int]] = {}
    pattern = r"= (\(?[^=]*?) (all-reduce|reduce-scatter|all-gather)(?:-start)?\("
    for shapes, kind in re.findall(pattern, text):
        sizes = re.findall(r"f32\[([\d,]*)\]", shapes)
        count = sum(int(np.prod([int(d) for d in s.split(",") if d] or [1])) for s in sizes)
        found.setdefault(kind, []).append(count)
    return found


def test_replicated_statistics_take_one_all_reduce_of_twice_the_parameters(
    mesh: jax.sharding.Mesh,
) -> None:
    size = 40_000
    parameters = {"w": jnp.ones((size // 8, 8))}
    batch = {"x": jnp.ones((BATCH, size // 8)), "y": jnp.ones((BATCH, 8))}

    def square(model: dict, part: dict, key: jax.Array) -> jax.Array:
        return jnp.square(part["x"] @ model["w"] - part["y"]).sum(1)

    def compiled(groups: int | None) -> dict[str, list[int]]:
        optimizer = vr(optax.sgd(0.1)) if groups else optax.sgd(0.1)
        step = training_step(square, optimizer, groups=groups, mesh=mesh)
        state = step.initial_state(parameters, jax.random.key(0))
        cut = jax.device_put(batch, jax.NamedSharding(mesh, P("data")))
        arrays, static = eqx.partition((cut, state), eqx.is_array)
        run = jax.jit(lambda arrays: step._run(*eqx.combine(arrays, static)))
        return collectives(run.lower(arrays).compile().as_text())

    plain, ours = compiled(None), compiled(GROUPS)
    # The loss rides along in the same tuple.
    assert [round(n / size, 3) for n in plain["all-reduce"]] == [1.0]
    assert [round(n / size, 3) for n in ours["all-reduce"]] == [2.0]
    assert set(ours) == {"all-reduce"}


def test_scattered_update_moves_one_and_a_half_times_the_plain_ring_traffic(
    mesh: jax.sharding.Mesh,
) -> None:
    size, devices = 40_000, 8
    parameters = {"w": jnp.ones((size // 8, 8))}
    batch = {"x": jnp.ones((BATCH, size // 8)), "y": jnp.ones((BATCH, 8))}
    optimizer = vr(optax.adam(0.1), decay=0.9, axis_names=("data",))

    def square(model: dict, part: dict) -> jax.Array:
        return jnp.square(part["x"] @ model["w"] - part["y"]).sum(1)

    def body(parameters: dict, state: object, batch: dict) -> tuple:
        own = jax.lax.pcast(parameters, ("data",), to="varying")
        statistics = gradient_statistics(square, own, batch, groups=2)
        return sharded_update(optimizer, statistics, state, parameters, "data")

    state = optimizer.init({"w": jnp.zeros(size)})
    specs = jax.tree.map(lambda leaf: P("data") if leaf.ndim else P(), state)
    run = jax.jit(
        jax.shard_map(
            body, mesh=mesh, in_specs=(P(), specs, P("data")), out_specs=(P(), specs),
            check_vma=False,
        )
    )  # fmt: skip
    arguments = placed(mesh, (P(), specs, P("data")), (parameters, state, batch))
    found = collectives(run.lower(*arguments).compile().as_text())
    ring = (devices - 1) / devices
    scattered = sum(found["reduce-scatter"]) * devices
    traffic = ring * (scattered + sum(found["all-gather"]) + 2 * sum(found["all-reduce"]))
    assert traffic / (2 * ring * size) <= 1.51
    assert sum(found["all-reduce"]) < 20  # layer sums and the loss


def test_a_sharded_update_equals_the_whole_one(mesh: jax.sharding.Mesh) -> None:
    parameters, batch = problem()
    chain = (optax.scale_by_adam(), trust_ratio(axis_names=("data",)), optax.scale(-0.1))
    ours = vr(optax.chain(*chain), decay=0.9, axis_names=("data",))
    whole = vr(
        optax.chain(optax.scale_by_adam(), optax.scale_by_trust_ratio(), optax.scale(-0.1)),
        decay=0.9,
    )

    def body(parameters: dict, state: object, batch: dict) -> tuple:
        return sharded_update(ours, local_statistics(parameters, batch), state, parameters, "data")

    flat = jax.tree.map(lambda p: jnp.zeros(p.size + -p.size % 8), parameters)
    state, whole_state = ours.init(flat), whole.init(parameters)
    specs = jax.tree.map(lambda leaf: P("data") if leaf.ndim else P(), state)
    run = jax.jit(
        jax.shard_map(
            body, mesh=mesh, in_specs=(P(), specs, P("data")), out_specs=(P(), specs),
            check_vma=False,
        )
    )  # fmt: skip
    sharded = expected = parameters
    for _ in range(3):
        arguments = placed(mesh, (P(), specs, P("data")), (sharded, state, batch))
        sharded, state = run(*arguments)
        stats = gradient_statistics(loss, expected, batch, groups=GROUPS)
        updates, whole_state = whole.update(
            stats.mean, whole_state, expected,
            sum_sq_diff_grads=stats.squared_deviations, sample_size=stats.count,
        )  # fmt: skip
        expected = optax.apply_updates(expected, updates)
    for name in expected:
        np.testing.assert_allclose(sharded[name], expected[name], atol=2e-5)


def test_ratios_of_leaves_cut_over_a_second_axis_use_the_whole_layer() -> None:
    grid = jax.make_mesh((4, 2), ("data", "model"))
    rng = np.random.default_rng(1)
    mean = {"w": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)}
    deviations = {"w": jnp.asarray(rng.chisquare(7, (6, 4)), jnp.float32)}
    cut = P(None, "model")
    run = jax.shard_map(
        partial(gradient_ratios, count=8.0, axis_names=("model",)),
        mesh=grid, in_specs=({"w": cut}, {"w": cut}), out_specs={"w": cut},
    )  # fmt: skip
    both = jax.device_put((mean, deviations), jax.NamedSharding(grid, cut))
    ours = jax.jit(run)(*both)["w"]
    np.testing.assert_allclose(ours, gradient_ratios(mean, deviations, 8.0)["w"], rtol=1e-6)


def test_own_shards_gather_back(mesh: jax.sharding.Mesh) -> None:
    tree = {"a": jnp.arange(13.0), "b": jnp.ones((3, 3))}
    run = jax.shard_map(
        lambda t: gather_shards(own_shards(t, "data"), t, "data"),
        mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False,
    )  # fmt: skip
    for ours, theirs in zip(jax.tree.leaves(run(tree)), jax.tree.leaves(tree)):
        assert np.array_equal(ours, theirs)


TWO_PROCESSES = """
import sys, jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize("127.0.0.1:%d", 2, int(sys.argv[1]))
from jax.sharding import PartitionSpec as P
from trimtab.train import gradient_statistics
from trimtab.train.sharded import merge_across
import importlib.util
spec = importlib.util.spec_from_file_location("cases", sys.argv[2])
cases = importlib.util.module_from_spec(spec); spec.loader.exec_module(cases)
parameters, batch = cases.problem()
mesh = jax.make_mesh((len(jax.devices()),), ("data",))
def body(parameters, batch):
    own = jax.lax.pcast(parameters, ("data",), to="varying")
    stats = gradient_statistics(cases.loss, own, batch, groups=cases.GROUPS // len(jax.devices()))
    return merge_across(stats, ("data",))
place = lambda a: jax.make_array_from_callback(
    a.shape, jax.NamedSharding(mesh, P("data")), lambda index: np.asarray(a)[index])
run = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(P(), P("data")), out_specs=P()))
stats = run(parameters, jax.tree.map(place, batch))
local = jax.tree.map(lambda a: np.asarray(a.addressable_data(0)), stats)
cases.close(local)
print("processes", jax.process_count(), "devices", len(jax.devices()))
"""


def test_two_processes_give_the_same_statistics() -> None:
    import os
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES % port, str(index), __file__],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for index in (0, 1)
    ]  # fmt: skip
    for process in processes:
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-2000:]
        assert "processes 2 devices 4" in out


def test_uneven_groups_are_refused_with_the_sizes() -> None:
    parameters, batch = problem()
    with pytest.raises(ShapeError, match="64 examples cannot be cut into 7 equal parts"):
        gradient_statistics(loss, parameters, batch, groups=7)
    with pytest.raises(InputError, match="at least 2 groups, 1 given"):
        gradient_statistics(loss, parameters, batch, groups=1)
    with pytest.raises(ShapeError, match="must share their leading axis"):
        gradient_statistics(loss, parameters, batch | {"y": batch["y"][:3]}, groups=2)
