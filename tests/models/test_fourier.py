"""The Fourier mixing operator, against NumPy's double-precision transform."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import DtypeError, FileFormatError, ShapeError, UnknownNameError
from trimtab.models import fourier_choice as choice
from trimtab.models import fourier_mix, hartley_mix, ragged_fourier_mix
from trimtab.models.fourier_paths import PATHS

AVAILABLE = [name for name, path in PATHS.items() if path.serves("cpu")]
SHAPES = [(1, 1), (1, 6), (2, 3), (7, 5), (8, 9), (12, 10), (127, 31), (64, 48)]


def signal(tokens: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((tokens, width)).astype(np.float32)


def transform(x: np.ndarray) -> np.ndarray:
    return np.fft.fftn(x.astype(np.float64), axes=(-2, -1)).real


def worst(ours: jax.Array, exact: np.ndarray) -> float:
    return float(np.abs(np.asarray(ours) - exact).max() / np.abs(exact).max())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("path", AVAILABLE)
def test_every_path_agrees_with_the_exact_transform(path, shape):
    x = signal(*shape)
    bound = 3e-7 if path != "complex_fft" else 4e-7
    assert worst(jax.jit(partial(fourier_mix, path=path))(x), transform(x)) <= bound


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
def test_folded_matrices_agree_for_any_odd_even_or_prime_size(tokens, width, seed):
    x = signal(tokens, width, seed)
    folded = jax.jit(partial(fourier_mix, path="folded_matmul"))
    assert worst(folded(x), transform(x)) <= 4e-7


@pytest.mark.parametrize("path", AVAILABLE)
def test_the_gradient_is_the_operator_itself(path):
    x, g = jnp.asarray(signal(12, 10)), jnp.asarray(signal(12, 10, 1))
    _, pull = jax.vjp(lambda x: fourier_mix(x, path=path), x)
    np.testing.assert_array_equal(pull(g)[0], fourier_mix(g, path=path))
    plain = jax.vjp(lambda x: jnp.fft.fftn(x).real, x)[1](g)[0]
    np.testing.assert_allclose(pull(g)[0], plain, atol=2e-5)


def test_the_operator_keeps_only_the_point_symmetric_half():
    matrix = jax.vmap(lambda e: fourier_mix(e.reshape(12, 10)).ravel())(jnp.eye(120))
    assert np.linalg.matrix_rank(np.asarray(matrix), tol=1e-2) == 62
    square = np.asarray(matrix @ matrix) / 120
    np.testing.assert_allclose(square @ square, square, atol=1e-4)


def test_a_batch_is_never_mixed_across_examples():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 8, 6)), jnp.float32)
    alone = fourier_mix(x[1])
    np.testing.assert_allclose(fourier_mix(x)[1], alone, atol=1e-4)
    np.testing.assert_allclose(jax.vmap(fourier_mix)(x)[1], alone, atol=1e-4)


def test_the_operator_can_be_differentiated_twice():
    x = jnp.asarray(signal(5, 4))

    def f(x):
        return jnp.sum(fourier_mix(x) ** 3)

    twice = jax.grad(lambda x: jnp.vdot(jax.grad(f)(x), x))(x)
    assert twice.shape == x.shape
    # f is homogeneous of degree 3, so x · f'' = 2 f', and the gradient of x · f' is 3 f'.
    np.testing.assert_allclose(twice, 3 * jax.grad(f)(x), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("length", [1, 2, 7, 12, 13])
def test_ragged_mixing_equals_the_transform_of_the_true_tokens(length):
    x = signal(13, 9)
    ours = ragged_fourier_mix(jnp.asarray(x), length)
    assert worst(ours[:length], transform(x[:length])) <= 1e-6
    assert float(jnp.abs(ours[length:]).sum()) == 0.0


def test_ragged_mixing_takes_a_different_length_for_each_example_and_is_self_adjoint():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 11, 6)), jnp.float32)
    g = jnp.asarray(np.random.default_rng(1).standard_normal((3, 11, 6)), jnp.float32)
    lengths = jnp.array([4, 11, 1])
    mix = jax.jit(jax.vmap(ragged_fourier_mix))
    np.testing.assert_allclose(
        jnp.vdot(mix(x, lengths), g), jnp.vdot(x, mix(g, lengths)), rtol=1e-4
    )
    pulled = jax.vjp(lambda x: mix(x, lengths), x)[1](g)[0]
    np.testing.assert_allclose(pulled, mix(g, lengths), atol=1e-5)


def test_bfloat16_is_widened_before_the_sum():
    x = jnp.asarray(signal(64, 48)).astype(jnp.bfloat16)
    mixed = fourier_mix(x)
    assert mixed.dtype == jnp.float32
    assert worst(mixed, transform(np.asarray(x, np.float32))) <= 3e-7


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (8, 9), (9, 8), (16, 12)], ids=str)
def test_hartley_mixing_is_real_less_imaginary_and_its_own_inverse(shape):
    x = signal(*shape)
    exact = np.fft.fftn(x.astype(np.float64))
    ours = hartley_mix(jnp.asarray(x))
    assert worst(ours, exact.real - exact.imag) <= 4e-7
    np.testing.assert_allclose(hartley_mix(ours) / x.size, x, atol=1e-5)
    pulled = jax.vjp(hartley_mix, jnp.asarray(x))[1](ours)[0]
    np.testing.assert_array_equal(pulled, hartley_mix(ours))


def test_wrong_input_is_refused_with_a_sentence():
    with pytest.raises(ShapeError, match="without empty axes"):
        fourier_mix(jnp.zeros((0, 4)))
    with pytest.raises(DtypeError, match="real floating-point"):
        fourier_mix(jnp.zeros((2, 4), jnp.int32))
    with pytest.raises(UnknownNameError, match="Did you mean 'real_fft'"):
        fourier_mix(jnp.zeros((2, 4)), path="real_ffft")


def test_matrices_hold_no_transform_instruction():
    program = str(jax.make_jaxpr(lambda x: fourier_mix(x, path="folded_matmul"))(jnp.ones((8, 6))))
    assert "fft" not in program.replace("folded", "")


def test_the_rule_prefers_matrices_on_a_tpu_and_transforms_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    choice.load_profile.cache_clear()
    assert choice.choose_path(512, 768, backend="tpu") == "folded_matmul"
    assert choice.choose_path(8192, 768, backend="tpu") == "real_fft"
    assert choice.choose_path(512, 768, backend="gpu") == "real_fft"
    assert choice.choose_path(512, 768, backend="cpu", transforms=False) == "folded_matmul"


def test_a_measured_profile_decides_and_survives_on_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    choice.load_profile.cache_clear()
    measured = choice.measure_mixing([(8, 8)], paths=["matmul", "real_fft"], repeats=1)
    assert set(measured.milliseconds) == {"matmul", "real_fft"}
    made = choice.MixingProfile(
        measured.device,
        {"matmul": {(8, 8): 1.0, (512, 64): 50.0}, "real_fft": {(8, 8): 2.0, (512, 64): 3.0}},
    )
    file = choice.save_profile(made)
    assert choice.choose_path(8, 8) == "matmul"
    assert choice.choose_path(600, 64) == "real_fft"
    file.write_text("{")
    choice.load_profile.cache_clear()
    with pytest.raises(FileFormatError, match="damaged"):
        choice.choose_path(8, 8)
    choice.load_profile.cache_clear()
