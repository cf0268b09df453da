"""The format of a payload, and what crosses between objects and tables.

A payload is one pickle of one object.  Where the object refers to a ``Persistable``,
itself included, the pickle holds a persistent ID, the tuple ``(id, module,
qualified name)``: enough to make an empty instance of the class at once and to fill
it when its own payload has been read, so that graphs with cycles and shared
children load whichever object comes first.  Payloads made by GC3Pie have a plain
integer there; what it names is loaded on the spot, as it was by GC3Pie.

``encoding`` and ``decoding`` are the two ways.  Both work from a list of what is still
to do, not by recursion, so a chain of any length fits, and neither sees a database
connection: a ``Record`` is all that goes down to SQL, a ``Row`` all that comes back.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from sessionstore.errors import LoadError
from sessionstore.task import State

__all__ = [
    "Decoded",
    "PickleSerializer",
    "Record",
    "Row",
    "Serializer",
    "path_of",
    "state_of",
]


class Serializer(Protocol):
    """Turns one object into bytes and back."""

    def dumps(
        self, obj: object, persistent_id: Callable[[object], object | None]
    ) -> bytes:
        """Return ``obj`` as bytes; what ``persistent_id`` knows, as that only."""

    def loads(self, payload: bytes, persistent_load: Callable[[Any], object]) -> object:
        """Return the object; ``persistent_load`` gives those that stand outside."""


class _Pickler(pickle.Pickler):
    persistent_id: Callable[[object], object | None]


class _Unpickler(pickle.Unpickler):
    persistent_load: Callable[[Any], object]


class PickleSerializer:
    """Python's pickle, as the seed of this project has it.

    Reading a pickle can run any code: whoever can write to the database can run
    code in the processes that read it.
    """

    def __init__(self, protocol: int = pickle.HIGHEST_PROTOCOL) -> None:
        self._protocol = protocol

    def dumps(
        self, obj: object, persistent_id: Callable[[object], object | None]
    ) -> bytes:
        """Return a pickle of ``obj``."""
        buffer = io.BytesIO()
        pickler = _Pickler(buffer, self._protocol)
        pickler.persistent_id = persistent_id
        pickler.dump(obj)
        return buffer.getvalue()

    def loads(self, payload: bytes, persistent_load: Callable[[Any], object]) -> object:
        """Return the object that was pickled."""
        unpickler = _Unpickler(io.BytesIO(payload))
        unpickler.persistent_load = persistent_load
        return unpickler.load()


@dataclass(frozen=True, slots=True)
class Record:
    """One object, ready to become a row."""

    obj: object
    id: int
    is_new: bool
    payload: bytes
    state: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row, as it was read."""

    payload: bytes | None
    state: str | None
    #: Of the object's job, where a session reads it.
    revision: int | None = None
    returncode: int | None = None


@dataclass(frozen=True, slots=True)
class Decoded:
    """What could be read, and why the rest could not."""

    objects: dict[int, object] = field(default_factory=dict)
    errors: dict[int, LoadError] = field(default_factory=dict)
    #: The rows that were fetched for them, the nested objects' included.
    rows: dict[int, Row] = field(default_factory=dict)


def state_of(obj: object) -> str:
    """Return ``obj.execution.state``, or UNKNOWN for an object without one."""
    state = getattr(getattr(obj, "execution", None), "state", None)
    return State.UNKNOWN if state is None else str(state)


def path_of(cls: type) -> str:
    """Return a class's module and qualified name."""
    return f"{cls.__module__}.{cls.__qualname__}"
