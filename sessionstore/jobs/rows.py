"""The rows that say which objects are a session's jobs, and at which revision."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Insert,
    Select,
    Table,
    bindparam,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from sessionstore.database.access import Database
from sessionstore.database.clock import Now
from sessionstore.database.kept import KeptConnection
from sessionstore.database.statements import ByIds, Statement, among
from sessionstore.errors import ConflictError, LeaseLostError
from sessionstore.jobs.changes import Changes
from sessionstore.jobs.witnesses import Witnesses
from sessionstore.objects.records import Row
from sessionstore.objects.schema import Schema
from sessionstore.row_ids import fits
from sessionstore.task import State

__all__ = [
    "FREE",
    "PAGE",
    "Job",
    "JobTable",
    "Request",
    "changed_meanwhile",
    "check_holder",
    "columns_of",
    "last_position",
    "locked_session",
]

#: IDs in one page; they are two numbers each, and a round trip costs as much as 500.
PAGE = 2_000

#: What a job's holder can be asked for.
Request = Literal["cancel", "hold", "resume"]


class Job(NamedTuple):
    """One job's row, and the database's time when it was read."""

    job_id: int
    session_id: int | None
    position: int | None
    state: str
    returncode: int | None
    revision: int
    attempts: int
    #: None where nobody holds it.
    holder: str | None
    token: int
    lease_expires_at: int | None
    request: Request | None
    now: int


def columns_of(table: Table) -> Sequence[ColumnElement[Any]]:
    """Return what is to be read for a Job."""
    *names, _ = Job._fields
    return *(table.c[name] for name in names), Now().label("now")


class JobTable:
    """Reads and writes job rows; every write adds one to the row's revision.

    ``changes`` tells those who wait that a session's jobs have changed.
    """

    def __init__(self, database: Database, schema: Schema, changes: Changes) -> None:
        self._database = database
        self._changes = changes
        table = self._table = schema.jobs
        read = select(*columns_of(table)).order_by(table.c.job_id)
        # In the order of their IDs, so that two who lock the same rows cannot end
        # in a deadlock.
        lock = read.with_for_update()
        self._read = ByIds(lambda names: read.where(among(table.c.job_id, names)))
        self._lock = ByIds(lambda names: lock.where(among(table.c.job_id, names)))
        self._lock_free = Statement(
            read.where(table.c.job_id == bindparam("id")).with_for_update(
                skip_locked=True
            )
        )
        self._insert = Statement(insert(table))
        self._append = Statement(_appending(schema))
        self._update: dict[frozenset[str], Statement] = {}
        self._witnesses = Witnesses(database, schema)
        self._delete = ByIds(
            lambda names: delete(table).where(among(table.c.job_id, names))
        )
        parts_of = table.c.session_id.is_not_distinct_from(bindparam("old_session"))
        moved = (
            update(table)
            .where(parts_of, table.c.position.is_(None))
            .values(session_id=bindparam("session"))
        )
        self._move_parts = ByIds(
            lambda names: moved.where(among(table.c.job_id, names))
        )
        in_session = table.c.session_id == bindparam("session")
        listed = in_session & table.c.position.is_not(None)
        # Not as pairs: for these MariaDB uses no index, and reads all rows before them.
        position: BindParameter[int] = bindparam("position")
        after = or_(table.c.position > position, table.c.job_id > bindparam("job"))
        page = (
            select(table.c.position, table.c.job_id)
            .where(listed, table.c.position >= position, after)
            .order_by(table.c.position, table.c.job_id)
            .limit(PAGE)
        )
        self._page = Statement(page)
        self._page_in_state = Statement(page.where(table.c.state == bindparam("state")))
        self._counts = Statement(
            select(table.c.state, func.count()).where(listed).group_by(table.c.state)
        )
        all_ids = select(table.c.job_id).where(in_session).order_by(table.c.job_id)
        self._lock_all = Statement(all_ids.with_for_update())
        objects = schema.objects
        joined = select(
            objects.c.id,
            table.c.session_id,
            objects.c.data,
            func.coalesce(table.c.state, objects.c.state),
            table.c.revision,
            table.c.returncode,
        ).outerjoin(table, table.c.job_id == objects.c.id)
        self._objects = ByIds(lambda names: joined.where(among(objects.c.id, names)))

    def read(
        self, kept: KeptConnection, ids: Iterable[int], *, lock: bool = False
    ) -> dict[int, Job]:
        """Return the rows that exist; with ``lock``, others wait to change them."""
        jobs: dict[int, Job] = {}
        by_ids = self._lock if lock else self._read
        for statement, parameters in by_ids.parts(sorted(ids)):
            for row in kept.rows(statement, parameters):
                jobs[row[0]] = Job(*row)
        return jobs

    def lock_free(self, kept: KeptConnection, job_id: int) -> Job | None:
        """Return a row, locked; None if there is none, or if it is locked already."""
        row = kept.row(self._lock_free, {"id": job_id})
        return None if row is None else Job(*row)

    def insert(
        self,
        kept: KeptConnection,
        session_id: int,
        now: int,
        rows: Sequence[dict[str, Any]],
    ) -> None:
        """Add rows to a session; what they do not name is as in a new job."""
        common = {
            **_NEW,
            "session_id": session_id,
            "created_at": now,
            "updated_at": now,
            "write_id": self._witnesses.write_id(
                rows[0]["job_id"], _NEW["revision"], session_id
            ),
        }
        # Made only as they are sent: thousands would keep the garbage collector busy.
        kept.change_many(self._insert, (common | row for row in rows))
        self._changes.note(session_id)

    def append(
        self, kept: KeptConnection, session_id: int, name: str, row: dict[str, Any]
    ) -> bool:
        """Add one row at a session's end; say whether there is a session to add to.

        As ``insert``, but the statement itself finds out the position and the time.
        """
        write_id = self._witnesses.write_id(row["job_id"], _NEW["revision"], session_id)
        session = {"session": session_id, "session_name": name}
        if kept.change(self._append, {**row, **session, "write_id": write_id}) != 1:
            return False
        self._changes.note(session_id)
        return True

    def change(
        self, kept: KeptConnection, job: Job, token: int | None = None, **values: Any
    ) -> int:
        """Change a row unless somebody else did, and return its new revision.

        A job that becomes TERMINATED is held no more.

        Raises ConflictError if the row is not at ``job.revision`` any more, and what
        ``check_holder`` raises.
        """
        check_holder(job, token)
        if token is not None and values.get("state") == State.TERMINATED:
            values.update(FREE, request=None)
        revision = self.put(kept, job, **values)
        self._changes.note(job.session_id)
        self._changes.note(values.get("session_id"))
        return revision

    def put(self, kept: KeptConnection, job: Job, **values: Any) -> int:
        """Change a row as ``change`` does, but whoever holds it, and tell nobody.

        Raises ConflictError if the row is not at ``job.revision`` any more.
        """
        revision = job.revision + 1
        values["write_id"] = self._witnesses.write_id(job.job_id, revision, None)
        statement = self._updating(frozenset(values))
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

    def _updating(self, names: frozenset[str]) -> Statement:
        statement = self._update.get(names)
        if statement is None:
            statement = self._update[names] = self._make_update(names)
        return statement

    def of_holder(self) -> Iterator[Statement]:
        """Yield the statements by which a job's holder reads, saves and moves it."""
        for by_ids in (self._objects, self._lock):
            yield from (statement for statement, _ in by_ids.parts([0]))
        for names in ({"name", "state", "returncode"}, {"state"}):
            yield self._updating(frozenset(names | {"write_id"}))

    def _make_update(self, names: Iterable[str]) -> Statement:
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

    def move_parts(
        self,
        kept: KeptConnection,
        ids: Sequence[int],
        old_session: int | None,
        session: int | None,
    ) -> None:
        """Move those of the jobs that are unlisted to another session, or to none.

        Their revisions stay, as nothing changes that was read of them.
        """
        sessions = {"old_session": old_session, "session": session}
        for statement, parameters in self._move_parts.parts(ids):
            kept.change(statement, {**parameters, **sessions})

    def remove(self, kept: KeptConnection, ids: Sequence[int]) -> None:
        """Delete rows."""
        for statement, parameters in self._delete.parts(ids):
            kept.change(statement, parameters)
        self._witnesses.removed(ids)

    def fetch(
        self, kept: KeptConnection, ids: Sequence[int]
    ) -> dict[int, tuple[int | None, Row]]:
        """Read objects and their jobs, each with the ID of the session it is in."""
        rows: dict[int, tuple[int | None, Row]] = {}
        ids = [i for i in ids if fits(i)]  # a damaged payload may refer to anything
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

    def lock_all(self, kept: KeptConnection, session_id: int) -> list[int]:
        """Lock all objects of a session, nested ones included; return their IDs."""
        rows = kept.rows(self._lock_all, {"session": session_id})
        return [job_id for (job_id,) in rows]


