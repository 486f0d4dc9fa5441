"""The one door to JAX's representation of programs, so that an upgrade of JAX is one diff."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.extend.core import (
    ClosedJaxpr as ClosedJaxpr,
)
from jax.extend.core import (
    Jaxpr as Jaxpr,
)
from jax.extend.core import (
    JaxprEqn as JaxprEqn,
)
from jax.extend.core import (
    Literal as Literal,
)
from jax.extend.core import (
    Var as Var,
)
from jax.extend.core import (
    jaxpr_as_fun as jaxpr_as_fun,
)
from jax.interpreters import partial_eval

# Primitives that only call another jaxpr once with the same operands, and where it is held.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "call": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}
REMATERIALISED = frozenset({"remat", "remat2", "checkpoint"})
# Binding these again needs the functions behind their parameters, not the parameters themselves.
_NEEDS_FUNCTIONS = frozenset({"custom_jvp_call", "custom_vjp_call", "shard_map", "core_call"})


def closed(jaxpr: Jaxpr | ClosedJaxpr) -> ClosedJaxpr:
    """Close a jaxpr that has no constants; leave a closed one as it is."""
    return jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())


def called(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """Return the jaxpr that a call-like equation runs once, or None for other equations."""
    key = CALLS.get(eqn.primitive.name)
    return closed(eqn.params[key]) if key is not None and key in eqn.params else None


def bodies(eqn: JaxprEqn) -> tuple[ClosedJaxpr, ...]:
    """Return the jaxprs of a scan (body), while (condition, body) or cond (branches)."""
    name = eqn.primitive.name
    if name == "scan":
        return (closed(eqn.params["jaxpr"]),)
    if name == "while":
        return (closed(eqn.params["cond_jaxpr"]), closed(eqn.params["body_jaxpr"]))
    if name == "cond":
        return tuple(closed(branch) for branch in eqn.params["branches"])
    if name == "shard_map":
        return (closed(eqn.params["jaxpr"]),)
    return ()


def bind(eqn: JaxprEqn, values: Sequence[Any]) -> list[Any]:
    """Evaluate one equation on values, with its derivative rules intact."""
    if eqn.primitive.name in _NEEDS_FUNCTIONS:
        params = eqn.primitive.get_bind_params(eqn.params)
        # Older releases return the functions apart from the parameters.
        if isinstance(params, tuple):
            functions, rest = params
            result = eqn.primitive.bind(*functions, *values, **rest)
        else:
            result = eqn.primitive.bind(*values, **params)
    else:
        result = eqn.primitive.bind(*values, **eqn.params)
    return list(result) if eqn.primitive.multiple_results else [result]


def scope(eqn: JaxprEqn) -> str:
    """Return the ``jax.named_scope`` path under which an equation was traced."""
    return str(eqn.source_info.name_stack)


def remove_dead(
    jaxpr: ClosedJaxpr, keep_inputs: Sequence[bool]
) -> tuple[ClosedJaxpr, tuple[bool, ...]]:
    """Drop equations whose results nothing reads, and inputs that nothing reads.

    Args:
        jaxpr: the program.
        keep_inputs: for each input, whether it stays even if nothing reads it.

    Returns:
        The smaller jaxpr and, for each former input, whether it is still there.
    """
    pruned, used = partial_eval.dce_jaxpr(
        jaxpr.jaxpr, [True] * len(jaxpr.out_avals), list(keep_inputs)
    )
    return ClosedJaxpr(pruned, jaxpr.consts), tuple(used)


def keep_outputs(jaxpr: ClosedJaxpr, kept: Sequence[int]) -> ClosedJaxpr:
    """Return the jaxpr with only some outputs, in the given order."""
    function = jaxpr_as_fun(jaxpr)
    specs = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in jaxpr.in_avals]
    return trace(lambda *args: [function(*args)[position] for position in kept], *specs)


def trace(function: Any, *avals: Any) -> ClosedJaxpr:
    """Trace a function of flat arguments to a closed jaxpr (symbolic dimensions allowed)."""
    return jax.jit(function).trace(*avals).jaxpr
