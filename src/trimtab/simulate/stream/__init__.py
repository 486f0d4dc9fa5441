"""Cycle-level simulation of streaming dataflow hardware, for any JAX function.

Start with :func:`report`; build networks by hand with :class:`NetworkBuilder` and run them with
:func:`simulate`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.simulate.stream.analysis import critical_cycle as critical_cycle
    from trimtab.simulate.stream.analysis import cycle_time as cycle_time
    from trimtab.simulate.stream.analysis import fill_latency as fill_latency
    from trimtab.simulate.stream.analysis import peak_occupancy as peak_occupancy
    from trimtab.simulate.stream.analysis import unit_reports as unit_reports
    from trimtab.simulate.stream.attention import naive_attention as naive_attention
    from trimtab.simulate.stream.attention import running_attention as running_attention
    from trimtab.simulate.stream.dataflow import from_jaxpr as from_jaxpr
    from trimtab.simulate.stream.deadlock import explain_deadlock as explain_deadlock
    from trimtab.simulate.stream.display.timeline import dot_graph as dot_graph
    from trimtab.simulate.stream.display.timeline import write_trace as write_trace
    from trimtab.simulate.stream.display.timeline import write_vcd as write_vcd
    from trimtab.simulate.stream.engine import simulate as simulate
    from trimtab.simulate.stream.engine import sweep as sweep
    from trimtab.simulate.stream.lowering.lower import lower as lower
    from trimtab.simulate.stream.lowering.primitives import SUPPORTED as SUPPORTED
    from trimtab.simulate.stream.lowering.primitives import Hardware as Hardware
    from trimtab.simulate.stream.network import Fifo as Fifo
    from trimtab.simulate.stream.network import Network as Network
    from trimtab.simulate.stream.network import NetworkBuilder as NetworkBuilder
    from trimtab.simulate.stream.network import Stream as Stream
    from trimtab.simulate.stream.network import Unit as Unit
    from trimtab.simulate.stream.processes import Block as Block
    from trimtab.simulate.stream.processes import Give as Give
    from trimtab.simulate.stream.processes import Process as Process
    from trimtab.simulate.stream.processes import Take as Take
    from trimtab.simulate.stream.processes import trace_network as trace_network
    from trimtab.simulate.stream.rates import EVERY as EVERY
    from trimtab.simulate.stream.rates import Rate as Rate
    from trimtab.simulate.stream.rates import first_of as first_of
    from trimtab.simulate.stream.rates import last_of as last_of
    from trimtab.simulate.stream.reporting import Report as Report
    from trimtab.simulate.stream.reporting import report as report
    from trimtab.simulate.stream.rewriting.search import find_rewrites as find_rewrites
    from trimtab.simulate.stream.run import Run as Run
    from trimtab.simulate.stream.sizing import linear_program as linear_program
    from trimtab.simulate.stream.sizing import pareto_front as pareto_front
    from trimtab.simulate.stream.sizing import size_fifos as size_fifos

# Public name -> module that defines it; loaded on first use, since lowering needs JAX.
_EXPORTS = {
    "Block": "processes",
    "EVERY": "rates",
    "Fifo": "network",
    "Give": "processes",
    "Hardware": "lowering.primitives",
    "Network": "network",
    "NetworkBuilder": "network",
    "Process": "processes",
    "Rate": "rates",
    "Report": "reporting",
    "Run": "run",
    "SUPPORTED": "lowering.primitives",
    "Stream": "network",
    "Take": "processes",
    "Unit": "network",
    "critical_cycle": "analysis",
    "cycle_time": "analysis",
    "dot_graph": "display.timeline",
    "explain_deadlock": "deadlock",
    "fill_latency": "analysis",
    "find_rewrites": "rewriting.search",
    "first_of": "rates",
    "from_jaxpr": "dataflow",
    "last_of": "rates",
    "linear_program": "sizing",
    "lower": "lowering.lower",
    "naive_attention": "attention",
    "pareto_front": "sizing",
    "peak_occupancy": "analysis",
    "report": "reporting",
    "running_attention": "attention",
    "simulate": "engine",
    "size_fifos": "sizing",
    "sweep": "engine",
    "trace_network": "processes",
    "unit_reports": "analysis",
    "write_trace": "display.timeline",
    "write_vcd": "display.timeline",
}

__all__ = [*_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
        globals()[name] = value  # a module may bear the same name; the function wins
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
