from datetime import timedelta

import pytest

from taskqueue import InvalidArgument, RetryPolicy

SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(("attempt", "seconds"), [(1, 1), (2, 2), (3, 4), (12, 2048), (13, 3600), (10**6, 3600)])
def test_the_default_doubles_from_one_second_to_an_hour(attempt: int, seconds: int) -> None:
    assert RetryPolicy().delay(attempt) == seconds * SECOND


def test_factor_one_is_a_constant_delay() -> None:
    policy = RetryPolicy(base=7 * SECOND, factor=1)
    assert [policy.delay(attempt) for attempt in (1, 2, 50)] == [7 * SECOND] * 3


def test_base_zero_is_no_delay_however_many_attempts() -> None:
    policy = RetryPolicy(base=timedelta(0))
    assert {policy.delay(attempt) for attempt in (1, 2, 1_000)} == {timedelta(0)}


def test_the_cap_holds_where_the_power_overflows() -> None:
    assert RetryPolicy(factor=1e300).delay(10) == RetryPolicy().cap
    assert RetryPolicy(cap=timedelta.max).delay(10_000) == timedelta.max


def test_jitter_spreads_below_the_full_delay_and_reaches_most_of_its_range() -> None:
    policy = RetryPolicy(base=100 * SECOND, jitter=0.5)
    delays = [policy.delay(1) for _ in range(500)]
    assert min(delays) >= 50 * SECOND
    assert max(delays) <= 100 * SECOND
    # Each of these fails by chance once in 10**11 runs.
    assert min(delays) < 60 * SECOND
    assert max(delays) > 90 * SECOND


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base", timedelta(microseconds=-1)),
        ("factor", 0.99),
        ("factor", float("nan")),
        ("factor", float("inf")),
        ("cap", timedelta(milliseconds=999)),
        ("jitter", -0.1),
        ("jitter", 1.1),
        ("jitter", float("nan")),
    ],
)
def test_a_field_out_of_its_range_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidArgument, match=rf"^{field}=") as caught:
        RetryPolicy(**{field: value})
    assert caught.value.argument == field


@pytest.mark.parametrize("attempt", [0, -1])
def test_attempts_are_counted_from_one(attempt: int) -> None:
    with pytest.raises(InvalidArgument, match="attempt"):
        RetryPolicy().delay(attempt)
