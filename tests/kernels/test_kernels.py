"""Every kernel against its JAX reference, on every instruction set of this machine."""

import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_cases import CASES, DTYPES, TOLERANCE, run_raw, worst_error

from trimtab import kernels
from trimtab.errors import DtypeError, ShapeError
from trimtab.kernels import _library
from trimtab.kernels.binding import registered

NATIVE = _library.extension() is not None
needs_native = pytest.mark.skipif(not NATIVE, reason="the native kernels are not built")
ISAS = [
    pytest.param(
        isa,
        marks=()
        if isa in kernels.available_isas()
        else pytest.mark.skip(reason=f"this processor has no {isa}"),
    )
    for isa in _library.ISA_NAMES
]
SIZES = [
    ("float32", 0, 8),
    ("float32", 1, 1),
    ("float32", 33, 100),
    ("bfloat16", 5, 37),
    ("float16", 5, 37),
]


@needs_native
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_native_kernel_matches_its_reference(case, isa):
    for dtype, rows, size in SIZES:
        if rows == 0 and case.kernel.name.startswith("fourier"):
            continue
        arguments = case.arguments(rows, size, dtype)
        expected = jax.tree.leaves(case.reference()(*arguments))
        with kernels.use_isa(isa):
            found = run_raw(case.kernel, arguments, dict(case.attributes))
        for value, truth in zip(found, expected, strict=True):
            assert value.dtype == truth.dtype
            assert worst_error(value, truth) <= TOLERANCE[dtype], (dtype, rows, size)


@needs_native
@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_are_the_same_bits_for_any_number_of_threads(case):
    arguments = case.arguments(200, 96, "float32")
    results = []
    for threads in (1, 2, 3, 7):
        with kernels.use_threads(threads):
            results.append(run_raw(case.kernel, arguments, dict(case.attributes)))
    for other in results[1:]:
        for one, two in zip(results[0], other):
            assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_kernel_works_under_jit_vmap_and_grad(case):
    bound = functools.partial(case.kernel, **dict(case.attributes))
    one = case.arguments(6, 20, "float32", seed=1)
    two = case.arguments(6, 20, "float32", seed=2)
    stacked = [np.stack(pair) for pair in zip(one, two)]

    def loss(*arrays):
        return sum(jnp.sin(out).sum() for out in jax.tree.leaves(bound(*arrays)))

    def reference_loss(*arrays):
        return sum(jnp.sin(out).sum() for out in jax.tree.leaves(case.reference()(*arrays)))

    every = tuple(range(len(one)))
    batched = jax.jit(jax.vmap(jax.value_and_grad(loss, every)))(*stacked)
    for index, arguments in enumerate((one, two)):
        value, gradients = jax.value_and_grad(reference_loss, every)(*arguments)
        assert worst_error(batched[0][index], value) < 1e-4
        for found, expected in zip(batched[1], gradients):
            assert worst_error(found[index], expected) < 2e-5


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vmap_over_some_arguments_leaves_the_others_shared(case):
    bound = functools.partial(case.kernel, **dict(case.attributes))
    arguments = case.arguments(6, 20, "float32")
    first = np.stack([arguments[0], arguments[0] * 2])
    axes = (0, *[None] * (len(arguments) - 1))
    found = jax.vmap(bound, axes)(first, *arguments[1:])
    for index in range(2):
        expected = case.reference()(first[index], *arguments[1:])
        for value, truth in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
            assert worst_error(value[index], truth) < 2e-6


@needs_native
def test_every_kernel_with_a_reference_has_cases_here_or_in_its_own_test():
    tested = {case.kernel.name for case in CASES}
    assert {"fourier_mix", "layer_norm", "bias_gelu"} <= tested
    for bound in registered():
        assert bound.name in _library.kernel_names(), bound.name
        assert bound.batching in ("broadcast_all", "sequential", "expand_dims")


@needs_native
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("isa", ISAS)
def test_every_16_bit_number_widens_and_narrows_exactly(dtype, isa):
    halves = np.arange(1 << 16, dtype=np.uint16).view(DTYPES[dtype])
    # Above half of float32's range the transform's own doubling overflows.
    finite = halves[np.abs(halves.astype(np.float32)) < 1e38]
    # A transform of one element is the element.
    mix, norm = CASES[6].kernel, CASES[0].kernel
    with kernels.use_isa(isa):
        (wide,) = run_raw(mix, (finite.reshape(-1, 1, 1),), {"factor": 1.0})
        np.testing.assert_array_equal(wide.ravel(), finite.astype(np.float32))
        # A gain of nought leaves the offset, rounded to the type of x.
        generator = np.random.default_rng(0)
        noise = generator.normal(size=finite.size).astype(np.float32)
        offsets = finite.astype(np.float32) * (1 + noise * 1e-3)
        (narrow,) = run_raw(
            norm, (np.ones((1, finite.size), halves.dtype), np.zeros_like(offsets), offsets), {}
        )
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(narrow.ravel(), offsets.astype(halves.dtype))


