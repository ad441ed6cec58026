"""How calls and return values become bytes."""

from taskqueue.serializers._cloudpickle import CloudpickleSerializer
from taskqueue.serializers._json import JSONSerializer
from taskqueue.serializers._protocol import PreparingSerializer, Serializer
from taskqueue.serializers._signed import SignedSerializer

__all__ = ["CloudpickleSerializer", "JSONSerializer", "PreparingSerializer", "Serializer", "SignedSerializer"]
