"""The primitives that can be lowered, by what they become in hardware."""

from __future__ import annotations

import math
from dataclasses import dataclass

# One token in, one token out.
ELEMENTWISE = frozenset(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e
    bitcast_convert_type cbrt ceil clamp complex conj convert_element_type copysign cos cosh digamma
    div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag
    integer_pow is_finite le le_to lgamma log log1p logistic lt lt_to max min mul ne neg nextafter
    not or polygamma population_count clz pow real reduce_precision regularized_incomplete_beta rem
    round rsqrt select_n shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt
    square sub tan tanh xor zeta""".split()
)
# Another look at the same tokens.
VIEWS = frozenset({"broadcast_in_dim", "squeeze", "expand_dims", "transpose"})
REDUCTIONS = frozenset(
    """reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax
    argmin""".split()
)
CUMULATIVE = frozenset("cumsum cumprod cummax cummin cumlogsumexp".split())
# Tokens selected, inserted or reordered along an axis.
REARRANGING = frozenset("slice pad concatenate rev".split())
# A memory is filled and then read.
MEMORY = frozenset(
    """gather scatter scatter_add scatter-add scatter_mul scatter_min scatter_max dynamic_slice
    dynamic_update_slice sort top_k approx_top_k conv_general_dilated reduce_window_sum
    reduce_window_max reduce_window_min reduce_window select_and_scatter_add
    select_and_gather_add fft split cond cholesky triangular_solve""".split()
)
# Made without reading a stream.
SOURCES = frozenset(
    """iota random_bits random_seed random_wrap random_unwrap random_split random_fold_in
    threefry2x32 rng_bit_generator rng_uniform empty""".split()
)
LOOPS = frozenset({"scan", "while"})
# Made by the rewrites of this package.
OWN = frozenset({"running_reduce", "restream"})

SUPPORTED = (
    ELEMENTWISE
    | VIEWS
    | REDUCTIONS
    | CUMULATIVE
    | REARRANGING
    | MEMORY
    | SOURCES
    | LOOPS
    | OWN
    | {"dot_general", "reshape"}
)


@dataclass(frozen=True)
class Hardware:
    """Latencies of the abstract hardware, in cycles.

    Args:
        default: of simple element-wise units, sources and reductions.
        transcendental: of exponentials, logarithms, roots, trigonometric and error functions.
        division: of division and remainder.
        multiply_latency: of the multipliers in front of an adder tree; a dot product of K lanes
            takes this plus ceil(log2 K).
        interval: cycles between firings of every unit.
    """

    default: int = 1
    transcendental: int = 5
    division: int = 5
    multiply_latency: int = 1
    interval: int = 1

    def latency(self, primitive: str) -> int:
        """Return the latency of a unit that applies a primitive to a token."""
        if primitive in _DIVISIONS:
            return self.division
        return self.transcendental if primitive in _TRANSCENDENTAL else self.default

    def dot_latency(self, lanes: int) -> int:
        """Return the latency of a dot product over so many lanes."""
        return self.multiply_latency + max(0, math.ceil(math.log2(max(1, lanes))))


_DIVISIONS = frozenset({"div", "rem"})
_TRANSCENDENTAL = frozenset(
    """acos acosh asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt cos cosh digamma erf
    erf_inv erfc exp exp2 expm1 igamma igamma_grad_a igammac lgamma log log1p logistic polygamma
    pow regularized_incomplete_beta rsqrt sin sinh sqrt tan tanh zeta cumlogsumexp""".split()
)
