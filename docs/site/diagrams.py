"""Puts diagrams into the pages as SVG that was drawn before, so that no reader's browser has to.

A ``mermaid`` block of a page is looked up in ``docs/diagrams`` by the digest of its text. Run as a program, this
module draws what is missing there and removes what no page uses. That takes Mermaid's own command, ``mmdc``, which
takes a Chromium:

    npx --yes --package @mermaid-js/mermaid-cli python docs/site/diagrams.py
"""

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

DOCS: Final = Path(__file__).parents[1]
FOLDER: Final = DOCS / "diagrams"
BLOCK: Final = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECONDS: Final = 120


def drawing(text: str) -> Path:
    """Return where the drawing of a diagram's text lies, whether it is there or not."""
    return FOLDER / f"{hashlib.sha256(text.strip().encode()).hexdigest()[:12]}.svg"


class Diagram(SphinxDirective):
    """A ``mermaid`` block."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the drawing, to be part of the page: so it takes the page's colours, and its text can be read."""
        text = "\n".join(self.content)
        path = drawing(text)
        if not path.exists():
            raise self.error(f"this diagram has no drawing {path.name}; see {Path(__file__).name} for how to draw it")
        figure = f'<figure class="diagram">{path.read_text("utf-8")}</figure>'
        return [nodes.raw(text, figure, format="html")]


def draw(text: str) -> None:
    """Draw a diagram with ``mmdc``."""
    path = drawing(text)
    look = {
        "theme": "base",
        "htmlLabels": False,
        "flowchart": {"htmlLabels": False},
        "themeVariables": {"fontFamily": "sans-serif"},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "diagram.mmd").write_text(text, "utf-8")
        (folder / "look.json").write_text(json.dumps(look))
        # A sandbox cannot be had as root, in a container; what is drawn is our own.
        (folder / "browser.json").write_text(json.dumps({"args": ["--no-sandbox", "--disable-gpu"]}))
        command = ["mmdc", "-i", "diagram.mmd", "-o", str(path), "-c", "look.json", "-p", "browser.json"]
        command += ["-b", "transparent", "-I", f"diagram-{path.stem}"]
        subprocess.run(command, check=True, cwd=folder, timeout=SECONDS)  # noqa: S603 - our own command, in full


def main() -> int:
    """Bring ``docs/diagrams`` up to date with the pages."""
    texts = [text for page in DOCS.rglob("*.md") for text in BLOCK.findall(page.read_text("utf-8"))]
    FOLDER.mkdir(exist_ok=True)
    for text in texts:
        if not drawing(text).exists():
            draw(text)
    for unused in set(FOLDER.glob("*.svg")) - {drawing(text) for text in texts}:
        unused.unlink()
    return 0


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    if not FOLDER.is_dir():
        raise ExtensionError(f"{FOLDER} is missing")
    app.add_directive("mermaid", Diagram)
    return {"parallel_read_safe": True}


if __name__ == "__main__":
    sys.exit(main())
