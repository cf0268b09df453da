"""Recording what becomes of a task whose work has ended without ending the task.

Each function makes one commit, returns whether there was anything to record, and raises
LeaseLostError if the task is another holder's.
"""

from __future__ import annotations

import signal
from dataclasses import replace

from sessionstore.database.kept import KeptConnection
from sessionstore.jobs.claims import Claim
from sessionstore.jobs.rows import Job, check_holder
from sessionstore.session import SessionStore
from sessionstore.task import State

__all__ = ["cancel", "give_back", "settle"]


def settle(session: SessionStore, claim: Claim) -> bool:
    """Record that the work is done, with what it changed in the task.

    A task that it has made STOPPED stays so, and is given back.
    """
    with session.transaction():
        job = _job(session, claim)
        if job is None:
            return False
        if job.state == State.STOPPED:
            claim.release()
            return True
        if job.state == State.NEW:
            claim.transition(State.SUBMITTED)
        claim.transition(State.TERMINATED, returncode=0, info="returned")
    return True


def give_back(
    session: SessionStore, claim: Claim, why: str, *, was_tried: bool = True
) -> bool:
    """Record that the work has failed: the task is UNKNOWN, to be tried again.

    One that is held stays STOPPED.  Work that was not even tried is no attempt.
    """
    # What the failed work has left in the object must not be saved.
    untouched = replace(claim, _task=None)
    with session.transaction():
        job = _job(session, claim)
        if job is None:
            return False
        if job.request == "cancel":
            # The work failed before anybody obeyed the request, which a release would
            # forget.
            untouched.transition(State.UNKNOWN, info=why)
            return cancel(session, untouched)
        if job.state in (State.NEW, State.UNKNOWN):
            # A release leaves these as they are, without a word in the history.
            untouched.transition(State.UNKNOWN, info=why)
        untouched.release(why)
        if not was_tried:
            _uncount(session, claim)
    return True


def cancel(session: SessionStore, claim: Claim) -> bool:
    """Record that the task was cancelled."""
    with session.transaction():
        job = _job(session, claim)
        if job is None:
            return False
        if job.state == State.NEW:
            # From where there is no way to TERMINATED.
            claim.transition(State.UNKNOWN, info="cancelled")
        killed = int(signal.SIGKILL)
        claim.transition(State.TERMINATED, info="cancelled", returncode=killed)
    return True


def _uncount(session: SessionStore, claim: Claim) -> None:
    """Take back that a claim was an attempt."""
    index = session._index

    def work(kept: KeptConnection) -> None:
        job = index.job(kept, claim.id)
        revision = index.jobs.put(kept, job, attempts=claim.attempts - 1)
        index.objects.identities.follow(claim.id, job.revision, revision)

    index.database.write(work)


def _job(session: SessionStore, claim: Claim) -> Job | None:
    """Return the row of a task that is held, None if the claim was ended by us."""
    index = session._index
    with claim._held():
        job = index.database.write(lambda kept: index.job(kept, claim.id))
    if job.holder is None and job.token == claim.token:
        return None
    check_holder(job, claim.token)
    return job
