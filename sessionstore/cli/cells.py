"""Tasks as cells of a row to be printed."""

from __future__ import annotations

from sessionstore.jobs.holder import Holder
from sessionstore.jobs.pages import JobRow

__all__ = ["COLUMNS", "cells_of"]

COLUMNS = (
    "id",
    "name",
    "state",
    "returncode",
    "attempts",
    "holder",
    "lease_expires",
    "request",
    "revision",
    "created",
    "changed",
)


def cells_of(job: JobRow) -> dict[str, object]:
    """Return what is shown of a task, by column."""
    return {
        "id": job.id,
        "name": job.name,
        "state": job.state,
        "returncode": job.returncode,
        "attempts": job.attempts,
        "holder": _held_by(job.holder),
        "lease_expires": job.lease_expires_at,
        "request": job.request,
        "revision": job.revision,
        "created": job.created_at,
        "changed": job.changed_at,
    }


def _held_by(holder: str | None) -> str | None:
    """Return a holder's host and PID."""
    parsed = None if holder is None else Holder.parse(holder)
    return holder if parsed is None else f"{parsed.host}/{parsed.pid}"
