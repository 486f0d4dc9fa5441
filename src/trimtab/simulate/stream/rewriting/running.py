"""Homomorphic statistics: a row statistic that a later reduction needs can run beside it.

When a sum over axis j consumes f(x_j, m) and m is itself a reduction of x over j, and
``f(x, m') = f(x, m) g(m, m')``, both run at once: whenever the statistic moves from m to m', the
sum so far is multiplied by g(m, m'). With f = exp(x - m) this is the running softmax. Whether f has
the property is found by probing it with numbers, not by its name. For squares of deviations from
the mean, the correction is additive (Welford).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from trimtab.simulate.stream.dataflow import (
    Dataflow,
    Operand,
    Operation,
    Value,
    replace_operations,
)
from trimtab.simulate.stream.lowering.primitives import ELEMENTWISE, Hardware
from trimtab.simulate.stream.lowering.roles import Views, free_axes
from trimtab.simulate.stream.rewriting.expression import Expression, expression, uses

_EXTREMA: dict[str, tuple[Callable[..., Any], float]] = {
    "reduce_max": (jnp.maximum, -np.inf),
    "reduce_min": (jnp.minimum, np.inf),
}


@dataclass(frozen=True)
class Product:
    """A contraction of the running weights with another operand.

    Args:
        operation: the matrix product that it replaces.
        side: which of its operands are the running weights.
    """

    operation: Operation
    side: int

    @property
    def other(self) -> Operand:
        """The operand that the weights multiply."""
        return self.operation.inputs[1 - self.side]

    @property
    def contract(self) -> int:
        """Its contracted axis."""
        return int(self.operation.params["dimension_numbers"][0][1 - self.side][0])

    @property
    def batch(self) -> tuple[tuple[int, int], ...]:
        """Pairs of batched axes: of the weights, of the other operand."""
        batch = self.operation.params["dimension_numbers"][1]
        pairs = zip(batch[self.side], batch[1 - self.side])
        return tuple((int(own), int(other)) for own, other in pairs)

    def result_axis(self, axis: int) -> int:
        """Which axis of the result an axis of the weights becomes."""
        own = [pair[0] for pair in self.batch]
        if axis in own:
            return own.index(axis)
        first = len(own) + (0 if self.side == 0 else len(free_axes(self.operation, 0)))
        return first + free_axes(self.operation, self.side).index(axis)

    def multiply(self, weights: Any, other: Any) -> Any:
        """The product of one step, in the shape of the whole."""
        pair = (weights, other) if self.side == 0 else (other, weights)
        return self.operation.compute(*pair)[0]


def run_statistic_beside(flow: Dataflow) -> Iterator[tuple[str, Dataflow]]:
    """Yield the programs in which one maximum or minimum runs beside the sums that need it."""
    views = Views(flow)
    for reduction in flow.operations:
        if reduction.name not in _EXTREMA or len(reduction.params["axes"]) != 1:
            continue
        site = _site(flow, reduction, views)
        if site is not None:
            yield f"running {reduction.name[7:]} beside its sums", _fused(flow, site, views)


@dataclass(frozen=True)
class _Site:
    reduction: Operation
    statistic: Operand  # what the weights subtract: the reduction, or a function of it
    weights: Operand
    function: Expression
    of_reduction: Expression
    sums: tuple[Operation, ...]
    products: tuple[Product, ...]


def _site(flow: Dataflow, reduction: Operation, views: Views) -> _Site | None:
    element, raw = reduction.inputs[0], reduction.outputs[0]
    axis = int(reduction.params["axes"][0])
    base = views(element).base
    for statistic in _functions_of(flow, raw, views):
        leaves = {id(base), id(statistic)}
        for weights in _elementwise_values(flow, element.shape):
            function = expression(flow, weights, leaves, views)
            if function is None or not uses(function, id(statistic)) or weights is base:
                continue
            sums, products = _readers(flow, weights, axis)
            if not sums and not products:
                continue
            of_reduction = expression(flow, statistic, {id(raw)}, views)
            if of_reduction is None or not _homomorphic(function, base, statistic):
                continue
            return _Site(reduction, statistic, weights, function, of_reduction, sums, products)
    return None


def _functions_of(flow: Dataflow, raw: Operand, views: Views) -> list[Operand]:
    """The reduction and everything that follows from it alone, last first."""
    found = [raw]
    for operation in flow.operations:
        if operation.name not in ELEMENTWISE or views.is_uniform(operation.outputs[0]):
            continue
        bases = [views(v).base for v in operation.inputs if not views.is_uniform(v)]
        if bases and all(any(b is f for f in found) for b in bases):
            found.append(operation.outputs[0])
    return found[::-1]


def _elementwise_values(flow: Dataflow, shape: tuple[int, ...]) -> list[Value]:
    return [
        operation.outputs[0]
        for operation in flow.operations
        if operation.name in ELEMENTWISE and operation.outputs[0].shape == shape
    ]


def _readers(
    flow: Dataflow, weights: Operand, axis: int
) -> tuple[tuple[Operation, ...], tuple[Product, ...]]:
    sums, products = [], []
    for user in flow.users(weights):
        if user.name == "reduce_sum" and tuple(map(int, user.params["axes"])) == (axis,):
            sums.append(user)
        elif user.name == "dot_general":
            contract = user.params["dimension_numbers"][0]
            for side in (0, 1):
                if user.inputs[side] is weights and tuple(map(int, contract[side])) == (axis,):
                    products.append(Product(user, side))
                    break
    return tuple(sums), tuple(products)


def _homomorphic(function: Expression, element: Operand, statistic: Operand) -> bool:
    """Probe ``f(m, m) = 1`` and ``f(x, m') = f(x, m) f(m, m')`` with numbers."""
    random = np.random.default_rng(0)
    x, before, after = (random.normal(0, 2, 64) for _ in range(3))

    def f(element_value: Any, statistic_value: Any) -> np.ndarray:
        leaves = {
            id(element): jnp.asarray(element_value, element.dtype),
            id(statistic): jnp.asarray(statistic_value, statistic.dtype),
        }
        with jax.default_matmul_precision("highest"):
            return np.asarray(function(leaves), np.float64)

    if not jnp.issubdtype(element.dtype, jnp.floating):
        return False
    try:
        one, left, right = f(before, before), f(x, after), f(x, before) * f(before, after)
    except (KeyError, TypeError, ValueError):
        return False
    tolerance = 64 * float(jnp.finfo(element.dtype).eps)
    return bool(
        np.allclose(one, 1, atol=tolerance) and np.allclose(left, right, rtol=64 * tolerance)
    )


# ----------------------------------------------------------------------------- the new operation
def _fused(flow: Dataflow, site: _Site, views: Views) -> Dataflow:
    reduction = site.reduction
    others = tuple(product.other for product in site.products)
    outputs = (
        _like(reduction.outputs[0]),
        *(_like(total.outputs[0]) for total in site.sums),
        *(_like(product.operation.outputs[0]) for product in site.products),
    )
    axis = int(reduction.params["axes"][0])
    guarded = tuple(_only_divides(flow, total.outputs[0], views) for total in site.sums)
    weights: list[int | None] = [None] * len(site.sums)
    fused = Operation(
        "running_reduce",
        (reduction.inputs[0], *others),
        outputs,
        {
            "axes": (axis,),
            "weights": (*weights, *range(1, 1 + len(site.products))),
            "products": (*weights, *site.products),
            "latency": _Latency(site.function),
        },
        _compute(site, views, axis, guarded),
    )
    old = [
        reduction.outputs[0],
        *(total.outputs[0] for total in site.sums),
        *(product.operation.outputs[0] for product in site.products),
    ]
    return replace_operations(flow, [fused], {id(v): new for v, new in zip(old, outputs)})


def _like(value: Value) -> Value:
    return Value(value.shape, value.dtype, value.name)


@dataclass(frozen=True)
class _Latency:
    """The scan takes as long as the function that it applies."""

    function: Expression

    def __call__(self, hardware: Hardware) -> int:
        names = [operation.name for operation in self.function.operations]
        return max([hardware.default, *(hardware.latency(name) for name in names)])


def _only_divides(flow: Dataflow, total: Operand, views: Views) -> bool:
    """Whether a sum serves as a denominator alone, so that an empty one may become 1."""
    readers = [
        (operation, operand)
        for operation in flow.operations
        for operand in operation.inputs
        if views(operand).base is total and not views.is_view(operation)
    ]
    return (
        bool(readers)
        and all(
            operation.name == "div"
            and operation.inputs[1] is operand
            and operation.inputs[0] is not operand
            for operation, operand in readers
        )
        and not flow.is_output(total)
    )


def _compute(
    site: _Site, views: Views, axis: int, guarded: Sequence[bool]
) -> Callable[..., tuple[Any, ...]]:
    extremum, nothing = _EXTREMA[site.reduction.name]
    element, raw = views(site.reduction.inputs[0]).base, site.reduction.outputs[0]

    def statistic_of(value: Any) -> Any:
        return site.of_reduction({id(raw): value})

    def weight(element_value: Any, statistic: Any) -> Any:
        return site.function({id(element): element_value, id(site.statistic): statistic})

    def compute(stream: Any, *others: Any) -> tuple[Any, ...]:
        shape = list(stream.shape)
        shape[axis] = 1
        empty = jnp.full(shape, nothing, stream.dtype)
        totals = [jnp.zeros(shape, total.outputs[0].dtype) for total in site.sums]
        products = [
            jnp.zeros(product.operation.outputs[0].shape, product.operation.outputs[0].dtype)
            for product in site.products
        ]

        def step(carry: Any, step_inputs: Any) -> tuple[Any, None]:
            before, totals, products = carry
            now, *columns = step_inputs
            after = extremum(before, now)
            # Nothing but the neutral element so far (all masked): no weight, not NaN.
            dead, first = after == nothing, before == nothing
            m_before, m_after = statistic_of(before), statistic_of(after)
            correction = jnp.where(first | dead, 0, weight(m_before, m_after))
            p = jnp.where(dead, 0, weight(now, m_after))
            totals = [total * correction + p for total in totals]
            products = [
                value * product.multiply(correction, jnp.ones_like(column))
                + product.multiply(p, column)
                for product, value, column in zip(site.products, products, columns)
            ]
            return (after, totals, products), None

        columns = [
            _columns(other, product.contract) for product, other in zip(site.products, others)
        ]
        inputs = (_columns(stream, axis), *columns)
        (last, totals, products), _ = lax.scan(step, (empty, totals, products), inputs)
        sums = [
            jnp.where(last == nothing, 1, total) if guard else total
            for total, guard in zip(totals, guarded)
        ]
        return (
            jnp.squeeze(last, axis),
            *(jnp.squeeze(total, axis) for total in sums),
            *products,
        )

    return compute


def _columns(array: Any, axis: int) -> Any:
    """Slices along an axis, kept as an axis of size 1."""
    return jnp.expand_dims(jnp.moveaxis(array, axis, 0), axis + 1)


# --------------------------------------------------------------------------------- variance
def run_variance_beside(flow: Dataflow) -> Iterator[tuple[str, Dataflow]]:
    """Yield the programs in which a sum and the squared deviations from its mean run together."""
    views = Views(flow)
    for total in flow.operations:
        if total.name != "reduce_sum" or len(total.params["axes"]) != 1:
            continue
        for spread in flow.operations:
            if spread.name == "reduce_sum" and _is_spread(flow, total, spread, views):
                yield "running mean beside its variance", _with_moments(flow, total, spread)


def _is_spread(flow: Dataflow, total: Operation, spread: Operation, views: Views) -> bool:
    element = total.inputs[0]
    if (
        spread is total
        or tuple(map(int, spread.params["axes"])) != tuple(map(int, total.params["axes"]))
        or spread.inputs[0].shape != element.shape
        or not jnp.issubdtype(element.dtype, jnp.floating)
    ):
        return False
    base, sum_value = views(element).base, total.outputs[0]
    function = expression(flow, spread.inputs[0], {id(base), id(sum_value)}, views)
    if function is None or not uses(function, id(sum_value)):
        return False
    random = np.random.default_rng(1)
    x, s = random.normal(size=64), random.normal(size=64)
    count = element.shape[int(total.params["axes"][0])]
    probed = function(
        {id(base): jnp.asarray(x, base.dtype), id(sum_value): jnp.asarray(s, sum_value.dtype)}
    )
    tolerance = 64 * float(jnp.finfo(element.dtype).eps)
    return bool(np.allclose(probed, (x - s / count) ** 2, rtol=64 * tolerance, atol=tolerance))


def _with_moments(flow: Dataflow, total: Operation, spread: Operation) -> Dataflow:
    axis = int(total.params["axes"][0])

    def compute(stream: Any) -> tuple[Any, Any]:
        def step(carry: Any, value: Any) -> tuple[Any, None]:
            count, mean, squares = carry
            count = count + 1
            off = value - mean
            mean = mean + off / count
            return (count, mean, squares + off * (value - mean)), None

        rows = jnp.moveaxis(stream, axis, 0)
        start = (jnp.zeros((), stream.dtype), jnp.zeros_like(rows[0]), jnp.zeros_like(rows[0]))
        (count, mean, squares), _ = lax.scan(step, start, rows)
        return mean * count, squares

    outputs = (_like(total.outputs[0]), _like(spread.outputs[0]))
    fused = Operation(
        "running_reduce",
        (total.inputs[0],),
        outputs,
        {
            "axes": (axis,),
            "weights": (None,),
            "products": (None,),
            "latency": lambda hardware: hardware.division,
        },
        compute,
    )
    old = (total.outputs[0], spread.outputs[0])
    return replace_operations(flow, [fused], {id(v): new for v, new in zip(old, outputs)})
