"""Sphinx: MyST Markdown pages, Furo, and a reference made from docstrings."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

# The reference imports every room; without a display and without devices that are not there.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import trimtab

project = "Trimtab"
author = "The Trimtab authors"
copyright = author
version = release = trimtab.__version__

extensions = [
    "myst_parser",
    "rooms",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "_ext"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "amsmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_type_aliases = {}
napoleon_use_rtype = False
napoleon_use_ivar = True

# Links into other projects need their inventories, so only where there is a network.
if os.environ.get("READTHEDOCS"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "jax": ("https://docs.jax.dev/en/latest", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "equinox": ("https://docs.kidger.site/equinox", None),
        "optax": ("https://optax.readthedocs.io/en/latest", None),
    }

html_theme = "furo"
html_title = f"Trimtab {release}"
html_static_path = ["_static"]
html_logo = "_static/logo.svg"
html_favicon = "_static/logo.svg"
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b7a75", "color-brand-content": "#0b7a75"},
    "dark_css_variables": {"color-brand-primary": "#4cc4bb", "color-brand-content": "#4cc4bb"},
}
