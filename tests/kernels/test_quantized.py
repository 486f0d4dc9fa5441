"""Products with quantised weights against GGUF's own dequantiser and plain references."""

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from kernel_cases import worst_error

from trimtab import kernels
from trimtab.errors import ShapeError, UnknownNameError
from trimtab.kernels import _library
from trimtab.kernels.block_formats import BLOCK_FORMATS, dequantize
from trimtab.kernels.decoder import KINDS, run_native, strip_bytes

needs_native = pytest.mark.skipif(
    _library.extension() is None, reason="the native kernels are not built"
)
BLOCKS = sorted(BLOCK_FORMATS)
DENSE = {"f32": np.float32, "bf16": ml_dtypes.bfloat16, "f16": np.float16}
# Where the halves of a block lie that must be finite: offset of each.
HALVES = {
    "q4_0": (0,),
    "q4_1": (0, 2),
    "q5_0": (0,),
    "q5_1": (0, 2),
    "q8_0": (0,),
    "q4_k": (0, 2),
    "q5_k": (0, 2),
    "q6_k": (208,),
    "ternary": (),
}


# Standard deviation of those halves, for weights of about 0.1.
SPREAD = {
    "q4_0": 0.02,
    "q4_1": 0.01,
    "q5_0": 0.01,
    "q5_1": 0.005,
    "q8_0": 0.0014,
    "q4_k": 0.0002,
    "q5_k": 0.0001,
    "q6_k": 0.00007,
}


