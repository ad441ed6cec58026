import copy
import hashlib
import hmac
import pickle
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from taskqueue import (
    CloudpickleSerializer,
    DeserializationError,
    InvalidArgument,
    JSONSerializer,
    SerializationError,
    Serializer,
    SignatureError,
    SignedSerializer,
    TaskQueue,
    TaskQueueError,
    TaskStatus,
    Worker,
)
from taskqueue.backends.memory import MemoryBackend

OLD, NEW = b"the old key, of 28 bytes ...", b"a newer key, of 30 bytes ....."


class Recording:
    """An inner serializer that remembers what it was made to load."""

    def __init__(self) -> None:
        self.loaded: list[bytes] = []

    def dumps(self, obj: Any) -> bytes:
        return CloudpickleSerializer().dumps(obj)

    def loads(self, data: bytes) -> Any:
        self.loaded.append(data)
        return CloudpickleSerializer().loads(data)


@pytest.fixture
def inner() -> Recording:
    return Recording()


@pytest.fixture
def signed(inner: Recording) -> SignedSerializer:
    return SignedSerializer(NEW, inner)


def refused(signed: SignedSerializer, inner: Recording, data: bytes) -> SignatureError:
    with pytest.raises(SignatureError) as caught:
        signed.loads(data)
    assert inner.loaded == []
    return caught.value


def test_it_is_a_serializer_and_pickles_by_default() -> None:
    signed = SignedSerializer(NEW)
    assert isinstance(signed, Serializer)
    assert isinstance(signed.inner, CloudpickleSerializer)
    offset = 3
    assert signed.loads(signed.dumps(lambda x: x + offset))(4) == 7


def test_what_goes_in_comes_out_and_the_inner_serializer_sees_its_own_bytes(
    signed: SignedSerializer, inner: Recording
) -> None:
    data = signed.dumps({"a": (1, b"\0")})
    assert type(data) is bytes
    assert signed.loads(data) == {"a": (1, b"\0")}
    assert inner.loaded == [inner.dumps({"a": (1, b"\0")})]


def test_the_format_is_as_documented(signed: SignedSerializer, inner: Recording) -> None:
    data = inner.dumps("x")
    signature = hmac.new(NEW, b"taskqueue.SignedSerializer\0\x01" + data, hashlib.sha256).digest()
    assert signed.dumps("x") == b"\x01" + signature + data


def test_a_flipped_bit_anywhere_is_refused_before_anything_is_loaded(
    signed: SignedSerializer, inner: Recording
) -> None:
    data = signed.dumps({"a": [1, 2, 3]})
    for position in range(8 * len(data)):
        changed = bytearray(data)
        changed[position // 8] ^= 1 << position % 8
        refused(signed, inner, bytes(changed))


def test_any_other_length_is_refused_before_anything_is_loaded(signed: SignedSerializer, inner: Recording) -> None:
    data = signed.dumps({"a": [1, 2, 3]})
    for length in range(len(data)):
        refused(signed, inner, data[:length])
    refused(signed, inner, data + b"\0")


@pytest.mark.parametrize("data", [b"", CloudpickleSerializer().dumps("unsigned"), b"\x01", b"\x02" + 40 * b"\0"])
def test_what_is_not_signed_is_refused_before_anything_is_loaded(
    signed: SignedSerializer, inner: Recording, data: bytes
) -> None:
    error = refused(signed, inner, data)
    assert f"{len(data)} bytes" in str(error)
    assert isinstance(error, DeserializationError)


def test_another_key_is_refused_and_the_message_says_what_to_do(signed: SignedSerializer, inner: Recording) -> None:
    error = refused(signed, inner, SignedSerializer(OLD).dumps("x"))
    assert "SignedSerializer([new, old])" in str(error)
    assert isinstance(pickle.loads(pickle.dumps(error)), SignatureError)


def test_keys_are_rotated_without_losing_what_was_signed_before() -> None:
    before, after = SignedSerializer(OLD), SignedSerializer(NEW)
    accepting, signing = SignedSerializer([OLD, NEW]), SignedSerializer((NEW, OLD))
    for reader in (accepting, signing):
        for writer in (before, after, accepting, signing):
            assert reader.loads(writer.dumps("x")) == "x"
    assert before.loads(accepting.dumps("x")) == "x"
    assert after.loads(signing.dumps("x")) == "x"
    with pytest.raises(SignatureError):
        after.loads(accepting.dumps("x"))


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("a secret of more than sixteen characters", "type str"),
        (["a secret of more than sixteen characters"], "type str"),
        (b"fifteen bytes..", "15 bytes"),
        ([NEW, b""], "0 bytes"),
        (b"", "0 bytes"),
        ([], "()"),
        (None, "type NoneType"),
        (12, "type int"),
        ([NEW, None], "type NoneType"),
    ],
)
def test_a_key_that_is_none_is_refused_and_never_shown(key: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=r"secrets\.token_hex") as caught:
        SignedSerializer(key)
    shown = "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value))
    assert reason in str(caught.value)
    assert "a secret" not in shown
    assert "fifteen" not in shown


