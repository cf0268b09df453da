"""Rows of objects, jobs, sessions and history that do not fit together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, delete, func, insert, or_, select, update
from sqlalchemy.engine import Connection

from sessionstore.database.clock import Now
from sessionstore.doctor.finding import SHOWN, Finding, Level, Patient, some
from sessionstore.doctor.look import writing
from sessionstore.jobs.holder import Holder
from sessionstore.objects.schema import Schema

__all__ = ["check"]

#: Rows that are mended in one transaction.
BATCH = 500


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A way in which rows can be out of step."""

    check: str
    what: str
    why: str
    #: Selects the IDs of such jobs.
    jobs: Callable[[Schema], Select[Any]]
    mend: Callable[[Connection, Schema, Sequence[int]], None] | None
    remedy: str = "sessionstore doctor --fix"


def check(patient: Patient) -> Iterator[Finding]:
    """Look for rows that lack others, or that contradict them."""
    if patient.has_sessions:
        for mismatch in _MISMATCHES:
            yield _finding(patient, mismatch)


def _finding(patient: Patient, mismatch: Mismatch) -> Finding:
    found = mismatch.jobs(patient.schema).subquery()
    number = patient.connection.execute(
        select(func.count()).select_from(found)
    ).scalar_one()
    if number == 0:
        return Finding(mismatch.check, Level.OK, "in step")
    shown = select(found.c[0]).order_by(found.c[0]).limit(SHOWN)
    ids = [*patient.connection.execute(shown).scalars()]
    return Finding(
        mismatch.check,
        Level.WRONG,
        f"{mismatch.what}: {some(ids, number)}",
        mismatch.why,
        mismatch.remedy,
        None if mismatch.mend is None else lambda: _mend(patient, mismatch),
    )


def _mend(patient: Patient, mismatch: Mismatch) -> None:
    assert mismatch.mend is not None
    query = mismatch.jobs(patient.schema)
    done = False
    while not done:
        with writing(patient.store) as connection:
            # Selected again under the lock, so that what was written since stays.
            ids = [*connection.execute(query.limit(BATCH)).scalars()]
            if ids:
                mismatch.mend(connection, patient.schema, ids)
            done = len(ids) < BATCH


# Jobs without an object


def _without_object(schema: Schema) -> Select[Any]:
    jobs, objects = schema.jobs, schema.objects
    return (
        select(jobs.c.job_id)
        .outerjoin_from(jobs, objects, objects.c.id == jobs.c.job_id)
        .where(objects.c.id.is_(None), jobs.c.session_id.is_not(None))
    )


# Jobs of a session that is not there


def _without_session(schema: Schema) -> Select[Any]:
    jobs, sessions = schema.jobs, schema.sessions
    return (
        select(jobs.c.job_id)
        .outerjoin_from(jobs, sessions, sessions.c.id == jobs.c.session_id)
        .where(sessions.c.id.is_(None), jobs.c.session_id.is_not(None))
    )


def _forget(connection: Connection, schema: Schema, ids: Sequence[int]) -> None:
    jobs = schema.jobs
    connection.execute(
        update(jobs)
        .where(jobs.c.job_id.in_(ids))
        .values(session_id=None, position=None, revision=jobs.c.revision + 1)
    )


# States


def _of_other_state(schema: Schema) -> Select[Any]:
    jobs, objects = schema.jobs, schema.objects
    return (
        select(jobs.c.job_id)
        .join_from(jobs, objects, objects.c.id == jobs.c.job_id)
        .where(
            jobs.c.session_id.is_not(None),
            or_(objects.c.state.is_(None), objects.c.state != jobs.c.state),
        )
    )


def _copy_state(connection: Connection, schema: Schema, ids: Sequence[int]) -> None:
    jobs, objects = schema.jobs, schema.objects
    state = select(jobs.c.state).where(jobs.c.job_id == objects.c.id)
    connection.execute(
        update(objects)
        .where(objects.c.id.in_(ids))
        .values(state=state.scalar_subquery())
    )


# History


def _last_entries(schema: Schema) -> Any:
    entries = schema.transitions
    last = (
        select(entries.c.job_id, func.max(entries.c.revision).label("revision"))
        .group_by(entries.c.job_id)
        .subquery()
    )
    return (
        select(entries.c.job_id, entries.c.to_state)
        .join_from(
            entries,
            last,
            (entries.c.job_id == last.c.job_id)
            & (entries.c.revision == last.c.revision),
        )
        .subquery()
    )


def _of_other_history(schema: Schema) -> Select[Any]:
    jobs, last = schema.jobs, _last_entries(schema)
    return (
        select(jobs.c.job_id)
        .outerjoin_from(jobs, last, last.c.job_id == jobs.c.job_id)
        .where(
            jobs.c.session_id.is_not(None),
            jobs.c.position.is_not(None),
            # Held jobs are left: their holders compare the revision, which mending
            # raises.
            jobs.c.holder.is_(None),
            or_(last.c.to_state.is_(None), last.c.to_state != jobs.c.state),
        )
    )


def _note_state(connection: Connection, schema: Schema, ids: Sequence[int]) -> None:
    jobs, last = schema.jobs, _last_entries(schema)
    us = Holder.current()
    connection.execute(
        update(jobs).where(jobs.c.job_id.in_(ids)).values(revision=jobs.c.revision + 1)
    )
    missing = (
        select(jobs.c.job_id, jobs.c.revision, last.c.to_state, jobs.c.state)
        .outerjoin_from(jobs, last, last.c.job_id == jobs.c.job_id)
        .where(jobs.c.job_id.in_(ids))
    )
    [[now]] = connection.execute(select(Now()))
    connection.execute(
        insert(schema.transitions),
        [
            {
                "job_id": job_id,
                "revision": revision,
                "from_state": from_state,
                "to_state": to_state,
                "at": now,
                "info": "added by sessionstore doctor; the change was not recorded",
                "host": us.host,
                "pid": us.pid,
            }
            for job_id, revision, from_state, to_state in connection.execute(missing)
        ],
    )


def _without_job(schema: Schema) -> Select[Any]:
    entries, jobs = schema.transitions, schema.jobs
    return (
        select(entries.c.job_id)
        .distinct()
        .outerjoin_from(entries, jobs, jobs.c.job_id == entries.c.job_id)
        .where(jobs.c.job_id.is_(None))
    )


def _remove_history(connection: Connection, schema: Schema, ids: Sequence[int]) -> None:
    entries = schema.transitions
    connection.execute(delete(entries).where(entries.c.job_id.in_(ids)))


_MISMATCHES = (
    Mismatch(
        "jobs and objects",
        "tasks whose object is missing",
        "the session lists tasks that cannot be loaded",
        _without_object,
        None,
        "sessionstore forget ID",
    ),
    Mismatch(
        "jobs and sessions",
        "tasks of a session that no longer exists",
        "no session lists them, and they cannot be added to one",
        _without_session,
        _forget,
    ),
    Mismatch(
        "states",
        "objects whose state differs from their task's",
        "programs that read the object table see a different state from the session",
        _of_other_state,
        _copy_state,
    ),
    Mismatch(
        "history",
        "tasks whose state differs from the last entry of their history",
        "their history is incomplete",
        _of_other_history,
        _note_state,
    ),
    Mismatch(
        "history and jobs",
        "history entries of tasks that no longer exist",
        "no command can show them, and they take up space",
        _without_job,
        _remove_history,
    ),
)
