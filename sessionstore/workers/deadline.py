"""When a worker's work has to end because its lease was not renewed."""

from __future__ import annotations

import logging
import mmap
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sessionstore.workers.groups import signal_group

__all__ = ["Deadline"]

log = logging.getLogger(__name__)


class Deadline:
    """A time of the monotonic clock, in memory that a worker shares with its pool.

    The pool moves it on with each renewal.  When it has come, the worker ends itself:
    the pool may be dead, or waiting for the database.  It is lifted while the worker
    only writes with its claim: there a lost task is refused anyway, and a result must
    not be lost because the database is away.
    """

    def __init__(self) -> None:
        # Anonymous memory is shared with forked children.
        self._shared = memoryview(mmap.mmap(-1, 24)).cast("d")

    @property
    def at(self) -> float:
        """When it comes."""
        return self._shared[0]

    @at.setter
    def at(self, at: float) -> None:
        self._shared[0] = at

    @property
    def has_passed(self) -> bool:
        """Whether the work is to have ended by now."""
        return bool(self._shared[1]) and self.at <= time.monotonic()

    @property
    def is_met(self) -> bool:
        """Whether the worker has said that it leaves nothing to be recorded."""
        return bool(self._shared[2])

    # In the worker

    def enforce(self) -> None:
        """End this process and its group when the deadline has come, from now on."""
        signal.signal(signal.SIGALRM, lambda *_: self._look())
        self._begin()

    def lift(self) -> None:
        """Have no deadline any more."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._shared[1] = 0

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Have no deadline in the block."""
        if not self._shared[1]:
            yield
            return
        self.lift()
        try:
            yield
        finally:
            # The handler is still set; it could not be set in a thread.
            self._begin()

    def meet(self) -> None:
        """Say that nothing is left to be recorded."""
        self._shared[2] = 1

    def _begin(self) -> None:
        self._shared[1] = 1
        self._set_timer()

    def _set_timer(self) -> None:
        # 0 would switch it off.
        left = max(self.at - time.monotonic(), 1e-6)
        signal.setitimer(signal.ITIMER_REAL, left)

    def _look(self) -> None:
        if not self.has_passed:
            self._set_timer()
            return
        try:
            log.error("worker %d ends: its lease could not be renewed", os.getpid())
        finally:
            # In any case, even if the logger fails because it was interrupted.
            signal_group(os.getpid(), signal.SIGKILL)
            os._exit(1)
