"""One daemon for each spool folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import psutil

from daemon_example.settings import SettingsError, UserError


def lock(spool: Path) -> int:
    """Lock a spool folder, and return the descriptor that holds the lock.

    The kernel releases it however the daemon dies, so that a file left behind never
    keeps the next one from starting.  A forked child only closes the descriptor:
    unlocking it would take the parent's lock.

    Raises UserError if another process has it.
    """
    path = spool / "daemon.pid"
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError as error:
        raise SettingsError(
            f"{error}; another user's daemon works there, or did; use a --spool of "
            "your own, or remove that file if it is left over"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        pid = running(spool)
        raise UserError(
            f"a daemon{f' (PID {pid})' if pid else ''} already works on {spool}; "
            "stop it first, or choose another --spool"
        ) from None
    return file


def write_pid(file: int) -> None:
    """Note in the locked file which process is the daemon."""
    # Always as long, in one write: nobody reads half of it, and half of an older one.
    os.pwrite(file, f"{os.getpid():10} {started(os.getpid()):20.2f}\n".encode(), 0)


def running(spool: Path) -> int | None:
    """Return the PID of the daemon that works on a spool folder, None if none does."""
    try:
        number, began = (spool / "daemon.pid").read_text(errors="replace").split()
        pid = int(number)
        # A dead one may stay as a zombie, if its parent does not wait for it, as in a
        # container whose first process is just any program.
        is_over = psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        return pid if started(pid) == float(began) and not is_over else None
    except (FileNotFoundError, ValueError, OverflowError, psutil.NoSuchProcess):
        return None


def started(pid: int) -> float:
    """Return how many seconds after the host's boot a process was started.

    It tells the process from a later one with the same PID, and unlike the time of
    day it stays the same when somebody sets the clock.
    """
    # In this order: psutil 6 adds the boot time that it was last asked for.
    booted_at = psutil.boot_time()
    return round(psutil.Process(pid).create_time() - booted_at, 2)
