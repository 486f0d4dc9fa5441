"""Codes, scales and integer products against NumPy written from the definition."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trimtab as tt
from trimtab.errors import InputError, ShapeError, UnknownNameError
from trimtab.kernels.group_quantized import (
    group_products,
    pack_codes,
    quantize_activations,
    unpack_codes,
)
from trimtab.reduce.quantization import (
    awq_scales,
    dequantize,
    fake_quantize,
    gptq,
    quantize,
    quantize_matrix,
    quantized_linear,
)


@settings(max_examples=8, deadline=None)
@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    rows=st.integers(0, 5),
    eighths=st.integers(0, 6),
    seed=st.integers(0, 9),
)
def test_packing_is_bit_exact_and_undone(bits, rows, eighths, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, 8 * eighths))
    packed = pack_codes(jnp.asarray(codes, jnp.int32), bits)
    assert packed.shape == (rows, eighths * bits)
    for row in range(rows):
        whole = sum(int(code) << (bits * k) for k, code in enumerate(codes[row]))
        assert bytes(np.asarray(packed[row])) == whole.to_bytes(eighths * bits, "little")
    np.testing.assert_array_equal(unpack_codes(packed, bits), codes)


@pytest.mark.parametrize("origin", ["zero", "offset", "symmetric"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounding_errors_stay_within_half_a_step(bits, origin, key):
    weight = jax.random.normal(key, (5, 40))
    matrix = quantize_matrix(weight, bits=bits, group=16, origin=origin)
    error = np.abs(np.asarray(dequantize(matrix) - weight))
    step = np.repeat(np.asarray(matrix.scale), 16, -1)[:, :40]
    # An integer zero point moves the grid by up to half a step at the ends.
    slack = 1.01 if origin == "zero" else 0.5001
    assert (error <= slack * step).all()


def test_four_bit_codes_follow_the_stated_formula(key):
    weight = np.asarray(jax.random.normal(key, (3, 32)))
    matrix = quantize_matrix(jnp.asarray(weight), bits=4, group=32)
    low, high = np.minimum(weight.min(1), 0), np.maximum(weight.max(1), 0)
    scale = (high - low) / 15
    zero = np.clip(np.round(-low / scale), 0, 15)
    codes = np.clip(np.round(weight / scale[:, None]) + zero[:, None], 0, 15)
    np.testing.assert_array_equal(unpack_codes(matrix.packed, 4), codes)
    np.testing.assert_array_equal(matrix.zero[:, 0], zero)


@settings(max_examples=8, deadline=None)
@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    rows=st.sampled_from([1, 3]),
    outputs=st.sampled_from([1, 5]),
    inputs=st.sampled_from([1, 17, 64]),
    group=st.sampled_from([8, 16, 32]),
    seed=st.integers(0, 9),
)
def test_the_integer_part_is_exact_for_any_shape(bits, rows, outputs, inputs, group, seed):
    generator = np.random.default_rng(seed)
    weight = jnp.asarray(generator.normal(size=(outputs, inputs)), jnp.float32)
    x = jnp.asarray(generator.normal(size=(rows, inputs)), jnp.float32)
    matrix = quantize_matrix(weight, bits=bits, group=group)
    codes, scale = quantize_activations(x, group)
    products, sums = group_products(codes, matrix)
    q = np.asarray(unpack_codes(matrix.packed, bits), np.int64).reshape(outputs, -1, group)
    a = np.asarray(codes, np.int64).reshape(rows, -1, group)
    np.testing.assert_array_equal(products, np.einsum("mgk,ngk->gmn", a, q))
    np.testing.assert_array_equal(sums, a.sum(-1).T)
    exact = np.einsum("mgk,ngk->mgn", a, q - np.asarray(matrix.zero, np.int64)[..., None])
    expected = np.einsum(
        "mgn,mg,ng->mn",
        exact.astype(np.float64),
        np.asarray(scale, np.float64),
        np.asarray(matrix.scale, np.float64),
    )
    ours = quantized_linear(x, matrix)
    tolerance = 1e-5 * (np.abs(expected).max() + 1e-3)
    np.testing.assert_allclose(ours, expected, atol=tolerance)


@pytest.mark.parametrize("origin", ["zero", "offset", "symmetric"])
@pytest.mark.parametrize("bits", [16, 32])
def test_float_activations_equal_the_dequantised_product(bits, origin, key):
    weight, x = jax.random.normal(key, (7, 40)), jax.random.normal(key, (3, 40))
    matrix = quantize_matrix(weight, bits=4, group=16, origin=origin)
    given = x.astype(jnp.float16).astype(jnp.float32) if bits == 16 else x
    expected = jnp.matmul(given, dequantize(matrix).T, precision="highest")
    ours = quantized_linear(x, matrix, activation_bits=bits)
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_scales_per_group_survive_outliers_better_than_per_row(key):
    weight, x = jax.random.normal(key, (16, 128)), jax.random.normal(key, (8, 128))
    x = x.at[:, 5].mul(60.0)
    matrix = quantize_matrix(weight, bits=8, group=32)
    exact = x @ dequantize(matrix).T

    def error(group):
        return float(jnp.abs(quantized_linear(x, matrix, activation_group=group) - exact).mean())

    assert error(-1) < 0.5 * error(None)


def test_zero_groups_and_zero_rows_give_zeros():
    weight = jnp.zeros((4, 32)).at[0, 0].set(1.0)
    matrix = quantize_matrix(weight, bits=4, group=16)
    np.testing.assert_array_equal(dequantize(matrix)[1:], 0)
    x = jnp.zeros((2, 32))
    np.testing.assert_array_equal(quantized_linear(x, matrix), 0)
    assert quantized_linear(jnp.zeros((0, 32)), matrix).shape == (0, 4)


def _correlated(key, rows, columns):
    x = jax.random.normal(key, (rows, columns)) * jnp.linspace(0.1, 4, columns)
    return x.at[:, 1::2].add(0.9 * x[:, ::2])


def test_calibrated_methods_beat_nearest_rounding_on_the_output(key):
    weight, x = jax.random.normal(key, (24, 64)), _correlated(key, 512, 64)
    gram = x.T @ x / len(x)

    def error(dense):
        return float(jnp.square(x @ (dense - weight).T).mean())

    nearest = error(dequantize(quantize_matrix(weight, bits=3, group=32)))
    feedback = error(dequantize(gptq(weight, gram, bits=3, group=32)))
    factors = awq_scales(weight, gram, bits=3, group=32)
    scaled = error(dequantize(quantize_matrix(weight * factors, bits=3, group=32)) / factors)
    assert feedback < 0.9 * nearest
    assert scaled < nearest


def test_gptq_with_uncorrelated_inputs_is_nearest_rounding(key):
    weight = jax.random.normal(key, (6, 32))
    ours = gptq(weight, jnp.eye(32), bits=4, group=32)
    np.testing.assert_array_equal(ours.packed, quantize_matrix(weight, bits=4, group=32).packed)


def test_straight_through_rounds_forward_and_passes_gradients(key):
    weight = jax.random.normal(key, (4, 32))
    rounded = fake_quantize(weight, bits=4, group=16)
    expected = dequantize(quantize_matrix(weight, bits=4, group=16))
    np.testing.assert_allclose(rounded, expected, atol=1e-6)
    gradient = jax.grad(lambda w: (fake_quantize(w, bits=4, group=16) * 3).sum())(weight)
    np.testing.assert_array_equal(gradient, 3.0)


@pytest.fixture(scope="module")
def program():
    model = eqx.nn.MLP(32, 8, 64, 2, key=jax.random.key(0))
    return tt.capture(model, jnp.ones((64, 32)), batched=True)


@pytest.mark.parametrize("method", ["nearest", "gptq", "awq"])
@pytest.mark.parametrize("activations", [8, 16])
def test_a_quantised_program_stays_close_and_small(program, method, activations, key):
    x = _correlated(key, 64, 32)
    batches = [x] if method != "nearest" else []
    rewrite = quantize(8, 32, activations, method=method, calibrate=batches)
    lean = program.rewrite(rewrite)
    expected = np.asarray(program(x))
    np.testing.assert_allclose(lean(x), expected, atol=0.03 * np.abs(expected).max())
    before = sum(a.nbytes for n, a in program.parameters.items() if n.endswith("weight"))
    after = sum(a.nbytes for n, a in lean.parameters.items() if "quantized" in n)
    assert after < 0.45 * before
    assert not any(name.endswith("/weight") for name in lean.parameters)


def test_scanned_layers_are_quantised_each_with_its_own_scales(key):
    weights = jax.random.normal(key, (3, 16, 16)) * jnp.array([0.1, 0.3, 0.5])[:, None, None]

    def model(p, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["w"])[0]

    x = jax.random.normal(key, (4, 16))
    program = tt.capture(model, x, parameters={"w": weights})
    lean = program.rewrite(quantize(8, 16, 32))
    assert lean.parameters["w/quantized/scale"].shape == (3, 16, 1)
    np.testing.assert_allclose(lean(x), program(x), atol=0.05)


def test_bad_requests_are_named(program):
    with pytest.raises(InputError, match="2, 3, 4 or 8 bits, not 5"):
        quantize(5)
    with pytest.raises(InputError, match="multiple of 8 inputs, not 12"):
        quantize(4, 12)
    with pytest.raises(InputError, match="pass calibrate=batches"):
        quantize(method="gptq")
    with pytest.raises(UnknownNameError, match="Did you mean 'gptq'"):
        quantize(method="gptqq")
    with pytest.raises(InputError, match="8, 16 or 32 bits, not 7"):
        quantize(activations=7)
    matrix = quantize_matrix(jnp.ones((2, 16)), group=8)
    with pytest.raises(ShapeError, match="16 inputs; the activations have shape"):
        quantized_linear(jnp.ones((2, 8)), matrix)
    with pytest.raises(InputError, match="not with groups of 4"):
        quantized_linear(jnp.ones((2, 16)), matrix, activation_group=4)


def test_a_weight_that_is_used_twice_is_quantised_once(key):
    weight, x = jax.random.normal(key, (16, 16)) / 4, jax.random.normal(key, (8, 16))
    program = tt.capture(lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"], x, parameters={"w": weight})
    lean = program.rewrite(quantize(8, 16, 32, calibrate=[x]))
    np.testing.assert_allclose(lean(x), program(x), atol=0.05)
    first = lean.parameters["w/quantized/packed"]
    np.testing.assert_array_equal(first, lean.parameters["w#1/quantized/packed"])
