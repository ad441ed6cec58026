"""Links from pages to folders, and to Markdown that is no page: in the repository they lead somewhere, here not.

The README's place on the site is the first page. Of other links the text stays.
"""

import os
import re
from pathlib import Path
from typing import Any, Final

from sphinx.application import Sphinx

_LINK: Final = re.compile(r"\[([^\]]+)\]\(([^):#]+(?:\.md|/))(#[^)]*)?\)")


def rewrite(app: Sphinx, docname: str, source: list[str]) -> None:
    """Rewrite the links of one page."""
    path = Path(app.env.doc2path(docname))
    root = Path(app.srcdir)

    def replaced(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(path.parent / link[2]))
        if target.is_relative_to(root) and not target.is_dir():
            return link[0]
        if target == root.parent / "README.md":
            return f"[{link[1]}]({os.path.relpath(root / 'index.md', path.parent)})"
        return link[1]

    if path.suffix == ".md":
        source[0] = _LINK.sub(replaced, source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    """Register it."""
    app.connect("source-read", rewrite)
    return {"parallel_read_safe": True}