def random_rows(kind: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Rows of every bit pattern, except that scales are moderate numbers."""
    generator = np.random.default_rng(seed)
    if kind in DENSE:
        values = generator.normal(size=(rows, columns)).astype(DENSE[kind])
        return values.view(np.uint8).reshape(rows, -1)
    form = BLOCK_FORMATS[kind]
    blocks = generator.integers(0, 256, (rows, columns // form.values, form.bytes), np.uint8)
    if kind == "ternary":
        codes = generator.integers(0, 3, (*blocks.shape, 4), np.uint8)
        blocks = (codes << np.arange(0, 8, 2, np.uint8)).sum(-1).astype(np.uint8)
    for offset in HALVES[kind]:
        scale = generator.normal(0, SPREAD[kind], blocks.shape[:-1]).astype(np.float16)
        blocks[..., offset : offset + 2] = scale[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def columns_of(kind: str) -> int:
    return {256: 512, 4: 96, 32: 96}[BLOCK_FORMATS[kind].values] if kind in BLOCKS else 37


def dense(kind: str, rows: np.ndarray) -> np.ndarray:
    if kind in DENSE:
        return rows.view(DENSE[kind]).astype(np.float32)
    return np.asarray(dequantize(kind, rows))


def rounded(x: np.ndarray, kind: str) -> np.ndarray:
    """The int8 (or bfloat16) values that the weights meet, written out once more."""
    if kind in ("f32", "f16"):
        return x
    if kind == "bf16":
        return x.astype(ml_dtypes.bfloat16).astype(np.float32)
    groups = x if kind == "ternary" else x.reshape(*x.shape[:-1], -1, 32)
    step = np.abs(groups).max(-1, keepdims=True) / 127
    return (np.round(groups / step) * step).reshape(x.shape)


@pytest.mark.parametrize("kind", [kind for kind in BLOCKS if kind != "ternary"])
def test_the_reference_unpacks_what_the_gguf_package_unpacks(kind):
    rows = random_rows(kind, 3, columns_of(kind))
    truth = gguf.dequantize(rows, gguf.GGMLQuantizationType[kind.upper()])
    np.testing.assert_array_equal(dequantize(kind, rows), truth)


@needs_native
@pytest.mark.parametrize("isa", kernels.available_isas())
@pytest.mark.parametrize("kind", list(KINDS))
def test_products_equal_those_of_the_unpacked_weights_on_every_instruction_set(kind, isa):
    columns = columns_of(kind)
    generator = np.random.default_rng(1)
    for outputs in (1, 16, 45):
        rows = random_rows(kind, outputs, columns, outputs)
        bias = generator.normal(size=outputs).astype(np.float32)
        for batch in (1, 2, 13, 30):
            x = generator.normal(size=(batch, columns)).astype(np.float32)
            truth = rounded(x, kind).astype(np.float64) @ dense(kind, rows).T + bias
            found = np.full((batch, outputs), np.nan, np.float32)
            with kernels.use_isa(isa):
                run_native("block_linear", [x, rows, bias], [found], kind=KINDS[kind])
            # A value at the middle between two codes may round either way.
            assert worst_error(found, truth) < (2e-3 if kind in BLOCKS else 1e-5), (batch, outputs)


@needs_native
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_row_has_the_same_bits_alone_and_in_company_with_any_threads(kind):
    columns = columns_of(kind)
    rows = random_rows(kind, 40, columns)
    x = np.random.default_rng(2).normal(size=(29, columns)).astype(np.float32)
    none = np.zeros(0, np.float32)
    results = []
    for threads in (1, 3):
        together = np.empty((29, 40), np.float32)
        with kernels.use_threads(threads):
            run_native("block_linear", [x, rows, none], [together], kind=KINDS[kind])
        results.append(together)
    for row in (0, 11, 28):
        alone = np.empty((1, 40), np.float32)
        run_native("block_linear", [x[row : row + 1], rows, none], [alone], kind=KINDS[kind])
        for together in results:
            assert alone[0].tobytes() == together[row].tobytes()


@needs_native
@pytest.mark.parametrize("kind", list(KINDS))
def test_packed_strips_have_the_size_that_python_computes(kind):
    columns = columns_of(kind)
    rows = random_rows(kind, 20, columns)
    packed = np.empty(2 * strip_bytes(kind, columns), np.uint8)
    run_native("pack_blocks", [rows], [packed], kind=KINDS[kind], columns=columns)


@pytest.mark.parametrize("kind", ["q4_1", "q6_k", "ternary", "bf16"])
def test_the_layer_works_under_jit_and_vmap_and_has_the_gradient_of_a_linear_layer(kind):
    columns = columns_of(kind)
    rows = random_rows(kind, 18, columns)
    x = np.random.default_rng(3).normal(size=(4, 5, columns)).astype(np.float32)
    bias = np.arange(18, dtype=np.float32)
    weights = dense(kind, rows) * (0.5 if kind == "ternary" else 1.0)
    truth = rounded(x, kind) @ weights.T + bias

    def layer(values):
        return kernels.block_linear(values, jnp.asarray(rows), kind, scale=0.5, bias=bias)

    assert worst_error(jax.jit(jax.vmap(layer))(x), truth) < 2e-3
    gradient = jax.grad(lambda values: layer(values).sum())(jnp.asarray(x))
    expected = np.broadcast_to(weights.sum(0), x.shape)
    assert worst_error(gradient, expected) < 1e-4


def test_the_normed_layer_equals_norm_then_layer():
    rows = random_rows("q8_0", 18, 96)
    x = np.random.default_rng(4).normal(size=(6, 96)).astype(np.float32)
    weight = np.random.default_rng(5).normal(size=96).astype(np.float32)
    normed = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight
    truth = rounded(normed, "q8_0") @ dense("q8_0", rows).T
    found = kernels.rms_block_linear(x, weight, rows, "q8_0", epsilon=1e-5)
    assert worst_error(found, truth) < 2e-3


def test_pytorch_tensors_give_pytorch_results_and_gradients():
    rows = random_rows("q4_0", 18, 96)
    x = torch.randn(3, 96, generator=torch.manual_seed(0), requires_grad=True)
    found = kernels.block_linear(x, torch.from_numpy(rows), "q4_0")
    truth = rounded(x.detach().numpy(), "q4_0") @ dense("q4_0", rows).T
    assert worst_error(found.detach().numpy(), truth) < 2e-3
    found.sum().backward()
    expected = np.broadcast_to(dense("q4_0", rows).sum(0), (3, 96))
    assert worst_error(x.grad.numpy(), expected) < 1e-4


def test_wrong_row_lengths_and_unknown_formats_are_named():
    with pytest.raises(ShapeError, match=r"q4_0 rows for 64 inputs are uint8 \(outputs, 36\)"):
        kernels.block_linear(np.zeros((1, 64), np.float32), np.zeros((2, 35), np.uint8), "q4_0")
    with pytest.raises(UnknownNameError, match="weight format 'q4_2'"):
        kernels.block_linear(np.zeros((1, 64), np.float32), np.zeros((2, 36), np.uint8), "q4_2")
