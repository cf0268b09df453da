"""Reading a session's objects: some by their IDs, one again in place, or all."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from sessionstore.database.kept import KeptConnection
from sessionstore.errors import DecodeError, LoadError, NotFoundError
from sessionstore.jobs.index import Index
from sessionstore.objects.decoding import fill
from sessionstore.objects.identity_map import IdentityMap, set_unmarked
from sessionstore.objects.records import Row
from sessionstore.persistable import Persistable, is_persistable, mark

__all__ = ["each", "load", "refresh", "stored_parts", "stored_workflow", "workflow"]

log = logging.getLogger(__name__)

#: Objects that an iteration reads at once.
BATCH = 50


def load(
    index: Index, keys: Sequence[int]
) -> tuple[dict[int, Any], dict[int, LoadError]]:
    """Return the objects with these IDs, and the errors of those that cannot be had."""
    roots = frozenset(keys)
    identities = index.objects.identities
    decoded = index.objects.load_many(
        keys,
        fetch=lambda kept, ids: index.fetch(kept, ids, roots),
        adopt=lambda _, obj, row: _adopt(identities, obj, row),
    )
    # A live object may be in another session, or in none; and one that was read by the
    # plain store has no revision yet.
    live = [key for key in decoded.objects if key not in decoded.rows]
    jobs = index.mine(live) if live else {}
    for key in live:
        obj: Any = decoded.objects[key]
        if key not in jobs:
            del decoded.objects[key]
            decoded.errors[key] = index.not_here(key)
        elif not is_persistable(obj):  # read past the session
            del decoded.objects[key]
            decoded.errors[key] = DecodeError(
                f"object {key} is listed as a task but is not a Persistable: {obj!r}",
                id=key,
            )
        elif getattr(obj, "_revision", None) is None and not obj.changed:
            refresh(index, obj)
    return decoded.objects, decoded.errors


def _adopt(identities: IdentityMap, obj: Any, row: Row) -> None:
    if not is_persistable(obj):  # a part, of a program that had no session
        return
    identities.read_at(obj, row.revision)
    execution = getattr(obj, "execution", None)
    if row.revision is not None and hasattr(execution, "returncode"):
        set_unmarked(execution, "returncode", row.returncode)
    mark(obj, False)


def refresh(index: Index, task: Persistable, *, is_part: bool = False) -> None:
    """Read an object again, in place, and what it refers to that is not live.

    One that ``is_part`` of another may be in no session.
    """
    identities = index.objects.identities
    key = identities.known_id(task)
    if key is None:
        raise NotFoundError(f"{task!r} is not in the session {index.name!r}")

    roots = frozenset[int]() if is_part else frozenset([key])

    def work(kept: KeptConnection) -> None:
        rows = index.fetch(kept, [key], roots)
        if key not in rows:
            raise index.not_here(key)
        decoded = index.objects.decode(
            [key],
            rows,
            fetch=lambda ids: index.fetch(kept, ids, roots),
            live=lambda i: task if i == key else identities.live(i),
        )
        read = decoded.only(key)
        try:
            fill(task, read)
        except TypeError as error:
            raise DecodeError(
                f"object {key} cannot be refreshed in place: {error}", id=key
            ) from error
        decoded.objects[key] = task
        live = identities.live(key)
        # After a rollback nothing may be live under this ID; then it is this object.
        identities.adopt(
            {i: obj for i, obj in decoded.objects.items() if i != key or live is None}
        )
        for object_id, obj in decoded.objects.items():
            _adopt(identities, obj, decoded.rows[object_id])

    index.database.read(work)


def stored_workflow(index: Index, kept: KeptConnection, key: int) -> Sequence[int]:
    """Return the IDs of an object and of the ``tasks`` inside it, as they are stored.

    If the object cannot be read, it is its own ID alone.
    """
    objects = _stored(index, kept, key)
    ids = {id(obj): object_id for object_id, obj in objects.items()}
    # By id(), as they are not live: they have no IDs, or, if copied, those of others.
    parts = workflow([objects[key]], key_of=id) if objects else []
    return [ids[id(part)] for part in parts if id(part) in ids] or [key]


def stored_parts(index: Index, kept: KeptConnection, key: int) -> Sequence[int]:
    """Return the IDs of all that an object refers to, however deep, as it is stored.

    If the object cannot be read, there are none.
    """
    return [id_ for id_ in _stored(index, kept, key) if id_ != key]


def _stored(index: Index, kept: KeptConnection, key: int) -> dict[int, Any]:
    """Read an object anew, with what it refers to; nothing if it cannot be read.

    None is taken from memory, where it may be older, or newer, than what is stored.
    """

    def fetch(ids: Sequence[int]) -> Mapping[int, Row]:
        return index.fetch(kept, ids, {key})

    decoded = index.objects.decode([key], fetch([key]), fetch, live=lambda _: None)
    if key in decoded.errors:
        log.warning(
            "object %s cannot be read, so the tasks inside it are not known", key
        )
        return {}
    return decoded.objects


def each(index: Index) -> Iterator[tuple[int, Any, LoadError | None]]:
    """Yield each job's ID, and its object or the error that reading it gave."""
    ids = index.ids(None)
    while batch := [*islice(ids, BATCH)]:
        yield from _each_of(index, batch)


def _each_of(
    index: Index, ids: Sequence[int]
) -> Iterator[tuple[int, Any, LoadError | None]]:
    objects, errors = load(index, ids)
    for id_ in ids:
        yield id_, objects.get(id_), errors.get(id_)


def _id_of(task: object) -> object:
    return getattr(task, "persistent_id", None)


def workflow(
    tasks: Iterable[Any], key_of: Callable[[Any], object] = _id_of
) -> Iterator[Any]:
    """Go through tasks and the ``tasks`` inside them, breadth first."""
    inside: deque[Any] = deque()
    seen: dict[object, object] = {}
    for task in chain(tasks, _taken_from(inside)):
        # By its ID, as it may be freed, and read again inside another.  One without an
        # ID is kept, or the next one might be made at its place in memory.
        key, kept = key_of(task), None
        if key is None:
            key, kept = (id(task),), task
        if key not in seen:
            seen[key] = kept
            yield task
            parts = getattr(task, "tasks", ())
            # An attribute of that name may be something else, such as a number.
            if isinstance(parts, Iterable):
                inside.extend(part for part in parts if isinstance(part, Persistable))


def _taken_from(queue: deque[Any]) -> Iterator[Any]:
    while queue:
        yield queue.popleft()
