"""Payloads that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from sessionstore.doctor.finding import Finding, Level, Patient, some
from sessionstore.errors import DecodeError
from sessionstore.objects.table import PAGE
from sessionstore.sql import SqlStore

__all__ = ["check", "unreadable"]


def check(patient: Patient) -> Iterator[Finding]:
    """Read all objects."""
    ids = [error.id for error in unreadable(patient.store)]
    if not ids:
        yield Finding("payloads", Level.OK, "all objects can be read")
        return
    yield Finding(
        "payloads",
        Level.WRONG,
        f"{len(ids)} cannot be read: {some(ids, len(ids))}",
        "they are kept, but no program can use them",
        "run sessionstore unreadable to see why",
    )


def unreadable(store: SqlStore) -> Iterator[DecodeError]:
    """Go through the objects of a store that cannot be read, and why.

    One page of objects at a time is in memory.
    """
    ids = store.iter_ids()
    while page := [*islice(ids, PAGE)]:
        for error in store._objects.load_many(page).errors.values():
            if isinstance(error, DecodeError):
                yield error
