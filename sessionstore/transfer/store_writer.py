"""A store as a target: each batch is one transaction, and may come again.

First, the counter of IDs is moved above the largest ID that is to come, so that nobody
is given one of them from then on.  Whoever still has one, from a block taken earlier,
meets the row that is there and takes another ID.  A row that is there, and is the same
in all its parts, counts as written, so that an interrupted transfer is just run again.
A row that differs is a ConflictError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from sqlalchemy import Table, bindparam, insert, select
from sqlalchemy.exc import SQLAlchemyError

from sessionstore.database.failures import DuplicateKeyError
from sessionstore.database.kept import KeptConnection
from sessionstore.database.statements import Statement
from sessionstore.errors import (
    ConflictError,
    SchemaError,
    StoreError,
    StoreUnavailableError,
)
from sessionstore.jobs.changes import Changes
from sessionstore.objects.counter import IdCounter
from sessionstore.objects.table import ObjectTable
from sessionstore.row_ids import fits
from sessionstore.sql import SqlStore
from sessionstore.transfer.columns import fitting, from_plain, on_any
from sessionstore.transfer.items import (
    BATCH_OBJECTS,
    ENTRY_COLUMNS,
    JOB_COLUMNS,
    Columns,
    Item,
    SessionItem,
    encoded,
)
from sessionstore.transfer.store_reader import StoreReader, schema_with

__all__ = ["StoreWriter"]

T = TypeVar("T")


class StoreWriter:
    """Writes items to a store, whose tables it makes where there are none.

    Raises SchemaError, before anything is made, for a table that does not fit.
    """

    def __init__(self, store: SqlStore, columns: Columns) -> None:
        self.name = f"{store.url!r}"
        self._database = store._objects.database
        self._own_blocks = store._objects.reset_ids
        table = store._objects.schema.name
        wanted = {name: on_any(name, type_) for name, type_ in columns.items()}
        there = self._reading(
            lambda kept: fitting(kept.connection, table, wanted, self.name)
        )
        self._columns = wanted if there is None else there
        self._schema = schema = schema_with(table, self._columns)
        ObjectTable(
            self._database, schema, idfactory=None, serializer=None, create=True
        ).prepare()
        self._changes = Changes(self._database, schema)
        self._session_ids: dict[str, int] = {}
        self._insert_session = _inserting(
            schema.sessions, ("name", "created_at", "finished_at")
        )
        self._insert_job = _inserting(
            schema.jobs, ("job_id", "session_id", *JOB_COLUMNS)
        )
        self._insert_entry = _inserting(schema.transitions, ("job_id", *ENTRY_COLUMNS))
        self._any = Statement(select(schema.objects.c.id).limit(1))
        self._may_be_there = self._has_any()

    def _reading(self, work: Callable[[KeptConnection], T]) -> T:
        def translated(kept: KeptConnection) -> T:
            with self._database.translated():
                return work(kept)

        return self._database.read(translated)

    def _has_any(self) -> bool:
        return self._database.read(lambda kept: kept.row(self._any)) is not None

    # Before the first object

    @property
    def is_empty(self) -> bool:
        """Whether there was no object before."""
        return not self._may_be_there

    def check(self, items: Sequence[Item]) -> None:
        """Raise ConflictError if the target has another object with one of the IDs."""
        self._reading(lambda kept: self._missing(kept, items))

    def refuse(self, session: str) -> None:
        """Raise ConflictError if there is a session of this name."""
        if any(there.name == session for there in self.sessions):
            raise ConflictError(
                f"{self.name} has a session {session!r}; give the one that comes "
                "another name, or destroy that one"
            )

    def taken(self, ids: Sequence[int]) -> Sequence[int]:
        """Return those of the IDs that objects have."""
        column = self._schema.objects.c.id
        query = select(column).where(column.in_(bindparam("ids", expanding=True)))

        def work(kept: KeptConnection) -> Sequence[int]:
            found: list[int] = []
            for start in range(0, len(ids), BATCH_OBJECTS):
                some = {"ids": ids[start : start + BATCH_OBJECTS]}
                found += kept.connection.execute(query, some).scalars()
            return found

        return self._reading(work)

    def new_ids(self, number: int, *, above: int) -> Sequence[int]:
        """Return new IDs, all above one, that nobody has or will be given."""
        _check_room(above)
        counter = IdCounter(self._database, self._schema)
        self._database.write(lambda kept: counter.skip(kept, above), is_repeatable=True)
        counter.allocator.reserve(number)
        return [counter.allocator() for _ in range(number)]

    def transaction(self) -> AbstractContextManager[object]:
        """Commit all that is written in the block at once, or nothing."""
        return self._database.transaction()

    def begin(self, sessions: Sequence[SessionItem], largest: int | None) -> None:
        """Make the sessions, and keep new IDs above the largest that is to come.

        Raises ConflictError, with nothing changed, if there is another session of a
        name.
        """
        if largest is not None:
            _check_room(largest)

        def work(kept: KeptConnection) -> None:
            for session in sessions:
                self._session_ids[session.name] = self._begin_session(kept, session)
            if largest is not None:
                IdCounter(self._database, self._schema).skip(kept, largest)

        # It looks for what is there already, perhaps from the first try.
        self._database.write(work, is_repeatable=True)
        self._own_blocks()

    def _begin_session(self, kept: KeptConnection, session: SessionItem) -> int:
        table = self._schema.sessions
        find = (
            select(table.c.id, table.c.created_at, table.c.finished_at)
            .where(table.c.name == session.name)
            .with_for_update()
        )
        row = kept.row(Statement(find))
        if row is None:
            kept.change(self._insert_session, session._asdict())
            row = kept.row(Statement(find))
            assert row is not None
        if (row[1], row[2]) != (session.created_at, session.finished_at):
            raise ConflictError(
                f"{self.name} has another session {session.name!r}; give the one that "
                "comes another name, or destroy that one"
            )
        return int(row[0])

    # The objects

    def write(self, items: Sequence[Item]) -> int:
        """Write a batch in one transaction; return how many objects were new.

        Raises ConflictError, with nothing of the batch written, if the target has
        another object with one of the IDs.
        """
        is_alone = self._database.scope is None
        try:
            return self._database.write(lambda kept: self._write(kept, items))
        except StoreUnavailableError as error:
            if not (is_alone and error.outcome_unknown):
                raise
        except DuplicateKeyError:
            if not is_alone:
                raise
        # Somebody else wrote it, or we did, and the answer was lost: look.
        self._may_be_there = True
        return self._database.write(lambda kept: self._write(kept, items))

    def _write(self, kept: KeptConnection, items: Sequence[Item]) -> int:
        if self._may_be_there:
            with self._database.translated():
                items = self._missing(kept, items)
        if items:
            try:
                self._insert(kept, items)
            except DuplicateKeyError:
                raise
            except StoreError as error:
                largest = max(len(item.data or b"") for item in items)
                raise self._database.explained(error, largest) from error.__cause__
            except (SQLAlchemyError, ArithmeticError, TypeError, ValueError) as error:
                # From a column's type, or from a driver that has no error of its own.
                raise StoreError(
                    f"one of the objects {items[0].id} to {items[-1].id} has a value "
                    f"that {self.name} does not take: {type(error).__name__}: {error}"
                ) from error
        return len(items)

    def _insert(self, kept: KeptConnection, items: Sequence[Item]) -> None:
        kept.change_many(self._schema.insert, [self._row(item) for item in items])
        jobs, entries = [], []
        for item in items:
            if item.job is None:
                continue
            name, *values = item.job
            session_id = None if name is None else self._session_ids[name]
            job = dict(zip(JOB_COLUMNS, values, strict=True))
            jobs.append({"job_id": item.id, "session_id": session_id, **job})
            for entry in item.history:
                row = dict(zip(ENTRY_COLUMNS, entry, strict=True))
                entries.append({"job_id": item.id, **row})
        for statement, rows in (
            (self._insert_job, jobs),
            (self._insert_entry, entries),
        ):
            if rows:
                kept.change_many(statement, rows)
        for session_id in {job["session_id"] for job in jobs}:
            self._changes.note(session_id)

    def _row(self, item: Item) -> dict[str, Any]:
        row: dict[str, Any] = {"id": item.id, "data": item.data, "state": item.state}
        if self._columns:
            try:
                for (parameter, column), plain in zip(
                    self._schema.extra.columns.items(), item.extra, strict=True
                ):
                    row[parameter] = from_plain(plain, column.type)
            except (ValueError, KeyError, TypeError) as error:
                raise SchemaError(
                    f"object {item.id} has a value in a column of its own that "
                    f"{self.name} does not take: {error}",
                    id=item.id,
                ) from error
        return row

    def _missing(self, kept: KeptConnection, items: Sequence[Item]) -> Sequence[Item]:
        """Return the items that are not there; raise ConflictError for another one."""
        there = {item.id: item for item in self._read(kept, [i.id for i in items])}
        missing = []
        for item in items:
            other = there.get(item.id)
            if other is None:
                missing.append(item)
            elif encoded(other) != encoded(item):
                raise ConflictError(
                    f"object {item.id} of {self.name} is another one, or was changed "
                    "since it came; choose another table name, or remove it there",
                    id=item.id,
                )
        return missing

    # Reading it again

    @property
    def sessions(self) -> Sequence[SessionItem]:
        """All sessions that are there."""
        return self._reading(lambda kept: self._reader(kept).sessions)

    def read(self, ids: Sequence[int]) -> Sequence[Item]:
        """Return those of the objects that there are, in the order of their IDs."""
        return self._reading(lambda kept: self._read(kept, ids))

    def _read(self, kept: KeptConnection, ids: Sequence[int]) -> Sequence[Item]:
        return self._reader(kept).items(ids)

    def _reader(self, kept: KeptConnection) -> StoreReader:
        return StoreReader(kept, self._schema, self._columns, name=self.name)


def _check_room(largest: int) -> None:
    if not fits(largest + 2**32):
        raise StoreError(
            f"object {largest} has so large an ID that too few are left above it for "
            "new objects",
            id=largest,
        )


def _inserting(table: Table, names: Sequence[str]) -> Statement:
    return Statement(insert(table).values({name: bindparam(name) for name in names}))
