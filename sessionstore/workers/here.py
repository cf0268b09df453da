"""Which worker this process is, if it is one."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from sessionstore.claims import Claim
from sessionstore.session import SessionStore
from sessionstore.workers.deadline import Deadline

__all__ = ["Worker", "deadline_lifted", "enter", "worker"]


@dataclass(frozen=True, slots=True)
class Worker:
    """What a forked worker has from its pool."""

    pid: int
    session: SessionStore
    claim: Claim
    deadline: Deadline
    #: The process group that the pool is in.
    pools_group: int


_worker: Worker | None = None


def enter(worker: Worker) -> None:
    """Be this worker, for as long as the process lives."""
    global _worker
    _worker = worker


def worker() -> Worker | None:
    """Return which worker this process is, None if it is none."""
    # What a worker has forked itself is none.
    return _worker if _worker is not None and _worker.pid == os.getpid() else None


def deadline_lifted() -> AbstractContextManager[None]:
    """Lift the deadline in the block, if this process has one."""
    me = worker()
    return nullcontext() if me is None else me.deadline.lifted()
