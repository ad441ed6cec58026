import math
import threading

import pytest

from taskqueue import CloudpickleSerializer, DeserializationError, SerializationError, Serializer


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        raise RuntimeError("no thanks")


def test_the_default_fulfils_the_protocol() -> None:
    assert isinstance(CloudpickleSerializer(), Serializer)


@pytest.mark.parametrize("obj", [None, 0, False, "", b"", [], {}, "ü\0", {"a": (1, 2.5)}, b"\x00" * 1024, 10**400])
def test_what_goes_in_comes_out(obj: object) -> None:
    serializer = CloudpickleSerializer()
    data = serializer.dumps(obj)
    assert type(data) is bytes
    loaded = serializer.loads(data)
    assert loaded == obj
    assert type(loaded) is type(obj)


def test_lambdas_closures_and_importable_functions_come_out_callable() -> None:
    serializer = CloudpickleSerializer()
    offset = 3
    assert serializer.loads(serializer.dumps(lambda x: x + offset))(4) == 7
    assert serializer.loads(serializer.dumps(math.sqrt)) is math.sqrt


@pytest.mark.parametrize("obj", [threading.Lock(), Hostile(), (i for i in ())], ids=type)
def test_what_cannot_be_pickled_is_a_clear_error(obj: object) -> None:
    with pytest.raises(SerializationError, match=type(obj).__qualname__) as caught:
        CloudpickleSerializer().dumps(obj)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    "data", [b"", b"nonsense", CloudpickleSerializer().dumps([1, 2])[:-3], b"cno_such_module\nx\n."]
)
def test_what_cannot_be_loaded_is_a_clear_error(data: bytes) -> None:
    with pytest.raises(DeserializationError, match=f"{len(data)} bytes"):
        CloudpickleSerializer().loads(data)