@needs_native
@pytest.mark.parametrize("isa", ISAS)
def test_gelu_is_accurate_for_small_large_and_subnormal_numbers(isa):
    u = np.concatenate([np.linspace(-12, 12, 4001), [0.0, -0.0, 1e-40, -1e-40, 1e30, -1e30]])
    u = u.astype(np.float32)
    case = CASES[4]
    with kernels.use_isa(isa):
        (found,) = run_raw(case.kernel, (u[None], np.zeros_like(u)), {})
    wide = u.astype(np.float64)
    z = np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
    expected = wide / (1 + np.exp(np.minimum(-2 * z, 700)))
    (slope, _) = run_raw(CASES[5].kernel, (u[None], np.zeros_like(u), np.ones_like(u)[None]), {})
    assert np.isfinite(found).all()
    assert np.isfinite(slope).all()
    assert np.max(np.abs(found[0] - expected) / np.maximum(np.abs(expected), 1e-6)) < 2e-6


@needs_native
def test_constant_rows_survive_a_tiny_epsilon():
    x = jnp.full((3, 50), 7.25)
    out = kernels.layer_norm(x, jnp.ones(50), jnp.full(50, 0.5), epsilon=1e-12)
    np.testing.assert_allclose(out, 0.5)


@needs_native
def test_many_python_threads_may_call_kernels_at_once():
    case = CASES[7]
    arguments = case.arguments(64, 48, "float32")
    expected = run_raw(case.kernel, arguments, dict(case.attributes))[0]
    failures = []

    def work():
        for _ in range(25):
            found = run_raw(case.kernel, arguments, dict(case.attributes))[0]
            if found.tobytes() != expected.tobytes():
                failures.append(found)

    with kernels.use_threads(3):
        workers = [threading.Thread(target=work) for _ in range(5)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert not failures


def test_other_data_types_run_the_reference():
    with jax.enable_x64(True):
        x = jnp.arange(12, dtype=jnp.float64).reshape(3, 4)
        out = kernels.layer_norm(x, jnp.ones(4), jnp.zeros(4))
    assert out.dtype == jnp.float64


@needs_native
def test_reference_only_retraces_functions_that_were_traced_before():
    function = jax.jit(kernels.layer_norm)
    arguments = (jnp.ones((2, 8)), jnp.ones(8), jnp.zeros(8))
    assert "trimtab_layer_norm" in function.lower(*arguments).as_text()
    with kernels.reference_only():
        assert "trimtab_layer_norm" not in function.lower(*arguments).as_text()
    assert "trimtab_layer_norm" in function.lower(*arguments).as_text()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: kernels.layer_norm(jnp.ones((2, 3)), jnp.ones(4), jnp.ones(3)),
            ShapeError,
            "scale",
        ),
        (
            lambda: kernels.layer_norm(
                jnp.ones((2, 3)), jnp.ones(3), jnp.ones(3), residual=jnp.ones((3, 3))
            ),
            ShapeError,
            "residual",
        ),
        (lambda: kernels.bias_gelu(jnp.ones((2, 3)), jnp.ones(2)), ShapeError, "bias"),
        (lambda: kernels.bias_gelu(jnp.ones((2, 3), int), jnp.ones(3)), DtypeError, "int32"),
        (lambda: kernels.fourier_mix(jnp.ones(3)), ShapeError, "tokens, width"),
        (lambda: kernels.fourier_mix(jnp.ones((0, 3))), ShapeError, "empty"),
        (lambda: kernels.fourier_mix(jnp.ones((2, 3), jnp.int32)), DtypeError, "int32"),
        (
            lambda: kernels.fourier_mix_residual_norm(jnp.ones((2, 3)), jnp.ones(2), jnp.ones(3)),
            ShapeError,
            "last axis",
        ),
    ],
)
def test_unusable_arguments_get_one_clear_sentence(call, error, words):
    with pytest.raises(error, match=words):
        call()
