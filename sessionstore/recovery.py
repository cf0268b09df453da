"""Tasks whose holder is no more are anybody's again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from sessionstore.claims import Claim, Owner, check_attempts, exhaust, take
from sessionstore.errors import ConflictError, LeaseLostError, NotFoundError
from sessionstore.holder import Holder
from sessionstore.index import Index
from sessionstore.jobs import FREE, Job, check_holder
from sessionstore.kept import KeptConnection
from sessionstore.task import State
from sessionstore.transitions import record

__all__ = ["recover"]

log = logging.getLogger(__name__)

#: Microseconds for which who reaps a task has it alone.
LEASE = 60_000_000


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
    for job in index.database.read(lambda kept: index.leases.held(kept, index.id)):
        why = _why_free(job)
        if why is None:
            continue
        try:
            if _recover_one(session, job.job_id, why, max_attempts, reap):
                recovered.append(job.job_id)
        except (ConflictError, LeaseLostError, NotFoundError):
            log.info("task %s was recovered by somebody else", job.job_id)
        except ReapError as error:
            # One task whose commands do not end must not keep the others waiting.
            log.error("task %s stays claimed: %s", job.job_id, error.__cause__)
            failure = failure or error.cause
    if failure is not None:
        raise failure
    return recovered


class ReapError(Exception):
    """What the caller's function raised."""

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
            lambda kept: _free(index, kept, key, None, why, max_attempts)
        )
    claim = index.database.write(lambda kept: _take_over(session, kept, key))
    if claim is None:
        return False
    try:
        reap(claim.task)
    except Exception as error:
        _give_up(index, claim)
        raise ReapError(error) from error
    return index.database.write(
        lambda kept: _free(index, kept, key, claim.token, why, max_attempts)
    )


def _lapsed(index: Index, kept: KeptConnection, key: int) -> Job | None:
    """Return a job, locked, if it is still to be recovered."""
    job = index.jobs.read(kept, [key], lock=True).get(key)
    # A renewal leaves the revision as it is, so that the lease is looked at again.
    return job if job is not None and _why_free(job) else None


def _take_over(session: Owner, kept: KeptConnection, key: int) -> Claim | None:
    job = _lapsed(session._index, kept, key)
    return job and take(session, kept, job, LEASE, is_attempt=False)


def _give_up(index: Index, claim: Claim) -> None:
    """Let the lease run out now, for the next one who recovers to try again."""

    def work(kept: KeptConnection) -> None:
        now = index.job(kept, claim.id).now
        index.leases.renew(kept, claim.id, claim.token, now)

    index.database.write(work)


def _free(
    index: Index,
    kept: KeptConnection,
    key: int,
    token: int | None,
    why: str,
    max_attempts: int | None,
) -> bool:
    if token is None:
        job = _lapsed(index, kept, key)
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
    else:
        record(index, kept, job, State.UNKNOWN, why, token, FREE)
    return True


def _why_free(job: Job) -> str | None:
    """Say why a task's holder has it no more, None if it has it."""
    if job.holder is None or job.lease_expires_at is None:
        return None
    if job.lease_expires_at <= job.now:
        return f"the lease of {job.holder} ran out"
    holder = Holder.parse(job.holder)
    if holder is not None and holder.is_gone():
        return f"its holder {job.holder} is gone"
    return None
