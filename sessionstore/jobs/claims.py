"""Claims: whoever takes a task has it alone, until its lease passes to another.

A claim is an UPDATE of the job's row on condition that nobody else has changed it,
checked by its row count (G6).  It raises the row's token, which is compared at each
write of the holder's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, Self, get_args

from sessionstore.checks import check_attempts, check_lease
from sessionstore.database.clock import instant
from sessionstore.database.kept import KeptConnection
from sessionstore.errors import (
    ConfigurationError,
    ConflictError,
    LeaseLostError,
    NotFoundError,
    SessionStoreError,
    TransitionError,
)
from sessionstore.jobs.history import Transition
from sessionstore.jobs.holder import Holder
from sessionstore.jobs.index import Index
from sessionstore.jobs.rows import FREE, Job, Request, check_holder
from sessionstore.jobs.saving import Move, save_graph
from sessionstore.jobs.states import states_from
from sessionstore.jobs.transitions import move_job, move_task, record
from sessionstore.objects.records import state_of
from sessionstore.row_ids import fits
from sessionstore.task import State

__all__ = ["Claim", "Owner", "Request", "claim", "exhaust", "request", "take"]

log = logging.getLogger(__name__)

#: How often jobs are looked for again because others were first.
ATTEMPTS = 10
REQUESTS: tuple[Request, ...] = get_args(Request)
#: The states of a task that somebody is at work on.
_UNDER_WAY = frozenset({State.SUBMITTED, State.RUNNING, State.TERMINATING})


class Owner(Protocol):
    """A claim's session.  An underscore, here and in Claim: for this package only."""

    _index: Index

    def load(self, id_: object) -> Any:
        """Return the object with this ID."""

    def refresh(self, task: Any) -> None:
        """Read an object again."""


