"""A forked worker's life: it is separated from the pool, works, and leaves."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import sys
import termios
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from sessionstore.errors import DecodeError, LeaseLostError, StoreError
from sessionstore.jobs.claims import Claim
from sessionstore.session import SessionStore
from sessionstore.task import State
from sessionstore.workers import assignment, groups, recording
from sessionstore.workers.command import cannot_run
from sessionstore.workers.deadline import Deadline
from sessionstore.workers.patience import patiently

__all__ = ["flush", "run_worker"]

log = logging.getLogger(__name__)

Work = Callable[[Claim], object]

#: What a terminal sends to the pool's group, and what stops a service: only the pool
#: acts on these.  A worker that has given its own group to a command is in the pool's
#: group, and must go on even while the pool is stopped.
POOLS_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGTSTP,
)


def run_worker(
    session: SessionStore,
    claim: Claim,
    deadline: Deadline,
    work: Work,
    initializer: Callable[[], object] | None,
) -> NoReturn:
    """Work on a claimed task, from the fork to the end of this process."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        pools_group = os.getpgrp()
        _set_apart()
        assignment.enter(
            assignment.Assignment(os.getpid(), session, claim, deadline, pools_group)
        )
        try:
            if initializer is not None:
                initializer()
            _do(session, claim, deadline, work)
        except BaseException as error:
            if isinstance(error, LeaseLostError) and error.id == claim.id:
                # The task's new holder records what becomes of it.
                log.info("%s", error)
            elif assignment.is_in_transaction() or not groups.end_others():
                # Nothing can be committed, or something that the work has started goes
                # on: the pool records it, when this process has ended.
                raise
            else:
                _give_back(session, claim, error)
        deadline.meet()
        status = 0
    except BaseException:
        log.exception("the worker of task %d failed", claim.id)
    finally:
        flush()
        os._exit(status)


def flush() -> None:
    """Flush what was printed: a forked child would print it again, or lose it."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):  # there is none any more
            stream.flush()


def _set_apart() -> None:
    os.setpgid(0, 0)
    # setsid() would leave the terminal too, but a session's leader cannot leave its
    # group, as run_command() does.
    with suppress(OSError), open("/dev/tty", "rb", buffering=0) as terminal:
        fcntl.ioctl(terminal, termios.TIOCNOTTY)
    # If it is ignored, nobody can learn how a command ended.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in POOLS_SIGNALS:
        # A handler, not SIG_IGN, which a command would inherit.
        signal.signal(number, lambda *_: None)
    # A command must not inherit what the pool blocks, and the deadline is a signal.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _do(session: SessionStore, claim: Claim, deadline: Deadline, work: Work) -> None:
    try:
        task = patiently(lambda: claim.task)
    except DecodeError as error:
        why = str(error)
        patiently(lambda: cannot_run(session, claim, why))
        return
    groups.mark(task)
    deadline.enforce()
    try:
        with _forked_ones_leave():
            work(claim)
    finally:
        # From here on it only writes, which is refused if the task is another's.
        deadline.lift()
    if assignment.is_in_transaction():
        raise StoreError("the work has left a transaction open, which is rolled back")
    state = getattr(getattr(task, "execution", None), "state", None)
    # If it is changed, the work may have set the state, and not saved it.
    if state is not State.TERMINATED or task.changed:
        patiently(lambda: recording.settle(session, claim))


@contextmanager
def _forked_ones_leave() -> Iterator[None]:
    """End processes that the block forks at its end: only the worker records."""
    code = 0
    try:
        yield
    except BaseException as error:
        if assignment.current() is not None:
            raise
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else bool(error.code)
        else:
            log.error("a process that the work has forked failed", exc_info=error)
            code = 1
    if assignment.current() is None:
        flush()
        os._exit(code & 0xFF)


def _give_back(session: SessionStore, claim: Claim, error: BaseException) -> None:
    log.error("the work on task %d failed", claim.id, exc_info=error)
    # With the exception's notes, which are the last lines.
    what = "".join(traceback.format_exception_only(error)).strip()
    why = f"its worker {os.getpid()} raised {what}"
    with suppress(LeaseLostError):
        patiently(lambda: recording.give_back(session, claim, why))
