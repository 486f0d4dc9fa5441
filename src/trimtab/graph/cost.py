"""What a program costs: operations, memory traffic, live memory, and time on a roofline."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trimtab.graph._jax import Literal
from trimtab.graph.flat import Address, Body, Node
from trimtab.graph.flops import ARITHMETIC, MOVEMENT, TRANSCENDENTAL, nbytes, operations, size
from trimtab.graph.provenance import trace_parameters
from trimtab.graph.sites import Site, owner

if TYPE_CHECKING:
    from trimtab.graph.machine import MachineProfile

# Computed while the next operation reads them, so they never travel to memory by themselves.
_FUSIBLE = ARITHMETIC | TRANSCENDENTAL | MOVEMENT | {"integer_pow", "erf_inv", "erfc", "square"}
# So cheap that compilers compute them again for every reader.
_REPEATED = MOVEMENT | {"convert_element_type", "eq", "ne", "lt", "le", "gt", "ge", "neg", "not"}
_REDUCING = frozenset(
    "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin".split()
)
_PARTIAL_READS = frozenset({"gather", "dynamic_slice", "slice"})
_IN_PLACE = frozenset(
    {"dynamic_update_slice", "scatter", "scatter-add", "scatter_add", "scatter_mul"}
)


@dataclass(frozen=True)
class CostRow:
    """The cost of one site, with the pointwise work that follows it, for one call of the program.

    Args:
        path: the site's name, or the layer that owns the work.
        kind: kind of site, or ``"other"``.
        flops: arithmetic operations; a multiply-add counts two.
        transcendentals: exponentials, logarithms, roots and their like.
        bytes_read: bytes that come from memory.
        bytes_written: bytes that go to memory.
        dtype: element type of the products (or of the largest result).
        repeats: how many times the row's work runs in one call.
        parameters: number of parameter elements that the row reads.
    """

    path: str
    kind: str
    flops: float
    transcendentals: float
    bytes_read: float
    bytes_written: float
    dtype: str
    repeats: int
    parameters: int


@dataclass(frozen=True)
class Cost:
    """The cost of a program, in total and by site.

    Args:
        rows: the cost by site, in order of execution.
        parameters: number of parameter elements.
        parameter_bytes: their size in bytes.
        peak_bytes: largest number of bytes alive at once: parameters, inputs, intermediates.
        unpriced: names of foreign calls whose operations are unknown (their bytes are counted).
        assumed_trips: addresses of while loops whose trip count is not in the program.
    """

    rows: tuple[CostRow, ...]
    parameters: int
    parameter_bytes: int
    peak_bytes: int
    unpriced: tuple[str, ...] = ()
    assumed_trips: tuple[Address, ...] = ()

    @property
    def flops(self) -> float:
        """Arithmetic operations of one call."""
        return sum(row.flops for row in self.rows)

    @property
    def transcendentals(self) -> float:
        """Exponentials, logarithms, roots and their like in one call."""
        return sum(row.transcendentals for row in self.rows)

    @property
    def bytes_read(self) -> float:
        """Bytes read from memory in one call."""
        return sum(row.bytes_read for row in self.rows)

    @property
    def bytes_written(self) -> float:
        """Bytes written to memory in one call."""
        return sum(row.bytes_written for row in self.rows)

    @property
    def intensity(self) -> float:
        """Arithmetic intensity: operations per byte moved."""
        moved = self.bytes_read + self.bytes_written
        return self.flops / moved if moved else 0.0

    def seconds(self, machine: MachineProfile | None = None) -> float:
        """Return the roofline time of one call: each row is bound by arithmetic or by memory.

        Args:
            machine: a measured machine profile; by default this machine's.
        """
        return sum(seconds for _, seconds in self.row_seconds(machine))

    def row_seconds(self, machine: MachineProfile | None = None) -> list[tuple[CostRow, float]]:
        """Return every row with its roofline time in seconds."""
        from trimtab.graph.machine import measure, roofline

        profile = machine or measure()
        return [
            (
                row,
                roofline(
                    row.flops + row.transcendentals * _TRANSCENDENTAL_OPERATIONS,
                    row.bytes_read + row.bytes_written,
                    row.dtype,
                    profile,
                ),
            )
            for row in self.rows
        ]

    def __str__(self) -> str:
        lines = [f"{'site':<44} {'kind':<14} {'x':>4} {'FLOPs':>9} {'bytes':>9} {'params':>9}"]
        lines += [
            f"{_shorten(row.path, 44):<44} {row.kind:<14} {row.repeats:>4} {si(row.flops):>9} "
            f"{si(row.bytes_read + row.bytes_written):>9} {si(row.parameters):>9}"
            for row in self.rows
        ]
        lines.append(
            f"total: {si(self.flops)} FLOPs, {si(self.transcendentals)} transcendentals, "
            f"{si(self.bytes_read)}B read, {si(self.bytes_written)}B written, "
            f"{self.intensity:.1f} FLOPs/byte"
        )
        lines.append(
            f"memory: {si(self.parameters)} parameters ({si(self.parameter_bytes)}B), "
            f"peak {si(self.peak_bytes)}B"
        )
        if self.unpriced:
            lines.append(f"operations unknown (bytes counted): {', '.join(self.unpriced)}")
        if self.assumed_trips:
            lines.append(f"while loops counted with an assumed trip count: {self.assumed_trips}")
        return "\n".join(lines)


# A vectorised exponential or root takes about this many multiply-adds.
_TRANSCENDENTAL_OPERATIONS = 10


def si(value: float) -> str:
    """Write a count with a unit prefix.

    >>> si(1_530_000)
    '1.53M'
    """
    for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{prefix}"
    return f"{value:.3g}"


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else "…" + text[1 - width :]


def price(
    body: Body,
    names: tuple[str, ...],
    sites: Sequence[Site],
    *,
    while_trips: float = 1.0,
) -> Cost:
    """Compute the cost of a program from its flat view.

    Pointwise work is taken to be fused into what reads it, as XLA does: only products, reductions,
    values with several readers, and the program's inputs and outputs travel to memory.

    Args:
        body: the flat program; its first inputs are the parameters.
        names: their names.
        sites: the program's sites, which name the rows.
        while_trips: trip count for while loops whose count cannot be read off the program.
    """
    pricing = _Pricing(body, names, sites, while_trips)
    pricing.count(body, 1)
    parameters = [body.avals[number] for number in body.inputs[: len(names)]]
    return Cost(
        rows=pricing.table(),
        parameters=sum(map(size, parameters)),
        parameter_bytes=sum(map(nbytes, parameters)),
        peak_bytes=_peak(body, _stored(body)) + sum(nbytes(body.avals[n]) for n in body.inputs),
        unpriced=tuple(dict.fromkeys(pricing.unpriced)),
        assumed_trips=tuple(pricing.assumed),
    )


class _Pricing:
    """Accumulates rows while walking a program once."""

    def __init__(
        self, body: Body, names: tuple[str, ...], sites: Sequence[Site], while_trips: float
    ) -> None:
        self.sources = trace_parameters(body, names)
        self.sizes = {n: size(body.avals[v]) for n, v in zip(names, body.inputs)}
        self.while_trips = while_trips
        self.unpriced: list[str] = []
        self.assumed: list[Address] = []
        self.labels: dict[Address, tuple[str, str]] = {}
        for site in sites:
            label = (site.path, site.kind)
            self.labels.setdefault(site.address, label)
            if site.kind == "attention":
                for address in (*site.attributes["between"], site.attributes["softmax"]):
                    self.labels[address] = label
        self.scores = {s.values["scores"]: (s.path, s.kind) for s in sites if s.kind == "attention"}
        self.totals: dict[tuple[str, str], list[float]] = {}
        self.facts: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)

    def add(
        self, label: tuple[str, str], node: Node, body: Body, repeats: float, amounts: list[float]
    ) -> None:
        row = self.totals.setdefault(label, [0.0, 0.0, 0.0, 0.0])
        for index, amount in enumerate(amounts):
            row[index] += amount * repeats
        facts = self.facts[label]
        facts["repeats"] = max(facts.get("repeats", 1), int(repeats))
        weight = amounts[0] * repeats + 1
        if weight > facts.get("weight", 0.0):
            facts["weight"] = weight
            facts["dtype"] = _product_dtype(node, body)
        for value in node.inputs:
            source = None if isinstance(value, Literal) else self.sources.get(value)
            if source is not None:
                facts.setdefault("parameters", set()).add(source.path)

    def label(self, node: Node, body: Body, known: dict[int, tuple[str, str]]) -> tuple[str, str]:
        if node.address in self.labels:
            return self.labels[node.address]
        if node.outputs and node.outputs[0] in self.scores:
            return self.scores[node.outputs[0]]
        for value in node.inputs:
            source = None if isinstance(value, Literal) else self.sources.get(value)
            if source is not None and size(body.aval(value)) > 1:
                name = owner(source.path)
                for kind in ("linear", "convolution", "normalization", "embedding"):
                    if (name, kind) in self.totals or (name, kind) in self.labels.values():
                        return (name, kind)
                return (name, "other")
        for value in node.inputs:
            if not isinstance(value, Literal) and value in known:
                return known[value]
        return (node.scope or "program", "other")

    def count(self, body: Body, repeats: float) -> None:
        stored = _stored(body)
        known: dict[int, tuple[str, str]] = {}
        for node in body.nodes:
            label = self.label(node, body, known)
            known.update(dict.fromkeys(node.outputs, label))
            if node.bodies:
                self.loop(node, body, repeats)
                continue
            flops, transcendentals = self.operations(node, body)
            read = written = 0.0
            if any(number in stored for number in node.outputs):
                read, written = _traffic(node, body, stored)
            self.add(label, node, body, repeats, [flops, transcendentals, read, written])

    def operations(self, node: Node, body: Body) -> tuple[float, float]:
        if node.name in _FOREIGN:
            priced = _foreign_cost(node, body)
            if priced is None:
                self.unpriced.append(str(node.params.get("target_name", node.name)))
                return 0.0, 0.0
            return priced, 0.0
        return operations(node, body)

    def loop(self, node: Node, body: Body, repeats: float) -> None:
        if node.name == "scan":
            self.count(node.bodies[0], repeats * node.params["length"])
        elif node.name == "while":
            trips = counted_trips(node)
            if trips is None:
                self.assumed.append(node.address)
                trips = self.while_trips
            self.count(node.bodies[0], repeats * (trips + 1))
            self.count(node.bodies[1], repeats * trips)
        elif node.name == "cond":
            self.count(max(node.bodies, key=_branch_weight), repeats)
        else:
            for child in node.bodies:
                self.count(child, repeats * _device_count(node))

    def table(self) -> tuple[CostRow, ...]:
        rows = []
        for (path, kind), (flops, transcendentals, read, written) in self.totals.items():
            facts = self.facts[(path, kind)]
            rows.append(
                CostRow(
                    path,
                    kind,
                    flops,
                    transcendentals,
                    read,
                    written,
                    facts.get("dtype", "float32"),
                    facts.get("repeats", 1),
                    sum(self.sizes.get(name, 0) for name in facts.get("parameters", ())),
                )
            )
        return tuple(
            row
            for row in rows
            if row.flops or row.transcendentals or row.bytes_read or row.bytes_written
        )


_FOREIGN = frozenset({"ffi_call", "pure_callback", "io_callback", "custom_call", "pallas_call"})


def _foreign_cost(node: Node, body: Body) -> float | None:
    """Ask the kernel room what one of its foreign calls computes."""
    from trimtab import kernels

    rule = getattr(kernels, "operations_of", None)
    if rule is None or "target_name" not in node.params:
        return None
    return rule(
        node.params["target_name"],
        [body.aval(value) for value in node.inputs],
        [body.avals[number] for number in node.outputs],
    )


def _product_dtype(node: Node, body: Body) -> str:
    values = [body.aval(value) for value in node.inputs] + [body.avals[n] for n in node.outputs]
    dtypes = [str(value.dtype) for value in values if hasattr(value, "dtype")]
    if node.name in ("dot_general", "conv_general_dilated"):
        # The wider operand decides which units do the product.
        return max(dtypes[:2], key=lambda name: np.dtype(name).itemsize if "fl" in name else 0)
    return dtypes[0] if dtypes else "float32"


def _branch_weight(body: Body) -> float:
    return sum(sum(operations(node, body)) for node in body.nodes if not node.bodies)


def _device_count(node: Node) -> int:
    mesh = node.params.get("mesh")
    return int(math.prod(dict(mesh.shape).values())) if mesh is not None else 1


def counted_trips(node: Node) -> int | None:
    """Return the trip count of a while loop that counts a literal up to a literal, else None."""
    condition, body = node.bodies
    split, constants = node.params["cond_nconsts"], node.params["body_nconsts"]
    if len(condition.nodes) != 1 or condition.nodes[0].name != "lt":
        return None
    counter, limit = condition.nodes[0].inputs
    if isinstance(counter, Literal) or counter not in condition.inputs[split:]:
        return None
    position = condition.inputs[split:].index(counter)
    start = node.inputs[split + constants + position]
    if not isinstance(limit, Literal):
        if limit not in condition.inputs[split:]:
            return None
        where = condition.inputs[split:].index(limit)
        if body.outputs[where] != body.inputs[constants + where]:
            return None
        limit = node.inputs[split + constants + where]
    after = body.outputs[position]
    step = body.producer.get(after) if not isinstance(after, Literal) else None
    if not isinstance(start, Literal) or not isinstance(limit, Literal) or step is None:
        return None
    if step.name != "add" or step.inputs[0] != body.inputs[constants + position]:
        return None
    by = step.inputs[1]
    if not isinstance(by, Literal) or int(by.val) <= 0:
        return None
    return max(0, math.ceil((int(limit.val) - int(start.val)) / int(by.val)))


def _stored(body: Body) -> frozenset[int]:
    """Return the numbers of the values that travel to memory."""
    stored = set(body.inputs) | set(body.constants)
    stored |= {value for value in body.outputs if not isinstance(value, Literal)}
    for node in body.nodes:
        fusible = node.name in _FUSIBLE
        for number in node.outputs:
            readers = body.consumers.get(number, ())
            if not fusible:
                if readers or number in stored:
                    stored.add(number)
            elif node.name in _REPEATED:
                continue
            elif len(readers) > 1 or any(_needs_memory(reader) for reader in readers):
                stored.add(number)
    return frozenset(stored)


def _needs_memory(reader: Node) -> bool:
    return reader.name not in _FUSIBLE and reader.name not in _REDUCING


def _traffic(node: Node, body: Body, stored: frozenset[int]) -> tuple[float, float]:
    """Return (bytes read, bytes written) to make a node's stored results."""
    if node.name in _IN_PLACE:
        update = node.inputs[2] if node.name.startswith("scatter") else node.inputs[1]
        amount = float(nbytes(body.aval(update)))
        return 2 * amount if "add" in node.name else amount, amount
    written = sum(nbytes(body.avals[number]) for number in node.outputs if number in stored)
    read, seen = 0.0, set()
    frontier: list[tuple[Any, Node]] = [(value, node) for value in node.inputs]
    while frontier:
        value, reader = frontier.pop()
        if isinstance(value, Literal) or value in seen:
            continue
        seen.add(value)
        partial = reader.name in _PARTIAL_READS and value is reader.inputs[0]
        if value in stored or value not in body.producer:
            whole = nbytes(body.aval(value))
            if partial:
                whole = min(whole, sum(nbytes(body.avals[number]) for number in reader.outputs))
            read += whole
        else:
            producer = body.producer[value]
            frontier.extend((operand, producer) for operand in producer.inputs)
    return read, float(written)


