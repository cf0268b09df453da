"""Claims of holders that are gone."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import select

from sessionstore.database.clock import Now
from sessionstore.doctor.finding import Finding, Level, Patient, some
from sessionstore.jobs.holder import Holder

__all__ = ["check"]


def check(patient: Patient) -> Iterator[Finding]:
    """Look for leases that ran out, and holders of this host that are gone."""
    if not patient.has_sessions:
        return
    jobs = patient.schema.jobs
    [[now]] = patient.connection.execute(select(Now()))
    expired, orphaned = [], []
    held = select(jobs.c.job_id, jobs.c.holder, jobs.c.lease_expires_at)
    for id_, holder, lease_expires_at in patient.connection.execute(
        held.where(jobs.c.holder.is_not(None)).order_by(jobs.c.job_id)
    ):
        parsed = Holder.parse(holder)
        if parsed is not None and parsed.is_gone():
            orphaned.append(id_)
        elif lease_expires_at <= now:
            expired.append(id_)
    yield _finding("leases", "tasks with an expired lease", expired)
    yield _finding("holders", "tasks claimed by a dead process on this host", orphaned)


def _finding(check: str, what: str, ids: list[int]) -> Finding:
    if not ids:
        return Finding(check, Level.OK, "none")
    return Finding(
        check,
        Level.WRONG,
        f"{what}: {some(ids, len(ids))}",
        "no worker runs them until they are recovered",
        # No mend: commands that the holder left behind may still run, and only its
        # program knows how to end them.
        "start a daemon for that session, or call session.recover()",
    )
