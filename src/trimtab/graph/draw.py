"""A layered picture of a program, collapsed by the names of its layers."""

from __future__ import annotations

import html
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.errors import InputError, UnsupportedError
from trimtab.files import atomic_file
from trimtab.graph._jax import Literal
from trimtab.graph.cost import CostRow, si
from trimtab.graph.flat import Body, Node
from trimtab.graph.program import Program
from trimtab.graph.provenance import trace_parameters
from trimtab.graph.sites import owner

_BOX_WIDTH, _BOX_HEIGHT = 216, 52
_GAP_X, _GAP_Y, _MARGIN = 28, 38, 24


@dataclass(frozen=True)
class Box:
    """A group of equations under one name.

    Args:
        name: the common part of their layer names.
        contents: how many sites of each kind it holds.
        flops: operations of one call.
        parameters: number of parameter elements.
    """

    name: str
    contents: tuple[tuple[str, int], ...]
    flops: float
    parameters: int

    @property
    def summary(self) -> str:
        """What the box holds, in a few words."""
        parts = [f"{count} {kind}" if count > 1 else kind for kind, count in self.contents]
        return " · ".join(parts[:3]) if parts else "pointwise"


@dataclass(frozen=True)
class Level:
    """The graph at one depth of names: boxes, and edges by their positions."""

    depth: int
    boxes: tuple[Box, ...]
    edges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Drawing:
    """A drawn program; a notebook shows it as it is.

    Args:
        title: the program in one line.
        levels: the graph at rising depths of names.
        shown: index of the level that is shown first.
    """

    title: str
    levels: tuple[Level, ...]
    shown: int

    def svg(self) -> str:
        """Return the shown level as a standalone SVG document."""
        return _svg(self.levels[self.shown], self.title)

    def html(self) -> str:
        """Return a self-contained page with every level, opened and closed by buttons."""
        return _page(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the drawing.

        Raises:
            InputError: the name ends neither in ``.svg`` nor in ``.html``.
        """
        suffix = Path(path).suffix.lower()
        if suffix not in (".svg", ".html"):
            raise InputError(f"A drawing is saved as .svg or .html, not {suffix or 'no suffix'!r}.")
        with atomic_file(path) as temporary:
            temporary.write_text(self.svg() if suffix == ".svg" else self.html())

    def _repr_html_(self) -> str:
        return self.svg()


def draw(program: Program, *, depth: int = 2) -> Drawing:
    """Draw a program at every depth of layer names.

    Args:
        program: what to draw.
        depth: the depth shown first; ``blocks/0`` has depth 2.

    Raises:
        InputError: the depth is not positive.
        UnsupportedError: the program is symbolic or was loaded from disk.
    """
    if depth < 1:
        raise InputError(f"depth must be at least 1, not {depth}.")
    if program.exported is not None:
        raise UnsupportedError("A program loaded from disk is compiled and cannot be drawn.")
    names = _layer_names(program)
    deepest = max((name.count("/") + 1 for name in names.values()), default=1)
    rows = () if program.is_symbolic else program.cost().rows
    levels = tuple(_level(program, names, rows, d) for d in range(1, min(deepest, 6) + 1))
    return Drawing(str(program), levels, min(depth, len(levels)) - 1)


def _layer_names(program: Program) -> dict[int, str]:
    """Give every top-level node a layer: its parameter's owner, else that of what it follows."""
    body = program.body
    sources = trace_parameters(body, program.parameter_names)
    sites = {site.address: site.path for site in program.sites()}
    named: dict[int, str] = {}
    layer_of_value: dict[int, str] = {}
    appearance: dict[str, int] = {}
    for index, node in enumerate(body.nodes):
        name = sites.get(node.address)
        if name is None:
            owners = [
                owner(sources[value].path)
                for value in _values(node)
                if value in sources and value not in layer_of_value
            ]
            name = _common(owners) if owners and (node.bodies or len(owners) == 1) else None
        if name is None:
            before = [layer_of_value[v] for v in _values(node) if v in layer_of_value]
            # A residual addition belongs to the layer that it closes, the latest of the two.
            name = max(before, key=appearance.__getitem__, default=None)
        if name is None:
            continue
        named[index] = name
        appearance.setdefault(name, len(appearance))
        if any(value not in sources for value in node.outputs):
            layer_of_value.update(dict.fromkeys(node.outputs, name))
    return named


def _values(node: Node) -> list[int]:
    return [value for value in node.inputs if not isinstance(value, Literal)]


def _common(names: Sequence[str]) -> str:
    shared = []
    for parts in zip(*(name.split("/") for name in names)):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "/".join(shared) or names[0].split("/")[0]


def _level(
    program: Program, names: Mapping[int, str], rows: Sequence[CostRow], depth: int
) -> Level:
    body = program.body
    group_of = {index: "/".join(name.split("/")[:depth]) for index, name in names.items()}
    order = list(dict.fromkeys(group_of[index] for index in sorted(group_of)))
    contents: dict[str, Counter[str]] = defaultdict(Counter)
    for site in program.sites():
        contents[_group(site.path, order, depth)][site.kind] += site.repeats
    flops: Counter[str] = Counter()
    for row in rows:
        flops[_group(row.path, order, depth)] += int(row.flops)
    parameters: Counter[str] = Counter()
    for name, array in program.parameters.items():
        size = 1
        for extent in array.shape:
            size *= int(extent)
        parameters[_group(owner(name), order, depth)] += size
    boxes = tuple(
        Box(name, tuple(contents[name].most_common()), flops[name], parameters[name])
        for name in order
    )
    return Level(depth, boxes, _edges(body, group_of, order))


def _group(path: str, order: Sequence[str], depth: int) -> str:
    shortened = "/".join(path.split("/")[:depth])
    if shortened in order:
        return shortened
    inside = [name for name in order if name.startswith(shortened + "/")]
    return inside[0] if inside else shortened


def _edges(
    body: Body, group_of: Mapping[int, str], order: Sequence[str]
) -> tuple[tuple[int, int], ...]:
    position = {name: index for index, name in enumerate(order)}
    maker: dict[int, int] = {}
    edges: dict[tuple[int, int], None] = {}
    for index, node in enumerate(body.nodes):
        before = {maker[value] for value in _values(node) if value in maker}
        group = group_of.get(index)
        if group is None:
            # Not part of a layer: hand on where its operands came from.
            if before:
                maker.update(dict.fromkeys(node.outputs, max(before)))
            continue
        here = position[group]
        edges.update(dict.fromkeys((source, here) for source in before if source < here))
        maker.update(dict.fromkeys(node.outputs, here))
    return tuple(edges)


def _layers(level: Level) -> list[list[int]]:
    """Assign each box the length of the longest path to it."""
    rank = [0] * len(level.boxes)
    for source, target in sorted(level.edges, key=lambda edge: edge[1]):
        rank[target] = max(rank[target], rank[source] + 1)
    rows: list[list[int]] = [[] for _ in range(max(rank, default=0) + 1)]
    for box, row in enumerate(rank):
        rows[row].append(box)
    return rows


def _svg(level: Level, title: str) -> str:
    rows = _layers(level)
    widest = max((len(row) for row in rows), default=1)
    # Skip edges run in lanes at the side, so a long residual does not cross the boxes.
    place: dict[int, tuple[float, float]] = {}
    width = widest * (_BOX_WIDTH + _GAP_X) - _GAP_X
    for row_index, row in enumerate(rows):
        row_width = len(row) * (_BOX_WIDTH + _GAP_X) - _GAP_X
        for column, box in enumerate(row):
            x = _MARGIN + (width - row_width) / 2 + column * (_BOX_WIDTH + _GAP_X)
            place[box] = (x, _MARGIN + row_index * (_BOX_HEIGHT + _GAP_Y))
    row_of = {box: index for index, row in enumerate(rows) for box in row}
    lanes = sorted((e for e in level.edges if row_of[e[1]] - row_of[e[0]] > 1), key=_span(row_of))
    lane_of = _lanes(lanes, row_of)
    side = 14 * (max(lane_of.values(), default=-1) + 1)
    total_width = width + 2 * _MARGIN + side
    total_height = len(rows) * (_BOX_HEIGHT + _GAP_Y) - _GAP_Y + 2 * _MARGIN
    right = _MARGIN + width
    paths = [_edge(place, edge, lane_of.get(edge), right) for edge in level.edges]
    boxes = [_box(box, *place[index]) for index, box in enumerate(level.boxes)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total_width:.0f} '
        f'{total_height:.0f}" width="{total_width:.0f}" height="{total_height:.0f}" role="img" '
        f'aria-label="{html.escape(title, quote=True)}">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto-start-reverse"><path class="tip" d="M0 0L8 4L0 8z"/>'
        "</marker></defs>" + "".join(paths) + "".join(boxes) + "</svg>"
    )


