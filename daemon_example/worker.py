"""What a forked worker does: run one task's command, and record it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

from daemon_example.instance import started
from daemon_example.spool import is_command
from sessionstore import (
    ConflictError,
    DecodeError,
    SessionStore,
    State,
    StoreUnavailableError,
    Task,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

#: As os.wait() has the exit code that shells give to what they cannot run.
CANNOT_RUN = 127 << 8


def work(session: SessionStore, id_: int, output: Path) -> None:
    """Take a SUBMITTED task to its end.

    The worker leads a process group of its own, and that is written into the task
    before the command starts: whoever comes later can end what is left of it.  What
    a command puts into a session of its own, as setsid(1) does, is on its own.
    """
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A signal to the group is for the command.  A handler, not SIG_IGN, which
        # the command would inherit.
        signal.signal(number, lambda *_: None)
    try:
        task = patiently(lambda: session.load(id_))
        has_command = is_command(getattr(task, "command", None))
        problem = "" if has_command else "it has no command"
    except DecodeError as error:
        problem = str(error)
    if problem:
        info = f"cannot be run: {problem}"
        ended: dict[str, Any] = {"returncode": CANNOT_RUN, "info": info}
        record(session, id_, State.TERMINATED, expect=State.SUBMITTED, **ended)
        return
    task.worker = [os.getpid(), started(os.getpid())]
    task.output = str(output)
    record(session, task, State.RUNNING, expect=State.SUBMITTED)
    returncode, info = run(task.command, output)
    # By the ID, not by the object, which others may have changed meanwhile.
    ended = {"returncode": returncode, "info": info}
    record(session, id_, State.TERMINATING, expect=State.RUNNING, **ended)
    record(session, id_, State.TERMINATED, expect=State.TERMINATING, **ended)


def run(command: list[str], output: Path) -> tuple[int, str]:
    """Run a command, and return its status, as os.wait() has it, and in words."""
    # Neither the database's password nor systemd's socket is the command's business.
    secret = ("DAEMON_EXAMPLE_", "NOTIFY_SOCKET", "WATCHDOG_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(secret)}
    try:
        with output.open("ab") as file:
            code = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environment,
                check=False,
            ).returncode
    except (OSError, ValueError) as error:
        return CANNOT_RUN, f"cannot be run: {error}"
    return (code << 8 if code >= 0 else -code), ending(code)


def ending(code: int) -> str:
    """Return in words how a process ended; a negative code is a signal's."""
    if code >= 0:
        return f"exited with {code}"
    return f"was killed by signal {-code} ({signal.strsignal(-code)})"


def record(
    session: SessionStore, subject: Task | int, to: State, **details: Any
) -> None:
    """Write a task's next state, however long the database is away."""
    try:
        patiently(lambda: session.transition(subject, to, **details))
    except ConflictError:
        # The answer to a commit may have been lost, and the repetition found it done.
        id_ = subject if isinstance(subject, int) else subject.persistent_id
        last = patiently(lambda: session.history(id_))[-1]
        if (last.to_state, last.pid) != (to, os.getpid()):
            raise


def patiently(call: Callable[[], T]) -> T:
    """Return what a call does, repeated until the database is there."""
    pause = 0.1
    while True:
        try:
            return call()
        except StoreUnavailableError as error:
            log.warning("waiting for the database: %s", error)
            time.sleep(pause)
            pause = min(2 * pause, 5.0)


def end_group(leader: int, began: float) -> None:
    """End what is left of a worker's process group."""
    # The group's number stays taken as long as there is anybody in it, so that it
    # is the worker's group unless another process leads it.
    with suppress(ProcessLookupError, psutil.NoSuchProcess):
        if not psutil.pid_exists(leader) or started(leader) == began:
            os.killpg(leader, signal.SIGKILL)
