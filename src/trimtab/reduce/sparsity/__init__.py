"""Unstructured and grouped sparsity: pruning, recovery and allocation."""

from trimtab.reduce.sparsity.adapters import adapter_names as adapter_names
from trimtab.reduce.sparsity.adapters import add_adapters as add_adapters
from trimtab.reduce.sparsity.adapters import merge_adapters as merge_adapters
from trimtab.reduce.sparsity.allocation import allocate as allocate
from trimtab.reduce.sparsity.pruning import Keep as Keep
from trimtab.reduce.sparsity.pruning import magnitude_mask as magnitude_mask
from trimtab.reduce.sparsity.pruning import prune as prune
from trimtab.reduce.sparsity.pruning import sparsegpt as sparsegpt
from trimtab.reduce.sparsity.pruning import wanda_mask as wanda_mask
from trimtab.reduce.sparsity.rewrite import Sparsify as Sparsify
from trimtab.reduce.sparsity.rewrite import sparsify as sparsify
