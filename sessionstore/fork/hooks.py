"""One gate and one set of hooks for the process: what is done around each fork.

What a forked child inherits of a database connection is worse than useless.
Freeing a SQLAlchemy connection there sends ROLLBACK on the parent's socket;
freeing a ``sqlite3`` handle drops the parent's file locks; and a second handle on
the same SQLite file shares the dead one's lock table.  Much of that cannot be
mended in the child, so the work is done on both sides of the fork:

before
    The gate closes and the other threads' database calls are waited for, for
    ``WAIT`` seconds at most.  Then idle SQLite connections are closed, so that
    the child inherits none.
in the parent
    The gate opens.
in the child
    Locks are made anew.  Connections that came along are taken out of
    SQLAlchemy's hands, kept alive for ever (their destructors talk to the server),
    and their descriptors are laid over with /dev/null.  A SQLite file that was
    open at the fork is refused from then on.

``os.register_at_fork`` does not see a ``fork()`` made by C code, so each entry
through the gate compares the PID too and does the child's part late; so does each
use of a connection, and the interpreter's end.
"""

from __future__ import annotations

import atexit
import logging
import os
import time
import weakref
from collections.abc import Callable
from typing import Protocol

from sessionstore.fork.gate import Gate

__all__ = ["WAIT", "Watcher", "gate", "watchers"]

log = logging.getLogger(__name__)

#: Seconds a fork waits for the database calls of other threads.
WAIT = 2.0


class Watcher(Protocol):
    """Watches what a child must not simply inherit."""

    def before_fork(self) -> None:
        """Get ready, while no other thread is inside the gate."""

    def after_in_parent(self) -> None:
        """Go on as before."""

    def after_in_child(self) -> None:
        """Part with what is the parent's."""


#: Who takes part in each fork, for as long as somebody else refers to it.
watchers: weakref.WeakSet[Watcher] = weakref.WeakSet()


def before() -> None:
    """Stop database calls, and close what a child must not inherit."""
    started = time.monotonic()
    if not gate.close(WAIT):
        log.error(
            "forking although other threads' database calls were still running after "
            "%.1f s; the child cannot use the SQLite databases they were using",
            time.monotonic() - started,
        )
    _for_each(lambda watcher: watcher.before_fork())


def after_in_parent() -> None:
    """Go on as before."""
    _for_each(lambda watcher: watcher.after_in_parent())
    gate.open()


def after_in_child() -> None:
    """Start anew: with fresh locks, and none of the parent's connections."""
    gate.renew()
    _for_each(lambda watcher: watcher.after_in_child())
    gate.pid = os.getpid()  # last, as other threads may use the stores from here on


def _for_each(step: Callable[[Watcher], None]) -> None:
    # An exception in a hook is only printed, and cannot stop the fork, so one failure
    # must not keep the other watchers from their turn.
    for watcher in list(watchers):
        try:
            step(watcher)
        except Exception:
            log.exception("a fork hook failed")


gate = Gate(after_in_child)
# A child forked by C code may end without a call; its exit would free what it inherits.
atexit.register(gate.notice_fork)
os.register_at_fork(
    before=before, after_in_parent=after_in_parent, after_in_child=after_in_child
)
