"""How to find out whether a transaction was committed if COMMIT was not answered.

Each job's row has the write ID of the transaction that wrote it last.  So each row that
a transaction wrote, and did not remove again, is a witness to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from sqlalchemy import bindparam, select

from sessionstore.database.access import Database
from sessionstore.database.kept import KeptConnection
from sessionstore.database.scopes import Scope
from sessionstore.database.statements import Statement
from sessionstore.objects.schema import Schema

__all__ = ["Witnesses"]


class _Written(NamedTuple):
    """What a transaction wrote of one row."""

    revision: int
    #: The session of a row that it added; None for a row that was there.
    session_id: int | None


class _Noted:
    """What is known of one transaction."""

    def __init__(self) -> None:
        #: By job ID, in the order written.  Of many that are added at once it has one.
        self.rows: dict[int, _Written] = {}
        self.has_added = False


class Witnesses:
    """Notes in each transaction how to find out whether it was committed."""

    def __init__(self, database: Database, schema: Schema) -> None:
        self._database = database
        sessions, jobs = schema.sessions, schema.jobs
        self._wait_for_session = Statement(
            select(sessions.c.id)
            .where(sessions.c.id == bindparam("session"))
            .with_for_update()
        )
        self._read = Statement(
            select(jobs.c.write_id, jobs.c.revision)
            .where(jobs.c.job_id == bindparam("id"))
            .with_for_update()
        )

    def write_id(self, job_id: int, revision: int, session_id: int | None) -> str:
        """Return the write ID for a row that is written.

        ``session_id`` is given for a new row.  Nobody can wait for the lock of a row
        that is not there yet, so its session's row is locked and waited for.
        """
        scope = self._database.scope
        assert scope is not None
        noted = self._noted(scope)
        before = noted.rows.pop(job_id, None)
        if before is not None:
            session_id = before.session_id
        noted.rows[job_id] = _Written(revision, session_id)
        noted.has_added = noted.has_added or session_id is not None
        write_id = scope.write_id
        scope.has_landed = partial(self._has_landed, write_id, noted.rows)
        return write_id

    def removed(self, ids: Sequence[int]) -> None:
        """Note that rows were deleted; that they are gone can be the only witness."""
        scope = self._database.scope
        if scope is None or not ids:
            return
        noted = self._noted(scope)
        for job_id in ids:
            noted.rows.pop(job_id, None)
        if not noted.rows and not noted.has_added:
            # They were there before; if they are gone, it does not matter who removed
            # them.
            scope.has_landed = partial(self._is_gone, ids[0])

    def _noted(self, scope: Scope) -> _Noted:
        noted: _Noted = scope.notes.setdefault(self, _Noted())
        return noted

    def _has_landed(
        self, write_id: str, rows: dict[int, _Written], kept: KeptConnection
    ) -> bool | None:
        # A row that others have overwritten tells nothing, but another one may.
        for job_id, written in reversed(rows.items()):
            landed = self._tells(write_id, job_id, written, kept)
            if landed is not None:
                return landed
        return None

    def _tells(
        self, write_id: str, job_id: int, written: _Written, kept: KeptConnection
    ) -> bool | None:
        # The server may still be committing: both reads wait for that.
        is_new = written.session_id is not None
        if is_new:
            kept.row(self._wait_for_session, {"session": written.session_id})
        row = kept.row(self._read, {"id": job_id})
        if row is None:
            return False if is_new else None
        if row[0] == write_id or is_new:
            return True
        # If somebody wrote it after us, our write ID is overwritten.
        return None if row[1] >= written.revision else False

    def _is_gone(self, job_id: int, kept: KeptConnection) -> bool:
        return kept.row(self._read, {"id": job_id}) is None