#: A job that nobody holds.
FREE: dict[str, Any] = {
    "claimable_at": None,
    "holder": None,
    "lease_expires_at": None,
}
#: A job that nobody has claimed yet.
_NEW: dict[str, Any] = {
    **FREE,
    "revision": 1,
    "attempts": 0,
    "token": 0,
    "request": None,
}


def check_holder(job: Job, token: int | None) -> None:
    """Raise an error unless a job is free, or held by whoever has this token.

    It is ConflictError without a token, and LeaseLostError with one that is too old.
    """
    if token is None:
        if job.holder is not None:
            raise ConflictError(
                f"task {job.job_id} is claimed by {job.holder}; only that claim can "
                "change it: use request(), or wait until it is released",
                id=job.job_id,
            )
    elif job.holder is None or job.token != token:
        now = f"is now held by {job.holder}" if job.holder else "is no longer claimed"
        raise LeaseLostError(
            f"task {job.job_id} {now} (its token is {job.token}, this claim's is "
            f"{token}); stop working on it, and claim new work",
            id=job.job_id,
        )


def last_position(schema: Schema) -> ColumnElement[int]:
    """Return the position of a session's last job, 0 if there is none."""
    jobs = schema.jobs
    of_session = jobs.c.session_id == bindparam("session")
    last = select(func.max(jobs.c.position)).where(of_session).scalar_subquery()
    return func.coalesce(last, 0)


def locked_session(schema: Schema, *columns: ColumnElement[Any]) -> Select[Any]:
    """Return a query that locks a session, so that nobody destroys it meanwhile."""
    sessions = schema.sessions
    condition = (
        sessions.c.id == bindparam("session"),
        sessions.c.name == bindparam("session_name"),
    )
    return select(*columns).where(*condition).with_for_update(read=True)


def _appending(schema: Schema) -> Insert:
    jobs = schema.jobs
    values: dict[str, ColumnElement[Any]] = {
        name: bindparam(name, type_=jobs.c[name].type)
        for name in ("job_id", "name", "state", "returncode", "write_id")
    }
    values |= {
        name: literal(value, jobs.c[name].type)
        for name, value in _NEW.items()
        if value is not None
    }
    values["session_id"] = schema.sessions.c.id
    values["position"] = last_position(schema) + 1
    values["created_at"] = values["updated_at"] = Now()
    found = locked_session(schema, *values.values())
    return insert(jobs).from_select([*values], found)


def changed_meanwhile(job_id: int) -> ConflictError:
    """Return the error for an object that somebody else changed."""
    return ConflictError(
        f"task {job_id} was changed by another writer after it was read; refresh it, "
        "then try again",
        id=job_id,
    )
