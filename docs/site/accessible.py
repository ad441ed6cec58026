"""Mends what the pages lack for readers who do not see them, or have no mouse.

The theme's captions are headings without a level, and its two side bars have the same name. A list of parameters is
marked up as definitions without terms. What is wider than the window can be scrolled by mouse only. The page of the
search has no heading, and a table whose first column needs no name has an empty one.
"""

import re
from pathlib import Path
from typing import Any, Final

from sphinx.application import Sphinx

_MENDED: Final = (
    (re.compile(r'<p class="caption" role="heading">'), '<p class="caption" role="heading" aria-level="2">'),
    (re.compile(r'<aside class="sidebar-drawer">'), '<aside class="sidebar-drawer" aria-label="All pages">'),
    (re.compile(r'<aside class="toc-drawer">'), '<aside class="toc-drawer" aria-label="On this page">'),
    (re.compile(r'(<div class="table-wrapper[^>"]*")(?=>)'), r'\1 tabindex="0" role="group" aria-label="A table"'),
    (re.compile(r'(?<!</h1>)<div id="search-results">'), '<h1>Search</h1><div id="search-results">'),
    (re.compile(r'<th class="head"><p></p></th>'), "<td></td>"),
    (re.compile(r"<pre>"), '<pre tabindex="0" role="group" aria-label="A block of code">'),
)
_PARAMETERS: Final = re.compile(r"<dl>\n((?:<dd>.*</dd>\n)+)</dl>")


def mended(html: str) -> str:
    """Return a page with what it lacks; one that lacks nothing is returned as it is."""
    for pattern, replacement in _MENDED:
        html = pattern.sub(replacement, html)
    return _PARAMETERS.sub(_as_plain_lines, html)


def _as_plain_lines(found: re.Match[str]) -> str:
    lines = found[1].replace("<dd>", '<span class="parameter">').replace("</dd>", "</span>")
    return f'<span class="parameters">\n{lines}</span>'


def mend(app: Sphinx, error: Exception | None) -> None:
    """Mend the pages of a site that has been built."""
    if error is None and app.builder.format == "html":
        for path in Path(app.outdir).rglob("*.html"):
            html = path.read_text("utf-8")
            if (better := mended(html)) != html:
                path.write_text(better, "utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register it."""
    app.connect("build-finished", mend)
    return {"parallel_read_safe": True}
