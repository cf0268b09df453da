"""Objects to records: the graph that is saved, walked and pickled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from sessionstore.errors import EncodeError
from sessionstore.objects.records import Record, path_of, state_of
from sessionstore.persistable import Persistable
from sessionstore.refusal import making_payload
from sessionstore.serializers import Serializer

__all__ = ["Encoded", "encode", "parts_of"]


class Encoded(NamedTuple):
    """What has to be written to store a graph."""

    records: Sequence[Record]
    #: By ID, the objects in the graph that have not changed.
    unchanged: Mapping[int, object]


def encode(
    roots: Iterable[object],
    *,
    known_id: Callable[[object], int | None],
    new_id: Callable[[object], int],
    serializer: Serializer,
) -> Encoded:
    """Return the records that storing ``roots`` takes, nested objects included.

    Each root is among them, and each ``Persistable`` reached from one that is
    new (``known_id`` gives None) or ``changed``.  Nothing is assigned to any object.

    Raises EncodeError if one of them cannot be stored.
    """
    todo: list[object] = []
    met: dict[int, int] = {}  # the IDs, by id(obj)
    new: set[int] = set()  # the id() of those that are in no store yet

    def meet(obj: object) -> int:
        object_id = met.get(id(obj))
        if object_id is None:
            object_id = known_id(obj)
            if object_id is None:
                object_id = new_id(obj)
                new.add(id(obj))
            met[id(obj)] = object_id
            todo.append(obj)
        return object_id

    under_way: object = None

    def persistent_id(part: object) -> object | None:
        if isinstance(part, Persistable) and part is not under_way:
            cls = type(part)
            return int(meet(part)), cls.__module__, cls.__qualname__
        return None

    for root in roots:
        meet(root)
    number_of_roots = len(todo)

    records: list[Record] = []
    unchanged: dict[int, object] = {}
    with making_payload:
        for number, obj in enumerate(todo):  # which grows as objects are met
            under_way = obj
            object_id = met[id(obj)]
            try:
                payload = serializer.dumps(obj, persistent_id)
            except EncodeError:
                raise
            except Exception as error:
                raise _not_encoded(obj, object_id, error) from error
            is_new = id(obj) in new
            if number < number_of_roots or is_new or getattr(obj, "changed", False):
                records.append(Record(obj, object_id, is_new, payload, state_of(obj)))
            else:
                unchanged[object_id] = obj
    return Encoded(records, unchanged)


def parts_of(obj: object, serializer: Serializer) -> Sequence[Persistable]:
    """Return the objects that ``obj`` refers to itself; none if it cannot be stored."""
    parts: list[Persistable] = []

    def persistent_id(part: object) -> object | None:
        if isinstance(part, Persistable) and part is not obj:
            parts.append(part)
            return 0, type(part).__module__, type(part).__qualname__
        return None

    try:
        with making_payload:
            serializer.dumps(obj, persistent_id)
    except Exception:  # whatever its own __getstate__ raises; a save will say it
        return []
    return parts


def _not_encoded(obj: object, object_id: int, error: Exception) -> EncodeError:
    return EncodeError(
        f"an object of {path_of(type(obj))} cannot be stored: {type(error).__name__}: "
        f"{error}; nothing was stored",
        id=object_id,
    )
