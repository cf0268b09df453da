"""Ways to turn objects into payloads, for a store's ``serializer=``."""

from sessionstore.serializers.pickles import PickleSerializer
from sessionstore.serializers.protocol import Serializer

__all__ = ["PickleSerializer", "Serializer"]