def _span(row_of: Mapping[int, int]):
    return lambda edge: row_of[edge[1]] - row_of[edge[0]]


def _lanes(
    edges: Sequence[tuple[int, int]], row_of: Mapping[int, int]
) -> dict[tuple[int, int], int]:
    """Give overlapping long edges different lanes, short ones innermost."""
    taken: list[list[tuple[int, int]]] = []
    lane_of = {}
    for edge in edges:
        low, high = row_of[edge[0]], row_of[edge[1]]
        free = (
            lane
            for lane, spans in enumerate(taken)
            if all(high <= start or low >= end for start, end in spans)
        )
        lane = next(free, len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append((low, high))
        lane_of[edge] = lane
    return lane_of


def _edge(
    place: Mapping[int, tuple[float, float]],
    edge: tuple[int, int],
    lane: int | None,
    right: float,
) -> str:
    (x1, y1), (x2, y2) = place[edge[0]], place[edge[1]]
    if lane is None:
        start, end = x1 + _BOX_WIDTH / 2, x2 + _BOX_WIDTH / 2
        bottom, middle = y1 + _BOX_HEIGHT, (y1 + _BOX_HEIGHT + y2) / 2
        path = f"M{start:.1f} {bottom:.1f}C{start:.1f} {middle:.1f} {end:.1f} {middle:.1f} "
        path += f"{end:.1f} {y2 - 2:.1f}"
    else:
        out = right + 12 + 14 * lane
        from_y, to_y = y1 + _BOX_HEIGHT * 0.65, y2 + _BOX_HEIGHT * 0.35
        path = (
            f"M{x1 + _BOX_WIDTH:.1f} {from_y:.1f}H{out - 6:.1f}q6 0 6 6V{to_y - 6:.1f}"
            f"q0 6 -6 6H{x2 + _BOX_WIDTH + 2:.1f}"
        )
    return f'<path class="edge" marker-end="url(#arrow)" d="{path}"/>'


def _box(box: Box, x: float, y: float) -> str:
    kind = box.contents[0][0] if box.contents else "other"
    facts = f"{si(box.flops)} FLOPs"
    if box.parameters:
        facts += f" · {si(box.parameters)} parameters"
    label = box.name if len(box.name) <= 30 else "…" + box.name[-29:]
    full = html.escape(f"{box.name}: {box.summary}, {facts}")
    return (
        f'<g class="box {kind}" transform="translate({x:.1f} {y:.1f})"><title>{full}</title>'
        f'<rect width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="7"/>'
        f'<rect class="bar" width="5" height="{_BOX_HEIGHT}" rx="2.5"/>'
        f'<text x="14" y="18" class="name">{html.escape(label)}</text>'
        f'<text x="14" y="32">{html.escape(box.summary)}</text>'
        f'<text x="14" y="45" class="faint">{facts}</text></g>'
    )


_STYLE = (
    ":root{--ink:#1c2733;--faint:#5b6b7b;--line:#93a1b0;--paper:#fff;--box:#f5f7fa;"
    "--edge:#cdd5de}"
    "@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--faint:#9aa8b6;--line:#6b7a89;"
    "--paper:#12181f;--box:#1c252f;--edge:#36424e}}"
    "svg{background:var(--paper);font:11px system-ui,sans-serif}"
    "svg .edge{fill:none;stroke:var(--line);stroke-width:1.3}svg .tip{fill:var(--line)}"
    "svg .box rect{fill:var(--box);stroke:var(--edge)}svg text{fill:var(--ink)}"
    "svg .name{font-weight:600;font-size:12px}svg .faint{fill:var(--faint)}"
    "svg .box .bar{stroke:none;fill:#8795a4}svg .linear .bar{fill:#2f6fde}"
    "svg .attention .bar{fill:#d9480f}svg .normalization .bar{fill:#2b8a3e}"
    "svg .convolution .bar{fill:#7048e8}svg .embedding .bar{fill:#c2255c}"
)


def _page(drawing: Drawing) -> str:
    buttons, sections = [], []
    for index, level in enumerate(drawing.levels):
        shown = index == drawing.shown
        buttons.append(
            f'<button data-level="{index}" aria-pressed="{str(shown).lower()}">'
            f"depth {level.depth} ({len(level.boxes)})</button>"
        )
        picture = _svg(level, drawing.title).replace('id="arrow"', f'id="arrow{index}"')
        picture = picture.replace("url(#arrow)", f"url(#arrow{index})")
        hidden = "" if shown else " hidden"
        sections.append(f'<section data-level="{index}"{hidden}>{picture}</section>')
    legend = "".join(
        f'<span class="{kind}">{kind}</span>'
        for kind in ("linear", "attention", "normalization", "convolution", "embedding")
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(drawing.title)}</title><style>{_STYLE}{_PAGE_STYLE}</style>"
        f"<header><h1>{html.escape(drawing.title)}</h1><nav>{''.join(buttons)}</nav>"
        f'<p class="legend">{legend}</p></header><main>{"".join(sections)}</main>'
        f"<script>{_SCRIPT}</script></html>"
    )


