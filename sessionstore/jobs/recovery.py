"""Freeing the tasks whose holder is gone, or has lost its lease."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from sessionstore.checks import check_attempts
from sessionstore.database.kept import KeptConnection
from sessionstore.errors import (
    ConflictError,
    LeaseLostError,
    LoadError,
    NotFoundError,
)
from sessionstore.jobs import claims
from sessionstore.jobs.claims import Claim, exhaust, take
from sessionstore.jobs.holder import Holder
from sessionstore.jobs.index import Index
from sessionstore.jobs.rows import FREE, Job, check_holder
from sessionstore.jobs.transitions import record
from sessionstore.task import State

__all__ = ["Seen", "recover"]

log = logging.getLogger(__name__)

#: Microseconds for which whoever reaps a task holds it.
LEASE = 60_000_000


class Owner(claims.Owner, Protocol):
    """The session whose tasks are recovered."""

    _seen: Seen


class Seen:
    """What a session object remembers from one call of ``recover`` to the next."""

    def __init__(self) -> None:
        self._ends: dict[object, float] = {}
        self._said: dict[int, str] = {}

    def look(self, jobs: Sequence[Job]) -> None:
        """Note when these leases end by the monotonic clock; forget all others."""
        now, seen, said = time.monotonic(), self._ends, self._said
        self._ends = {
            _lease(job): seen.get(_lease(job), now + _seconds_left(job)) for job in jobs
        }
        ids = {job.job_id for job in jobs}
        self._said = {id_: text for id_, text in said.items() if id_ in ids}

    def has_ended(self, job: Job) -> bool:
        """Say whether a lease ran out, and not only because the clock was set.

        The database's clock may be set forward, by years on a host that started without
        one, and no holder could have renewed its lease just then.  So a lease that was
        seen running is given the time that it had left.
        """
        end = self._ends.get(_lease(job), 0.0)
        return _seconds_left(job) <= 0 and end <= time.monotonic()

    def is_news(self, job_id: int, text: str) -> bool:
        """Say whether this was not what was said of the job the last time."""
        before, self._said[job_id] = self._said.get(job_id), text
        return before != text


def _lease(job: Job) -> object:
    return job.job_id, job.token, job.lease_expires_at


def _seconds_left(job: Job) -> float:
    return ((job.lease_expires_at or 0) - job.now) / 1e6


def recover(
    session: Owner,
    *,
    max_attempts: int | None,
    reap: Callable[[Any], object] | None,
) -> list[int]:
    """Free the tasks whose lease ran out or whose holder is gone; return their IDs.

    With ``reap`` a task is claimed first, so that its old holder cannot write any more
    and nobody else reaps it too, and freed when ``reap`` has returned.
    """
    check_attempts(max_attempts)
    index = session._index
    recovered: list[int] = []
    failure: Exception | None = None
    held = index.database.read(lambda kept: index.leases.held(kept, index.id))
    session._seen.look(held)
    for job in held:
        why = _why_free(session, job)
        if why is None:
            continue
        try:
            if _recover_one(session, job.job_id, why, max_attempts, reap):
                recovered.append(job.job_id)
        except (ConflictError, LeaseLostError, NotFoundError):
            log.info("task %s was recovered by another process", job.job_id)
        except ReapError as error:
            # A task whose command does not end must not keep the others waiting.
            is_news = session._seen.is_news(job.job_id, str(error.cause))
            say = log.error if is_news else log.debug
            say("task %s stays claimed: %s", job.job_id, error.cause)
            failure = failure or error.cause
    if failure is not None:
        raise failure
    return recovered


class ReapError(Exception):
    """Carries what the caller's ``reap`` raised."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


def _recover_one(
    session: Owner,
    key: int,
    why: str,
    max_attempts: int | None,
    reap: Callable[[Any], object] | None,
) -> bool:
    index = session._index
    if reap is None:
        return index.database.write(
            lambda kept: _free(session, kept, key, None, why, max_attempts)
        )
    claim = index.database.write(lambda kept: _take_over(session, kept, key))
    if claim is None:
        return False
    problem = ""
    try:
        task = claim.task
    except LoadError as error:
        problem = f"what it left running is not known: {error}"
        log.warning("task %s will be STOPPED: %s", key, problem)
    else:
        try:
            reap(task)
        except Exception as error:
            _give_up(index, claim)
            raise ReapError(error) from error
    return index.database.write(
        lambda kept: _free(
            session, kept, key, claim.token, why, max_attempts, problem=problem
        )
    )


def _lapsed(session: Owner, kept: KeptConnection, key: int) -> Job | None:
    """Return a job, locked, if it is still to be recovered.

    One that is locked is left for the next time: its holder is writing it, or vanished
    while it did, and the other tasks must not wait until that is known.
    """
    job = session._index.jobs.lock_free(kept, key)
    # Looked at again, as a renewal does not show in the revision.
    return job if job is not None and _why_free(session, job) else None


def _take_over(session: Owner, kept: KeptConnection, key: int) -> Claim | None:
    job = _lapsed(session, kept, key)
    return job and take(session, kept, job, LEASE, is_attempt=False)


def _give_up(index: Index, claim: Claim) -> None:
    """Let the lease run out now, so that the next call of ``recover`` tries again."""

    def work(kept: KeptConnection) -> None:
        now = index.job(kept, claim.id).now
        index.leases.renew(kept, claim.id, claim.token, now)

    index.database.write(work, is_repeatable=True)


def _free(
    session: Owner,
    kept: KeptConnection,
    key: int,
    token: int | None,
    why: str,
    max_attempts: int | None,
    *,
    problem: str = "",
) -> bool:
    """Free a job; with a ``problem`` it is STOPPED, for somebody to look into it."""
    index = session._index
    if token is None:
        job = _lapsed(session, kept, key)
        if job is None:
            return False
        token = job.token
    else:
        job = index.job(kept, key)
        check_holder(job, token)
    if job.state == State.STOPPED:
        revision = index.jobs.change(kept, job, token, **FREE)
        index.objects.identities.follow(key, job.revision, revision)
    elif max_attempts is not None and job.attempts >= max_attempts:
        exhaust(index, kept, job, token)
    elif problem:
        # By way of UNKNOWN, as not every state may become STOPPED.
        record(index, kept, job, State.UNKNOWN, why, token)
        job = job._replace(state=State.UNKNOWN, revision=job.revision + 1)
        record(index, kept, job, State.STOPPED, problem, token, FREE)
    else:
        record(index, kept, job, State.UNKNOWN, why, token, FREE)
    return True


def _why_free(session: Owner, job: Job) -> str | None:
    """Say why a task's holder has lost it; None if it has not."""
    if job.holder is None or job.lease_expires_at is None:
        return None
    if session._seen.has_ended(job):
        return f"the lease of {job.holder} expired"
    holder = Holder.parse(job.holder)
    if holder is not None and holder.is_gone():
        return f"its holder {job.holder} is gone"
    return None
