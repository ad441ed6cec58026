"""Checks a built site: every link inside it leads somewhere, and nothing that a page loads comes from another host.

    python docs/site/links.py docs/_build/html

Links to other hosts are counted and not fetched. The exit status is 1 if anything is wrong.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

LOADED: Final = {"script": "src", "img": "src", "source": "src", "iframe": "src", "use": "href"}
LINK_TYPES: Final = {"stylesheet", "icon", "shortcut", "preload", "modulepreload", "manifest"}
"""What ``rel`` says of a ``link`` that a browser follows by itself."""


class Page(HTMLParser):
    """What a page links to, what it loads, and the ids in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take note of one element."""
        given = {name: value or "" for name, value in attrs}
        self.ids.update(value for name, value in given.items() if name == "id" or (tag == "a" and name == "name"))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and LINK_TYPES & set(given.get("rel", "").split()):
            self.loads.append(given["href"])
        elif tag in LOADED and given.get(LOADED[tag]):
            self.loads.append(given[LOADED[tag]])


def problems(root: Path) -> list[str]:
    """Return what is wrong with the site below ``root``, each thing in one line, in the order of the pages."""
    pages = {path: Page(path.read_text("utf-8")) for path in sorted(root.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(root)
        found += [f"{name}: loads {url} from another host" for url in page.loads if _leaves(url)]
        for url in dict.fromkeys([*page.links, *page.loads]):
            if not _leaves(url) and not _leads_somewhere(url, path, pages):
                found.append(f"{name}: {url} leads nowhere")
    return found if pages else [f"there are no pages in {root}"]


def _leaves(url: str) -> bool:
    parts = urlsplit(url)
    return bool(parts.netloc) or parts.scheme not in {"", "file"}


def _leads_somewhere(url: str, page: Path, pages: dict[Path, Page]) -> bool:
    parts = urlsplit(url)
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page.resolve()
    target = target / "index.html" if target.is_dir() else target
    if not target.exists():
        return False
    by_path = {path.resolve(): each for path, each in pages.items()}
    # The search page is filled by a script, and code listings have anchors of their own.
    return not parts.fragment or target not in by_path or unquote(parts.fragment) in by_path[target].ids


def main(arguments: list[str]) -> int:
    """Check the site in the folder that the one argument names."""
    found = problems(Path(arguments[0]))
    sys.stdout.writelines(f"{line}\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
