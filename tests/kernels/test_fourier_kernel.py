"""The native Fourier mixing against the definition in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import CASES, run_raw

from trimtab import kernels
from trimtab.kernels import _library

pytestmark = pytest.mark.skipif(
    _library.extension() is None, reason="the native kernels are not built"
)
MIX = next(case.kernel for case in CASES if case.kernel.name == "fourier_mix")


def exact(x: np.ndarray) -> np.ndarray:
    return np.fft.fft2(x.astype(np.float64)).real


def error(x: np.ndarray) -> float:
    (found,) = run_raw(MIX, (x,), {"factor": 1.0})
    truth = exact(x)
    return float(np.abs(found - truth).max() / np.abs(truth).max())


def bound(tokens: int, width: int) -> float:
    """3e-7 of the largest magnitude; half as much again where both lengths need convolutions."""
    return 4.5e-7 if min(largest_prime(tokens), largest_prime(width)) > 47 else 3e-7


def largest_prime(number: int) -> int:
    factor = 2
    while factor * factor <= number:
        if number % factor:
            factor += 1
        else:
            number //= factor
    return number


@settings(deadline=None, max_examples=150)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from(kernels.available_isas() or ("scalar",)),
    st.integers(0, 2**32 - 1),
)
def test_any_lengths_agree_with_the_definition(tokens, width, isa, seed):
    x = np.random.default_rng(seed).normal(size=(tokens, width)).astype(np.float32)
    with kernels.use_isa(isa):
        assert error(x) <= bound(tokens, width)


@pytest.mark.parametrize(
    "shape",
    [
        (512, 768),
        (509, 768),
        (128, 1024),
        (512, 127),
        (1009, 64),
        (2018, 48),
        (60, 1155),
        (1, 509),
        (127, 131),
    ],
    ids=str,
)
@pytest.mark.parametrize("isa", kernels.available_isas())
def test_large_and_prime_lengths_stay_within_the_bound(shape, isa):
    x = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    with kernels.use_isa(isa):
        assert error(x) <= bound(*shape)


def test_single_impulses_show_every_cosine():
    for row, column in [(0, 0), (1, 0), (0, 1), (5, 11)]:
        x = np.zeros((12, 18), np.float32)
        x[row, column] = 1
        np.testing.assert_allclose(run_raw(MIX, (x,), {"factor": 1.0})[0], exact(x), atol=5e-7)


def test_the_operator_is_its_own_adjoint_and_its_gradient_is_itself(key):
    x = jax.random.normal(key, (2, 24, 30))
    g = jax.random.normal(jax.random.fold_in(key, 1), (2, 24, 30))
    mixed, pull = jax.vjp(lambda x: kernels.fourier_mix(x, factor=0.5), x)
    np.testing.assert_array_equal(pull(g)[0], kernels.fourier_mix(g, factor=0.5))
    left, right = jnp.vdot(mixed, g), jnp.vdot(x, pull(g)[0])
    np.testing.assert_allclose(left, right, rtol=1e-4)


def test_a_batch_is_its_examples_whichever_way_threads_share_it():
    x = np.random.default_rng(0).normal(size=(9, 40, 24)).astype(np.float32)
    (together,) = run_raw(MIX, (x,), {"factor": 1.0})
    for index in range(9):
        (alone,) = run_raw(MIX, (x[index],), {"factor": 1.0})
        assert alone.tobytes() == together[index].tobytes()


def test_hundreds_of_lengths_do_not_pile_up_or_mix_up():
    generator = np.random.default_rng(1)
    for tokens in [*range(1, 180), 7, 5, 179]:
        assert error(generator.normal(size=(tokens, 3)).astype(np.float32)) <= 3e-7


def test_16_bit_input_is_widened_before_it_is_summed():
    x = jnp.full((64, 64), 1000.0, jnp.float16)
    assert kernels.fourier_mix(x)[0, 0] == 1000.0 * 64 * 64
    out = kernels.fourier_mix_residual_norm(x, jnp.ones(64), jnp.zeros(64))
    assert out.dtype == jnp.float16
    assert bool(jnp.isfinite(out).all())
