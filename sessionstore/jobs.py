"""The rows that say which objects are a session's jobs, and at which revision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, delete, func, insert, select, tuple_, update
from sqlalchemy.engine import Connection

from sessionstore.database import Database
from sessionstore.errors import ConflictError
from sessionstore.objects import PAGE
from sessionstore.schema import Now, Schema
from sessionstore.serialization import Row

__all__ = ["Job", "JobTable"]


@dataclass(frozen=True, slots=True)
class Job:
    """One job's row, and the database's time when it was read."""

    job_id: int
    session_id: int | None
    position: int | None
    state: str
    returncode: int | None
    revision: int
    now: int


class JobTable:
    """Reads and writes job rows; every write moves the row's revision on by one."""

    def __init__(self, database: Database, schema: Schema) -> None:
        self._database = database
        self._schema = schema
        table = self._table = schema.jobs
        columns = (
            table.c.job_id,
            table.c.session_id,
            table.c.position,
            table.c.state,
            table.c.returncode,
            table.c.revision,
            Now().label("now"),
        )
        self._read = (
            select(*columns)
            .where(table.c.job_id.in_(bindparam("ids", expanding=True)))
            .order_by(table.c.job_id)
        )
        self._lock = self._read.with_for_update()
        self._insert = insert(table)
        self._in_session = table.c.session_id == bindparam("session")
        self._listed = self._in_session & table.c.position.is_not(None)
        objects = schema.objects
        self._objects = (
            select(
                objects.c.id,
                table.c.session_id,
                objects.c.data,
                func.coalesce(table.c.state, objects.c.state),
                table.c.revision,
                table.c.returncode,
            )
            .outerjoin(table, table.c.job_id == objects.c.id)
            .where(objects.c.id.in_(bindparam("ids", expanding=True)))
        )

    def read(
        self, connection: Connection, ids: Iterable[int], *, lock: bool = False
    ) -> dict[int, Job]:
        """Return the rows that there are; locked, others wait to change them."""
        statement = self._lock if lock else self._read
        keys = sorted(int(i) for i in ids)
        jobs: dict[int, Job] = {}
        for start in range(0, len(keys), PAGE):
            rows = self._database.execute(
                connection, statement, {"ids": keys[start : start + PAGE]}
            )
            jobs.update({row.job_id: Job(*row) for row in rows})
        return jobs

    def insert(self, connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows at revision 1."""
        if rows:
            common = {"revision": 1, "attempts": 0, "token": 0}
            self._database.execute(
                connection, self._insert, [{**common, **row} for row in rows]
            )

    def change(self, connection: Connection, job: Job, **values: Any) -> int:
        """Change a row unless somebody else did, and return its new revision.

        Raises ConflictError if the row is not at ``job.revision`` any more.
        """
        table = self._table
        revision = job.revision + 1
        changed = self._database.execute(
            connection,
            update(table)
            .where(
                table.c.job_id == bindparam("b_id"),
                table.c.revision == bindparam("b_revision"),
            )
            .values(revision=revision, updated_at=job.now, **values),
            {"b_id": job.job_id, "b_revision": job.revision},
        )
        if changed.rowcount != 1:
            raise changed_meanwhile(job.job_id)
        return revision

    def remove(self, connection: Connection, ids: Sequence[int]) -> None:
        """Delete rows."""
        self._database.execute(
            connection, delete(self._table).where(self._table.c.job_id.in_(ids))
        )

    def fetch(
        self, connection: Connection, ids: Sequence[int]
    ) -> dict[int, tuple[int | None, Row]]:
        """Read objects and their jobs, each with the ID of the session it is in."""
        rows: dict[int, tuple[int | None, Row]] = {}
        for start in range(0, len(ids), PAGE):
            some = [int(i) for i in ids[start : start + PAGE]]
            found = self._database.execute(connection, self._objects, {"ids": some})
            rows.update({row[0]: (row[1], Row(*row[2:])) for row in found})
        return rows

    def page(
        self, session_id: int, state: str | None, after: tuple[int, int]
    ) -> Sequence[Any]:
        """Return the next page of ``(position, job_id)`` in the order added."""
        table = self._table
        statement = (
            select(table.c.position, table.c.job_id)
            .where(self._listed, tuple_(table.c.position, table.c.job_id) > after)
            .order_by(table.c.position, table.c.job_id)
            .limit(PAGE)
        )
        if state is not None:
            statement = statement.where(table.c.state == str(state))
        return self._database.read(
            lambda connection: self._database.execute(
                connection, statement, {"session": session_id}
            ).all()
        )

    def counts(self, session_id: int) -> dict[str, int]:
        """Return the number of listed jobs in each state."""
        table = self._table
        statement = (
            select(table.c.state, func.count())
            .where(self._listed)
            .group_by(table.c.state)
        )
        rows = self._database.read(
            lambda connection: self._database.execute(
                connection, statement, {"session": session_id}
            ).all()
        )
        return dict(rows)

    def all_ids(self, connection: Connection, session_id: int) -> list[int]:
        """Return the IDs of all the session's objects, the nested ones included."""
        rows = self._database.execute(
            connection,
            select(self._table.c.job_id).where(self._in_session),
            {"session": session_id},
        )
        return [job_id for (job_id,) in rows]


def changed_meanwhile(job_id: int) -> ConflictError:
    """Return the error for an object that somebody else changed."""
    return ConflictError(
        f"task {job_id} was changed by somebody else since it was read; "
        "refresh it, then try again",
        id=job_id,
    )
