"""Capture of models from every library, against the model itself."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import trimtab as tt
from trimtab.errors import DtypeError, InputError, ShapeError, UnsupportedError
from trimtab.graph import insert

torch = pytest.importorskip("torch")


class Block(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, dim, key):
        attention, up, down = jax.random.split(key, 3)
        self.attention = eqx.nn.MultiheadAttention(2, dim, key=attention)
        self.norm = eqx.nn.LayerNorm(dim)
        self.up = eqx.nn.Linear(dim, 2 * dim, key=up)
        self.down = eqx.nn.Linear(2 * dim, dim, key=down)

    def __call__(self, x):
        h = jax.vmap(self.norm)(x)
        x = x + self.attention(h, h, h)
        return x + jax.vmap(lambda row: self.down(jax.nn.gelu(self.up(row))))(x)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(4, (3, 3), name="conv")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3, name="head")(nn.relu(x).reshape(x.shape[0], -1))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, rngs=rngs, decode=False)

    def __call__(self, x):
        return self.attention(self.first(x))


class Torch(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(10, 16)
        self.encoder = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.conv = torch.nn.Conv1d(16, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm1d(8)
        self.head = torch.nn.Linear(8, 2)

    def forward(self, ids):
        h = self.conv(self.encoder(self.embed(ids)).transpose(1, 2))
        return {"logits": self.head(self.norm(h).mean(-1))}


@pytest.fixture(scope="module")
def block():
    return Block(8, jax.random.key(1))


@pytest.fixture(scope="module")
def block_program(block):
    return tt.capture(block, jax.ShapeDtypeStruct((5, 8), "float32"))


@pytest.fixture
def x(key):
    return jax.random.normal(key, (5, 8))


@pytest.fixture(scope="module")
def torch_program():
    torch.manual_seed(0)
    module = Torch().eval()
    ids = torch.randint(0, 10, (3, 5))
    return module, ids, tt.capture(module, ids)


def test_an_equinox_module_keeps_its_answer_and_names(block, block_program, x):
    np.testing.assert_allclose(block_program(x), block(x), atol=1e-6)
    assert "attention/query_proj/weight" in block_program.parameters
    assert block_program.parameters["up/bias"] is block.up.bias


def test_a_batched_module_maps_over_the_leading_axis(block, x):
    program = tt.capture(block, jax.ShapeDtypeStruct((3, 5, 8), "float32"), batched=True)
    np.testing.assert_allclose(program(jnp.stack([x] * 3))[1], block(x), atol=1e-6)


def test_a_function_takes_its_parameters_first():
    program = tt.capture(
        lambda p, a, b: {"sum": a @ p["w"] + b}, jnp.ones((2, 3)), 1.0, parameters={"w": jnp.eye(3)}
    )
    np.testing.assert_allclose(program(jnp.ones((2, 3)), 2.0)["sum"], 3.0)


def test_closed_over_arrays_become_parameters():
    table = jnp.arange(12.0).reshape(4, 3)
    program = tt.capture(lambda i: table[i], jnp.array([0, 1]))
    assert list(program.parameters) == ["constants/0"]
    np.testing.assert_array_equal(program(jnp.array([2, 3])), table[2:])


def test_a_linen_module_keeps_its_answer(key):
    model, x = Linen(), jax.random.normal(key, (2, 6, 6, 1))
    variables = model.init(key, x, False)
    program = tt.capture(model, x, parameters=variables, train=False)
    np.testing.assert_allclose(program(x), model.apply(variables, x, False), atol=1e-6)
    kinds = {site.path: site.kind for site in program.sites()}
    assert kinds["params/conv"] == "convolution"
    assert kinds["params/head"] == "linear"
    assert kinds["params/norm"] == "normalization"


def test_an_nnx_module_keeps_its_answer(key):
    model, x = Nnx(nnx.Rngs(0)), jax.random.normal(key, (2, 3, 4))
    program = tt.capture(model, x)
    np.testing.assert_allclose(program(x), model(x), atol=1e-6)
    assert [site.path for site in program.sites("attention")] == ["attention"]


def test_a_torch_module_keeps_its_answer_and_names(torch_program):
    module, ids, program = torch_program
    expected = module(ids)["logits"].detach().numpy()
    np.testing.assert_allclose(program(ids.numpy().astype("int32"))["logits"], expected, atol=1e-5)
    assert set(module.state_dict()) - {"norm.num_batches_tracked"} <= {
        name.replace("/", ".") for name in program.parameters
    }


def test_torch_layers_are_found_as_sites(torch_program):
    kinds = {(site.kind, site.path) for site in torch_program[2].sites()}
    assert {
        ("embedding", "embed"),
        ("attention", "encoder/self_attn"),
        ("linear", "encoder/linear1"),
        ("normalization", "encoder/norm1"),
        ("convolution", "conv"),
        ("normalization", "norm"),
        ("linear", "head"),
    } <= kinds


def test_torch_weights_are_shared_where_dlpack_allows():
    layer = torch.nn.Linear(64, 64).eval()
    program = tt.capture(layer, torch.ones(2, 64))
    pointers = {program.parameters["weight"].unsafe_buffer_pointer(), layer.weight.data_ptr()}
    assert len(pointers) == 1


def test_a_torch_module_in_training_mode_is_refused():
    with pytest.raises(UnsupportedError, match=r"Call model.eval\(\) first"):
        tt.capture(torch.nn.Dropout(), torch.ones(2))


def test_an_unsupported_torch_module_names_the_reason():
    class Branches(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedError, match=r"torch.export cannot capture Branches"):
        tt.capture(Branches().eval(), torch.ones(2))


def test_a_missing_torch_extra_is_one_sentence(monkeypatch):
    import sys

    module = torch.nn.Linear(2, 2).eval()
    monkeypatch.setitem(sys.modules, "torchax.export", None)
    with pytest.raises(ImportError, match=r"pip install 'trimtab\[torch\]'"):
        tt.capture(module, torch.ones(2))


def test_programs_work_under_jit_grad_and_vmap(block, block_program, x):
    np.testing.assert_allclose(jax.jit(block_program)(x), block(x), atol=1e-6)
    batch = jnp.stack([x, 2 * x])
    np.testing.assert_allclose(
        jax.vmap(block_program)(batch), jax.vmap(block)(batch), atol=1e-5, rtol=1e-5
    )
    ours = jax.grad(lambda p: p(x).sum())(block_program).parameters["up/weight"]
    theirs = eqx.filter_grad(lambda m: m(x).sum())(block).up.weight
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


def test_programs_work_under_shard_map(block, block_program, x):
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    spec = jax.P("data")
    run = jax.shard_map(
        lambda batch: jax.vmap(block_program)(batch),
        mesh=mesh,
        in_specs=spec,
        out_specs=spec,
        check_vma=False,
    )
    batch = jnp.stack([x, 2 * x, 3 * x, x])
    batch = jax.device_put(batch, jax.NamedSharding(mesh, spec))
    np.testing.assert_allclose(run(batch), jax.vmap(block)(batch), atol=1e-5, rtol=1e-5)


def test_a_symbolic_batch_takes_any_size(key):
    (size,) = jax.export.symbolic_shape("batch")
    weights = jax.random.normal(key, (3, 2))
    program = tt.capture(
        lambda w, x: jax.nn.softmax(x @ w),
        jax.ShapeDtypeStruct((size, 3), "float32"),
        parameters=weights,
    )
    for batch in (1, 7):
        np.testing.assert_allclose(program(jnp.ones((batch, 3))).sum(-1), np.ones(batch), rtol=1e-6)
    assert program.sites("linear")[0].shapes["weight"] == (3, 2)
    with pytest.raises(UnsupportedError, match="no single cost"):
        program.cost()


def test_parameters_go_back_into_the_model(block, block_program, x):
    doubled = {name: 2 * array for name, array in block_program.parameters.items()}
    moved = insert(block, doubled)
    np.testing.assert_allclose(
        moved(x), block_program.with_parameters(doubled)(x), atol=1e-4, rtol=1e-4
    )


def test_wrong_inputs_are_named(block_program, x):
    with pytest.raises(ShapeError, match=r"Input 0 of Block has shape \(4, 8\)"):
        block_program(x[:4])
    with pytest.raises(DtypeError, match="has dtype complex64; the program expects float32"):
        block_program(x + 1j)
    with pytest.raises(InputError, match="takes inputs of structure"):
        block_program(x, x)
    with pytest.raises(ShapeError, match=r"Parameter 'up/bias' has shape \(16,\)"):
        block_program.with_parameters({"up/bias": jnp.ones(3)})
    with pytest.raises(InputError, match="no parameter 'nothing'"):
        block_program.with_parameters({"nothing": jnp.ones(3)})


def test_wrong_models_are_named():
    with pytest.raises(InputError, match="Cannot capture a int"):
        tt.capture(3, jnp.ones(2))
    with pytest.raises(InputError, match="needs at least one example input"):
        tt.capture(lambda: 1)
    with pytest.raises(InputError, match="An example input is a str"):
        tt.capture(lambda x: x, "text")
    with pytest.raises(InputError, match="Pass parameters=variables"):
        tt.capture(nn.Dense(3), jnp.ones((1, 2)))
    with pytest.raises(UnsupportedError, match="depends on the values of arrays"):
        tt.capture(lambda x: x if x.sum() > 0 else -x, jnp.ones(2))
