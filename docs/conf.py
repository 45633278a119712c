"""The documentation site: `make docs` builds it from the same Markdown that a repository shows."""

from importlib.metadata import version as installed

from peakpoint.models import _torchvision

project = "Peakpoint"
author = "The Peakpoint authors"
release = version = installed("peakpoint")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinxcontrib.mermaid"]
html_theme = "furo"
html_title = f"Peakpoint {release}"
exclude_patterns = ["_build"]

myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]  # a drawing is a fence, as a repository's viewer shows it

default_role = "code"  # docstrings write code in single backticks
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
add_module_names = False
python_use_unqualified_type_names = True

_torchvision.torchvision()  # beside a CPU torch, lightning and transformers find it only when it is there
