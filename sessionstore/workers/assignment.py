"""The task that this process works on, if it is a worker."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from sessionstore.jobs.claims import Claim
from sessionstore.session import SessionStore
from sessionstore.workers.deadline import Deadline

__all__ = ["Assignment", "current", "deadline_lifted", "enter", "is_in_transaction"]


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a forked worker was given by its pool."""

    pid: int
    session: SessionStore
    claim: Claim
    deadline: Deadline
    #: The process group that the pool is in.
    pools_group: int


_assignment: Assignment | None = None


def enter(assignment: Assignment) -> None:
    """Make this process the worker with this assignment, for as long as it lives."""
    global _assignment
    _assignment = assignment


def current() -> Assignment | None:
    """Return this process's assignment, None if it is no worker."""
    ours = _assignment
    # A process that a worker has forked itself is none.
    return ours if ours is not None and ours.pid == os.getpid() else None


def is_in_transaction() -> bool:
    """Say whether this thread of a worker is in a transaction of its session."""
    ours = current()
    return ours is not None and ours.session._index.database.scope is not None


def deadline_lifted() -> AbstractContextManager[None]:
    """Lift the deadline in the block, if this process has one."""
    ours = current()
    return nullcontext() if ours is None else ours.deadline.lifted()
