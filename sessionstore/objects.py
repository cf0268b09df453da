"""Objects in their table: encoded, written and read.

This is what ``SqlStore`` and ``SessionStore`` have in common.
"""

from __future__ import annotations

import logging
import operator
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Column, bindparam, select
from sqlalchemy.engine import Connection

from sessionstore.counter import IdCounter
from sessionstore.database import Database
from sessionstore.decoding import decode
from sessionstore.encoding import encode
from sessionstore.errors import NotFoundError, StoreError
from sessionstore.failures import DuplicateKeyError
from sessionstore.identity_map import IdentityMap
from sessionstore.ids import IdFactory, IdSource
from sessionstore.schema import CURRENT_VERSION, Schema, fits
from sessionstore.serialization import (
    Decoded,
    PickleSerializer,
    Record,
    Row,
    Serializer,
)

__all__ = ["ObjectTable", "key_of"]

log = logging.getLogger(__name__)

#: Rows in one page of an iteration, and parameters in one IN list.
PAGE = 500
#: How often IDs are given anew because another program had taken them.
ATTEMPTS = 10


class ObjectTable:
    """One table of objects."""

    def __init__(
        self,
        database: Database,
        schema: Schema,
        *,
        extra_fields: Mapping[Column[Any], Callable[[Any], object]],
        idfactory: IdSource | None,
        serializer: Serializer | None,
        create: bool,
    ) -> None:
        self.database = database
        self.schema = schema
        self.serializer = serializer or PickleSerializer()
        #: The live objects of this table.
        self.identities = IdentityMap(database, f"{database.name}#{schema.name}")
        self._extra = [
            (column.name, function) for column, function in extra_fields.items()
        ]
        self._create = create
        self._counter = IdCounter(database, schema)
        if idfactory is None:
            idfactory = IdFactory()
        if isinstance(idfactory, IdFactory):
            idfactory = idfactory.bind(self._counter.allocator)
        self._idfactory = idfactory
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
        """Make or check the tables, once in a process."""
        if self._is_ready:
            return
        with self.database.reading() as connection, self.database.translated():
            version = self.schema.version_in(connection)
            if version == CURRENT_VERSION or not self._create:
                if version is not None:
                    self.schema.check_version(version)
                self.schema.check_columns(connection)
                self.has_sessions = version is not None
                self._counter.is_there = self.has_sessions or self.schema.has_ids(
                    connection
                )
                self._is_ready = True
                return
            # Before anything is made: a table that does not fit stays alone.
            self.schema.check_columns(connection, may_lack=True)
        with (
            self.database.setup_lock(self.schema.name),
            self.database.transaction() as connection,
            self.database.translated(),
        ):
            self.schema.build(connection)
        self._is_ready = True

    def close(self) -> None:
        """Close all connections, with which an in-memory database's tables go."""
        self.database.connections.dispose()
        if self.database.connections.is_in_memory:
            self.identities.forget_all()
            self._is_ready = False

    # Writing

    def encode(self, objects: Sequence[object]) -> list[Record]:
        """Return the records that storing these objects takes."""
        new = sum(1 for obj in objects if self.identities.known_id(obj) is None)
        reserve = getattr(self._idfactory, "reserve", None)
        if new and reserve is not None:
            reserve(new)
        return encode(
            objects,
            known_id=self.identities.known_id,
            new_id=self._idfactory.new,
            serializer=self.serializer,
        )

    def store(
        self,
        objects: Sequence[object],
        first: Callable[[Connection, Sequence[Record]], None] | None = None,
    ) -> Sequence[int]:
        """Write objects with all they refer to, after what ``first`` writes."""
        self.prepare()
        for attempt in range(1, ATTEMPTS + 1):
            # Encoded before the transaction, so that nobody waits for pickling.
            records = self.encode(objects)
            ids = {id(record.obj): record.id for record in records}

            def work(
                connection: Connection, records: Sequence[Record] = records
            ) -> None:
                if first is not None:
                    first(connection, records)
                self.write(connection, records)

            try:
                self.database.write(work)
            except DuplicateKeyError:
                # Another program has put rows above our block since we took it.
                self._counter.allocator.reset()
                if self.database.scope is not None or attempt == ATTEMPTS:
                    raise
            else:
                return [ids[id(obj)] for obj in objects]
        raise AssertionError("unreachable")

    def write(self, connection: Connection, records: Sequence[Record]) -> None:
        """Write records' rows, and note on the objects that they are stored."""
        inserts = [self._values(r) | {"id": int(r.id)} for r in records if r.is_new]
        if inserts:
            self._send(connection, self.schema.insert, inserts)
        for record in records:
            if not record.is_new:
                values = self._values(record) | {"object_id": int(record.id)}
                if self._send(connection, self.schema.update, values).rowcount != 1:
                    raise NotFoundError(
                        f"object {record.id} is not in the table {self.schema.name!r} "
                        "any more, so that it cannot be saved again",
                        id=record.id,
                    )
        for record in records:
            self.identities.note_stored(record.obj, record.id)

    def _values(self, record: Record) -> dict[str, Any]:
        return self.row_values(record.obj, record.payload, record.state)

    def row_values(self, obj: object, payload: bytes, state: str) -> dict[str, Any]:
        """Return the columns of an object's row, but for its ID."""
        values: dict[str, Any] = {"data": payload, "state": state}
        for name, function in self._extra:
            try:
                values[name] = function(obj)
            except Exception:
                log.warning(
                    "the extra field %r of %r stays NULL", name, obj, exc_info=True
                )
                values[name] = None
        return values

    def _send(self, connection: Connection, statement: Any, parameters: Any) -> Any:
        try:
            return self.database.execute(connection, statement, parameters)
        except StoreError as error:
            rows = parameters if isinstance(parameters, list) else [parameters]
            largest = max(len(row["data"]) for row in rows)
            # MySQL ends the connection at such a statement and does not say why.
            limit = self.database.packet_limit() if largest >= 2**20 else None
            if limit is None or largest < limit // 2:
                raise
            raise StoreError(
                f"an object of {largest} bytes is more than {self.database.url!r} "
                f"takes: its max_allowed_packet is {limit} bytes; raise it on the "
                "server to twice the largest object"
            ) from error

    def write_over(self, obj: object, object_id: int) -> list[Record]:
        """Make a row a copy of ``obj``, which stays what and where it is itself."""
        self.prepare()
        first, *nested = encode(
            [obj],
            known_id=lambda o: object_id if o is obj else self.identities.known_id(o),
            new_id=self._idfactory.new,
            serializer=self.serializer,
        )

        def work(connection: Connection) -> None:
            values = self._values(first) | {"object_id": object_id}
            if self._send(connection, self.schema.update, values).rowcount != 1:
                raise not_found(object_id)
            self.write(connection, nested)
            self.identities.evict(object_id)

        self.database.write(work)
        return [first, *nested]

    def delete(self, connection: Connection, object_id: int) -> None:
        """Delete a row."""
        deleted = self.database.execute(
            connection, self.schema.delete, {"object_id": object_id}
        )
        if deleted.rowcount != 1:
            raise not_found(object_id)
        self.identities.note_removed(object_id)

    def exists(self, object_id: int) -> bool:
        """Say whether there is a row."""
        self.prepare()
        column = self.schema.objects.c.id
        statement = select(column).where(column == object_id)
        return self.database.read(
            lambda connection: (
                self.database.execute(connection, statement).first() is not None
            )
        )

    # Reading

    def fetch(self, connection: Connection, ids: Sequence[int]) -> dict[int, Row]:
        """Read rows."""
        table = self.schema.objects
        columns = (table.c.id, table.c.data, table.c.state)
        rows: dict[int, Row] = {}
        for start in range(0, len(ids), PAGE):
            some = [int(i) for i in ids[start : start + PAGE]]
            found = self.database.execute(
                connection, select(*columns).where(table.c.id.in_(some))
            )
            rows.update({i: Row(payload, state) for i, payload, state in found})
        return rows

    def load_many(
        self,
        ids: Sequence[int],
        fetch: Callable[[Connection, Sequence[int]], Mapping[int, Row]] | None = None,
        adopt: Callable[[int, object, Row], None] | None = None,
    ) -> Decoded:
        """Return the live objects with these IDs, reading those that are not live.

        ``fetch`` reads rows in another way; ``adopt`` is called with each object
        that was read.
        """
        self.prepare()
        found = {i: obj for i in ids if (obj := self.identities.live(i)) is not None}
        missing = [i for i in dict.fromkeys(ids) if i not in found]
        if not missing:
            return Decoded(found)

        def work(connection: Connection) -> Decoded:
            # Under a lock, or two threads would make two live objects of one ID.
            with self._loading:
                decoded = decode(
                    missing,
                    fetch=lambda some: (fetch or self.fetch)(connection, some),
                    live=self.identities.live,
                    serializer=self.serializer,
                )
                for object_id, obj in decoded.objects.items():
                    there = self.identities.live(object_id)
                    if there is not None:
                        decoded.objects[object_id] = there
                        continue
                    self.identities.adopt(object_id, obj)
                    if adopt is not None:
                        adopt(object_id, obj, decoded.rows[object_id])
                return decoded

        decoded = self.database.read(work)
        return Decoded(found | decoded.objects, decoded.errors, decoded.rows)

    def load(self, object_id: int) -> Any:
        """Return one object, or raise what kept it from being read."""
        return only(self.load_many([object_id]), object_id)

    # Pages

    def pages(
        self, state: str | None, columns: Sequence[Column[Any]]
    ) -> Iterator[Sequence[Any]]:
        """Yield rows of ``columns``, the ID first, page by page and by ID."""
        self.prepare()
        table = self.schema.objects
        statement = select(*columns).order_by(table.c.id).limit(PAGE)
        if state is not None:
            statement = statement.where(self.in_state(state))
        statement = statement.where(table.c.id > bindparam("after"))
        after = -(2**63)
        while True:

            def work(connection: Connection, after: int = after) -> Sequence[Any]:
                return self.database.execute(
                    connection, statement, {"after": after}
                ).all()

            rows = self.database.read(work)
            if rows:
                yield rows
            if len(rows) < PAGE:
                return
            after = rows[-1][0]

    def in_state(self, state: str) -> Any:
        """Return the condition that an object is in a state; NULL is UNKNOWN."""
        column = self.schema.objects.c.state
        condition = column == str(state)
        return (condition | column.is_(None)) if state == "UNKNOWN" else condition


def only(decoded: Decoded, object_id: int) -> Any:
    """Return one object of what was decoded, or raise its error."""
    if object_id in decoded.errors:
        raise decoded.errors[object_id]
    return decoded.objects[object_id]


def not_found(object_id: int) -> NotFoundError:
    """Return the error for an ID that no row has."""
    return NotFoundError(f"there is no object with ID {object_id}", id=object_id)


def key_of(id_: object) -> int:
    """Return an ID as the table has it, or raise NotFoundError."""
    try:
        key = int(id_) if isinstance(id_, str) else operator.index(id_)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        key = None
    if key is None or not fits(key):
        raise NotFoundError(
            f"there is no object with ID {id_!r}: IDs are integers of 64 bits", id=id_
        )
    return key
