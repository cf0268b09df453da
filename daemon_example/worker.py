"""What a forked worker does: run one task's command, and record it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from sessionstore import SessionStore, State, StoreUnavailableError

log = logging.getLogger(__name__)


def work(session: SessionStore, id_: int, output: Path) -> None:
    """Take a SUBMITTED task to its end.

    The worker leads a process group of its own, and its PID is in the task before
    the command starts: whoever comes after it can end what it leaves behind.
    """
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A signal to the group is for the command. A handler, not SIG_IGN, which
        # the command would inherit.
        signal.signal(number, lambda *_: None)
    task = session.load(id_)
    task.worker = [os.getpid(), psutil.Process().create_time()]
    session.transition(task, State.RUNNING, expect=State.SUBMITTED)
    returncode, info = run(task.command, output)
    patiently(lambda: session.transition(task, State.TERMINATING, info=info))
    patiently(
        lambda: session.transition(
            task, State.TERMINATED, returncode=returncode, info=info
        )
    )


def run(command: list[str], output: Path) -> tuple[int, str]:
    """Run a command, and return its status, as os.wait() has it, and in words."""
    with output.open("ab") as file:
        try:
            code = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False
            ).returncode
        except OSError as error:
            return 127 << 8, f"cannot run {command[0]!r}: {error.strerror}"
    if code < 0:
        return -code, f"ended by {signal.Signals(-code).name}"
    return code << 8, f"exited with {code}"


def patiently(write: Callable[[], Any]) -> None:
    """Write what is known now, however long the database is away."""
    pause = 0.1
    while True:
        try:
            write()
            return
        except StoreUnavailableError as error:
            log.warning("waiting for the database: %s", error)
            time.sleep(pause)
            pause = min(2 * pause, 5.0)


def end_group(leader: int, started: float) -> None:
    """End what is left of a worker's process group."""
    try:
        if psutil.Process(leader).create_time() != started:
            return  # the PID is another process's now, and so is the group
    except psutil.NoSuchProcess:
        pass  # a group outlives its leader, and its number stays taken meanwhile
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == leader and process.create_time() >= started:
                process.kill()
        except (ProcessLookupError, psutil.Error):
            continue
