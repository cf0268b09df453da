"""How a transaction tells whether it was committed, where nobody answered COMMIT.

Each job's row has the write ID of the transaction that wrote it last.  So any row that
a transaction wrote, and did not remove again, bears witness to it.
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
    #: Of a row that it added, None for one that was there.
    session_id: int | None


class _Noted:
    """What is known of one transaction."""

    def __init__(self) -> None:
        #: By job ID, the last one last.  Of many that are added at once it is one.
        self.rows: dict[int, _Written] = {}
        self.has_added = False


class Witnesses:
    """Has each transaction know how it is told whether it was committed."""

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

        ``session_id`` is given for a row that is new: it is locked by its session's
        row, while it is not there yet for others to wait for.
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
        """Note that rows were deleted, which can bear witness by that alone."""
        scope = self._database.scope
        if scope is None or not ids:
            return
        noted = self._noted(scope)
        for job_id in ids:
            noted.rows.pop(job_id, None)
        if not noted.rows and not noted.has_added:
            # There were such rows before, and it matters little who removes them.
            scope.has_landed = partial(self._is_gone, ids[0])

    def _noted(self, scope: Scope) -> _Noted:
        noted: _Noted = scope.notes.setdefault(self, _Noted())
        return noted

    def _has_landed(
        self, write_id: str, rows: dict[int, _Written], kept: KeptConnection
    ) -> bool | None:
        # What others have written over tells nothing, and another row may.
        for job_id, written in reversed(rows.items()):
            landed = self._tells(write_id, job_id, written, kept)
            if landed is not None:
                return landed
        return None

    def _tells(
        self, write_id: str, job_id: int, written: _Written, kept: KeptConnection
    ) -> bool | None:
        # The server may still be at work on the commit: both reads wait for it.
        is_new = written.session_id is not None
        if is_new:
            kept.row(self._wait_for_session, {"session": written.session_id})
        row = kept.row(self._read, {"id": job_id})
        if row is None:
            return False if is_new else None
        if row[0] == write_id or is_new:
            return True
        # Whoever wrote it after us has written over what would tell.
        return None if row[1] >= written.revision else False

    def _is_gone(self, job_id: int, kept: KeptConnection) -> bool:
        return kept.row(self._read, {"id": job_id}) is None
