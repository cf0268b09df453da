"""Which objects are in a session, and the session's own row."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import bindparam, delete, insert, select, update

from sessionstore.database.clock import Now
from sessionstore.database.dialects import MissingTableError
from sessionstore.database.failures import DuplicateKeyError
from sessionstore.database.kept import KeptConnection
from sessionstore.database.statements import ByIds, Statement, among
from sessionstore.errors import ConfigurationError, NotFoundError
from sessionstore.jobs.changes import Changes
from sessionstore.jobs.history import History
from sessionstore.jobs.leases import LeaseTable
from sessionstore.jobs.rows import (
    PAGE,
    Job,
    JobTable,
    check_holder,
    last_position,
    locked_session,
)
from sessionstore.objects.records import Row
from sessionstore.objects.table import ObjectTable

__all__ = ["Index"]

log = logging.getLogger(__name__)


class SessionRow(NamedTuple):
    """What the sessions' table has of one."""

    id: int
    created_at: int
    finished_at: int | None


class Index:
    """One session: its row, its jobs' rows and their history.

    Raises ConfigurationError with ``create=False`` if there is no such session.
    """

    def __init__(self, objects: ObjectTable, name: str, *, create: bool) -> None:
        self.name = name
        self.objects = objects
        self.database = objects.database
        self.changes = Changes(self.database, objects.schema)
        self.jobs = JobTable(self.database, objects.schema, self.changes)
        self.leases = LeaseTable(self.database.settings, objects.schema)
        self.history = History(self.database, objects.schema)
        table = objects.schema.sessions
        schema = objects.schema
        self._last_position = Statement(
            locked_session(schema, last_position(schema), Now())
        )
        self._create = Statement(
            insert(table).values(name=bindparam("name"), created_at=Now())
        )
        self._find = Statement(
            select(table.c.id, table.c.created_at, table.c.finished_at).where(
                table.c.name == bindparam("session_name")
            )
        )
        of_session = table.c.id == bindparam("session")
        self._finish = Statement(
            update(table).where(of_session).values(finished_at=Now())
        )
        self._delete = Statement(delete(table).where(of_session))
        table_of_objects = objects.schema.objects
        self._delete_objects = ByIds(
            lambda names: delete(table_of_objects).where(
                among(table_of_objects.c.id, names)
            )
        )
        self._is_compiled = False
        self.id = self._open(create)

    def _open(self, create: bool) -> int:
        try:
            self.objects.prepare()
            if not self.objects.has_sessions:
                raise MissingTableError(
                    f"{self.database.url!r} has no session tables for "
                    f"{self.objects.schema.name!r}, and this call does not create "
                    "them; sessionstore migrate does"
                )
        except MissingTableError as error:
            # With the store's create=False alone, it is the store that is wrong.
            if create:
                raise
            raise self._no_session() from error
        found = self.find()
        if found is None and not create:
            raise self._no_session()
        if found is None:
            try:
                self.database.write(
                    lambda kept: kept.change(self._create, {"name": self.name}),
                    is_repeatable=True,
                )
            except DuplicateKeyError:
                log.debug("another process created the session %r", self.name)
            found = self.find()
        assert found is not None
        return found.id

    def _no_session(self) -> ConfigurationError:
        return ConfigurationError(
            f"there is no session {self.name!r} in {self.database.url!r}, and this "
            "call does not create one; check the name"
        )

    def find(self) -> SessionRow | None:
        """Return the session's row, None if there is none."""
        row = self.database.read(
            lambda kept: kept.row(self._find, {"session_name": self.name})
        )
        return None if row is None else SessionRow(*row)

    def row(self) -> SessionRow:
        """Return the session's row, or raise ConfigurationError if it is gone."""
        row = self.find()
        if row is None or row.id != self.id:
            raise self._destroyed()
        return row

    def _destroyed(self) -> ConfigurationError:
        return ConfigurationError(
            f"the session {self.name!r} was destroyed; open it again to create a new "
            "one"
        )

    def last_position_and_time(self, kept: KeptConnection) -> tuple[int, int]:
        """Return the last job's position and the database's time; lock the session."""
        session = {"session": self.id, "session_name": self.name}
        row = kept.row(self._last_position, session)
        if row is None:
            raise self._destroyed()
        last, now = row
        return int(last), int(now)

    def append(
        self, kept: KeptConnection, job: dict[str, Any], entry: dict[str, Any]
    ) -> None:
        """Add one job's row, and what its history begins with."""
        if not self.jobs.append(kept, self.id, self.name, job):
            raise self._destroyed()
        self.history.begin(kept, entry)

    def finish(self) -> None:
        """Note that the session's work is done."""
        session = {"session": self.id}
        finished = self.database.write(
            lambda kept: kept.change(self._finish, session), is_repeatable=True
        )
        if not finished:
            raise self._destroyed()

    # Its jobs

    def compile_for_holders(self) -> None:
        """Compile the statements by which a claim's holder reads and writes its task.

        The holder is often a child forked for that one task, and each of them would
        spend 3 ms on it.
        """
        schema, database = self.objects.schema, self.database
        if self._is_compiled or database.settings.begin is None:
            return
        self._is_compiled = True
        writes = (schema.update, schema.set_state, self.history.insert)
        for statement in (*self.jobs.of_holder(), *writes, *self.changes.writes):
            if not statement.text:
                statement.compile(database.connections.engine.dialect)

    def job(self, kept: KeptConnection, key: int) -> Job:
        """Return a job of this session, locked, or raise NotFoundError."""
        job = self.jobs.read(kept, [key], lock=True).get(key)
        if job is None or job.session_id != self.id:
            raise self.not_here(key)
        return job

    def mine(self, keys: Sequence[int]) -> dict[int, Job]:
        """Return those of the jobs that are in this session."""
        jobs = self.database.read(lambda kept: self.jobs.read(kept, keys))
        return {key: job for key, job in jobs.items() if job.session_id == self.id}

    def not_here(self, key: int) -> NotFoundError:
        """Return the error for an ID that is not in this session."""
        return NotFoundError(
            f"there is no object with ID {key} in the session {self.name!r}", id=key
        )

    def fetch(
        self, kept: KeptConnection, ids: Sequence[int], roots: Collection[int]
    ) -> dict[int, Row]:
        """Read objects; of ``roots``, only those that are in this session.

        What they refer to is read wherever it is.
        """
        found = self.jobs.fetch(kept, ids)
        return {
            key: row
            for key, (session_id, row) in found.items()
            if session_id == self.id or key not in roots
        }

    def ids(self, state: str | None) -> Iterator[int]:
        """Go through the IDs in the order added, page by page."""
        after = (-1, -1)
        while True:
            page = self.jobs.page(self.id, state, after)
            for _, job_id in page:
                yield job_id
            if len(page) < PAGE:
                return
            after = page[-1]

    # Forgetting and removing

    def forget(self, kept: KeptConnection, job: Job, parts: Sequence[int]) -> None:
        """Take a job out of the session, and those of its parts that are unlisted."""
        self.jobs.move_parts(kept, parts, self.id, None)
        revision = self.jobs.change(kept, job, session_id=None, position=None)
        self.objects.identities.follow(job.job_id, job.revision, revision)

    def remove(self, kept: KeptConnection, ids: Sequence[int]) -> None:
        """Remove those of the objects that are in this session, for good."""
        jobs = self.jobs.read(kept, ids, lock=True).values()
        gone = [job.job_id for job in jobs if job.session_id == self.id]
        for job in jobs:
            if job.session_id == self.id:
                check_holder(job, None)
        for key in gone:
            self.objects.delete(kept, key)
        self.jobs.remove(kept, gone)
        self.history.remove(kept, gone)
        self.changes.note(self.id)

    def destroy(self) -> None:
        """Remove the session with all its objects."""

        def work(kept: KeptConnection) -> None:
            # First, as this waits for whoever is adding a job.
            kept.change(self._delete, {"session": self.id})
            ids = self.jobs.lock_all(kept, self.id)
            for statement, parameters in self._delete_objects.parts(ids):
                kept.change(statement, parameters)
            self.jobs.remove(kept, ids)
            self.history.remove(kept, ids)
            self.changes.forget(kept, self.id)
            for key in ids:
                self.objects.identities.note_removed(key)

        self.database.write(work, is_repeatable=True)
