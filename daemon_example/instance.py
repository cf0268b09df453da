"""One daemon for each spool folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import psutil


class AlreadyRunningError(Exception):
    """Another daemon works on this spool folder."""


class Instance:
    """The lock that a daemon holds for its life, with its PID in the file.

    The kernel gives the lock back however the daemon dies, so that a file left
    behind never keeps the next one from starting.
    """

    def __init__(self, spool: Path) -> None:
        self._path = spool / "daemon.pid"
        self._file: int | None = None

    def acquire(self) -> int:
        """Take the lock and return its descriptor.

        Raises AlreadyRunningError if another process has it.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise AlreadyRunningError(
                f"a daemon (PID {self.pid()}) already works on {self._path.parent}; "
                "stop it first, or choose another --spool"
            ) from None
        self._file = descriptor
        return descriptor

    def write_pid(self) -> None:
        """Note who holds the lock: the PID, and when that process was started."""
        assert self._file is not None
        me = psutil.Process()
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{me.pid} {me.create_time()}\n".encode(), 0)

    def leave_to_parent(self) -> None:
        """Close the descriptor in a forked child; unlocking would be for both."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def pid(self) -> int | None:
        """Return the PID of the daemon that runs, None if none does."""
        try:
            pid, started = self._path.read_text().split()
            process = psutil.Process(int(pid))
            # Another process may have got the PID of a daemon that was killed.
            return process.pid if process.create_time() == float(started) else None
        except (OSError, ValueError, psutil.NoSuchProcess):
            return None
