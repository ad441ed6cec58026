"""How long to wait before a failed task is tried again."""

import math
import random
from dataclasses import dataclass
from datetime import timedelta

from taskqueue.errors import InvalidArgument


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Exponential backoff with a cap: the delay after attempt ``n`` is ``min(cap, base * factor ** (n - 1))``.

    The default waits 1 s after the first attempt, then 2 s, 4 s and so on, up to an hour.

    Attributes:
        base: The delay after the first failed attempt; zero or more.
        factor: What each further attempt multiplies the delay by; 1 or more. 1 gives a constant delay.
        cap: The longest delay; not less than ``base``.
        jitter: The part of the delay that is drawn at random, from 0 (off, the default) to 1: the delay is then
            uniform between ``delay * (1 - jitter)`` and ``delay``, so that it never exceeds the cap.

    Raises:
        InvalidArgument: A field is outside its range.

    Spec: Retry Policy Ownership / Queue computes retry delay.
    """

    base: timedelta = timedelta(seconds=1)
    factor: float = 2.0
    cap: timedelta = timedelta(hours=1)
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if self.base < timedelta(0):
            raise InvalidArgument("base", self.base, "a delay cannot be negative; pass timedelta(0) for none")
        if not (math.isfinite(self.factor) and self.factor >= 1):
            raise InvalidArgument("factor", self.factor, "pass a finite number of at least 1; 1 gives a constant delay")
        if self.cap < self.base:
            raise InvalidArgument("cap", self.cap, f"the cap must not lie below base={self.base!r}")
        if not 0 <= self.jitter <= 1:
            raise InvalidArgument("jitter", self.jitter, "pass a number from 0 (off) to 1")

    def delay(self, attempt: int) -> timedelta:
        """Return how long to wait after the failed attempt ``attempt``, counted from 1.

        Raises:
            InvalidArgument: ``attempt`` is less than 1.
        """
        if attempt < 1:
            raise InvalidArgument("attempt", attempt, "attempts are counted from 1")
        try:
            seconds = self.base.total_seconds() * self.factor ** (attempt - 1)
        except OverflowError:
            seconds = math.inf
        full = self.cap if seconds >= self.cap.total_seconds() else timedelta(seconds=seconds)
        # Spreading load is not a secret, so a predictable generator will do.
        return full * (1 - self.jitter * random.random()) if self.jitter else full  # noqa: S311