def test_sixteen_bytes_are_enough() -> None:
    assert SignedSerializer(bytes(16)).loads(SignedSerializer(bytes(16)).dumps(1)) == 1


@pytest.mark.parametrize("inner", [CloudpickleSerializer, "json", object()])
def test_an_inner_serializer_that_is_none_is_refused(inner: Any) -> None:
    with pytest.raises(InvalidArgument, match="inner"):
        SignedSerializer(NEW, inner)


def test_an_inner_serializer_that_returns_text_is_a_clear_error() -> None:
    class Text(Recording):
        def dumps(self, obj: Any) -> Any:
            return str(obj)

    with pytest.raises(SerializationError, match="str instead of bytes"):
        SignedSerializer(NEW, Text()).dumps(1)


def test_keys_are_neither_shown_nor_pickled_nor_copied() -> None:
    signed = SignedSerializer([NEW, OLD])
    assert repr(signed) == "SignedSerializer(<2 key(s)>, inner=CloudpickleSerializer())"
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="keys would go along"):
            attempt(signed)
    with pytest.raises(SerializationError, match="keys would go along"):
        CloudpickleSerializer().dumps(lambda: signed)


def test_keys_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKQUEUE_SIGNING_KEY", f"{NEW.hex()},\n{OLD.hex()}\n")
    signed = SignedSerializer.from_env()
    assert signed.loads(SignedSerializer(OLD).dumps("x")) == "x"
    assert SignedSerializer(NEW).loads(signed.dumps("x")) == "x"
    monkeypatch.setenv("ANOTHER", OLD.hex())
    json = JSONSerializer(allow=["math"])
    another = SignedSerializer.from_env("ANOTHER", json)
    assert another.inner is json
    assert SignedSerializer(OLD, json).loads(another.dumps("x")) == "x"


@pytest.mark.parametrize("value", [None, "", " , ", "not hexadecimal but secret", "abcd"])
def test_an_environment_without_good_keys_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("TASKQUEUE_SIGNING_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("TASKQUEUE_SIGNING_KEY", value)
    with pytest.raises(InvalidArgument, match=r"secrets\.token_hex") as caught:
        SignedSerializer.from_env()
    assert "but secret" not in "".join(traceback.format_exception(caught.value))


def add(a: int, b: int) -> int:
    return a + b


def test_a_tampered_payload_fails_its_own_task_with_a_clear_error(run: Callable[..., Any]) -> None:
    async def scenario() -> None:
        backend = MemoryBackend()
        inner = Recording()
        async with TaskQueue(backend, SignedSerializer(NEW, inner)) as queue:
            stranger = TaskQueue(backend, SignedSerializer(OLD))
            foreign = await stranger.enqueue(add, 1, 1)
            unsigned = await TaskQueue(backend).enqueue(add, 1, 1)
            sound = await queue.enqueue(add, 2, 3)
            await Worker(queue).run_until_idle()
            for task_id in (foreign, unsigned):
                result = await queue.get_result(task_id)
                assert result is not None
                assert result.status is TaskStatus.FAILED
                assert result.error is not None
                assert task_id in result.error
                assert "SignatureError" in result.error
            assert len(inner.loaded) == 1
            result = await queue.get_result(sound)
            assert result is not None
            assert result.unwrap() == 5
            with pytest.raises(SignatureError):
                result.unwrap(SignedSerializer(OLD).loads)

    run(scenario())


def test_the_error_is_one_of_ours() -> None:
    assert issubclass(SignatureError, TaskQueueError)
