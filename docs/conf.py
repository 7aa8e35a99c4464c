"""How the documentation is built: `make docs`, where a warning is an error."""

import importlib.metadata
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "branchd"
author = "branchd contributors"
copyright = "branchd contributors"
version = release = importlib.metadata.version("branchd")

extensions = ["myst_parser", "lifecycle"]
exclude_patterns = ["_build"]
nitpicky = True
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"branchd {release}"
html_copy_source = False
