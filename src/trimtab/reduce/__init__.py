"""Rewrites that make a program cheaper: sparsity, quantization, delta attention, backprop."""

from trimtab.reduce.quantization import Quantize as Quantize
from trimtab.reduce.quantization import quantize as quantize
from trimtab.reduce.sparsity import Keep as Keep
from trimtab.reduce.sparsity import Sparsify as Sparsify
from trimtab.reduce.sparsity import sparsify as sparsify

# Every rewrite, for tests, the command and the documentation.
REWRITES = (Sparsify, Quantize)
