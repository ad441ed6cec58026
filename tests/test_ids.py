import os
import threading
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from taskqueue._ids import new_ids

T0 = datetime(2030, 1, 1, 12, tzinfo=UTC)


def test_an_id_is_a_uuid_of_version_7() -> None:
    for each in new_ids(T0, 300):
        parsed = uuid.UUID(each)
        assert (str(parsed), parsed.version, parsed.variant) == (each, 7, uuid.RFC_4122)


def test_an_id_begins_with_its_millisecond() -> None:
    for instant in (datetime(1970, 1, 1, tzinfo=UTC), T0, datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)):
        (each,) = new_ids(instant, 1)
        milliseconds = (instant - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
        assert uuid.UUID(each).int >> 80 == milliseconds


def test_ids_of_later_times_come_later() -> None:
    ids = [new_ids(T0 + timedelta(milliseconds=number), 1)[0] for number in range(50)]
    assert ids == sorted(ids)


def test_no_id_comes_twice_in_whichever_thread() -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.extend(new_ids(T0, 2_000))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 8_000


def test_all_the_bits_that_are_free_are_random() -> None:
    seen_ones = seen_zeros = 0
    for each in new_ids(T0, 2_000):
        number = uuid.UUID(each).int & (1 << 80) - 1
        seen_ones |= number
        seen_zeros |= ~number
    assert (seen_ones & seen_zeros & (1 << 80) - 1).bit_count() == 74


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of every fork beside threads
def test_a_forked_child_gives_other_ids() -> None:
    new_ids(T0, 1)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, new_ids(T0, 1)[0].encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(read, 100).decode()
    os.close(read)
    os.close(write)
    assert theirs not in new_ids(T0, 300)
