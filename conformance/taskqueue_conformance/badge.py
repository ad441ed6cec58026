"""The badge: the verdict as a small picture for a README."""

from typing import Final
from xml.sax.saxutils import escape

from taskqueue_conformance.verdict import Verdict

_LABEL: Final = "task queue spec"
_LABEL_COLOUR: Final = "#3b4148"
_COLOURS: Final = {
    Verdict.CONFORMANT: "#17693a",
    Verdict.NOT_CONFORMANT: "#b3261e",
    Verdict.INCOMPLETE: "#8a5a00",
}
"""White text on each of these has a contrast of at least 4.5 to 1."""
_HEIGHT: Final = 22
_MARGIN: Final = 8
_LETTER: Final = 6.6
_CAPITAL: Final = 9.0
"""How wide letters are at 11 pixels in the widest of the fonts, in pixels; capitals are bold here."""


def render(verdict: str) -> str:
    """Return the SVG of the badge for a verdict.

    The texts are told how wide they are, so that no font that a viewer has instead cuts them or makes them overlap.
    """
    left, right = _width(_LABEL), _width(verdict)
    whole = left + right
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{whole}" height="{_HEIGHT}" role="img">',
            f"  <title>{escape(f'{_LABEL}: {verdict}')}</title>",
            f'  <clipPath id="round"><rect width="{whole}" height="{_HEIGHT}" rx="4"/></clipPath>',
            '  <g clip-path="url(#round)">',
            f'    <rect width="{left}" height="{_HEIGHT}" fill="{_LABEL_COLOUR}"/>',
            f'    <rect x="{left}" width="{right}" height="{_HEIGHT}" fill="{_COLOURS[Verdict(verdict)]}"/>',
            "  </g>",
            '  <g fill="#ffffff" font-family="Verdana, DejaVu Sans, sans-serif" font-size="11" aria-hidden="true">',
            _text(_LABEL, x=0, width=left, weight="normal"),
            _text(verdict, x=left, width=right, weight="bold"),
            "  </g>",
            "</svg>",
            "",
        ]
    )


def _text(text: str, *, x: int, width: int, weight: str) -> str:
    return (
        f'    <text x="{x + _MARGIN}" y="15" font-weight="{weight}" textLength="{width - 2 * _MARGIN}"'
        f' lengthAdjust="spacingAndGlyphs">{escape(text)}</text>'
    )


def _width(text: str) -> int:
    return 2 * _MARGIN + round(sum(_CAPITAL if each.isupper() else _LETTER for each in text))
