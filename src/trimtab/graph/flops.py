"""Arithmetic of one equation: operations counted as XLA's own cost analysis counts them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from trimtab.graph._jax import Literal
from trimtab.graph.flat import Body, Node

# One operation per element of the result.
ARITHMETIC = frozenset(
    """add sub mul div rem max min neg abs sign floor ceil round is_finite and or xor not
    shift_left shift_right_logical shift_right_arithmetic eq ne lt le gt ge select_n clamp
    convert_element_type square add_any nextafter population_count clz real imag conj complex
    reduce_precision eq_to lt_to le_to""".split()
)
# One transcendental per element: XLA keeps these apart from the operations above.
TRANSCENDENTAL = frozenset(
    """exp exp2 log log1p expm1 sin cos tan tanh asin acos atan sinh cosh asinh acosh atanh
    logistic sqrt rsqrt cbrt pow atan2 erf""".split()
)
# Functions that XLA expands to polynomials: operations per element.
_EXPANDED = {"erfc": 50, "erf_inv": 40, "lgamma": 60, "digamma": 60, "igamma": 300, "igammac": 300}
# Nothing is computed: elements are moved, or the shape is read differently.
MOVEMENT = frozenset(
    """reshape squeeze expand_dims broadcast_in_dim transpose copy copy_p stop_gradient iota slice
    pad rev concatenate gather dynamic_slice bitcast_convert_type optimization_barrier
    sharding_constraint split""".split()
)
_REDUCTIONS = frozenset(
    """reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin
    reduce""".split()
)
_RUNNING = frozenset("cumsum cumprod cummax cummin cumlogsumexp".split())
_SCATTERS = frozenset(
    "scatter scatter-add scatter_add scatter_mul scatter-mul scatter_min scatter_max".split()
)
# One block of the Threefry-2x32 generator makes two 32-bit words with about this many operations.
_THREEFRY_OPERATIONS = 80


def size(aval: Any) -> int:
    """Return the number of elements of an abstract value."""
    return int(math.prod(aval.shape)) if hasattr(aval, "shape") else 1


def nbytes(aval: Any) -> int:
    """Return the number of bytes of an abstract value; extended dtypes count as keys."""
    if not hasattr(aval, "dtype"):
        return 0
    dtype = aval.dtype
    try:
        item = np.dtype(dtype).itemsize
    except TypeError:
        item = getattr(dtype, "itemsize", 8)
    # Four-bit and two-bit integers are stored packed.
    if str(dtype) in ("int4", "uint4"):
        return (size(aval) + 1) // 2
    return size(aval) * item


def operations(node: Node, body: Body) -> tuple[float, float]:
    """Return (operations, transcendentals) of one run of a node without bodies.

    A product of an (m, k) and a (k, n) matrix counts 2mkn; a convolution counts only the window
    positions that fall on the image; an element of a pointwise operation counts one.
    """
    name = node.name
    out = size(body.avals[node.outputs[0]]) if node.outputs else 0
    if name in ARITHMETIC:
        return float(out), 0.0
    if name in TRANSCENDENTAL:
        return 0.0, float(out)
    if name in MOVEMENT:
        return 0.0, 0.0
    if name in _EXPANDED:
        return float(out) * _EXPANDED[name], 0.0
    if name == "integer_pow":
        return float(out) * _power_products(abs(int(node.params["y"]))), 0.0
    if name in _REDUCTIONS:
        return float(max(size(body.aval(node.inputs[0])) - out, 0)), 0.0
    if name in _RUNNING:
        return float(out), 0.0
    if name in _SCATTERS:
        return float(size(body.aval(node.inputs[2]))), 0.0
    rule = _RULES.get(name)
    return (rule(node, body), 0.0) if rule is not None else (0.0, 0.0)


def _dot(node: Node, body: Body) -> float:
    (contract, _), _ = node.params["dimension_numbers"]
    left = body.aval(node.inputs[0]).shape
    return 2.0 * size(body.avals[node.outputs[0]]) * math.prod(left[axis] for axis in contract)


def _convolution(node: Node, body: Body) -> float:
    numbers = node.params["dimension_numbers"]
    left, right = (body.aval(value).shape for value in node.inputs)
    out = body.avals[node.outputs[0]].shape
    positions = 1.0
    for axis, (low, _) in enumerate(node.params["padding"]):
        positions *= _valid_positions(
            out=out[numbers.out_spec[2 + axis]],
            kernel=right[numbers.rhs_spec[2 + axis]],
            image=left[numbers.lhs_spec[2 + axis]],
            stride=node.params["window_strides"][axis],
            low=low,
            kernel_dilation=node.params["rhs_dilation"][axis],
            image_dilation=node.params["lhs_dilation"][axis],
        )
    batch, features = out[numbers.out_spec[0]], out[numbers.out_spec[1]]
    inputs = right[numbers.rhs_spec[1]]
    return 2.0 * positions * batch * features * inputs


def _valid_positions(
    *,
    out: int,
    kernel: int,
    image: int,
    stride: int,
    low: int,
    kernel_dilation: int,
    image_dilation: int,
) -> int:
    index = np.arange(out)[:, None] * stride + np.arange(kernel) * kernel_dilation - low
    inside = (index >= 0) & (index <= (image - 1) * image_dilation)
    return int(np.sum(inside & (index % image_dilation == 0)))


def _fft(node: Node, body: Body) -> float:
    lengths = node.params["fft_lengths"]
    points = max(size(body.aval(node.inputs[0])), size(body.avals[node.outputs[0]]))
    real = str(node.params["fft_type"]).rsplit(".", 1)[-1].upper() in ("RFFT", "IRFFT", "2", "3")
    per_point = 5.0 * math.log2(max(math.prod(lengths), 2))
    return points * per_point * (0.5 if real else 1.0)


def _sort(node: Node, body: Body) -> float:
    aval = body.aval(node.inputs[0])
    length = aval.shape[node.params.get("dimension", -1)] if aval.shape else 1
    return size(aval) * math.log2(max(length, 2))


def _window(node: Node, body: Body) -> float:
    window = math.prod(node.params["window_dimensions"])
    return float(size(body.avals[node.outputs[0]]) * max(window - 1, 0))


def _random_bits(node: Node, body: Body) -> float:
    return _THREEFRY_OPERATIONS / 2.0 * sum(size(body.avals[out]) for out in node.outputs)


def _cholesky(node: Node, body: Body) -> float:
    aval = body.aval(node.inputs[0])
    return size(aval) * aval.shape[-1] / 3.0


def _triangular_solve(node: Node, body: Body) -> float:
    return float(size(body.avals[node.outputs[0]]) * body.aval(node.inputs[0]).shape[-1])


def _power_products(exponent: int) -> int:
    return max(exponent.bit_length() - 1 + exponent.bit_count() - 1, 1)


def _top_k(node: Node, body: Body) -> float:
    aval = body.aval(node.inputs[0])
    return size(aval) * math.log2(max(int(node.params["k"]), 2))


_RULES: dict[str, Callable[[Node, Body], float]] = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "fft": _fft,
    "sort": _sort,
    "top_k": _top_k,
    "reduce_window_sum": _window,
    "reduce_window_max": _window,
    "reduce_window_min": _window,
    "reduce_window": _window,
    "random_bits": _random_bits,
    "threefry2x32": _random_bits,
    "cholesky": _cholesky,
    "triangular_solve": _triangular_solve,
}


def is_literal(value: Any) -> bool:
    """Say whether a value is a literal of the jaxpr, which costs no memory traffic."""
    return isinstance(value, Literal)
