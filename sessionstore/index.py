"""Which objects are in a session, and the session's own row."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.engine import Connection

from sessionstore.errors import ConfigurationError, NotFoundError, SchemaError
from sessionstore.failures import DuplicateKeyError
from sessionstore.history import History
from sessionstore.jobs import Job, JobTable
from sessionstore.objects import PAGE, ObjectTable
from sessionstore.schema import Now
from sessionstore.serialization import Row

__all__ = ["Index"]

log = logging.getLogger(__name__)


class Index:
    """One session: its row, its jobs' rows and their history.

    Raises ConfigurationError with ``create=False`` if there is no such session.
    """

    def __init__(self, objects: ObjectTable, name: str, *, create: bool) -> None:
        self.name = name
        self.objects = objects
        self.database = objects.database
        self.jobs = JobTable(self.database, objects.schema)
        self.history = History(self.database, objects.schema)
        self._table = table = objects.schema.sessions
        jobs = objects.schema.jobs
        last = select(func.max(jobs.c.position)).where(
            jobs.c.session_id == bindparam("session")
        )
        # The lock keeps the session from being destroyed under an addition.
        self._end = (
            select(func.coalesce(last.scalar_subquery(), 0), Now())
            .where(table.c.id == bindparam("session"), table.c.name == name)
            .with_for_update(read=True)
        )
        self.id = self._open(create)

    def _open(self, create: bool) -> int:
        self.objects.prepare()
        if not self.objects.has_sessions:
            raise SchemaError(
                f"{self.database.url!r} has no tables for sessions beside "
                f"{self.objects.schema.name!r}, and create=False was given"
            )
        found = self._find()
        if found is None and not create:
            raise ConfigurationError(
                f"there is no session {self.name!r} in {self.database.url!r}, and "
                "create=False was given"
            )
        if found is None:
            try:
                self.database.write(
                    lambda connection: self.database.execute(
                        connection,
                        insert(self._table).values(name=self.name, created_at=Now()),
                    )
                )
            except DuplicateKeyError:
                log.debug("another process created the session %r", self.name)
            found = self._find()
        assert found is not None
        return int(found.id)

    def _find(self) -> Any:
        statement = select(self._table).where(self._table.c.name == self.name)
        return self.database.read(
            lambda connection: self.database.execute(
                connection, statement
            ).one_or_none()
        )

    def row(self) -> Any:
        """Return the session's row, or raise ConfigurationError if it is gone."""
        row = self._find()
        if row is None:
            raise self._destroyed()
        return row

    def _destroyed(self) -> ConfigurationError:
        return ConfigurationError(
            f"the session {self.name!r} was destroyed; open it again to make a new one"
        )

    def end(self, connection: Connection) -> tuple[int, int]:
        """Return the last job's position, and the database's time."""
        row = self.database.execute(
            connection, self._end, {"session": self.id}
        ).one_or_none()
        if row is None:
            raise self._destroyed()
        last, now = row
        return int(last), int(now)

    def finish(self) -> None:
        """Note that the session's work is done."""
        table = self._table
        self.database.write(
            lambda connection: self.database.execute(
                connection,
                update(table).where(table.c.id == self.id).values(finished_at=Now()),
            )
        )

    # Its jobs

    def job(self, connection: Connection, key: int) -> Job:
        """Return a job of this session, locked, or raise NotFoundError."""
        job = self.jobs.read(connection, [key], lock=True).get(key)
        if job is None or job.session_id != self.id:
            raise self.not_here(key)
        return job

    def mine(self, keys: Sequence[int]) -> dict[int, Job]:
        """Return those of the jobs that are in this session."""
        jobs = self.database.read(lambda connection: self.jobs.read(connection, keys))
        return {key: job for key, job in jobs.items() if job.session_id == self.id}

    def not_here(self, key: int) -> NotFoundError:
        """Return the error for an ID that this session has not."""
        return NotFoundError(
            f"there is no object with ID {key} in the session {self.name!r}", id=key
        )

    def fetch(
        self, connection: Connection, ids: Sequence[int], roots: Collection[int]
    ) -> dict[int, Row]:
        """Read objects; of ``roots`` those only that are in this session.

        What a job refers to may stand outside, and is read all the same.
        """
        found = self.jobs.fetch(connection, ids)
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
            after = tuple(page[-1])

    # Removing

    def remove(self, ids: Sequence[int]) -> None:
        """Remove those of the objects that are in this session, for good."""

        def work(connection: Connection) -> None:
            jobs = self.jobs.read(connection, ids, lock=True)
            gone = [j.job_id for j in jobs.values() if j.session_id == self.id]
            for key in gone:
                self.objects.delete(connection, key)
            self.jobs.remove(connection, gone)
            self.history.remove(connection, gone)

        self.database.write(work)

    def destroy(self) -> None:
        """Remove the session with all its objects."""
        objects = self.objects.schema.objects
        statement = delete(objects).where(
            objects.c.id.in_(bindparam("ids", expanding=True))
        )

        def work(connection: Connection) -> None:
            # First, so that whoever is adding a job is waited for.
            self.database.execute(
                connection, delete(self._table).where(self._table.c.id == self.id)
            )
            ids = self.jobs.all_ids(connection, self.id)
            for start in range(0, len(ids), PAGE):
                some = ids[start : start + PAGE]
                self.database.execute(connection, statement, {"ids": some})
                self.jobs.remove(connection, some)
                self.history.remove(connection, some)
                for key in some:
                    self.objects.identities.note_removed(key)

        self.database.write(work)