@dataclass(slots=True)
class Claim:
    """A task that is held by whoever has this object.

    It works in a forked child, and it pickles, together with its session: the process
    that unpickles it opens connections of its own, and reads the task again.  All
    copies are one claim: the supervisor may renew it while its worker writes.  Its
    holder is the process that claimed; when that has ended, the claim is recovered.

    A ``with`` block releases it, however the block ends, in the process that entered
    it.  Each call raises LeaseLostError once the lease has passed to another, and
    changes nothing then.

    >>> from sessionstore import SessionStore, State, Task
    >>> session = SessionStore("sqlite:///tasks.db")
    >>> id_ = session.add(Task("count"))
    >>> [claim] = session.claim()
    >>> claim.task.jobname, claim.attempts
    ('count', 1)
    >>> with claim:
    ...     for state in (State.SUBMITTED, State.RUNNING, State.TERMINATED):
    ...         change = claim.transition(state)
    """

    #: The task's.
    id: int
    #: Grows with each claim of the task, and so tells an old holder from a new one.
    token: int
    #: How often the task has been claimed, this time included, since it was NEW.
    attempts: int
    #: By the database's clock.
    lease_expires_at: datetime
    #: Seconds from each renewal to the lease's end.
    lease: float
    _session: Owner = field(repr=False, compare=False)
    _revision: int = field(repr=False, compare=False)
    _task: Any = field(default=None, repr=False, compare=False)
    #: What was requested while nobody held the task.
    _request: Request | None = field(default=None, repr=False, compare=False)
    #: Whether this copy has ended the claim.
    _is_over: bool = field(default=False, repr=False, compare=False)
    #: The process that is in the ``with`` block, 0 for none.
    _pid: int = field(default=0, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        values = (self.id, self.token, self.attempts, self.lease_expires_at, self.lease)
        return Claim, (*values, self._session, self._revision)

    @property
    def task(self) -> Any:
        """The task itself, read when it is first asked for.

        Raises DecodeError if it cannot be read; its state can still be changed.
        """
        task = self._task
        if task is None:
            task = self._session.load(self.id)
            if (task._revision or 0) < self._revision:
                # It was in memory before the claim, and may be older than what the last
                # holder wrote.
                self._session.refresh(task)
            self._task = task
        elif task._revision is None and not task.changed and self._is_here(task):
            # It was read in a transaction that was rolled back.
            self._session.refresh(task)
        return task

    def renew(self) -> Request | None:
        """Let the lease last ``lease`` seconds from now; return what is requested.

        That is "cancel", "hold", "resume" or None, and stays until the claim ends.  A
        lease that has run out is renewed too, if nobody has taken the task.

        Raises ConflictError if the task was changed at this moment: try again.
        """
        index, lease = self._session._index, _microseconds(self.lease)

        def work(kept: KeptConnection) -> Job:
            job = index.job(kept, self.id)
            check_holder(job, self.token)
            # The row count decides, as wherever a lease is at stake.
            if not index.leases.renew(kept, self.id, self.token, job.now + lease):
                raise ConflictError(
                    f"task {self.id} was changed by another writer just now; try again",
                    id=self.id,
                )
            return job

        with self._held():
            job = index.database.write(work, is_repeatable=True)
        self._note(lease_expires_at=instant(job.now + lease))
        return job.request

    def save(self) -> int:
        """Write the task's changes back, and return its ID.

        Raises ConflictError if another copy of this claim has changed it since it was
        read; EncodeError if it cannot be stored.
        """
        index = self._session._index
        with self._held():
            task = self.task
            if not self._is_here(task):
                raise index.not_here(self.id)
            save_graph(index, [task], listed=False, token=self.token)
        self._note(_is_over=state_of(task) == State.TERMINATED)
        return self.id

    def transition(
        self,
        to: State | str,
        *,
        expect: State | str | Collection[State | str] | None = None,
        info: str = "",
        returncode: int | None = None,
    ) -> Transition:
        """Move the task to another state, as ``SessionStore.transition`` does.

        If ``task`` was read and is ``changed``, it is saved too.  A transition to
        TERMINATED ends the claim.
        """
        index, move = self._session._index, Move.asked(to, expect, info, returncode)
        with self._held():
            task = self._task
            if task is not None and task.changed and self._is_here(task):
                made = move_task(index, task, move, self.token)
            else:
                made = move_job(index, self.id, move, self.token)
        self._note(_is_over=made.to_state == State.TERMINATED)
        return made

    def release(self, info: str = "released") -> None:
        """Give the task back, if it is still held.

        One that is SUBMITTED, RUNNING or TERMINATING becomes UNKNOWN, with ``info`` in
        its history, so that it is claimed again; in any other state it stays.
        """
        index = self._session._index

        def work(kept: KeptConnection) -> None:
            job = index.job(kept, self.id)
            if job.holder is None and job.token == self.token:
                return
            check_holder(job, self.token)
            values = {**FREE, "request": None}
            if job.state in _UNDER_WAY:
                record(index, kept, job, State.UNKNOWN, info, self.token, values)
            else:
                revision = index.jobs.change(kept, job, self.token, **values)
                index.objects.identities.follow(self.id, job.revision, revision)

        with self._held():
            index.database.write(work)
        self._note(_is_over=True)

    def _is_here(self, task: object) -> bool:
        """Say whether an object still stands for the task's row."""
        known_id = self._session._index.objects.identities.known_id
        return known_id(task) == self.id

    def _note(self, **values: object) -> None:
        """Set attributes; a rollback puts them back."""
        before = {name: getattr(self, name) for name in values}

        def put(some: Mapping[str, object]) -> None:
            for name, value in some.items():
                setattr(self, name, value)

        scope = self._session._index.database.scope
        if scope is not None:
            scope.undo.append(lambda: put(before))
        put(values)

    @contextmanager
    def _held(self) -> Iterator[None]:
        try:
            yield
        except NotFoundError as error:
            if error.id != self.id:  # but of what is inside it
                raise
            raise LeaseLostError(
                f"task {self.id} is no longer in its session; stop working on it",
                id=self.id,
            ) from error

    def __enter__(self) -> Self:
        self._pid = os.getpid()
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        # Not in a forked child, whose parent is still in the block; nor after the claim
        # was ended here, as the task may be another's by then.
        if self._pid not in (0, os.getpid()) or self._is_over:
            return
        try:
            self.release()
        except SessionStoreError:
            if error is None:
                raise
            # The caller has to hear of what went wrong first.
            log.warning("task %s could not be released", self.id, exc_info=True)


def claim(
    session: Owner,
    number: int,
    *,
    states: Collection[State | str],
    lease: float,
    max_attempts: int | None,
) -> list[Claim]:
    """Claim up to ``number`` jobs, the oldest of those that nobody holds."""
    index, wanted = session._index, states_from(states) or ()
    check_attempts(max_attempts)
    if not isinstance(number, int) or number < 0 or not fits(number):
        raise ConfigurationError(
            f"cannot claim {number} tasks; n must be a 64-bit integer, 0 or more"
        )
    if State.TERMINATED in wanted:
        raise TransitionError(
            "a TERMINATED task cannot be claimed; redo() makes it NEW"
        )
    microseconds = _microseconds(lease)

    def work(kept: KeptConnection) -> tuple[list[Claim], bool]:
        claims: list[Claim] = []
        has_exhausted = False
        for _ in range(ATTEMPTS):
            missing = number - len(claims)
            jobs = index.leases.free(kept, index.id, wanted, missing)
            for job in jobs:
                try:
                    if max_attempts is not None and job.attempts >= max_attempts:
                        exhaust(index, kept, job)
                        has_exhausted = True
                    else:
                        claims.append(take(session, kept, job, microseconds))
                except ConflictError:
                    log.debug("another worker claimed task %s first", job.job_id)
            if not jobs or len(claims) == number:
                break
        return claims, has_exhausted

    claims, is_to_go_on = index.database.write(work)
    while is_to_go_on and not claims:  # there may be one behind all that were ended
        claims, is_to_go_on = index.database.write(work)
    if claims:
        index.compile_for_holders()
    return claims


def take(
    session: Owner,
    kept: KeptConnection,
    job: Job,
    lease: int,
    *,
    is_attempt: bool = True,
) -> Claim:
    """Make this process a job's holder.

    Raises ConflictError if the job was changed since it was read.
    """
    index = session._index
    token, expires_at = job.token + 1, job.now + lease
    attempts = job.attempts + is_attempt
    revision = index.jobs.put(
        kept,
        job,
        holder=str(Holder.current()),
        token=token,
        attempts=attempts,
        claimable_at=expires_at,
        lease_expires_at=expires_at,
    )
    index.objects.identities.follow(job.job_id, job.revision, revision)
    taken = Claim(
        job.job_id,
        token,
        attempts,
        instant(expires_at),
        lease / 1e6,
        session,
        revision,
        _request=job.request,
    )
    scope = index.database.scope
    assert scope is not None

    def undo() -> None:
        # The token will be given to another claim; no job is ever held by token 0.
        taken.token = 0

    scope.undo.append(undo)
    return taken


def request(index: Index, key: int, what: Request) -> bool:
    """Note what the job's holder is asked for; say whether it has one."""
    if what not in REQUESTS:
        raise TransitionError(
            f"there is no request {what!r}; choose from {', '.join(REQUESTS)}", id=key
        )

    def work(kept: KeptConnection) -> bool:
        job = index.job(kept, key)
        if job.state == State.TERMINATED:
            raise TransitionError(
                f"task {key} is TERMINATED; there is nothing to {what}", id=key
            )
        index.leases.request(kept, key, what)
        index.changes.note(index.id)
        return job.holder is not None

    return index.database.write(work, is_repeatable=True)


def exhaust(
    index: Index, kept: KeptConnection, job: Job, token: int | None = None
) -> None:
    """End a job that was tried as often as it may be."""
    if job.state == State.NEW:
        # By way of UNKNOWN, as NEW may not become TERMINATED.
        record(index, kept, job, State.UNKNOWN, "attempts exhausted", token)
        job = job._replace(state=State.UNKNOWN, revision=job.revision + 1)
    record(index, kept, job, State.TERMINATED, "attempts exhausted", token)


def _microseconds(seconds: float) -> int:
    check_lease(seconds)
    return round(seconds * 1e6)
