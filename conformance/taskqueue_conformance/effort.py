"""How much the random layers do: numbers, not minutes, so that no time budget can hollow them out."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Effort:
    """What a profile asks of the random layers. The time they take grows in proportion.

    Attributes:
        examples: How many random runs the model is compared with.
        schedules: How many interleavings each check of the layer "schedules" tries.
        cancel_points: At how many of its suspensions a call is interrupted, if it has so many.
        disturbances: How many interleavings with cancelled calls in them are tried.
        kill_callbacks: At how many callbacks of the event loop a call is killed, if it has so many.
        kill_delays: After how many delays, spread over its usual duration, a call is killed.
        kill_retries: How many more kills may look for a "before" or an "after" that has not been seen yet.
        raced_tasks: How many tasks the processes race for.
        restarts: How often the server is restarted under a workload.
        calls_between_restarts: How many calls of that workload are answered between two restarts.
        cycles: How often connections are opened and closed, and calls refused, where a leak would show.
    """

    examples: int
    schedules: int
    cancel_points: int
    disturbances: int
    kill_callbacks: int
    kill_delays: int
    kill_retries: int
    raced_tasks: int
    restarts: int
    calls_between_restarts: int
    cycles: int


DEFAULT: Final = Effort(
    examples=100,
    schedules=25,
    cancel_points=12,
    disturbances=40,
    kill_callbacks=8,
    kill_delays=10,
    kill_retries=24,
    raced_tasks=200,
    restarts=4,
    calls_between_restarts=200,
    cycles=200,
)
"""What a verdict rests on."""

QUICK: Final = Effort(
    examples=8,
    schedules=2,
    cancel_points=2,
    disturbances=3,
    kill_callbacks=2,
    kill_delays=1,
    kill_retries=4,
    raced_tasks=40,
    restarts=1,
    calls_between_restarts=50,
    cycles=40,
)
"""What the inner loop of an author can wait for; too little for a verdict."""
