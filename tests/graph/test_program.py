"""Replacement, taps, dead code, files and comparison of programs."""

import contextlib
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trimtab as tt
from trimtab.errors import FileFormatError, InputError, ShapeError, UnsupportedError
from trimtab.graph import Replacement, linear_weight


@pytest.fixture(scope="module")
def model():
    return eqx.nn.MLP(6, 3, 8, 2, key=jax.random.key(0))


@pytest.fixture(scope="module")
def program(model):
    return tt.capture(model, jnp.ones((4, 6)), batched=True)


@pytest.fixture
def x(key):
    return jax.random.normal(key, (4, 6))


def scanned(p, x):
    """Three layers in a rematerialised scan."""

    def layer(h, w):
        return jax.nn.gelu(h @ w["weight"] + w["bias"]), h.sum()

    return jax.lax.scan(jax.checkpoint(layer), x, p)


def looped(p, x):
    def body(s):
        return s[0] + 1, jnp.tanh(s[1] @ p["weight"])

    return jax.lax.while_loop(lambda s: s[0] < 3, body, (0, x))[1]


def branched(p, x):
    return jax.lax.cond(x[0, 0] > 0, lambda y: y @ p["weight"], lambda y: y, x)


@pytest.fixture(scope="module")
def stacked():
    keys = jax.random.split(jax.random.key(1))
    return {
        "weight": jax.random.normal(keys[0], (3, 6, 6)) / 3,
        "bias": jax.random.normal(keys[1], (3, 6)),
    }


def halve(program, site):
    """Replace a product by one with half the matrix, times two."""
    matrix = linear_weight(site, program.parameters[site.parameters["weight"]])
    name = f"{site.path}/half"
    contracts = site.attributes["input_contracts"]
    return Replacement(
        site.address,
        (site.values["input"],),
        lambda extras, x: jnp.tensordot(x, 2 * extras[name], (contracts, (1,))),
        {name: matrix / 2},
        site.provenance["weight"].loops,
    )


@pytest.mark.parametrize("function", [scanned, looped, branched])
def test_a_replaced_product_gives_the_same_answer(function, stacked, x):
    parameters = stacked if function is scanned else {"weight": stacked["weight"][0]}
    program = tt.capture(function, x, parameters=parameters)
    sites = program.sites("linear")
    changed = program.replace([halve(program, site) for site in sites])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), changed(x), program(x))
    assert "weight" not in changed.parameters
    assert "weight/half" in changed.parameters


