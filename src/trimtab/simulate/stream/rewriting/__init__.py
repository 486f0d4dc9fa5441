"""Rewrites that shorten FIFOs, and the search that finds which to apply."""

from trimtab.simulate.stream.rewriting.search import RULES as RULES
from trimtab.simulate.stream.rewriting.search import Candidate as Candidate
from trimtab.simulate.stream.rewriting.search import Found as Found
from trimtab.simulate.stream.rewriting.search import find_rewrites as find_rewrites
