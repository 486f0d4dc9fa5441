"""Run a jaxpr again with some equations replaced or watched, inside loops and calls too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from trimtab.errors import UnsupportedError
from trimtab.graph._jax import (
    REMATERIALISED,
    ClosedJaxpr,
    JaxprEqn,
    Literal,
    bind,
    bodies,
    called,
    closed,
)
from trimtab.graph.flat import Address, Body, Value


@dataclass(frozen=True)
class Replacement:
    """What to run in place of one equation.

    Args:
        address: the equation; it must have one result.
        operands: value numbers handed to ``apply`` (they need not be the equation's own).
        apply: ``apply(extras, *operands) -> result`` of the equation's shape and dtype.
        extras: new parameters by name, with a leading axis for each entry of ``loops``.
        loops: addresses of the scans that slice the extras, outermost first.
    """

    address: Address
    operands: tuple[Value, ...]
    apply: Callable[..., Any]
    extras: Mapping[str, Any] = field(default_factory=dict)
    loops: tuple[Address, ...] = ()


@dataclass(frozen=True)
class Watch:
    """A value to report while the program runs.

    Args:
        name: the key of the report.
        address: the equation before which the values are complete.
        operands: value numbers handed to ``observe``.
        observe: ``observe(*operands)`` -> any pytree; inside a scan the reports are stacked.
    """

    name: str
    address: Address
    operands: tuple[Value, ...]
    observe: Callable[..., Any]


@dataclass(frozen=True)
class _Plan:
    replacements: Mapping[Address, Replacement]
    watches: Mapping[Address, tuple[Watch, ...]]
    # Calls that must be opened: they hold a replaced equation or make a value that one needs.
    opened: frozenset[Address]
    numbers: Mapping[tuple[Address, int], int]
    loops: Mapping[str, tuple[Address, ...]]
    constants: Mapping[int, Any]


def replay(
    jaxpr: ClosedJaxpr,
    body: Body,
    arguments: Sequence[Any],
    replacements: Sequence[Replacement] = (),
    watches: Sequence[Watch] = (),
    extras: Mapping[str, Any] | None = None,
) -> tuple[list[Any], dict[str, Any]]:
    """Evaluate a jaxpr with equations replaced and values watched.

    Calls that hold nothing of interest are bound as they are, so their derivative rules, names and
    rematerialisation survive; a custom derivative around a replaced equation is dropped.

    Args:
        jaxpr: the program.
        body: its flat view, which defines value numbers and addresses.
        arguments: flat values of its inputs.
        replacements: equations to replace.
        watches: values to report.
        extras: values of the replacements' new parameters.

    Returns:
        The flat outputs, and the reports by watch name.

    Raises:
        UnsupportedError: a watch stands inside a while loop or a branch.
    """
    plan = _make_plan(body, replacements, watches)
    run = _Run(plan, dict(plan.constants))
    return run.jaxpr(jaxpr, list(arguments), (), dict(extras or {}))


def _make_plan(body: Body, replacements: Sequence[Replacement], watches: Sequence[Watch]) -> _Plan:
    index = _Index({}, {((), -1 - i): n for i, n in enumerate(body.inputs)}, {}, {})
    _fill(index, body)
    opened: set[Address] = set()
    for change in (*replacements, *watches):
        opened |= _prefixes(change.address)
        for value in change.operands:
            if not isinstance(value, Literal) and value in index.producers:
                opened |= _opened_for(value, change.address, index)
    grouped: dict[Address, tuple[Watch, ...]] = {}
    for watch in watches:
        grouped[watch.address] = (*grouped.get(watch.address, ()), watch)
    return _Plan(
        {replacement.address: replacement for replacement in replacements},
        grouped,
        frozenset(opened),
        index.numbers,
        {name: change.loops for change in replacements for name in change.extras},
        index.constants,
    )


@dataclass(frozen=True)
class _Index:
    producers: dict[int, Address]
    # Value number of (address of an equation, position of its output); inputs of a body are keyed
    # by the body's own address and negative positions.
    numbers: dict[tuple[Address, int], int]
    handed_out: dict[Address, frozenset[int]]
    constants: dict[int, Any]


def _fill(index: _Index, body: Body) -> None:
    index.constants.update(body.constants)
    for address, results in body.calls.items():
        numbers = {i: v for i, v in enumerate(results) if not isinstance(v, Literal)}
        index.numbers.update({(address, i): v for i, v in numbers.items()})
        index.handed_out[address] = frozenset(numbers.values())
    for node in body.nodes:
        for position, number in enumerate(node.outputs):
            index.producers[number] = node.address
            index.numbers[(node.address, position)] = number
        for which, child in enumerate(node.bodies):
            for position, number in enumerate(child.inputs):
                index.numbers[((*node.address, which), -1 - position)] = number
            _fill(index, child)


def _prefixes(address: Address) -> set[Address]:
    return {address[:depth] for depth in range(1, len(address))}


def _opened_for(value: int, reader: Address, index: _Index) -> set[Address]:
    """Return the calls to open so that a value made inside them can be read at an address."""
    opened = set()
    for prefix in sorted(_prefixes(index.producers[value]), key=len):
        if reader[: len(prefix)] != prefix and value in index.handed_out.get(prefix, ()):
            break
        opened.add(prefix)
    return opened


@dataclass(frozen=True)
class _Run:
    plan: _Plan
    values: dict[int, Any]

    def jaxpr(
        self, program: ClosedJaxpr, arguments: list[Any], at: Address, extras: dict[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Run a jaxpr whose inputs are numbered (the program itself, or a loop body)."""
        for position, argument in enumerate(arguments):
            number = self.plan.numbers.get((at, -1 - position))
            if number is not None:
                self.values[number] = argument
        return self.equations(program, arguments, at, extras)

    def equations(
        self, program: ClosedJaxpr, arguments: list[Any], at: Address, extras: dict[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        environment = dict(zip(program.jaxpr.invars, arguments))
        environment.update(zip(program.jaxpr.constvars, program.consts))
        reports: dict[str, Any] = {}

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else environment[atom]

        for index, eqn in enumerate(program.jaxpr.eqns):
            address = (*at, index)
            operands = [read(atom) for atom in eqn.invars]
            for watch in self.plan.watches.get(address, ()):
                reports[watch.name] = watch.observe(*self.fetch(watch.operands))
            if address in self.plan.replacements:
                outputs = [self.replace(self.plan.replacements[address], extras)]
            elif address in self.plan.opened:
                outputs, inner = self.enter(eqn, operands, address, extras)
                reports.update(inner)
            else:
                outputs = bind(eqn, operands)
            environment.update(zip(eqn.outvars, outputs))
            for position, output in enumerate(outputs):
                number = self.plan.numbers.get((address, position))
                if number is not None:
                    self.values[number] = output
        return [read(atom) for atom in program.jaxpr.outvars], reports

    def fetch(self, operands: Sequence[Value]) -> list[Any]:
        return [v.val if isinstance(v, Literal) else self.values[v] for v in operands]

    def replace(self, change: Replacement, extras: dict[str, Any]) -> Any:
        own = {name: extras[name] for name in change.extras}
        return change.apply(own, *self.fetch(change.operands))

    def enter(
        self, eqn: JaxprEqn, operands: list[Any], at: Address, extras: dict[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        name = eqn.primitive.name
        callee = called(eqn)
        if name in REMATERIALISED and callee is not None:
            return self.rematerialised(eqn, callee, operands, at, extras)
        if callee is not None:
            return self.equations(callee, operands, at, extras)
        if name == "scan":
            return self.scan(eqn, operands, at, extras)
        if name == "while":
            return self.while_loop(eqn, operands, at, extras), {}
        if name == "cond":
            return self.cond(eqn, operands, at, extras), {}
        raise UnsupportedError(
            f"A site inside {name!r} cannot be replaced or watched. "
            "Exclude it with a glob such as where='!PATH'."
        )

    def rematerialised(
        self,
        eqn: JaxprEqn,
        callee: ClosedJaxpr,
        operands: list[Any],
        at: Address,
        extras: dict[str, Any],
    ) -> tuple[list[Any], dict[str, Any]]:
        def inside(values: list[Any], own: dict[str, Any]) -> Any:
            return _Run(self.plan, dict(self.values)).equations(callee, values, at, own)

        wrapped = jax.checkpoint(
            inside, policy=eqn.params.get("policy"), prevent_cse=eqn.params["prevent_cse"]
        )
        return wrapped(operands, extras)

    def scan(
        self, eqn: JaxprEqn, operands: list[Any], at: Address, extras: dict[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        consts, carries = eqn.params["num_consts"], eqn.params["num_carry"]
        program = closed(eqn.params["jaxpr"])
        sliced = {name: e for name, e in extras.items() if at in self.plan.loops.get(name, ())}
        whole = {name: e for name, e in extras.items() if name not in sliced}

        def step(carry: list[Any], given: tuple[list[Any], dict[str, Any]]) -> Any:
            elements, own = given
            run = _Run(self.plan, dict(self.values))
            arguments = [*operands[:consts], *carry, *elements]
            outputs, reports = run.jaxpr(program, arguments, (*at, 0), {**whole, **own})
            return outputs[:carries], (outputs[carries:], reports)

        carry, (stacked, reports) = jax.lax.scan(
            step,
            operands[consts : consts + carries],
            (operands[consts + carries :], sliced),
            length=eqn.params["length"],
            reverse=eqn.params["reverse"],
            unroll=eqn.params["unroll"],
        )
        return [*carry, *stacked], reports

    def while_loop(
        self, eqn: JaxprEqn, operands: list[Any], at: Address, extras: dict[str, Any]
    ) -> list[Any]:
        split = eqn.params["cond_nconsts"]
        start = split + eqn.params["body_nconsts"]
        condition, body = bodies(eqn)

        def run(program: ClosedJaxpr, constants: list[Any], which: int) -> Callable[[Any], Any]:
            def function(carry: list[Any]) -> list[Any]:
                inner = _Run(self.plan, dict(self.values))
                arguments = [*constants, *carry]
                return _unwatched(inner.jaxpr(program, arguments, (*at, which), extras))

            return function

        test = run(condition, operands[:split], 0)
        return jax.lax.while_loop(
            lambda carry: test(carry)[0], run(body, operands[split:start], 1), operands[start:]
        )

    def cond(
        self, eqn: JaxprEqn, operands: list[Any], at: Address, extras: dict[str, Any]
    ) -> list[Any]:
        def run(program: ClosedJaxpr, which: int) -> Callable[..., Any]:
            def function(*arguments: Any) -> list[Any]:
                inner = _Run(self.plan, dict(self.values))
                return _unwatched(inner.jaxpr(program, list(arguments), (*at, which), extras))

            return function

        branches = [run(program, which) for which, program in enumerate(bodies(eqn))]
        return jax.lax.switch(operands[0], branches, *operands[1:])


def _unwatched(result: tuple[list[Any], dict[str, Any]]) -> list[Any]:
    outputs, reports = result
    if reports:
        raise UnsupportedError(
            f"{', '.join(reports)} cannot be watched inside a while loop or a branch, which may "
            "run any number of times. Write the loop as a scan, or tap other sites."
        )
    return outputs