def test_a_replaced_program_has_the_right_gradient(stacked, x):
    program = tt.capture(scanned, x, parameters=stacked)
    changed = program.replace([halve(program, site) for site in program.sites("linear")])

    def loss(p):
        return jnp.sum(p(x)[0] ** 2)

    before = jax.grad(loss)(program).parameters
    after = jax.grad(loss)(changed).parameters
    np.testing.assert_allclose(after["bias"], before["bias"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        after["weight/half"], 2 * before["weight"].transpose(0, 2, 1), rtol=1e-4, atol=1e-4
    )


def test_untouched_custom_derivatives_survive_a_rewrite(x):
    @jax.custom_vjp
    def double(y):
        return 2 * y

    double.defvjp(lambda y: (2 * y, None), lambda _, g: (7 * g,))
    program = tt.capture(lambda p, y: double(y) @ p["w"], x, parameters={"w": jnp.eye(6)})
    changed = program.replace([halve(program, program.sites("linear")[0])])
    assert jax.grad(lambda y: changed(y).sum())(x)[0, 0] == 7


def test_a_replacement_of_another_shape_is_refused(program):
    (site, *_) = program.sites("linear")
    bad = Replacement(site.address, (site.values["input"],), lambda _, x: x)
    with pytest.raises((ShapeError, TypeError, ValueError)):
        program.replace([bad])


def test_replacements_may_not_share_a_name(program):
    first, second, *_ = program.sites("linear")
    changes = [
        Replacement(s.address, (s.values["output"],), lambda e, y: y, {"new": jnp.ones(1)})
        for s in (first, second)
    ]
    with pytest.raises(InputError, match="would be called 'new'"):
        program.replace(changes)


def test_taps_report_what_enters_each_layer(program, model, x):
    outputs, reports = program.tap(lambda site, value: value, program.sites("linear"), x)
    hidden = jax.vmap(lambda row: jax.nn.relu(model.layers[0](row)))(x)
    np.testing.assert_allclose(reports["layers/1"], hidden, atol=1e-6)
    np.testing.assert_allclose(outputs, program(x), atol=1e-6)


def test_taps_inside_a_scan_are_stacked(stacked, x):
    program = tt.capture(scanned, x, parameters=stacked)
    _, reports = program.tap(
        lambda site, value: value.T @ value, program.sites("linear"), x, roles=("input",)
    )
    (gram,) = reports.values()
    assert gram.shape == (3, 6, 6)
    np.testing.assert_allclose(gram[0], x.T @ x, rtol=1e-5, atol=1e-5)


def test_taps_see_attention_operands(key):
    attention = eqx.nn.MultiheadAttention(2, 8, key=key)
    program = tt.capture(lambda m, x: m(x, x, x), jnp.ones((5, 8)), parameters=attention)
    (site,) = program.sites("attention")
    _, reports = program.tap(
        lambda s, q, k, v: (q.shape, jnp.abs(k).max()),
        [site],
        jnp.ones((5, 8)),
        roles=("query", "key", "value"),
    )
    assert reports[site.path][1].shape == ()


def test_taps_inside_a_while_loop_are_refused(x):
    program = tt.capture(looped, x, parameters={"weight": jnp.eye(6)})
    with pytest.raises(UnsupportedError, match="Write the loop as a scan"):
        program.tap(lambda s, v: v, program.sites("linear"), x)


def test_dead_outputs_take_their_work_and_parameters_along():
    def model(p, x):
        return x @ p["a"], x @ p["b"]

    parameters = {"a": jnp.ones((6, 2)), "b": jnp.ones((6, 5))}
    program = tt.capture(model, jnp.ones((4, 6)), parameters=parameters)
    lean = program.dce(outputs=[1])
    assert list(lean.parameters) == ["b"]
    assert lean.cost().flops == 2 * 4 * 6 * 5
    assert lean(jnp.ones((4, 6)))[0].shape == (4, 5)
    with pytest.raises(InputError, match=r"outputs 0\.\.1"):
        program.dce(outputs=[2])


def test_a_saved_program_answers_and_differentiates_alike(program, x, tmp_path):
    program.save(tmp_path / "net.trim")
    loaded = tt.load(tmp_path / "net.trim")
    np.testing.assert_allclose(loaded(x), program(x), atol=1e-6)

    def loss(p):
        return jnp.sum(p(x) ** 2)

    for name, gradient in jax.grad(loss)(loaded).parameters.items():
        np.testing.assert_allclose(gradient, jax.grad(loss)(program).parameters[name], atol=1e-4)
    manifest = json.loads((tmp_path / "net.trim" / "manifest.json").read_text())
    assert manifest["version"] == 1
    assert manifest["cost"]["flops"] == program.cost().flops
    with pytest.raises(UnsupportedError, match="Capture the model again"):
        loaded.sites()
    loaded.save(tmp_path / "again.trim")
    np.testing.assert_allclose(tt.load(tmp_path / "again.trim")(x), program(x), atol=1e-6)


def test_a_symbolic_program_survives_the_disk(tmp_path):
    (size,) = jax.export.symbolic_shape("batch")
    spec = jax.ShapeDtypeStruct((size, 6), "float32")
    program = tt.capture(lambda w, x: {"y": x @ w}, spec, parameters=jnp.eye(6))
    program.save(tmp_path / "any")
    assert tt.load(tmp_path / "any")(jnp.ones((9, 6)))["y"].shape == (9, 6)


@pytest.mark.parametrize("file", ["manifest.json", "program.stablehlo", "parameters.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_damaged_folder_is_reported_and_never_crashes(program, tmp_path, file, damage):
    program.save(tmp_path / "net")
    target = tmp_path / "net" / file
    data = bytearray(target.read_bytes())
    if damage == "missing":
        target.unlink()
    elif damage == "truncated":
        target.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 0xFF
        target.write_bytes(data)
    if (file, damage) == ("manifest.json", "flipped"):
        # A flipped byte may fall in a place that only describes; it must not crash in any case.
        with contextlib.suppress(FileFormatError):
            tt.load(tmp_path / "net")
        return
    with pytest.raises(FileFormatError):
        tt.load(tmp_path / "net")


def test_damage_is_caught_even_without_checksums(program, tmp_path):
    program.save(tmp_path / "net")
    target = tmp_path / "net" / "parameters.safetensors"
    target.write_bytes(target.read_bytes()[:40])
    with pytest.raises(FileFormatError):
        tt.load(tmp_path / "net", verify=False)


def test_a_newer_format_says_to_upgrade(program, tmp_path):
    program.save(tmp_path / "net")
    file = tmp_path / "net" / "manifest.json"
    file.write_text(file.read_text().replace('"version": 1', '"version": 99'))
    with pytest.raises(FileFormatError, match="Upgrade trimtab"):
        tt.load(tmp_path / "net")


def test_saving_never_overwrites_something_else(program, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("keep")
    with pytest.raises(InputError, match="not a saved program"):
        program.save(tmp_path / "notes")
    assert (tmp_path / "notes" / "diary.txt").read_text() == "keep"


def test_a_failed_save_leaves_nothing(tmp_path):
    class Pair(tuple):
        pass

    jax.tree_util.register_pytree_node(Pair, lambda p: (tuple(p), None), lambda _, c: Pair(c))
    program = tt.capture(lambda x: Pair((x, x)), jnp.ones(2))
    with pytest.raises(UnsupportedError, match="cannot be saved"):
        program.save(tmp_path / "pair")
    assert list(tmp_path.iterdir()) == []


def test_comparison_measures_both_and_their_difference(program, x):
    slightly = program.with_parameters(
        {"layers/0/bias": program.parameters["layers/0/bias"] + 0.01}
    )
    result = tt.compare(program, slightly, [(x,)], repetitions=3)
    expected = np.abs(np.asarray(program(x) - slightly(x))).max()
    assert result.max_difference == pytest.approx(expected, rel=1e-5)
    assert result.first.flops == result.second.flops
    assert result.to_json()["speedup"] > 0
    assert "output difference" in str(result)
    with pytest.raises(InputError, match="at least one batch"):
        tt.compare(program, slightly, [])
