"""How Sphinx builds the site from this folder: ``sphinx-build docs docs/_build/html``.

``-D conformance_report=FILE`` shows the verdicts of that run beside the scenarios; without it the build runs them.
"""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "site"))

project = "taskqueue"
author = "The taskqueue authors"
project_copyright = f"2026, {author}"
release = version = version_of("taskqueue-spec")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "accessible",
    "diagrams",
    "outside",
    "specification",
]
exclude_patterns = ["_build", "site"]
needs_sphinx = "8.2"

myst_heading_anchors = 4
myst_enable_extensions = ["attrs_block", "colon_fence"]
myst_fence_as_directive = ["mermaid"]

add_module_names = False
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True

# A page that another site has to serve parts of cannot be read on a train, and tells that site who reads it.
html_theme = "furo"
html_title = "taskqueue"
html_static_path = ["site/static"]
html_css_files = ["site.css"]
html_favicon = "site/static/mark.svg"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {
    "top_of_page_buttons": [],
    "light_css_variables": {
        "color-brand-primary": "#0b5394",
        "color-brand-content": "#0b5394",
        "color-brand-visited": "#5b3a86",
        "passed": "#1a6b34",
        "failed": "#b3261e",
        "undecided": "#7a4f00",
        "tint": "#f3f6fa",
    },
    "dark_css_variables": {
        "color-brand-primary": "#8fc1f5",
        "color-brand-content": "#8fc1f5",
        "color-brand-visited": "#c9aef0",
        "passed": "#7fd69a",
        "failed": "#ffa199",
        "undecided": "#f0c674",
        "tint": "#1b2129",
    },
}
