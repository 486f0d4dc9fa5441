"""Rules that recognise linear layers, attention, norms and others in a flat program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from trimtab.graph import _jax
from trimtab.graph.flat import Address, Body, Node, Value
from trimtab.graph.provenance import Provenance, trace_parameters
from trimtab.graph.sites import Site, SiteKind, owner


def find_sites(body: Body, names: tuple[str, ...]) -> list[Site]:
    """Find every site of a program, in order of execution.

    Args:
        body: the flat program; its first inputs are the parameters.
        names: the parameters' names, in order.
    """
    sources = trace_parameters(body, names)
    found: list[Site] = []
    for scope in _scopes(body, 1, ()):
        for node in scope.body.nodes:
            for rule in _RULES:
                site = rule(node, scope, sources)
                if site is not None:
                    found.append(site)
                    break
    return sorted(found, key=lambda site: site.address)


@dataclass(frozen=True, eq=False)
class _Scope:
    body: Body
    repeats: int
    loops: tuple[Address, ...]


def _scopes(body: Body, repeats: int, loops: tuple[Address, ...]) -> Iterator[_Scope]:
    yield _Scope(body, repeats, loops)
    for node in body.nodes:
        is_scan = node.name == "scan"
        times = repeats * int(node.params["length"]) if is_scan else repeats
        inner = (*loops, node.address) if is_scan else loops
        for child in node.bodies:
            yield from _scopes(child, times, inner)


def _site(
    kind: SiteKind,
    node: Node,
    scope: _Scope,
    *,
    path: str,
    values: dict[str, Value],
    provenance: dict[str, Provenance],
    attributes: dict[str, Any] | None = None,
) -> Site:
    return Site(
        kind=kind,
        path=path,
        parameters={role: source.path for role, source in provenance.items()},
        address=node.address,
        values=values,
        shapes={role: tuple(scope.body.aval(value).shape) for role, value in values.items()},
        dtype=scope.body.avals[node.outputs[0]].dtype,
        repeats=scope.repeats,
        loops=scope.loops,
        attributes=attributes or {},
        provenance=provenance,
        node=node,
    )


def _source(value: Value, sources: dict[int, Provenance]) -> Provenance | None:
    return None if isinstance(value, _jax.Literal) else sources.get(value)


def _linear(node: Node, scope: _Scope, sources: dict[int, Provenance]) -> Site | None:
    if node.name != "dot_general":
        return None
    origins = [_source(value, sources) for value in node.inputs]
    if (origins[0] is None) == (origins[1] is None):
        return None
    side = 0 if origins[0] is not None else 1
    weight = origins[side]
    assert weight is not None
    provenance = {"weight": weight}
    bias = _added_parameter(node.outputs[0], scope.body, sources)
    if bias is not None:
        provenance["bias"] = bias
    (contract, batch) = node.params["dimension_numbers"]
    return _site(
        "linear",
        node,
        scope,
        path=owner(weight.path),
        values={
            "input": node.inputs[1 - side],
            "weight": node.inputs[side],
            "output": node.outputs[0],
        },
        provenance=provenance,
        attributes={
            "weight_operand": side,
            "weight_contracts": tuple(contract[side]),
            "input_contracts": tuple(contract[1 - side]),
            "weight_batch": tuple(batch[side]),
            "input_batch": tuple(batch[1 - side]),
        },
    )


def _added_parameter(value: int, body: Body, sources: dict[int, Provenance]) -> Provenance | None:
    """Return the parameter that the only consumer of a value adds to it, if there is one."""
    for _ in range(4):
        users = body.consumers.get(value, ())
        if len(users) != 1:
            return None
        (user,) = users
        if user.name in ("reshape", "convert_element_type", "transpose", "squeeze") or (
            user.name == "mul" and any(isinstance(v, _jax.Literal) for v in user.inputs)
        ):
            value = user.outputs[0]
            continue
        if user.name in ("add", "add_any"):
            for operand in user.inputs:
                source = _source(operand, sources)
                if source is not None and operand != value:
                    return source
        return None
    return None


def _convolution(node: Node, scope: _Scope, sources: dict[int, Provenance]) -> Site | None:
    if node.name != "conv_general_dilated":
        return None
    weight = _source(node.inputs[1], sources)
    if weight is None:
        return None
    provenance = {"weight": weight}
    bias = _added_parameter(node.outputs[0], scope.body, sources)
    if bias is not None:
        provenance["bias"] = bias
    return _site(
        "convolution",
        node,
        scope,
        path=owner(weight.path),
        values={"input": node.inputs[0], "weight": node.inputs[1], "output": node.outputs[0]},
        provenance=provenance,
        attributes={
            "window_strides": tuple(node.params["window_strides"]),
            "groups": int(node.params["feature_group_count"]),
        },
    )


def _embedding(node: Node, scope: _Scope, sources: dict[int, Provenance]) -> Site | None:
    if node.name != "gather":
        return None
    table = _source(node.inputs[0], sources)
    if table is None or isinstance(node.inputs[1], _jax.Literal):
        return None
    return _site(
        "embedding",
        node,
        scope,
        path=owner(table.path),
        values={"indices": node.inputs[1], "weight": node.inputs[0], "output": node.outputs[0]},
        provenance={"weight": table},
    )


# Steps between the scores and the softmax, and between the softmax and the second product, that
# leave it an attention: scaling, masking, bias, dropout, dtype and layout.
_POINTWISE = frozenset(
    {
        "mul",
        "div",
        "add",
        "sub",
        "max",
        "min",
        "tanh",
        "select_n",
        "convert_element_type",
        "reshape",
        "transpose",
        "squeeze",
        "broadcast_in_dim",
        "copy",
        "add_any",
        "stop_gradient",
        "reduce_precision",
        "sharding_constraint",
    }
)


def _attention(node: Node, scope: _Scope, sources: dict[int, Provenance]) -> Site | None:
    if node.name != "dot_general" or any(_source(v, sources) for v in node.inputs):
        return None
    body = scope.body
    for side in (0, 1):
        softmax = _find_back(node.inputs[side], body, _softmax_input)
        if softmax is None:
            continue
        normalised, scores_value = softmax
        steps: list[Node] = []
        scores = _find_back(scores_value, body, _free_product(sources), steps)
        if scores is None:
            continue
        product: Node = scores[1]
        query, key = product.inputs
        value = node.inputs[1 - side]
        names = [
            source
            for operand in (query, key, value)
            for source in _behind(operand, body, sources, 24)
        ]
        return _site(
            "attention",
            node,
            scope,
            path=_common_owner(names) or node.scope or "attention",
            values={
                "query": query,
                "key": key,
                "value": value,
                "scores": product.outputs[0],
                "weights": node.inputs[side],
                "output": node.outputs[0],
            },
            provenance={},
            attributes={
                "weights_operand": side,
                "score_dimensions": product.params["dimension_numbers"],
                "value_dimensions": node.params["dimension_numbers"],
                "between": tuple(step.address for step in steps),
                "softmax": normalised.address,
            },
        )
    return None


def _find_back(
    value: Value,
    body: Body,
    accept: Callable[[Node, Body], Any],
    passed: list[Node] | None = None,
    budget: int = 24,
) -> tuple[Node, Any] | None:
    """Search backwards through pointwise steps for the first node that ``accept`` takes."""
    frontier, seen = [value], set()
    while frontier and budget > 0:
        current = frontier.pop(0)
        if isinstance(current, _jax.Literal) or current in seen:
            continue
        seen.add(current)
        node = body.producer.get(current)
        if node is None:
            continue
        budget -= 1
        result = accept(node, body)
        if result is not None:
            return node, result
        if node.name in _POINTWISE:
            if passed is not None:
                passed.append(node)
            frontier.extend(node.inputs)
    return None


def _softmax_input(node: Node, body: Body) -> Value | None:
    """Return the logits of ``exp(x - max) / sum(exp(x - max))``, given its division."""
    if node.name not in ("div", "mul"):
        return None
    for numerator, denominator in (node.inputs, node.inputs[::-1]):
        exponential = _skip_layout(numerator, body)
        if exponential is None or exponential.name != "exp":
            continue
        total = _find_back(
            denominator, body, lambda n, _: n if n.name == "reduce_sum" else None, budget=8
        )
        if total is None:
            continue
        summed = _skip_layout(total[0].inputs[0], body)
        if summed is not exponential:
            continue
        shifted = body.producer.get(exponential.inputs[0])  # type: ignore[arg-type]
        return (
            shifted.inputs[0]
            if shifted is not None and shifted.name == "sub"
            else (exponential.inputs[0])
        )
    return None


def _skip_layout(value: Value, body: Body) -> Node | None:
    while not isinstance(value, _jax.Literal):
        node = body.producer.get(value)
        if node is None or node.name not in (
            "convert_element_type",
            "reshape",
            "transpose",
            "copy",
            "broadcast_in_dim",
            "squeeze",
        ):
            return node
        value = node.inputs[0]
    return None


def _free_product(sources: dict[int, Provenance]) -> Callable[[Node, Body], Node | None]:
    def accept(node: Node, body: Body) -> Node | None:
        is_free = node.name == "dot_general" and not any(_source(v, sources) for v in node.inputs)
        return node if is_free else None

    return accept


def _behind(value: Value, body: Body, sources: dict[int, Provenance], budget: int) -> list[str]:
    """Return the parameters of the nearest products or additions behind a value."""
    frontier, paths, seen = [value], [], set()
    while frontier and budget > 0:
        current = frontier.pop(0)
        if isinstance(current, _jax.Literal) or current in seen:
            continue
        seen.add(current)
        source = sources.get(current)
        if source is not None:
            paths.append(source.path)
            continue
        node = body.producer.get(current)
        if node is None:
            continue
        budget -= 1
        if node.name == "dot_general":
            behind = [s for v in node.inputs if (s := _source(v, sources)) is not None]
            if behind:
                paths.extend(source.path for source in behind)
                continue
        frontier.extend(node.inputs)
    return paths


# Last parts of a parameter's name that say what it is and not which layer it belongs to.
_PLAIN = frozenset({"weight", "kernel", "bias", "w", "b", "scale", "embedding"})


def _common_owner(paths: list[str]) -> str:
    """Name the layer that holds all of some parameters, one level up from a fused projection."""
    owners = {owner(path) if path.rpartition("/")[2] in _PLAIN else path for path in paths}
    if not owners:
        return ""
    if len(owners) == 1:
        return owner(owners.pop())
    common = []
    for parts in zip(*(name.split("/") for name in owners)):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return "/".join(common)


def _normalization(node: Node, scope: _Scope, sources: dict[int, Provenance]) -> Site | None:
    if node.name not in ("rsqrt", "sqrt"):
        return None
    body = scope.body
    moment = _find_back(node.inputs[0], body, _second_moment, budget=24)
    if moment is None:
        running = _find_back(
            node.inputs[0], body, lambda n, _: n if _has_source(n, sources) else None, budget=6
        )
        if running is None or not _is_variance(node, body, sources):
            return None
        value = node.outputs[0]
        form = "batch"
        axes: tuple[int, ...] = ()
    else:
        value = moment[1][0]
        form = moment[1][1]
        axes = moment[1][2]
    scale, bias = _affine(node.outputs[0], body, sources)
    provenance = {
        role: source for role, source in (("scale", scale), ("bias", bias)) if source is not None
    }
    named = scale or bias
    return _site(
        "normalization",
        node,
        scope,
        path=owner(named.path) if named is not None else (node.scope or "normalization"),
        values={"input": value},
        provenance=provenance,
        attributes={"form": form, "axes": axes},
    )


def _has_source(node: Node, sources: dict[int, Provenance]) -> bool:
    return any(_source(value, sources) is not None for value in node.inputs)


def _is_variance(node: Node, body: Body, sources: dict[int, Provenance]) -> bool:
    producer = body.producer.get(node.inputs[0])  # type: ignore[arg-type]
    return (
        producer is not None
        and producer.name == "add"
        and any(
            isinstance(value, _jax.Literal) or _source(value, sources) is None
            for value in producer.inputs
        )
    )


def _second_moment(node: Node, body: Body) -> tuple[Value, str, tuple[int, ...]] | None:
    """Return (input, form, axes) of a mean of squares: of x itself, or of x minus its mean."""
    if node.name != "reduce_sum":
        return None
    square = _skip_layout(node.inputs[0], body)
    if square is None:
        return None
    is_square = (
        square.name == "square"
        or (square.name == "integer_pow" and square.params["y"] == 2)
        or (square.name == "mul" and square.inputs[0] is square.inputs[1])
        or (square.name == "mul" and square.inputs[0] == square.inputs[1])
    )
    if not is_square:
        return None
    axes = tuple(node.params["axes"])
    operand = square.inputs[0]
    centred = _skip_layout(operand, body)
    if centred is not None and centred.name == "sub":
        return centred.inputs[0], "layer", axes
    return operand, "rms", axes


def _affine(
    value: int, body: Body, sources: dict[int, Provenance]
) -> tuple[Provenance | None, Provenance | None]:
    """Follow a reciprocal deviation forward to the scale and bias applied after it."""
    scale: Provenance | None = None
    for _ in range(10):
        users = body.consumers.get(value, ())
        nexts = [user for user in users if user.name in _POINTWISE]
        if not nexts:
            return scale, None
        user = nexts[0]
        found = next((s for v in user.inputs if (s := _source(v, sources)) is not None), None)
        if found is not None and user.name == "mul" and scale is None:
            scale = found
        elif found is not None and user.name in ("add", "add_any"):
            return scale, found
        elif (
            scale is not None
            and found is None
            and user.name
            not in (
                "convert_element_type",
                "reshape",
                "transpose",
                "mul",
                "sub",
                "broadcast_in_dim",
            )
        ):
            return scale, None
        value = user.outputs[0]
    return scale, None


_RULES: tuple[Callable[[Node, _Scope, dict[int, Provenance]], Site | None], ...] = (
    _linear,
    _attention,
    _convolution,
    _embedding,
    _normalization,
)
