"""How those who wait for a session learn that somebody has written to it.

PostgreSQL has NOTIFY.  It is sent along with COMMIT, and runs after it: within the
transaction it would make all transactions that notify commit one after the other
(PostgreSQL's ``PreCommit_Notify`` takes a lock on the whole database for that).

MariaDB and MySQL have nothing of the kind, so each transaction adds to a counter, just
before COMMIT.  There are a few rows for that, of which each process uses one, or all
would wait for the lock of the same row.

SQLite knows by itself when its file has changed.
"""

from __future__ import annotations

import os
from typing import Any

from sqlalchemy import bindparam, delete, func, select

from sessionstore.database.access import Database
from sessionstore.database.dialects import Telling
from sessionstore.database.kept import KeptConnection
from sessionstore.database.scopes import Scope
from sessionstore.database.statements import Statement
from sessionstore.objects.schema import Schema

__all__ = ["Changes"]

#: Rows for each session; more would take longer to add up.
SLOTS = 8


class Changes:
    """Tells that jobs of a session have changed, once for each transaction."""

    def __init__(self, database: Database, schema: Schema) -> None:
        self._database = database
        self._prefix = f"sessionstore_{schema.lock_name[:16]}"
        self._telling = database.settings.telling
        #: The statements that a transaction runs to tell of a change.
        self.writes: list[Statement] = []
        if self._telling is Telling.COUNTER:
            table = schema.changes
            self._count = Statement(_counting(table))
            self.writes.append(self._count)
            of_session = table.c.session_id == bindparam("session")
            self._sum = Statement(select(func.sum(table.c.number)).where(of_session))
            self._delete = Statement(delete(table).where(of_session))

    def channel(self, session_id: int) -> str:
        """Return the name by which NOTIFY and LISTEN know a session."""
        return f"{self._prefix}_{session_id}"

    def note(self, session_id: int | None) -> None:
        """Tell of a change when the transaction commits."""
        if self._telling is Telling.BY_ITSELF or session_id is None:
            return
        scope = self._database.scope
        assert scope is not None
        noted = scope.notes.get(self)
        if noted is None:
            noted = scope.notes[self] = set()
            scope.before_commit.append(self._tell)
        noted.add(session_id)

    def _tell(self, scope: Scope) -> None:
        # In order, so that two transactions that changed the same sessions cannot
        # end in a deadlock.
        for session_id in sorted(scope.notes[self]):
            if self._telling is Telling.NOTIFY:
                scope.with_commit.append(f"NOTIFY {self.channel(session_id)}")
            else:
                slot = os.getpid() % SLOTS
                scope.kept.change(self._count, {"session": session_id, "slot": slot})

    def count(self, kept: KeptConnection, session_id: int) -> object:
        """Return the counters' sum, which is another one after each change."""
        row = kept.row(self._sum, {"session": session_id})
        return row and row[0]

    def forget(self, kept: KeptConnection, session_id: int) -> None:
        """Drop what is kept of a session that is destroyed."""
        if self._telling is Telling.COUNTER:
            kept.change(self._delete, {"session": session_id})
        else:
            self.note(session_id)


def _counting(table: Any) -> Any:
    # Imported only where it is needed, as it takes as long as this whole package.
    from sqlalchemy.dialects.mysql import insert

    row = {"session_id": bindparam("session"), "slot": bindparam("slot"), "number": 1}
    return insert(table).values(row).on_duplicate_key_update(number=table.c.number + 1)
