"""What a store needs of what turns its objects into bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Serializer"]


class Serializer(Protocol):
    """Turns one object into bytes and back.

    ``persistent_id`` is to be called with each object inside the given one that may be
    a ``Persistable``.  If it returns None, as it does for the given one itself, the
    object is part of the payload.  Otherwise the object has a payload of its own, and
    this one keeps what was returned, a tuple of an ID, a module's and a class's name.
    Given that tuple, ``persistent_load`` returns the object.

    Both may raise whatever they like; the store's EncodeError or DecodeError names
    the object and quotes them.  A store calls them from any thread.
    """

    def dumps(
        self, obj: object, persistent_id: Callable[[object], object | None]
    ) -> bytes:
        """Return ``obj`` as bytes; what has an ID, as that ID only."""

    def loads(self, payload: bytes, persistent_load: Callable[[Any], object]) -> object:
        """Return the object; ``persistent_load`` returns the others it refers to."""
