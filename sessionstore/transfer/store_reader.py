"""A store as a source: one state of it, read batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from sqlalchemy import Column, Select, bindparam, func, select
from sqlalchemy.engine import Connection

from sessionstore.database.kept import KeptConnection
from sessionstore.errors import ConfigurationError
from sessionstore.objects.extra import ExtraFields
from sessionstore.objects.schema import Schema
from sessionstore.sql import SqlStore
from sessionstore.transfer.columns import columns_in, to_plain
from sessionstore.transfer.items import (
    BATCH_BYTES,
    BATCH_OBJECTS,
    ENTRY_COLUMNS,
    JOB_COLUMNS,
    Columns,
    Item,
    SessionItem,
    unclaimed,
)

__all__ = ["StoreReader", "reading", "schema_with"]


@contextmanager
def reading(
    store: SqlStore, session: str | None = None, rename: str | None = None
) -> Iterator[StoreReader]:
    """Read a store, or one session of it, as it is at the block's beginning.

    In an in-memory database, what others write meanwhile may show.  A fork meanwhile is
    one in the middle of a call: with SQLite, the child gets ForkError from the store.
    """
    objects = store._objects
    objects.prepare()
    with objects.database.snapshot() as kept, objects.database.translated():
        table = objects.schema.name
        columns = columns_in(kept.connection, table)
        assert columns is not None  # prepare() would have raised
        yield StoreReader(
            kept,
            schema_with(table, columns),
            columns,
            name=f"{store.url!r}",
            has_sessions=objects.has_sessions,
            session=session,
            rename=rename,
        )


def schema_with(table: str, columns: Columns) -> Schema:
    """Return a table's schema with columns of the user's own."""
    fields = {Column(name, type_): _nothing for name, type_ in columns.items()}
    return Schema(table, ExtraFields(fields))


def _nothing(obj: object) -> None:
    raise AssertionError("there are no objects in a transfer")


class StoreReader:
    """Reads items by a connection.

    With a ``session``, only the objects that were written through it; the session is
    read under the name ``rename``, if given.  Raises ConfigurationError if there is no
    such session.
    """

    def __init__(
        self,
        kept: KeptConnection,
        schema: Schema,
        columns: Columns,
        *,
        name: str,
        has_sessions: bool = True,
        session: str | None = None,
        rename: str | None = None,
    ) -> None:
        self.name = name
        self.columns = columns
        self._connection: Connection = kept.connection
        self._schema = schema
        self._has_sessions = has_sessions
        #: The sessions' names, as they are read, by their IDs in the source.
        self._names: dict[int, str] = {}
        self.sessions: Sequence[SessionItem] = self._read_sessions(session, rename)
        self._session_id = None if session is None else next(iter(self._names))

    def _read_sessions(
        self, session: str | None, rename: str | None
    ) -> Sequence[SessionItem]:
        table = self._schema.sessions
        query = select(
            table.c.id, table.c.name, table.c.created_at, table.c.finished_at
        )
        rows: Sequence[Any] = []
        if self._has_sessions:
            rows = self._connection.execute(query.order_by(table.c.id)).all()
        if session is not None:
            names = [row.name for row in rows]
            rows = [row for row in rows if row.name == session]
            if not rows:
                there = ", ".join(map(repr, names[:20])) or "none"
                raise ConfigurationError(
                    f"there is no session {session!r} in {self.name}; there are: "
                    f"{there}"
                )
        sessions = []
        for id_, name, created_at, finished_at in rows:
            self._names[id_] = name if rename is None else rename
            sessions.append(SessionItem(self._names[id_], created_at, finished_at))
        return sessions

    def _of_source(self, query: Select[Any]) -> Select[Any]:
        """Restrict a query about objects to the session that is read."""
        if self._session_id is None:
            return query
        jobs, objects = self._schema.jobs, self._schema.objects
        return query.join(jobs, jobs.c.job_id == objects.c.id).where(
            jobs.c.session_id == self._session_id
        )

    @cached_property
    def count(self) -> int:
        """How many objects there are."""
        query = select(func.count()).select_from(self._schema.objects)
        return int(self._connection.execute(self._of_source(query)).scalar_one())

    @cached_property
    def largest(self) -> int | None:
        """The largest ID among them, or given out there before."""
        query = self._of_source(select(func.max(self._schema.objects.c.id)))
        largest: int | None = self._connection.execute(query).scalar()
        if not self._has_sessions and not self._schema.has_ids(self._connection):
            return largest
        given = self._connection.execute(select(self._schema.ids.c.next_id)).scalar()
        return max(largest or 0, (given or 1) - 1) or None

    def batches(self) -> Iterator[Sequence[Item]]:
        """Go through all objects in the order of their IDs."""
        column = self._schema.objects.c.id
        # Their sizes first, so that a batch of large objects is short.
        sizes = (
            self._of_source(select(column, func.length(self._schema.objects.c.data)))
            .where(column > bindparam("after"))
            .order_by(column)
            .limit(BATCH_OBJECTS)
        )
        after = -(2**63)
        while rows := self._connection.execute(sizes, {"after": after}).all():
            for ids in _by_size(rows):
                yield self.items(ids)
            after = rows[-1][0]

    def items(self, ids: Sequence[int]) -> Sequence[Item]:
        """Return those of the objects that there are, in the order of their IDs."""
        rows = self._connection.execute(self._rows, {"ids": ids}).all()
        histories = self._histories(ids) if self._has_sessions else {}
        extra_from = 3 + len(_JOB) if self._has_sessions else 3
        items = []
        for row in rows:
            item = Item(
                row[0],
                row[1],
                None if row[2] is None else bytes(row[2]),
                [to_plain(value) for value in row[extra_from:]],
            )
            if self._has_sessions and row[3] is not None:
                item = self._with_job(item, row[4:extra_from], histories)
            items.append(item)
        return items

    def _with_job(
        self,
        item: Item,
        row: Sequence[Any],
        histories: Mapping[int, Sequence[Sequence[Any]]],
    ) -> Item:
        holder, session_id, *values = row
        name = None if session_id is None else self._names.get(session_id)
        history = histories.get(item.id, ())
        item = item._replace(job=[name, *values], history=history)
        return item if holder is None else unclaimed(item, holder)

    @cached_property
    def _rows(self) -> Select[Any]:
        objects, jobs = self._schema.objects, self._schema.jobs
        own = [objects.c.id, objects.c.state, objects.c.data]
        extra = [objects.c[name] for name in self.columns]
        in_ids = objects.c.id.in_(bindparam("ids", expanding=True))
        if not self._has_sessions:
            return select(*own, *extra).where(in_ids).order_by(objects.c.id)
        query = select(*own, *(jobs.c[name] for name in _JOB), *extra)
        joined = query.outerjoin(jobs, jobs.c.job_id == objects.c.id)
        return joined.where(in_ids).order_by(objects.c.id)

    @cached_property
    def _entries(self) -> Select[Any]:
        table = self._schema.transitions
        columns = (table.c[name] for name in ENTRY_COLUMNS)
        return (
            select(table.c.job_id, *columns)
            .where(table.c.job_id.in_(bindparam("ids", expanding=True)))
            .order_by(table.c.job_id, table.c.revision)
        )

    def _histories(self, ids: Sequence[int]) -> Mapping[int, Sequence[Sequence[Any]]]:
        histories: dict[int, list[Sequence[Any]]] = {}
        for job_id, *entry in self._connection.execute(self._entries, {"ids": ids}):
            histories.setdefault(job_id, []).append(entry)
        return histories


#: What is read of a job: its ID, which tells whether there is one, and its columns.
_JOB = ("job_id", "holder", "session_id", *JOB_COLUMNS)


def _by_size(rows: Sequence[Any]) -> Iterator[Sequence[int]]:
    ids: list[int] = []
    total = 0
    for id_, size in rows:
        if ids and total + (size or 0) > BATCH_BYTES:
            yield ids
            ids, total = [], 0
        ids.append(id_)
        total += size or 0
    if ids:
        yield ids
