"""The attention graphs of the paper, unit by unit (Sohn, Zhang, Olukotun 2024).

Loop order everywhere: outer = query row, inner = key column; firings are (row, column) pairs.
"""

from __future__ import annotations

from trimtab.simulate.stream.network import Network, NetworkBuilder, Stream
from trimtab.simulate.stream.rates import first_of, last_of


def naive_attention(
    rows: int,
    columns: int,
    *,
    score_latency: int = 1,
    exp_latency: int = 1,
    short: int | None = 2,
    long: int | None = None,
    long_first: bool = False,
) -> Network:
    """Softmax attention as it is written: maximum, exponential, sum, division, product with V.

    Args:
        rows, columns: queries and keys.
        score_latency, exp_latency: cycles through the score and exponential units; others take 1.
        short, long: depths of ordinary FIFOs and of the two that carry a row around a reduction.
        long_first: serve the long FIFO before the short one (matters for ``fork="sequential"``).
    """
    firings = rows * columns
    build = NetworkBuilder()
    query = build.unit("query", kind="source", firings=rows)
    key = build.unit("key", kind="source", firings=firings)
    value = build.unit("value", kind="source", firings=firings)
    score = build.unit("score", [(query, first_of(columns)), key], latency=score_latency)
    maximum = build.unit("maximum", kind="reduce", rate=last_of(columns), firings=firings)
    shifted = build.unit("shifted", [(maximum, first_of(columns))], firings=firings)
    _fork(build, score, short_to=maximum, long_to=shifted, long_first=long_first)
    weight = build.unit("weight", [shifted], latency=exp_latency)
    total = build.unit("total", kind="reduce", rate=last_of(columns), firings=firings)
    share = build.unit("share", [(total, first_of(columns))], firings=firings, divisions=1)
    _fork(build, weight, short_to=total, long_to=share, long_first=long_first)
    output = build.unit("output", [share, value], kind="reduce", rate=last_of(columns))
    build.unit("sink", [output], kind="sink")
    network = build.build()
    return network.with_depths([long if _long(fifo.name) else short for fifo in network.fifos])


def _fork(
    build: NetworkBuilder, stream: Stream, *, short_to: Stream, long_to: Stream, long_first: bool
) -> None:
    targets = [(stream, short_to, None), (stream, long_to, "whole row")]
    for source, target, name in reversed(targets) if long_first else targets:
        build.connect(source, target, name=name)


def _long(name: str) -> bool:
    return name.startswith("whole row")


def running_attention(
    rows: int,
    columns: int,
    *,
    score_latency: int = 1,
    scan_latency: int = 1,
    depth: int | None = 2,
) -> Network:
    """Attention with a running maximum and running sums: every FIFO is short.

    Args:
        rows, columns: queries and keys.
        score_latency, scan_latency: cycles through those units; others take 1.
        depth: of every FIFO.
    """
    firings = rows * columns
    build = NetworkBuilder()
    query = build.unit("query", kind="source", firings=rows)
    key = build.unit("key", kind="source", firings=firings)
    value = build.unit("value", kind="source", firings=firings)
    score = build.unit("score", [(query, first_of(columns)), key], latency=score_latency)
    scan = build.unit("running maximum", [score], kind="scan", latency=scan_latency)
    # Twice the correction and twice the weight, each through a FIFO of its own.
    total = build.unit("running sum", [scan, scan], kind="reduce", rate=last_of(columns))
    mixed = build.unit("running product", [scan, scan, value], kind="reduce", rate=last_of(columns))
    share = build.unit("share", [total, mixed], divisions=1)
    build.unit("sink", [share], kind="sink")
    return build.build().with_depths(depth)