_PAGE_STYLE = (
    "body{margin:0;background:var(--paper);color:var(--ink);font:14px system-ui,sans-serif}"
    "header{position:sticky;top:0;background:var(--paper);padding:12px 24px;"
    "border-bottom:1px solid var(--edge)}h1{font-size:15px;margin:0 0 8px;font-weight:600}"
    "button{font:inherit;padding:4px 10px;margin:0 6px 4px 0;border:1px solid var(--edge);"
    "border-radius:6px;background:var(--box);color:var(--ink);cursor:pointer}"
    "button[aria-pressed=true]{background:#2f6fde;border-color:#2f6fde;color:#fff}"
    "main{overflow-x:auto;text-align:center}.legend{margin:4px 0 0;color:var(--faint)}"
    ".legend span{margin-right:14px;font-size:12px}.legend span::before{content:'';"
    "display:inline-block;width:9px;height:9px;border-radius:2px;margin-right:5px;"
    "background:#8795a4}.legend .linear::before{background:#2f6fde}"
    ".legend .attention::before{background:#d9480f}"
    ".legend .normalization::before{background:#2b8a3e}"
    ".legend .convolution::before{background:#7048e8}"
    ".legend .embedding::before{background:#c2255c}"
)
_SCRIPT = (
    "document.querySelectorAll('button').forEach(function(button){"
    "button.addEventListener('click',function(){"
    "document.querySelectorAll('button').forEach(function(other){"
    "other.setAttribute('aria-pressed',other===button)});"
    "document.querySelectorAll('section').forEach(function(section){"
    "section.hidden=section.dataset.level!==button.dataset.level})})})"
)
