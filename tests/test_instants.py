import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

import pytest
from freezegun import freeze_time

from taskqueue import InvalidArgument
from taskqueue._instants import EPOCH, LATEST, earlier, later, system_clock, to_utc

BERLIN = ZoneInfo("Europe/Berlin")


class NoOffset(tzinfo):
    """A zone that does not know its offset: a datetime in it is naive."""

    def utcoffset(self, _: datetime | None) -> None:
        return None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (datetime(2030, 1, 1, 12, tzinfo=UTC), datetime(2030, 1, 1, 12, tzinfo=UTC)),
        (datetime(2030, 7, 1, 12, tzinfo=BERLIN), datetime(2030, 7, 1, 10, tzinfo=UTC)),
        (datetime(2030, 1, 1, tzinfo=timezone(timedelta(hours=14))), datetime(2029, 12, 31, 10, tzinfo=UTC)),
        (datetime(2030, 1, 1, tzinfo=timezone(timedelta(microseconds=-1))), datetime(2030, 1, 1, 0, 0, 0, 1, UTC)),
        # The hour that exists twice.
        (datetime(2030, 10, 27, 2, 30, tzinfo=BERLIN, fold=0), datetime(2030, 10, 27, 0, 30, tzinfo=UTC)),
        (datetime(2030, 10, 27, 2, 30, tzinfo=BERLIN, fold=1), datetime(2030, 10, 27, 1, 30, tzinfo=UTC)),
        # The hour that does not exist.
        (datetime(2030, 3, 31, 2, 30, tzinfo=BERLIN), datetime(2030, 3, 31, 1, 30, tzinfo=UTC)),
        (datetime(1970, 1, 1, tzinfo=UTC), EPOCH),
        (datetime(1970, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))), EPOCH),
        (datetime.max.replace(tzinfo=UTC), LATEST),
        (datetime(9999, 12, 31, 20, 59, 59, 999999, timezone(timedelta(hours=-3))), LATEST),
    ],
)
def test_every_zone_becomes_the_same_instant_in_utc(value: datetime, expected: datetime) -> None:
    converted = to_utc("eta", value)
    assert (converted.isoformat(), converted.tzinfo, converted.fold) == (expected.isoformat(), UTC, 0)


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (datetime(2030, 1, 1), r"without a time zone.*datetime\.now\(UTC\)"),  # noqa: DTZ001 - wrong on purpose
        (datetime(2030, 1, 1, tzinfo=NoOffset()), "without a time zone"),
        (datetime(1969, 12, 31, 23, 59, 59, 999999, UTC), "1970 to 9999"),
        (datetime(1970, 1, 1, 0, 59, tzinfo=timezone(timedelta(hours=1))), "1970 to 9999"),
        (datetime.max.replace(tzinfo=timezone(timedelta(hours=-5))), "1970 to 9999"),
        (datetime.min.replace(tzinfo=timezone(timedelta(hours=5))), "1970 to 9999"),
        (timedelta(minutes=5), r"datetime\.now\(UTC\) \+ timedelta"),
        (1893499200.0, "timezone-aware datetime"),
        ("2030-01-01T12:00:00Z", "timezone-aware datetime"),
        (datetime(2030, 1, 1, tzinfo=UTC).date(), "timezone-aware datetime"),
    ],
)
def test_what_is_no_instant_is_refused_with_advice(value: object, advice: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^eta=.*{advice}"):
        to_utc("eta", value)


def test_the_result_is_a_plain_datetime_also_while_time_is_frozen() -> None:
    with freeze_time("2031-02-03 04:05:06.789012", real_asyncio=True):
        now = system_clock()
        converted = to_utc("clock", now)
    assert type(now) is not datetime
    assert type(converted) is datetime
    assert converted == datetime(2031, 2, 3, 4, 5, 6, 789012, UTC)


def test_importing_it_while_time_is_frozen_makes_plain_bounds() -> None:
    code = (
        "from datetime import datetime\n"
        "from freezegun import freeze_time\n"
        "plain = [datetime]\n"
        "with freeze_time('2031-01-01'):\n"
        "    from taskqueue._instants import EPOCH, LATEST, system_clock, to_utc\n"
        "    assert type(to_utc('clock', system_clock())) is plain[0]\n"
        "assert type(EPOCH) is type(LATEST) is plain[0], type(EPOCH)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_adding_stops_at_the_ends() -> None:
    second = timedelta(seconds=1)
    assert later(EPOCH, second) - EPOCH == second
    assert later(LATEST - second, second) == later(LATEST, timedelta.max) == LATEST
    assert LATEST - earlier(LATEST, second) == second
    assert earlier(EPOCH + second, second) == earlier(EPOCH, timedelta.max) == EPOCH
