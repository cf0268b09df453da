"""What the tests of serializers have in common."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Any

from sessionstore import Task
from sessionstore.serializers import Serializer

KEYS = [
    "mKRzLvyPq9jQ1o4gQ7Vb1mO0hYkz3cJ5n8tWxEuSd2A=",
    "T3uXb-7cR_pL5sVw9yZaB1dF4gH6jK8mN0qPrStUvWk=",
]


class Colour(Enum):
    """An Enum that is allowed."""

    RED = "red"


class Count(Task):
    """A class that is allowed."""


class Called:
    """A class that is allowed and says when it was called."""

    times = 0

    def __init__(self, *_: object) -> None:
        type(self).times += 1

    def __reduce__(self) -> Any:
        return Called, ()


class Trap:
    """Its pickle, when it is read, makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def nothing(part: object) -> None:
    """Know no object outside."""


def written(serializer: Serializer, obj: object) -> bytes:
    """Return the payload of an object that refers to none."""
    return serializer.dumps(obj, nothing)


def read(serializer: Serializer, payload: bytes) -> Any:
    """Return the object of a payload that refers to none."""
    return serializer.loads(payload, nothing)
