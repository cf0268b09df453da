"""Running a command as the work on a task."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeGuard

from sessionstore.errors import ForkError
from sessionstore.jobs.claims import Claim
from sessionstore.session import SessionStore
from sessionstore.task import State
from sessionstore.workers import assignment
from sessionstore.workers.patience import growing_pauses, patiently

__all__ = ["cannot_run", "how_it_ended", "run_command"]

log = logging.getLogger(__name__)

#: What passes: there is no process, memory, descriptor or space left just now, or the
#: program's file is being written.
PASSING = frozenset(
    {
        errno.EAGAIN,
        errno.ENOMEM,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.ETXTBSY,
    }
)
#: The exit code of shells for what they cannot run, as os.wait() gives it.
CANNOT_RUN = 127 << 8


def run_command(
    claim: Claim,
    command: object,
    *,
    output: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Take a task to its end by running a command; return its status, as os.wait().

    The task becomes SUBMITTED and RUNNING before the command starts, and TERMINATING
    and TERMINATED, with its status, when it has ended; both wait for a database that
    is away.  One that cannot be run, as there is no such program, or as ``command`` is
    no list of strings, ends with the exit code 127, and the reason in its history.
    While the host has no process, memory, descriptor or disk space left for it, it
    waits.

    The command has the worker's process group to itself, so that requests to cancel and
    to hold it hit all of its processes and nobody else.  It reads /dev/null.  What it
    prints is appended to the file ``output``, whose name becomes the task's ``output``;
    without one it goes where the worker's output goes.  ``environment`` is the
    command's whole environment, by default the worker's own.

    If the work does something before, begin it with ``claim.save()``: that saves in the
    task who works on it, as a transition does.

    Raises LeaseLostError if the task is another's by now, and ForkError anywhere but
    in a pool's worker.
    """
    ours = assignment.current()
    if ours is None or ours.claim.id != claim.id:
        raise ForkError("a command is run by a WorkerPool's worker, with its claim")
    if not _is_command(command):
        patiently(lambda: cannot_run(ours.session, claim, "it has no command"))
        return CANNOT_RUN
    if output is not None:
        claim.task.output = str(output)
    patiently(lambda: _record(ours.session, claim, State.SUBMITTED, State.RUNNING))
    status, info = _run(ours, command, output, environment)
    # The rest is writing, which is refused if the task is another's.
    ours.deadline.lift()
    ended = {"returncode": status, "info": info}
    ways = (State.TERMINATING, State.TERMINATED)
    patiently(lambda: _record(ours.session, claim, *ways, **ended))
    return status


def _is_command(value: object) -> TypeGuard[list[str]]:
    """Tell whether a value is a command line: a program and its arguments."""
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(word, str) for word in value)
    )


def cannot_run(session: SessionStore, claim: Claim, why: str) -> None:
    """End a task that cannot be worked on, in one commit."""
    ended = {"returncode": CANNOT_RUN, "info": f"cannot be run: {why}"}
    _record(session, claim, State.SUBMITTED, State.TERMINATED, **ended)


def how_it_ended(code: int) -> str:
    """Return in words how a process ended; a negative code is a signal's."""
    if code >= 0:
        return f"exited with {code}"
    return f"was killed by signal {-code} ({signal.strsignal(-code)})"


def _record(
    session: SessionStore, claim: Claim, *states: State, **details: Any
) -> None:
    # In one commit: if we died in between, what has ended would run again.
    with session.transaction():
        for state in states:
            claim.transition(state, **details)


def _run(
    ours: assignment.Assignment,
    command: list[str],
    output: str | Path | None,
    environment: Mapping[str, str] | None,
) -> tuple[int, str]:
    """Run a command, and return its status and that in words."""
    try:
        process = _start(command, output, environment)
        # Now only the command is in the group, so that stopping or ending it does not
        # hit us while we write to the database.  (If the pool is dead, we have to stay
        # in it.)
        with suppress(PermissionError):
            os.setpgid(0, ours.pools_group)
        code = process.wait()
    except (OSError, ValueError) as error:
        return CANNOT_RUN, f"cannot be run: {error}"
    return (code << 8 if code >= 0 else -code), how_it_ended(code)


def _start(
    command: list[str],
    output: str | Path | None,
    environment: Mapping[str, str] | None,
) -> subprocess.Popen[bytes]:
    """Start a command, as soon as the host has room for it."""
    pauses = growing_pauses()
    while True:
        try:
            with ExitStack() as files:
                file = None
                if output is not None:
                    file = files.enter_context(open(output, "ab"))
                return subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    env=environment,
                )
        except OSError as error:
            if error.errno not in PASSING:
                raise
            log.warning("waiting to start %s: %s", command[0], error)
            time.sleep(next(pauses))
