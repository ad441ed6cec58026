"""The page of a report in a real browser."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the tests are run by path, not imported as a package

from browser import Browser, find
from reports import conformant, run_suite

from taskqueue_conformance import page

PHONE = 360
OVERFLOWING = """
[...document.querySelectorAll("main *, header *, nav *")].filter(each => !each.closest("pre, .scroll, .unseen"))
  .filter(each => each.getClientRects().length && each.getBoundingClientRect().right > innerWidth + 0.5)
  .map(each => each.outerHTML.slice(0, 80))
"""
SHOWN = "[...document.querySelectorAll('.steps')].map(each => each.checkVisibility())"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find()
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no Chromium was found, and in CI the pages must be looked at: apt-get install chromium")
        pytest.skip("no Chromium was found")
    with Browser.started(program, tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page that says NOT CONFORMANT, written by a run, and one that says CONFORMANT, of made-up results."""
    folder = tmp_path_factory.mktemp("pages")
    run_suite(folder, select="E1")
    passed = folder / "passed.html"
    passed.write_text(page.render(conformant()), "utf-8")
    return {"NOT CONFORMANT": folder / "out" / "index.html", "CONFORMANT": passed}


@pytest.mark.parametrize("verdict", ["CONFORMANT", "NOT CONFORMANT"])
def test_the_page_fits_a_phone_and_a_desk_in_both_schemes(
    browser: Browser, pages: dict[str, Path], verdict: str
) -> None:
    grounds = set()
    browser.open(pages[verdict])
    for width in (PHONE, 1280):
        for dark in (False, True):
            browser.view(width=width, dark=dark)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            assert browser.evaluate(OVERFLOWING) == []
            assert verdict in browser.evaluate("document.querySelector('h1').innerText")
            grounds.add((dark, browser.evaluate("getComputedStyle(document.body).backgroundColor")))
    assert grounds == {(False, "rgb(255, 255, 255)"), (True, "rgb(20, 24, 28)")}
    assert browser.complaints == []


def test_nothing_overflows_either_when_everything_is_opened(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["NOT CONFORMANT"], width=PHONE)
    browser.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    assert browser.evaluate("document.documentElement.scrollWidth") <= PHONE
    assert browser.evaluate(OVERFLOWING) == []


def test_what_is_folded_is_printed(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["CONFORMANT"])
    assert not any(browser.evaluate(SHOWN))
    browser.view(printed=True, dark=True)
    shown: list[Any] = browser.evaluate(SHOWN)
    assert shown
    assert all(shown)
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"


def test_the_keyboard_finds_the_content_first_and_shows_where_it_is(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["NOT CONFORMANT"])
    browser.press("Tab")
    assert browser.evaluate("document.activeElement.className") == "skip"
    assert browser.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    browser.press("Enter")
    assert browser.evaluate("document.activeElement.id") == "main"
    browser.press("Tab")
    assert browser.evaluate("document.querySelector('main').contains(document.activeElement)")
    outline = browser.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