def _peak(body: Body, stored: frozenset[int]) -> int:
    """Return the largest number of bytes alive at once, without the body's inputs."""
    last_use = _last_uses(body, stored)
    alive = peak = 0
    ends: dict[int, list[int]] = defaultdict(list)
    outputs = {value for value in body.outputs if not isinstance(value, Literal)}
    inputs = set(body.inputs)
    for number, position in last_use.items():
        if number not in outputs and number not in inputs:
            ends[position].append(number)
    for position, node in enumerate(body.nodes):
        made = sum(nbytes(body.avals[n]) for n in node.outputs if n in stored)
        inner = max((_inner_peak(node, child) for child in node.bodies), default=0)
        peak = max(peak, alive + made + inner)
        alive += made
        for number in ends.get(position, ()):
            alive -= nbytes(body.avals[number])
    return max(peak, alive)


def _inner_peak(node: Node, child: Body) -> int:
    inside = _peak(child, _stored(child))
    if node.name == "scan":
        consts, carries = node.params["num_consts"], node.params["num_carry"]
        # The slices of this turn; carried values are updated in place.
        return inside + sum(nbytes(child.avals[n]) for n in child.inputs[consts + carries :])
    return inside


def _last_uses(body: Body, stored: frozenset[int]) -> dict[int, int]:
    """Return where each stored value is read last, directly or through a fused chain."""
    reads: dict[int, int] = {}
    # A fused value is read where its own reader is stored, so walk backwards and pass times on.
    moment: dict[int, int] = {}
    for position in range(len(body.nodes) - 1, -1, -1):
        node = body.nodes[position]
        when = position
        for number in node.outputs:
            if number not in stored:
                when = max(when, moment.get(number, position))
        for value in node.inputs:
            if isinstance(value, Literal):
                continue
            moment[value] = max(moment.get(value, 0), when)
            if value in stored:
                reads[value] = max(reads.get(value, 0), when)
    for position, node in enumerate(body.nodes):
        for number in node.outputs:
            if number in stored:
                reads.setdefault(number, position)
    return reads
