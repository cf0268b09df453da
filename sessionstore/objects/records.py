"""What passes between objects and tables, and how objects refer to each other.

A payload is one object, as a serializer writes it.  Where the object refers to a
``Persistable``, itself included, the payload holds a persistent ID, the tuple ``(id,
module, qualified name)``: enough to make an empty instance of the class at once and to
fill it when its own payload has been read, so that graphs with cycles and shared
children load whichever object comes first.  Payloads made by GC3Pie have a plain
integer there; that object is loaded at once, as GC3Pie did.

``encoding`` and ``decoding`` are the two directions.  Both work through a list, without
recursion, so that a chain may have any length.  Neither sees a database connection: a
``Record`` is all that goes down to SQL, a ``Row`` all that comes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sessionstore.errors import LoadError
from sessionstore.task import State

__all__ = ["Decoded", "Record", "Row", "path_of", "state_of"]


# Tuples, as many thousands are made at a time, and a frozen dataclass takes three times
# as long to make.


class Record(NamedTuple):
    """One object, ready to become a row."""

    obj: object
    id: int
    is_new: bool
    payload: bytes
    state: str


class Row(NamedTuple):
    """One row, as it was read."""

    payload: bytes | None
    state: str | None
    #: The job's, where a session reads the object.
    revision: int | None = None
    returncode: int | None = None


class Decoded:
    """What could be read, and why the rest could not."""

    __slots__ = ("errors", "objects", "rows")

    def __init__(self, rows: Mapping[int, Row]) -> None:
        self.objects: dict[int, object] = {}
        self.errors: dict[int, LoadError] = {}
        #: The rows that were fetched for them, the nested objects' included.
        self.rows = dict(rows)

    def only(self, object_id: int) -> Any:
        """Return one of the objects, or raise what kept it from being read."""
        if object_id in self.errors:
            raise self.errors[object_id]
        return self.objects[object_id]


def state_of(obj: object) -> str:
    """Return ``obj.execution.state``, or UNKNOWN for an object without one."""
    state = getattr(getattr(obj, "execution", None), "state", None)
    return State.UNKNOWN if state is None else str(state)


def path_of(cls: type) -> str:
    """Return a class's module and qualified name."""
    return f"{cls.__module__}.{cls.__qualname__}"
