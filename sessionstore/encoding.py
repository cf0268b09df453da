"""Objects to records: the graph that one save takes, walked and pickled."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sessionstore.errors import EncodeError
from sessionstore.persistable import Persistable
from sessionstore.refusal import thread
from sessionstore.serialization import Record, Serializer, path_of, state_of

__all__ = ["encode"]


def encode(
    roots: Iterable[object],
    *,
    known_id: Callable[[object], int | None],
    new_id: Callable[[object], int],
    serializer: Serializer,
) -> list[Record]:
    """Return the records that storing ``roots`` takes, nested objects included.

    Each root is among them, and each ``Persistable`` reached from one that is
    new (``known_id`` gives None) or ``changed``.  Nothing is assigned to any object.

    Raises EncodeError if one of them cannot be stored.
    """
    todo: list[object] = []
    # By id(obj): its ID, whether it is new, and whether it is to be written.
    met: dict[int, tuple[int, bool, bool]] = {}

    def meet(obj: object, *, is_root: bool = False) -> int:
        there = met.get(id(obj))
        if there is not None:
            return there[0]
        known = known_id(obj)
        is_new = known is None
        object_id = new_id(obj) if known is None else known
        is_written = is_root or is_new or getattr(obj, "changed", False)
        met[id(obj)] = object_id, is_new, is_written
        todo.append(obj)
        return object_id

    # The object that is being pickled, until the pickler has come to it itself.
    expected: object = None

    def persistent_id(part: object) -> object | None:
        nonlocal expected
        if isinstance(part, Persistable):
            if part is expected:
                expected = None
                return None
            cls = type(part)
            return int(meet(part)), cls.__module__, cls.__qualname__
        return None

    for root in roots:
        meet(root, is_root=True)

    records = []
    was_encoding, thread.is_encoding = thread.is_encoding, True
    try:
        for obj in todo:  # which grows as objects are met
            expected = obj
            object_id, is_new, is_written = met[id(obj)]
            try:
                payload = serializer.dumps(obj, persistent_id)
            except EncodeError:
                raise
            except Exception as error:
                raise _not_encoded(obj, object_id, error) from error
            if is_written:
                records.append(Record(obj, object_id, is_new, payload, state_of(obj)))
    finally:
        thread.is_encoding = was_encoding
    return records


def _not_encoded(obj: object, object_id: int, error: Exception) -> EncodeError:
    return EncodeError(
        f"an object of {path_of(type(obj))} cannot be stored: "
        f"{type(error).__name__}: {error}; nothing of it was",
        id=object_id,
    )
