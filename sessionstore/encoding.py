"""Objects to records: the graph that one save takes, walked and pickled."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable

from sessionstore.errors import EncodeError
from sessionstore.persistable import Persistable
from sessionstore.serialization import Record, Serializer, path_of, state_of

__all__ = ["encode", "is_encoding"]


_encoding = threading.local()


def is_encoding() -> bool:
    """Say whether this thread is turning an object into a payload just now."""
    return getattr(_encoding, "active", False)


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
    ids: dict[int, tuple[int, bool]] = {}
    must_write: set[int] = set()

    def meet(obj: object) -> int:
        known = ids.get(id(obj))
        if known is None:
            stored = known_id(obj)
            is_new = stored is None
            known = ids[id(obj)] = (new_id(obj) if stored is None else stored, is_new)
            todo.append(obj)
            if is_new or getattr(obj, "changed", False):
                must_write.add(id(obj))
        return known[0]

    for root in roots:
        meet(root)
        must_write.add(id(root))

    records = []
    for obj in todo:  # which grows as objects are met
        payload = _dump(obj, ids[id(obj)][0], meet, serializer)
        if id(obj) in must_write:
            object_id, is_new = ids[id(obj)]
            records.append(Record(obj, object_id, is_new, payload, state_of(obj)))
    return records


def _dump(
    obj: object,
    object_id: int,
    meet: Callable[[object], int],
    serializer: Serializer,
) -> bytes:
    at_root = True

    def persistent_id(part: object) -> object | None:
        nonlocal at_root
        if isinstance(part, Persistable):
            if at_root and part is obj:
                at_root = False
                return None
            cls = type(part)
            return int(meet(part)), cls.__module__, cls.__qualname__
        if isinstance(part, type) and part.__module__ == "__main__":
            warnings.warn(
                f"{part.__qualname__} is a class of __main__, which other programs "
                "do not have; put it into a module, or only this one can load it",
                stacklevel=2,
            )
        return None

    outer = is_encoding()
    _encoding.active = True
    try:
        return serializer.dumps(obj, persistent_id)
    except EncodeError:
        raise
    except Exception as error:
        raise EncodeError(
            f"an object of {path_of(type(obj))} cannot be stored: "
            f"{type(error).__name__}: {error}; nothing of it was",
            id=object_id,
        ) from error
    finally:
        _encoding.active = outer
