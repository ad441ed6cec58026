"""The vocabulary of the features: which phrase runs which function."""

import difflib
import inspect
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from cucumber_expressions.expression import CucumberExpression

from taskqueue_conformance.steps.parameters import PARAMETER_TYPES

F = TypeVar("F", bound=Callable[..., Awaitable[None] | None])


class StepError(ValueError):
    """A step that no phrase matches, or several do, or whose values make no sense."""


@dataclass(frozen=True, slots=True)
class Phrase:
    """One phrase of the vocabulary.

    Attributes:
        keyword: ``Given``, ``When`` or ``Then``: how it is meant to be used. Matching does not look at it, as in
            Cucumber, so that a scenario may go on with ``When it is 12:30``.
        expression: The phrase, as a Cucumber expression.
        function: What it runs, with the world and the values in the phrase; a plain function or a coroutine function.
        meaning: One line for the vocabulary.
        refusal: Whether it is about the exception that the step before it raised.
    """

    keyword: str
    expression: str
    function: Callable[..., Awaitable[None] | None]
    meaning: str
    refusal: bool


@dataclass(frozen=True, slots=True)
class BoundStep:
    """A phrase with the values of one step.

    Attributes:
        phrase: The phrase.
        values: The typed values, in order.
    """

    phrase: Phrase
    values: tuple[Any, ...]

    async def run(self, world: object) -> None:
        """Run the step, whether it is a coroutine function or not."""
        outcome = self.phrase.function(world, *self.values)
        if inspect.isawaitable(outcome):
            await outcome


class Vocabulary:
    """A closed set of phrases."""

    def __init__(self) -> None:
        self._phrases: list[tuple[Phrase, CucumberExpression]] = []

    def __iter__(self) -> Iterator[Phrase]:
        """Yield the phrases in the order of registration."""
        return (phrase for phrase, _ in self._phrases)

    def __len__(self) -> int:
        """Return the number of phrases."""
        return len(self._phrases)

    def given(self, expression: str) -> Callable[[F], F]:
        """Register the function below for a phrase that sets the scene."""
        return self._register("Given", expression)

    def when(self, expression: str) -> Callable[[F], F]:
        """Register the function below for a phrase that does something."""
        return self._register("When", expression)

    def then(self, expression: str, *, refusal: bool = False) -> Callable[[F], F]:
        """Register the function below for a phrase that looks at what happened.

        Args:
            expression: The phrase.
            refusal: It looks at the exception that the step before it raised; only before such a step may one raise.
        """
        return self._register("Then", expression, refusal=refusal)

    def bind(self, text: str) -> BoundStep:
        """Return the one phrase that matches ``text``, with its values.

        Raises:
            StepError: No phrase matches, or more than one does, or a value makes no sense.
        """
        matches = [
            (phrase, found) for phrase, expression in self._phrases if (found := expression.match(text)) is not None
        ]
        if not matches:
            raise StepError(f"no phrase matches {text!r}.{self._nearest(text)}")
        if len(matches) > 1:
            phrases = " and ".join(repr(phrase.expression) for phrase, _ in matches)
            raise StepError(f"{text!r} is ambiguous: {phrases} match it")
        phrase, found = matches[0]
        try:
            values = tuple(argument.value for argument in found)
        except (ValueError, SyntaxError, KeyError) as error:
            raise StepError(f"a value in {text!r} makes no sense: {error}") from error
        return BoundStep(phrase, values)

    def _register(self, keyword: str, expression: str, *, refusal: bool = False) -> Callable[[F], F]:
        compiled = CucumberExpression(expression, PARAMETER_TYPES)

        def register(function: F) -> F:
            if any(phrase.expression == expression for phrase in self):
                raise ValueError(f"two steps are written {expression!r}")
            meaning = (inspect.getdoc(function) or "").strip()
            if not meaning or "\n" in meaning:
                raise ValueError(f"the step {expression!r} needs a docstring of one line")
            if len(inspect.signature(function).parameters) != 1 + len(compiled.parameter_types):
                raise ValueError(f"the function of {expression!r} must take the world and each value of the phrase")
            self._phrases.append((Phrase(keyword, expression, function, meaning, refusal), compiled))
            return function

        return register

    def _nearest(self, text: str) -> str:
        phrases = [phrase.expression for phrase in self]
        nearest = difflib.get_close_matches(text, phrases, n=3, cutoff=0.3)
        return f" The nearest are: {'; '.join(nearest)}" if nearest else ""


VOCABULARY: Final = Vocabulary()
"""The phrases that features are written in."""

given = VOCABULARY.given
when = VOCABULARY.when
then = VOCABULARY.then
