"""What a forked worker does: run one task's command, and record it."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

from daemon_example.instance import host, started
from daemon_example.spool import is_command
from sessionstore import (
    Claim,
    ConfigurationError,
    DecodeError,
    SessionStore,
    State,
    StoreUnavailableError,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

#: As os.wait() has the exit code that shells give to what they cannot run.
CANNOT_RUN = 127 << 8


def work(
    session: SessionStore, claim: Claim, output: Path, deadline: memoryview[float]
) -> None:
    """Take a claimed task to its end; raise LeaseLostError if it is another's now.

    The command runs in a process group that has the worker's PID, and that is written
    into the task before the command starts: whoever comes later can end what is left
    of it.  What a command puts into a group of its own, as setsid(1) does, is on its
    own.  ``deadline`` is when the command has to be ended, by the monotonic clock; the
    supervisor moves it on with each renewal.
    """
    daemons_group = os.getpgrp()
    os.setpgid(0, 0)
    # setsid() would leave the terminal too, but who leads a session cannot leave its
    # group, as run() does.
    with suppress(OSError), open("/dev/tty", "rb", buffering=0) as terminal:
        fcntl.ioctl(terminal, termios.TIOCNOTTY)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # The supervisor's to act on.  A handler, not SIG_IGN, which the command would
        # inherit.
        signal.signal(number, lambda *_: None)

    def record(*states: State, **details: Any) -> None:
        # In one commit: what has ended must not run again because we died in between.
        with session.transaction():
            for state in states:
                claim.transition(state, **details)

    try:
        task = patiently(lambda: claim.task)
        if not is_command(getattr(task, "command", None)):
            raise ValueError("it has no command")
    except (DecodeError, ValueError) as error:
        ended = {"returncode": CANNOT_RUN, "info": f"cannot be run: {error}"}
        patiently(lambda: record(State.SUBMITTED, State.TERMINATED, **ended))
        return
    task.worker = [host(), os.getpid(), started(os.getpid())]
    task.output = str(output)
    patiently(lambda: record(State.SUBMITTED, State.RUNNING))
    returncode, info = run(task.command, output, daemons_group, deadline)
    ended = {"returncode": returncode, "info": info}
    patiently(lambda: record(State.TERMINATING, State.TERMINATED, **ended))


def run(
    command: list[str], output: Path, daemons_group: int, deadline: memoryview[float]
) -> tuple[int, str]:
    """Run a command, and return its status, as os.wait() has it, and in words."""
    # Neither the database's password nor systemd's socket is the command's business.
    secret = ("DAEMON_EXAMPLE_", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(secret)}

    def end_in_time(*_: object) -> None:
        left = deadline[0] - time.monotonic()
        if left > 0:
            signal.setitimer(signal.ITIMER_REAL, left)
        else:
            log.error("%s is ended: its lease could not be renewed", command[0])
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(os.getpid(), signal.SIGKILL)
            os._exit(1)

    # Here, not in the supervisor, which may be dead, or waiting for the database.
    signal.signal(signal.SIGALRM, end_in_time)
    signal.setitimer(signal.ITIMER_REAL, max(deadline[0] - time.monotonic(), 1e-6))
    try:
        with output.open("ab") as file:
            nothing = subprocess.DEVNULL
            process = subprocess.Popen(
                command, stdin=nothing, stdout=file, stderr=file, env=environment
            )
        # The command alone has the group now, so that to stop or end it does not hit
        # us while we write to the database.  (Without a supervisor it stays ours.)
        with suppress(PermissionError):
            os.setpgid(0, daemons_group)
        code = process.wait()
    except (OSError, ValueError) as error:
        return CANNOT_RUN, f"cannot be run: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return (code << 8 if code >= 0 else -code), ending(code)


def ending(code: int) -> str:
    """Return in words how a process ended; a negative code is a signal's."""
    if code >= 0:
        return f"exited with {code}"
    return f"was killed by signal {-code} ({signal.strsignal(-code)})"


def patiently(call: Callable[[], T]) -> T:
    """Return what a call does, repeated until the database is there."""
    pause = 0.1
    while True:
        try:
            return call()
        except (StoreUnavailableError, ConfigurationError) as error:
            log.warning("waiting for the database: %s", error)
            time.sleep(pause)
            pause = min(2 * pause, 5.0)


def end_commands(task: object) -> None:
    """End what is left of a task's command on this host.

    Raises TimeoutError if it does not end.
    """
    match getattr(task, "worker", None):
        # The group's number stays taken as long as there is anybody in it, so that it
        # is the worker's group unless another process leads it.
        case [str(where), int(leader), float(began)] if where == host():
            with suppress(ProcessLookupError, psutil.NoSuchProcess):
                if not psutil.pid_exists(leader) or started(leader) == began:
                    os.killpg(leader, signal.SIGKILL)
                    if not has_ended(leader):
                        raise TimeoutError(f"process group {leader} does not end")


def has_ended(group: int) -> bool:
    """Wait a second at most until nobody of a group that was killed is left.

    To die takes its time, and a command that is dying has its locks and ports still.
    """
    patience = time.monotonic() + 1
    while any(_is_in(group, pid) for pid in psutil.pids()):
        if time.monotonic() > patience:
            return False
        time.sleep(0.005)
    return True


def _is_in(group: int, pid: int) -> bool:
    with suppress(ProcessLookupError, psutil.NoSuchProcess):
        return (
            os.getpgid(pid) == group
            and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        )
    return False
