"""How a function would run on streaming hardware: one call from function to report."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from trimtab.errors import InputError
from trimtab.simulate.stream.analysis import (
    CriticalCycle,
    UnitReport,
    critical_cycle,
    fill_latency,
    peak_occupancy,
    unit_reports,
)
from trimtab.simulate.stream.dataflow import Dataflow, Value, from_jaxpr
from trimtab.simulate.stream.deadlock import Deadlock, explain_deadlock
from trimtab.simulate.stream.engine import Fork, simulate
from trimtab.simulate.stream.lowering.lower import lower
from trimtab.simulate.stream.lowering.primitives import Hardware
from trimtab.simulate.stream.network import Network
from trimtab.simulate.stream.run import Run

# Runs of more tokens keep no time stamps: occupancy and critical cycle are then left out.
RECORDED_TOKENS = 2_000_000


@dataclass(frozen=True)
class Report:
    """A function on streaming hardware.

    Args:
        name: of the function.
        flow: the program that was lowered, rewritten if that was asked for.
        network: with its FIFO depths.
        run: its simulation; with time stamps if it is short enough.
        unbounded_cycles: cycles with unlimited FIFOs.
        rewrites: what was changed, in order.
        original_bits: FIFO bits before the rewrites.
        units: stalls and utilisation per unit.
        occupancy: most tokens held by each FIFO, if recorded.
        critical: the loop that sets the pace, if recorded.
        fill_cycles: when the first result came, if recorded.
        deadlock: the explanation, if the run did not complete.
    """

    name: str
    flow: Dataflow
    network: Network
    run: Run
    unbounded_cycles: int
    rewrites: tuple[str, ...]
    original_bits: int | None
    units: tuple[UnitReport, ...]
    occupancy: np.ndarray | None
    critical: CriticalCycle | None
    fill_cycles: int | None
    deadlock: Deadlock | None

    @property
    def full_throughput(self) -> bool:
        """Whether the run is as fast as with unlimited FIFOs."""
        return self.run.completed and self.run.cycles == self.unbounded_cycles

    def text(self) -> str:
        """Return the report as plain text."""
        from trimtab.simulate.stream.display.text import as_text

        return as_text(self)

    def html(self) -> str:
        """Return the report as one self-contained page."""
        from trimtab.simulate.stream.display.page import as_page

        return as_page(self)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        from trimtab.simulate.stream.display.text import as_data

        return as_data(self)

    def evaluate(self, *arguments: Any) -> list[Any]:
        """Run the lowered program on arrays: its values, apart from time."""
        return jax.jit(self.flow.evaluate)(*jax.tree.leaves(arguments))


def report(
    function: Any,
    *arguments: Any,
    hardware: Hardware | None = None,
    rewrite: bool = False,
    second_pass: bool = False,
    bitwise: bool = False,
    depth: int | str | None = "sized",
    fork: Fork = "atomic",
) -> Report:
    """Lower a function, size its FIFOs, simulate it, and say what happened.

    Args:
        function: a JAX function, a ``ClosedJaxpr``, or a :class:`trimtab.Program`.
        arguments: arrays or ``jax.ShapeDtypeStruct``; pytrees are welcome. Loops whose trip count
            depends on data need arrays.
        hardware: latencies and intervals of units.
        rewrite: search for algebraic rewrites that shorten FIFOs first.
        second_pass: let the search read arguments twice in place of holding them.
        bitwise: allow no rewrite that changes rounding.
        depth: ``"sized"`` for the smallest FIFOs of full throughput; a number or ``None`` (no
            limit) for all FIFOs alike.
        fork: see :func:`trimtab.simulate.stream.engine.simulate`.

    Raises:
        UnsupportedError: names the primitives that have no unit.

    >>> import jax, jax.numpy as jnp
    >>> rows = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    >>> report(lambda x: jax.nn.softmax(x), rows).full_throughput
    True
    """
    flow, name = capture_flow(function, arguments)
    return report_flow(
        flow,
        name,
        hardware=hardware,
        rewrite=rewrite,
        second_pass=second_pass,
        bitwise=bitwise,
        depth=depth,
        fork=fork,
        trip_counts=count_trips(flow, jax.tree.leaves((_parameters(function), arguments))),
    )


def report_flow(
    flow: Dataflow,
    name: str = "function",
    *,
    hardware: Hardware | None = None,
    rewrite: bool = False,
    second_pass: bool = False,
    bitwise: bool = False,
    depth: int | str | None = "sized",
    fork: Fork = "atomic",
    trip_counts: Sequence[int] = (),
) -> Report:
    """Report on a program that is already flat; see :func:`report`."""
    from trimtab.simulate.stream.sizing import linear_program, size_fifos

    rewrites: tuple[str, ...] = ()
    original_bits = None
    if rewrite:
        from trimtab.simulate.stream.rewriting import find_rewrites

        found = find_rewrites(flow, hardware, second_pass=second_pass, bitwise=bitwise)
        flow, rewrites = found.best.flow, found.best.steps
        original_bits = found.original.network.fifo_bits
    network = lower(flow, hardware, trip_counts=trip_counts)
    if depth == "sized":
        network = size_fifos(network, fork=fork).network
    elif depth == "linear program":
        network = network.with_depths(linear_program(network))
    elif depth is None or isinstance(depth, int):
        network = network.with_depths(depth)
    else:
        raise InputError(f"depth is {depth!r}; pass 'sized', a number, or None for no limit.")
    unbounded = simulate(network.unbounded(), fork=fork)
    recorded = sum(network.tokens(fifo) for fifo in network.fifos) <= RECORDED_TOKENS
    run = simulate(network, fork=fork, record=recorded)
    timed = run.visible_at is not None
    return Report(
        name=name,
        flow=flow,
        network=network,
        run=run,
        unbounded_cycles=unbounded.cycles,
        rewrites=rewrites,
        original_bits=original_bits,
        units=unit_reports(run),
        occupancy=peak_occupancy(run) if timed else None,
        critical=critical_cycle(run) if timed and run.completed else None,
        fill_cycles=fill_latency(run) if timed else None,
        deadlock=None if run.completed else explain_deadlock(run),
    )


def capture_flow(function: Any, arguments: Sequence[Any]) -> tuple[Dataflow, str]:
    """Flatten a function, a closed jaxpr or a program, with its arguments named.

    Returns:
        The flat program and a name for it.
    """
    jaxpr = getattr(function, "jaxpr", None)
    if hasattr(function, "parameter_names"):  # a trimtab.Program
        labels = [*function.parameter_names]
        return _labelled(from_jaxpr(jaxpr), labels), getattr(function, "name", "program")
    if jaxpr is not None and hasattr(function, "consts"):
        return from_jaxpr(function), "program"
    if not callable(function):
        raise InputError(
            f"{type(function).__name__} is no function; pass a JAX function, a ClosedJaxpr or a "
            f"Program."
        )
    flow = from_jaxpr(jax.make_jaxpr(function)(*arguments))
    return _labelled(flow, _argument_names(function, arguments)), getattr(
        function, "__name__", type(function).__name__
    )


def _parameters(function: Any) -> Any:
    names = getattr(function, "parameter_names", ())
    return [function.parameters[name] for name in names]


def _argument_names(function: Callable[..., Any], arguments: Sequence[Any]) -> list[str]:
    try:
        names = [*inspect.signature(function).parameters]
    except (TypeError, ValueError):
        names = []
    labels = []
    for position, argument in enumerate(arguments):
        name = names[position] if position < len(names) else f"argument {position}"
        for path, _ in jax.tree_util.tree_flatten_with_path(argument)[0]:
            inner = jax.tree_util.keystr(path, simple=True, separator="/")
            labels.append(f"{name}/{inner}" if inner else name)
    return labels


def _labelled(flow: Dataflow, labels: Sequence[str]) -> Dataflow:
    for value, label in zip(flow.inputs, labels):
        _name(value, label)
    return flow


def _name(value: Value, label: str) -> None:
    object.__setattr__(value, "name", label)  # set once, before anybody else holds the value


def count_trips(flow: Dataflow, arrays: Sequence[Any]) -> tuple[int, ...]:
    """Run a program's ``while`` loops on real arrays and count their iterations.

    Returns:
        One count per loop, in program order; nothing when shapes were given in place of arrays.
    """
    loops = [operation for operation in flow.operations if operation.name == "while"]
    if not loops or any(isinstance(array, jax.ShapeDtypeStruct) for array in arrays):
        return ()
    _, known = flow.evaluate_all(*arrays)
    counts = []
    for operation in loops:
        inputs = [known.get(id(v), getattr(v, "value", None)) for v in operation.inputs]
        first, second = operation.params["cond_nconsts"], operation.params["body_nconsts"]
        condition, body = operation.bodies
        carry, trips = inputs[first + second :], 0
        while bool(condition.evaluate(*inputs[:first], *carry)[0]):
            carry = body.evaluate(*inputs[first : first + second], *carry)
            trips += 1
        counts.append(trips)
    return tuple(counts)
