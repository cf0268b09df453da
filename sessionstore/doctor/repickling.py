"""Rewriting payloads: with new names, by another serializer, with newer keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from sqlalchemy import select, update
from sqlalchemy.engine import Connection

from sessionstore.doctor.look import reopened, writing
from sessionstore.errors import SessionStoreError
from sessionstore.objects.schema import Schema
from sessionstore.objects.table import ObjectTable
from sessionstore.sql import SqlStore

__all__ = ["Repickled", "repickle"]

#: Objects in one transaction; writers wait while these are read.
BATCH = 100


@dataclass(frozen=True, slots=True)
class Repickled:
    """A payload that was, or would be, rewritten."""

    id: int
    #: Bytes, before and after.
    old_size: int
    new_size: int
    #: Why it was left as it is, "" if it was not.
    problem: str = ""


def repickle(store: SqlStore, *, dry_run: bool = False) -> Iterator[Repickled]:
    """Load every object, and rewrite those that this store would write differently.

    Each batch is one transaction, which locks the rows that it reads, so that nothing
    that somebody else saves is lost.  Payloads of claimed tasks are left to their
    holders.  A job's revision, state and history stay, as the object is the same as
    before; so objects in other programs' memory can still be saved.

    What cannot be read is reported, and left.  ``dry_run`` changes nothing.
    """
    # Objects in the caller's memory may have changes that nobody has saved.
    with reopened(store, create=False) as own:
        ids = own.iter_ids()
        while page := [*islice(ids, BATCH)]:
            if dry_run:
                yield from _repickled(own._objects, page, {}, None)
            else:
                with writing(own) as connection:
                    holders = _lock(connection, own._objects, page)
                    done = [*_repickled(own._objects, page, holders, connection)]
                yield from done


def _lock(
    connection: Connection, objects: ObjectTable, ids: Sequence[int]
) -> dict[int, str | None]:
    """Lock rows, in the same order as all writers do, and return the jobs' holders."""
    jobs, table = objects.schema.jobs, objects.schema.objects
    holders: dict[int, str | None] = {}
    if objects.has_sessions:
        of_jobs = select(jobs.c.job_id, jobs.c.holder).where(jobs.c.job_id.in_(ids))
        for id_, holder in connection.execute(
            of_jobs.order_by(jobs.c.job_id).with_for_update()
        ):
            holders[id_] = holder
    of_objects = select(table.c.id).where(table.c.id.in_(ids))
    connection.execute(of_objects.order_by(table.c.id).with_for_update()).all()
    return holders


def _repickled(
    objects: ObjectTable,
    ids: Sequence[int],
    holders: dict[int, str | None],
    connection: Connection | None,
) -> Iterator[Repickled]:
    decoded = objects.load_many(ids)
    for id_ in ids:
        if id_ not in decoded.rows:
            continue  # removed meanwhile
        old = bytes(decoded.rows[id_][0] or b"")
        try:
            if id_ in decoded.errors:
                raise decoded.errors[id_]
            new = _encoded(objects, decoded.objects[id_])
        except SessionStoreError as error:
            yield Repickled(id_, len(old), len(old), str(error))
            continue
        if new == old:
            continue
        problem = ""
        if holders.get(id_) is not None:
            problem = "it is claimed; run repickle again later"
        elif connection is not None:
            _write(connection, objects.schema, id_, new)
        yield Repickled(id_, len(old), len(new), problem)


def _encoded(objects: ObjectTable, obj: object) -> bytes:
    records = objects.encode([obj]).records
    return next(bytes(record.payload) for record in records if record.obj is obj)


def _write(connection: Connection, schema: Schema, id_: int, payload: bytes) -> None:
    table = schema.objects
    connection.execute(update(table).where(table.c.id == id_).values(data=payload))
