"""What is carried from one store to another: sessions, and objects with their jobs.

An ``Item`` is one object: its row, its job's row and its history.  Nobody here reads
the payload, so that it may be of any serializer, and unreadable.  ``encoded`` is an
item as bytes, which are the same whichever database it came from: archives consist of
these, and digests are made of them.

A claim is not carried: it belongs to a process that works on the old store.  A claimed
task is carried as ``recover`` would have freed it: UNKNOWN, with an entry in its
history that says who held it, and free to be claimed.  One that is STOPPED stays so.
The token is carried, as tokens only grow.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from sqlalchemy.types import TypeEngine

from sessionstore.task import State

__all__ = [
    "BATCH_BYTES",
    "BATCH_OBJECTS",
    "ENTRY_COLUMNS",
    "JOB_COLUMNS",
    "Columns",
    "Item",
    "SessionItem",
    "Source",
    "encoded",
    "in_batches",
    "unclaimed",
]

Columns = Mapping[str, TypeEngine[Any]]

#: What is carried of a job, after its session's name.
JOB_COLUMNS = (
    "position",
    "name",
    "state",
    "returncode",
    "revision",
    "attempts",
    "token",
    "request",
    "created_at",
    "updated_at",
)
#: What is carried of a history entry.
ENTRY_COLUMNS = (
    "revision",
    "from_state",
    "to_state",
    "at",
    "info",
    "returncode",
    "host",
    "pid",
)
#: The most objects, and the most bytes of payloads, in one batch, which is what is in
#: memory, and in one transaction.
BATCH_OBJECTS = 1000
BATCH_BYTES = 4 * 2**20


class SessionItem(NamedTuple):
    """One session."""

    name: str
    created_at: int
    finished_at: int | None


class Item(NamedTuple):
    """One object, and what a session knows about it."""

    id: int
    state: str | None
    #: None for NULL.
    data: bytes | None
    #: The user's own columns' values, plain and in the order of the source's columns.
    extra: Sequence[object] = ()
    #: The session's name, None for an object that was forgotten, and ``JOB_COLUMNS``.
    job: Sequence[Any] | None = None
    #: In order, each by ``ENTRY_COLUMNS``.
    history: Sequence[Sequence[Any]] = ()


class Source(Protocol):
    """Where items come from."""

    @property
    def name(self) -> str:
        """What errors call it."""

    @property
    def columns(self) -> Columns:
        """The user's own columns."""

    @property
    def sessions(self) -> Sequence[SessionItem]:
        """The sessions to be carried."""

    @property
    def count(self) -> int:
        """How many objects there are."""

    @property
    def largest(self) -> int | None:
        """No ID that objects have, or are known to have had, is larger."""

    def batches(self) -> Iterator[Sequence[Item]]:
        """Go through all objects in the order of their IDs, from the beginning."""


def encoded(item: Item) -> bytes:
    """Return an item as it is in an archive: a line of JSON, and its payload."""
    size = None if item.data is None else len(item.data)
    fields: list[object] = [item.id, item.state, size, item.extra, item.job]
    line = json.dumps([*fields, item.history], separators=(",", ":"))
    return b"%s\n%s\n" % (line.encode("ascii"), item.data or b"")


def in_batches(items: Iterable[Item]) -> Iterator[Sequence[Item]]:
    """Put items together into batches of a limited size."""
    batch: list[Item] = []
    size = 0
    for item in items:
        length = len(item.data or b"")
        if batch and (size + length > BATCH_BYTES or len(batch) == BATCH_OBJECTS):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += length
    if batch:
        yield batch


def unclaimed(item: Item, holder: str) -> Item:
    """Return a claimed task's item as it is carried."""
    assert item.job is not None
    session, *values = item.job
    job = dict(zip(JOB_COLUMNS, values, strict=True))
    if job["state"] == State.STOPPED:
        return item
    job["revision"] += 1
    entry = {
        "revision": job["revision"],
        "from_state": job["state"],
        "to_state": str(State.UNKNOWN),
        # Nothing of this moment or process, so that it is the same when it is read
        # again.
        "at": job["updated_at"],
        "info": f"{holder} held it when it was copied",
        "returncode": job["returncode"],
        "host": "",
        "pid": 0,
    }
    job["state"] = str(State.UNKNOWN)
    return item._replace(
        state=str(State.UNKNOWN),
        job=[session, *job.values()],
        history=[*item.history, list(entry.values())],
    )
