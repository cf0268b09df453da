"""Objects in their table: encoded, written and read.

This is what ``SqlStore`` and ``SessionStore`` have in common.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from sqlalchemy import bindparam, select
from sqlalchemy.exc import SQLAlchemyError

from sessionstore.database.access import Database
from sessionstore.database.failures import DuplicateKeyError, ahead_of_write
from sessionstore.database.kept import KeptConnection
from sessionstore.database.statements import Statement
from sessionstore.errors import (
    EncodeError,
    NotFoundError,
    StoreError,
    StoreUnavailableError,
)
from sessionstore.fork import hooks
from sessionstore.ids import IdFactory, IdSource
from sessionstore.objects.counter import IdCounter, checked
from sessionstore.objects.decoding import decode
from sessionstore.objects.doubtful import Doubtful
from sessionstore.objects.encoding import Encoded, encode
from sessionstore.objects.identity_map import IdentityMap
from sessionstore.objects.records import Decoded, Record, Row
from sessionstore.objects.schema import CURRENT_VERSION, Schema
from sessionstore.renaming import Renaming
from sessionstore.row_ids import fits, not_found
from sessionstore.serializers import PickleSerializer, Serializer

__all__ = ["PAGE", "ObjectTable"]

T = TypeVar("T")

#: Rows in one page of an iteration.
PAGE = 500
#: How often other IDs are tried because another program had taken the first ones.
ATTEMPTS = 10
#: What a column's type raises for a value that cannot be put into SQL, and what a
#: driver raises that has no error of its own for that.
_UNSENDABLE = (SQLAlchemyError, ArithmeticError, TypeError, ValueError)


class ObjectTable:
    """One table of objects."""

    def __init__(
        self,
        database: Database,
        schema: Schema,
        *,
        idfactory: IdSource | None,
        serializer: Serializer | None,
        renamed: Renaming | None = None,
        create: bool,
    ) -> None:
        self.database = database
        self.schema = schema
        self.serializer = serializer or PickleSerializer()
        self._renamed = renamed
        #: The live objects of this table.
        self.identities = IdentityMap(database, f"{database.name}#{schema.name}")
        self._doubtful = Doubtful(database, schema, self.identities)
        self._create = create
        self._counter = IdCounter(database, schema)
        is_own = idfactory is None
        if idfactory is None:
            idfactory = IdFactory()
        if isinstance(idfactory, IdFactory):
            idfactory = idfactory.bind(self._counter.allocator)
        self._idfactory = idfactory
        # A caller's own factory may give anything.
        self._new_id = idfactory.new if is_own else checked(idfactory)
        self._loading = threading.RLock()
        self._is_ready = False
        #: Whether the tables of sessions are there; known once it is prepared.
        self.has_sessions = True
        database.on_reset.append(self._reset_in_child)

    def _reset_in_child(self) -> None:
        self._counter.allocator.reset()
        self._loading = threading.RLock()

    # Setting up

    def prepare(self) -> None:
        """Make or check the tables, once in each process, before anything else."""
        hooks.gate.notice_fork()
        if self._is_ready:
            return
        is_complete = self.database.read(
            lambda kept: kept.until_unlocked(self._is_complete, kept)
        )
        if not is_complete:
            with (
                ahead_of_write(),
                self.database.setup_lock(self.schema.lock_name),
                self.database.transaction() as scope,
                self.database.translated(),
            ):
                self.schema.build(scope.kept.connection)
        self._is_ready = True

    def _is_complete(self, kept: KeptConnection) -> bool:
        """Say whether nothing is missing; raise SchemaError for what does not fit."""
        connection, schema = kept.connection, self.schema
        with self.database.translated():
            version = schema.version_in(connection)
            if version == CURRENT_VERSION or not self._create:
                if version is not None:
                    schema.check_version(version)
                schema.check_columns(connection)
                self.has_sessions = version is not None
                self._counter.is_there = self.has_sessions or schema.has_ids(connection)
                return True
            # Before anything is made: a table that does not fit gets no others beside
            # it.
            schema.check_columns(connection, may_lack=True)
            return False

    def reset_ids(self) -> None:
        """Drop the IDs at hand; the next one comes from a new block."""
        self._counter.allocator.reset()

    def close(self) -> None:
        """Close all connections; an in-memory database is deleted by that."""
        self.database.connections.dispose()
        if self.database.connections.is_in_memory:
            self.identities.forget_all()
            self._is_ready = False

    # Writing

    def encode(self, objects: Sequence[object]) -> Encoded:
        """Return the records that storing these objects takes."""
        reserve = getattr(self._idfactory, "reserve", None)
        if len(objects) > 1 and reserve is not None:
            known_id = self.identities.known_id
            reserve(sum(1 for obj in objects if known_id(obj) is None))
        return encode(
            objects,
            known_id=self.identities.known_id,
            new_id=self._doubtful.id_for(self._new_id),
            serializer=self.serializer,
        )

    def store(
        self,
        objects: Sequence[object],
        first: Callable[[KeptConnection, Encoded], None] | None = None,
    ) -> Sequence[int]:
        """Write objects with all they refer to, after what ``first`` writes."""
        self.prepare()
        doubtful = self._doubtful

        def run() -> Sequence[int]:
            # Encoded before the transaction, so that nobody waits for pickling.
            encoded = doubtful.settled(lambda: self.encode(objects))
            records = encoded.records

            def work(kept: KeptConnection) -> None:
                self.identities.undo_later([record.obj for record in records])
                if first is not None:
                    first(kept, encoded)
                self.write(kept, records)

            is_one = first is None and len(records) == 1
            doubtful.note_later(records, has_jobs=first is not None)
            try:
                self.database.write(work, is_one_statement=is_one)
            except StoreUnavailableError as error:
                if error.outcome_unknown:
                    doubtful.note(records, has_jobs=first is not None)
                raise
            doubtful.done(records)
            ids = {id(record.obj): record.id for record in records}
            return [ids[id(obj)] for obj in objects]

        return self._with_free_ids(run)

    def _with_free_ids(self, run: Callable[[], T]) -> T:
        for _ in range(ATTEMPTS - 1):
            try:
                return run()
            except DuplicateKeyError:
                # Another program has put rows above our block since we took it.
                self.reset_ids()
                if self.database.scope is not None:
                    raise
        return run()

    def write(self, kept: KeptConnection, records: Sequence[Record]) -> None:
        """Write the rows of records, and note on the objects that they are stored."""
        try:
            new = [record for record in records if record.is_new]
            if new:  # else a forked worker would build the statement for nothing
                self._insert(kept, new)
            for record in records:
                if not record.is_new and not self._update(kept, record.id, record):
                    raise NotFoundError(
                        f"object {record.id} is no longer in the table "
                        f"{self.schema.name!r}, so it cannot be saved again",
                        id=record.id,
                    )
        except (StoreError, *_UNSENDABLE) as error:
            self._refuse(records, error)
        self.identities.stored(records)

    def _insert(self, kept: KeptConnection, records: Sequence[Record]) -> None:
        # Made only as they are sent, as a long list would keep the garbage collector
        # busy.
        rows = (self._row(record, "id", record.id) for record in records)
        kept.change_many(self.schema.insert, rows)

    def _update(self, kept: KeptConnection, object_id: int, record: Record) -> bool:
        """Rewrite a row; say whether there is one."""
        row = self._row(record, "object_id", object_id)
        return kept.change(self.schema.update, row) == 1

    def _row(self, record: Record, id_name: str, object_id: int) -> dict[str, Any]:
        """Return the parameters that write a record."""
        row = self.schema.extra.values(record.obj)
        row[id_name] = int(object_id)
        row["data"], row["state"] = record.payload, record.state
        return row

    def _refuse(self, records: Sequence[Record], error: Exception) -> NoReturn:
        """Raise what it means that records could not be written."""
        if isinstance(error, StoreError):
            largest = max(len(record.payload) for record in records)
            raise self.database.explained(error, largest) from error.__cause__
        said = getattr(error, "orig", error)
        raise EncodeError(
            f"a value cannot be stored in the table {self.schema.name!r}: "
            f"{type(said).__name__}: {said}"
        ) from error

    def write_over(self, obj: object, object_id: int) -> None:
        """Make a row a copy of ``obj``, which stays what and where it is itself."""
        self.prepare()

        def run() -> None:
            encoded = encode(
                [obj],
                known_id=lambda o: (
                    object_id if o is obj else self.identities.known_id(o)
                ),
                new_id=self._new_id,
                serializer=self.serializer,
            )
            first, *nested = encoded.records

            def work(kept: KeptConnection) -> None:
                try:
                    is_there = self._update(kept, object_id, first)
                except (StoreError, *_UNSENDABLE) as error:
                    self._refuse([first], error)
                if not is_there:
                    raise not_found(object_id)
                self.identities.undo_later([record.obj for record in nested])
                self.write(kept, nested)
                self.identities.evict(object_id)

            self.database.write(work)

        self._with_free_ids(run)

    def delete(self, kept: KeptConnection, object_id: int) -> None:
        """Delete a row."""
        if kept.change(self.schema.delete, {"object_id": object_id}) != 1:
            raise not_found(object_id)
        self.identities.note_removed(object_id)

    # Reading

    def exists(self, object_id: int) -> bool:
        """Say whether there is a row."""
        self.prepare()
        row = {"object_id": object_id}
        return bool(self.database.read(lambda kept: kept.row(self.schema.exists, row)))

    def fetch(self, kept: KeptConnection, ids: Sequence[int]) -> dict[int, Row]:
        """Read rows."""
        rows: dict[int, Row] = {}
        ids = [i for i in ids if fits(i)]  # a damaged payload may refer to anything
        for statement, parameters in self.schema.read.parts(ids):
            for object_id, payload, state in kept.rows(statement, parameters):
                rows[object_id] = Row(payload, state)
        return rows

    def load_many(
        self,
        ids: Sequence[int],
        fetch: Callable[[KeptConnection, Sequence[int]], Mapping[int, Row]]
        | None = None,
        adopt: Callable[[int, object, Row], None] | None = None,
    ) -> Decoded:
        """Return the live objects with these IDs, reading those that are not live.

        No ID may be given twice.  ``fetch`` takes the place of this table's own;
        ``adopt`` is called with each object that was read.
        """
        self.prepare()
        fetch = fetch or self.fetch

        def work(kept: KeptConnection) -> Decoded:
            # Under a lock, or two threads would make two live objects for one ID.
            with self._loading:
                live = self.identities.live_among(ids)
                missing = [i for i in ids if i not in live] if live else ids
                decoded = self.decode(
                    missing, fetch(kept, missing), lambda some: fetch(kept, some)
                )
                self.identities.adopt(decoded.objects)
                if adopt is not None:
                    for object_id, obj in decoded.objects.items():
                        adopt(object_id, obj, decoded.rows[object_id])
                decoded.objects |= live
                return decoded

        return self.database.read(work)

    def load(self, object_id: int) -> Any:
        """Return one object, or raise what kept it from being read."""
        self.prepare()
        live = self.identities.live(object_id)
        if live is not None:
            return live

        # As load_many does; on its own, as most calls are for one object.
        def work(kept: KeptConnection) -> Any:
            with self._loading:
                live = self.identities.live(object_id)
                if live is not None:
                    return live
                row = kept.row(self.schema.read_one, {"object_id": object_id})
                decoded = self.decode(
                    [object_id],
                    {object_id: Row(*row)} if row else {},
                    lambda some: self.fetch(kept, some),
                )
                self.identities.adopt(decoded.objects)
                return decoded.only(object_id)

        return self.database.read(work)

    def decode(
        self,
        ids: Sequence[int],
        rows: Mapping[int, Row],
        fetch: Callable[[Sequence[int]], Mapping[int, Row]],
        live: Callable[[int], object | None] | None = None,
    ) -> Decoded:
        """Return the objects of rows; ``live`` takes the place of the identity map."""
        return decode(
            ids,
            rows,
            fetch=fetch,
            live=live or self.identities.live,
            serializer=self.serializer,
            renamed=self._renamed,
        )

    def ids(self, state: str | None) -> Iterator[int]:
        """Go through the IDs, ascending and page by page; NULL is UNKNOWN."""
        self.prepare()
        table = self.schema.objects
        query = (
            select(table.c.id)
            .where(table.c.id > bindparam("after"))
            .order_by(table.c.id)
            .limit(PAGE)
        )
        if state is not None:
            condition = table.c.state == str(state)
            if state == "UNKNOWN":
                condition |= table.c.state.is_(None)
            query = query.where(condition)
        statement = Statement(query)
        after = -(2**63)

        def page(kept: KeptConnection) -> Sequence[tuple[Any, ...]]:
            return kept.rows(statement, {"after": after})

        while True:
            rows = self.database.read(page)
            for (id_,) in rows:
                yield id_
            if len(rows) < PAGE:
                return
            after = rows[-1][0]
