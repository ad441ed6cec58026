"""Prints the vocabulary of the features as the page ``docs/reference/steps.md``."""

import inspect
import sys
from itertools import groupby

from taskqueue_conformance.steps import VOCABULARY
from taskqueue_conformance.steps.parameters import PARAMETERS

_HEAD = """\
# The vocabulary of the features

<!-- Generated: python -m taskqueue_conformance.steps > docs/reference/steps.md -->

Every step in `features/` is one of these {number} phrases. A `.feature` file of your own may use them too:
`pytest --conformance=TARGET my.feature` runs it against your backend. Phrases match whatever the keyword; the one
shown is the one that reads best. A step with no phrase, or with more than one, is an error before anything runs.

It is 12:00 UTC on 2030-01-01 when a scenario begins, and time stands still until a step moves it. A step that raises
fails its scenario, unless the next one says that the call is refused.
"""
_VALUES = """
## Values

`{{int}}`, `{{word}}` and `{{string}}` (in double quotes) are Cucumber's own, and `(s)` may be left out. The others:
"""


def page() -> str:
    """Return the page as Markdown."""
    lines = [_HEAD.format(number=len(VOCABULARY))]
    for module, phrases in groupby(VOCABULARY, key=lambda phrase: inspect.getmodule(phrase.function)):
        lines.append(f"\n## {(inspect.getdoc(module) or '').rstrip('.')}\n\n")
        lines.extend(f"- **{phrase.keyword}** `{phrase.expression}`<br>\n  {phrase.meaning}\n" for phrase in phrases)
    lines.append(_VALUES.format())
    lines.append("\n| value | for example |\n|---|---|\n")
    lines.extend(f"| `{{{each.name}}}` | {each.example} |\n" for each in PARAMETERS)
    return "".join(lines)


if __name__ == "__main__":
    sys.stdout.write(page())
