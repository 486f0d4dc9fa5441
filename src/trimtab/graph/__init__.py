"""Capture a model as a program graph, find its parts, and price it."""

from trimtab.graph.capture import capture as capture
from trimtab.graph.capture import insert as insert
from trimtab.graph.compare import Comparison as Comparison
from trimtab.graph.compare import compare as compare
from trimtab.graph.cost import Cost as Cost
from trimtab.graph.cost import CostRow as CostRow
from trimtab.graph.draw import Drawing as Drawing
from trimtab.graph.machine import MachineProfile as MachineProfile
from trimtab.graph.machine import measure as measure
from trimtab.graph.program import Program as Program
from trimtab.graph.program import Rewrite as Rewrite
from trimtab.graph.replay import Replacement as Replacement
from trimtab.graph.save import load as load
from trimtab.graph.sites import Site as Site
from trimtab.graph.sites import linear_weight as linear_weight
