"""The rows that say which objects are a session's jobs, and at which revision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import bindparam, delete, func, insert, select, tuple_, update

from sessionstore.clock import Now
from sessionstore.database import Database
from sessionstore.errors import ConflictError
from sessionstore.kept import KeptConnection
from sessionstore.objects import PAGE
from sessionstore.schema import Schema
from sessionstore.serialization import Row
from sessionstore.statements import ByIds, Statement

__all__ = ["Job", "JobTable"]


class Job(NamedTuple):
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
        read = select(*columns).order_by(table.c.job_id)
        # In the order of their IDs, so that two who lock the same rows cannot end
        # in a deadlock.
        lock = read.with_for_update()
        self._read = ByIds(lambda names: read.where(_among(table.c.job_id, names)))
        self._lock = ByIds(lambda names: lock.where(_among(table.c.job_id, names)))
        self._insert = Statement(insert(table))
        self._update: dict[frozenset[str], Statement] = {}
        self._delete = ByIds(
            lambda names: delete(table).where(_among(table.c.job_id, names))
        )
        in_session = table.c.session_id == bindparam("session")
        listed = in_session & table.c.position.is_not(None)
        after = tuple_(table.c.position, table.c.job_id) > tuple_(
            bindparam("position"), bindparam("job")
        )
        page = (
            select(table.c.position, table.c.job_id)
            .where(listed, after)
            .order_by(table.c.position, table.c.job_id)
            .limit(PAGE)
        )
        self._page = Statement(page)
        self._page_in_state = Statement(page.where(table.c.state == bindparam("state")))
        self._counts = Statement(
            select(table.c.state, func.count()).where(listed).group_by(table.c.state)
        )
        self._all_ids = Statement(select(table.c.job_id).where(in_session))
        objects = schema.objects
        joined = select(
            objects.c.id,
            table.c.session_id,
            objects.c.data,
            func.coalesce(table.c.state, objects.c.state),
            table.c.revision,
            table.c.returncode,
        ).outerjoin(table, table.c.job_id == objects.c.id)
        self._objects = ByIds(lambda names: joined.where(_among(objects.c.id, names)))

    def read(
        self, kept: KeptConnection, ids: Iterable[int], *, lock: bool = False
    ) -> dict[int, Job]:
        """Return the rows that there are; locked, others wait to change them."""
        jobs: dict[int, Job] = {}
        for statement, parameters in (self._lock if lock else self._read).parts(
            sorted(ids)
        ):
            for row in kept.rows(statement, parameters):
                jobs[row[0]] = Job(*row)
        return jobs

    def insert(self, kept: KeptConnection, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows; what they do not name is as in a new job."""
        if rows:
            kept.change_many(self._insert, [{**_NEW, **row} for row in rows])

    def change(self, kept: KeptConnection, job: Job, **values: Any) -> int:
        """Change a row unless somebody else did, and return its new revision.

        Raises ConflictError if the row is not at ``job.revision`` any more.
        """
        names = frozenset(values)
        statement = self._update.get(names)
        if statement is None:
            statement = self._update[names] = self._updating(names)
        revision = job.revision + 1
        parameters = {
            **values,
            "seen_id": job.job_id,
            "seen_revision": job.revision,
            "revision": revision,
            "updated_at": job.now,
        }
        if kept.change(statement, parameters) != 1:
            raise changed_meanwhile(job.job_id)
        return revision

    def _updating(self, names: Iterable[str]) -> Statement:
        table = self._table
        return Statement(
            update(table)
            .where(
                table.c.job_id == bindparam("seen_id"),
                table.c.revision == bindparam("seen_revision"),
            )
            .values(
                {name: bindparam(name) for name in (*names, "revision", "updated_at")}
            )
        )

    def remove(self, kept: KeptConnection, ids: Sequence[int]) -> None:
        """Delete rows."""
        for statement, parameters in self._delete.parts(ids):
            kept.change(statement, parameters)

    def fetch(
        self, kept: KeptConnection, ids: Sequence[int]
    ) -> dict[int, tuple[int | None, Row]]:
        """Read objects and their jobs, each with the ID of the session it is in."""
        rows: dict[int, tuple[int | None, Row]] = {}
        for statement, parameters in self._objects.parts(ids):
            for object_id, session_id, *rest in kept.rows(statement, parameters):
                rows[object_id] = session_id, Row(*rest)
        return rows

    def page(
        self, session_id: int, state: str | None, after: tuple[int, int]
    ) -> Sequence[tuple[int, int]]:
        """Return the next page of ``(position, job_id)`` in the order added."""
        parameters: dict[str, Any] = {
            "session": session_id,
            "position": after[0],
            "job": after[1],
        }
        statement = self._page
        if state is not None:
            statement, parameters["state"] = self._page_in_state, state
        return self._database.read(lambda kept: kept.rows(statement, parameters))

    def counts(self, session_id: int) -> dict[str, int]:
        """Return the number of listed jobs in each state."""
        parameters = {"session": session_id}
        return dict(
            self._database.read(lambda kept: kept.rows(self._counts, parameters))
        )

    def all_ids(self, kept: KeptConnection, session_id: int) -> list[int]:
        """Return the IDs of all the session's objects, the nested ones included."""
        rows = kept.rows(self._all_ids, {"session": session_id})
        return [job_id for (job_id,) in rows]


#: A job that nobody has claimed yet.
_NEW: dict[str, Any] = {
    "revision": 1,
    "attempts": 0,
    "token": 0,
    "claimable_at": None,
    "holder": None,
    "lease_expires_at": None,
    "request": None,
    "write_id": None,
}


def _among(column: Any, names: Sequence[str]) -> Any:
    return column.in_([bindparam(name) for name in names])


def changed_meanwhile(job_id: int) -> ConflictError:
    """Return the error for an object that somebody else changed."""
    return ConflictError(
        f"task {job_id} was changed by somebody else since it was read; "
        "refresh it, then try again",
        id=job_id,
    )
