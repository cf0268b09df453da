"""The statements about leases: who holds which job, and until when."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import BindParameter, bindparam, literal, select, update

from sessionstore.database.dialects import Settings
from sessionstore.database.kept import KeptConnection
from sessionstore.database.statements import Statement
from sessionstore.jobs.rows import Job, Request, columns_of
from sessionstore.objects.schema import Schema
from sessionstore.task import State

__all__ = ["LeaseTable"]

#: A job in any of these may be held.
_NOT_FINAL = [literal(str(state)) for state in State if state != State.TERMINATED]


class LeaseTable:
    """Finds the jobs that may be claimed, and those that are held.

    ``claimable_at`` is NULL for the former, and the lease's end for the latter, so that
    the index on (session_id, state, claimable_at, position) serves both.
    """

    def __init__(self, settings: Settings, schema: Schema) -> None:
        table = schema.jobs
        read = select(*columns_of(table)).where(
            table.c.session_id == bindparam("session")
        )
        free = (
            read.where(
                table.c.state == bindparam("state"),
                table.c.claimable_at.is_(None),
                # Nested objects have none.  With IS NOT NULL, SQLite would go through
                # all jobs.
                table.c.position > 0,
            )
            .limit(bindparam("number"))
            .with_for_update(skip_locked=True)
        )
        if settings.names_index:
            # MariaDB would go through the whole session by position.
            hint = schema.hint(schema.claim_index)
            for name in ("mysql", "mariadb"):
                free = free.with_hint(table, hint, name)
        else:
            # PostgreSQL does not see that it is NULL in all rows, and would sort them.
            free = free.order_by(table.c.claimable_at)
        self._free = Statement(free.order_by(table.c.position))
        self._held = Statement(
            read.where(table.c.state.in_(_NOT_FINAL), table.c.claimable_at > 0)
        )
        is_ours = (
            (table.c.job_id == bindparam("id"))
            & (table.c.token == bindparam("held_token"))
            & table.c.holder.is_not(None)
        )
        expires_at: BindParameter[int] = bindparam("expires_at")
        self._renew = Statement(
            update(table)
            .where(is_ours)
            .values(claimable_at=expires_at, lease_expires_at=expires_at)
        )
        self._request = Statement(
            update(table)
            .where(table.c.job_id == bindparam("id"))
            .values(request=bindparam("what"))
        )

    def free(
        self,
        kept: KeptConnection,
        session_id: int,
        states: Collection[State],
        number: int,
    ) -> list[Job]:
        """Return the oldest jobs that nobody holds, nor is claiming just now."""
        jobs: list[Job] = []
        parameters: dict[str, Any] = {"session": session_id, "number": number}
        for state in states:
            rows = kept.rows(self._free, {**parameters, "state": str(state)})
            jobs.extend(Job(*row) for row in rows)
        jobs.sort(key=lambda job: job.position or 0)
        return jobs[:number]

    def held(self, kept: KeptConnection, session_id: int) -> list[Job]:
        """Return the jobs that somebody holds."""
        rows = kept.rows(self._held, {"session": session_id})
        return [Job(*row) for row in rows]

    def renew(
        self, kept: KeptConnection, job_id: int, token: int, expires_at: int
    ) -> bool:
        """Move a lease's end; say whether it was this token's to move.

        The job's revision stays: who holds it may be writing it in another process.
        """
        parameters = {"id": job_id, "held_token": token, "expires_at": expires_at}
        return kept.change(self._renew, parameters) == 1

    def request(self, kept: KeptConnection, job_id: int, what: Request) -> None:
        """Note what a job's holder is asked for."""
        kept.change(self._request, {"id": job_id, "what": what})
