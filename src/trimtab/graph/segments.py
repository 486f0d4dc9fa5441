"""A program cut into consecutive parts, each a program whose results feed the next."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax

from trimtab.errors import InputError
from trimtab.graph import _jax
from trimtab.graph.program import Program


def split(program: Program, cuts: Sequence[int]) -> list[Program]:
    """Cut a program before some of its top-level equations.

    Each part takes the tuple that the part before it returns: every value that is still needed. The
    first takes the program's flat inputs; the last returns the program's flat outputs. Work on
    parameters alone (casts, transposes) is done in the part that uses it, so that every part knows
    its own parameters by name.

    Args:
        program: what to cut.
        cuts: rising positions of top-level equations, as ``site.address[0]`` gives them.

    Returns:
        ``len(cuts) + 1`` programs, or fewer where a cut is at an end.

    Raises:
        InputError: the cuts are not rising positions of equations.
    """
    jaxpr = program.jaxpr.jaxpr
    if list(cuts) != sorted(set(cuts)) or any(not 0 <= cut <= len(jaxpr.eqns) for cut in cuts):
        raise InputError(f"Cuts must be rising positions in 0..{len(jaxpr.eqns)}, not {cuts}.")
    edges = [0, *(cut for cut in cuts if 0 < cut < len(jaxpr.eqns)), len(jaxpr.eqns)]
    count = len(program.parameter_names)
    name_of = dict(zip(jaxpr.invars[:count], program.parameter_names))
    fixed = _parameter_only(jaxpr, set(name_of))
    parts, given = [], list(jaxpr.invars[count:])
    for index, (start, stop) in enumerate(pairwise(edges)):
        eqns = [eqn for eqn in jaxpr.eqns[start:stop] if eqn.outvars[0] not in fixed]
        is_last = stop == len(jaxpr.eqns)
        results = list(jaxpr.outvars) if is_last else _needed_after(jaxpr, stop, given, eqns, fixed)
        parts.append(_part(program, eqns, given, results, name_of, fixed, index))
        given = results
    return parts


def _parameter_only(jaxpr: _jax.Jaxpr, parameters: set[Any]) -> dict[Any, _jax.JaxprEqn]:
    """Map each value that depends on parameters alone to its equation."""
    fixed: dict[Any, _jax.JaxprEqn] = {}
    for eqn in jaxpr.eqns:
        operands = [atom for atom in eqn.invars if not isinstance(atom, _jax.Literal)]
        if operands and all(atom in parameters or atom in fixed for atom in operands):
            fixed.update(dict.fromkeys(eqn.outvars, eqn))
    return fixed


def _needed_after(
    jaxpr: _jax.Jaxpr, stop: int, given: list[Any], eqns: list[_jax.JaxprEqn], fixed: dict[Any, Any]
) -> list[Any]:
    used = {a for eqn in jaxpr.eqns[stop:] for a in eqn.invars if not isinstance(a, _jax.Literal)}
    used |= {atom for atom in jaxpr.outvars if not isinstance(atom, _jax.Literal)}
    made = [variable for eqn in eqns for variable in eqn.outvars]
    return [v for v in [*given, *made] if v in used and v not in fixed]


def _part(
    program: Program,
    eqns: list[_jax.JaxprEqn],
    given: list[Any],
    results: list[Any],
    name_of: dict[Any, str],
    fixed: dict[Any, _jax.JaxprEqn],
    index: int,
) -> Program:
    prelude = _prelude(eqns, results, fixed)
    every = [*prelude, *eqns]
    wanted = {a for eqn in every for a in eqn.invars if not isinstance(a, _jax.Literal)}
    wanted |= {atom for atom in results if not isinstance(atom, _jax.Literal)}
    parameters = [variable for variable in name_of if variable in wanted]
    names = tuple(name_of[variable] for variable in parameters)

    def run(*arguments: Any) -> list[Any]:
        environment = dict(zip([*parameters, *given], arguments))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, _jax.Literal) else environment[atom]

        for eqn in every:
            environment.update(zip(eqn.outvars, _jax.bind(eqn, [read(a) for a in eqn.invars])))
        return [read(atom) for atom in results]

    specs = [
        jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype)
        for variable in [*parameters, *given]
    ]
    return Program(
        parameters={name: program.parameters[name] for name in names},
        jaxpr=_jax.trace(run, *specs),
        parameter_names=names,
        in_tree=jax.tree.structure((0,) * len(given)),
        out_tree=jax.tree.structure((0,) * len(results)),
        name=f"{program.name}[{index}]",
    )


def _prelude(
    eqns: list[_jax.JaxprEqn], results: list[Any], fixed: dict[Any, _jax.JaxprEqn]
) -> list[_jax.JaxprEqn]:
    """Return the equations on parameters alone that a part needs, in order."""
    needed: dict[int, _jax.JaxprEqn] = {}

    def visit(atom: Any) -> None:
        if isinstance(atom, _jax.Literal) or atom not in fixed:
            return
        eqn = fixed[atom]
        if id(eqn) in needed:
            return
        for operand in eqn.invars:
            visit(operand)
        needed[id(eqn)] = eqn

    for eqn in eqns:
        for atom in eqn.invars:
            visit(atom)
    for atom in results:
        visit(atom)
    return list(needed.values())
