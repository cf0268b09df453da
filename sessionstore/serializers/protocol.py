"""What a store asks of whatever turns its objects into bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Serializer"]


class Serializer(Protocol):
    """Turns one object into bytes and back."""

    def dumps(
        self, obj: object, persistent_id: Callable[[object], object | None]
    ) -> bytes:
        """Return ``obj`` as bytes; what ``persistent_id`` knows, as that only."""

    def loads(self, payload: bytes, persistent_load: Callable[[Any], object]) -> object:
        """Return the object; ``persistent_load`` gives those that stand outside."""
