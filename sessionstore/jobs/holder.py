"""Who holds a task: a process, told apart from all others that ever had its PID."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import NamedTuple

__all__ = ["MAX_HOLDER", "Holder"]

#: As many characters as the column has.
MAX_HOLDER = 255
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: Stands for the start of another user's process, where those are hidden from us.
_HIDDEN = -1


class Holder(NamedTuple):
    """A process, on whatever host.

    PIDs are used again, on one host too.  So the PID's namespace, the boot and the
    process's start, in ticks since the boot, belong to it.  (psutil's ``create_time()``
    is made of the same ticks and the wall clock, and shifts with it.)  Without
    ``/proc`` the boot, the namespace and the start are empty or 0.
    """

    host: str
    boot_id: str
    pid_namespace: int
    pid: int
    started: int

    def __str__(self) -> str:
        rest = f"/{self.boot_id}/{self.pid_namespace}/{self.pid}/{self.started}"
        return self.host[: MAX_HOLDER - len(rest)] + rest

    @classmethod
    def parse(cls, text: str) -> Holder | None:
        """Return the holder that was written as ``text``, None if none was."""
        try:
            host, boot_id, pid_namespace, pid, started = text.rsplit("/", 4)
            return cls(host, boot_id, int(pid_namespace), int(pid), int(started))
        except ValueError:
            return None

    @classmethod
    def current(cls) -> Holder:
        """Return this process."""
        global _current
        if _current is None or _current.pid != os.getpid():
            _current = _this_process()
        return _current

    def is_gone(self) -> bool:
        """Say whether the process is known to have ended; False where nobody knows.

        It is known on the process's own host only, in its own PID namespace or after
        the next boot.  Hosts that share a session need distinct names.
        """
        here = Holder.current()
        if self.host != here.host or not here.boot_id:
            return False
        if self.boot_id != here.boot_id:
            return True
        if self.pid_namespace != here.pid_namespace:
            return False
        there = _started(self.pid)
        return there != self.started and there != _HIDDEN

    def had_its_pid_last(self) -> bool:
        """Say whether no later process may have its PID; False where nobody knows.

        The system gives nobody a PID that still names a process group.  So if there is
        a group of this number, it is this process's.
        """
        here = Holder.current()
        if self[:3] != here[:3] or not here.boot_id or self.pid <= 1:
            return False
        return _started(self.pid, even_a_zombie=True) in (self.started, None)


_current: Holder | None = None


def _this_process() -> Holder:
    host, pid = socket.gethostname().replace("/", "_"), os.getpid()
    try:
        boot_id = _BOOT_ID.read_text().strip()
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return Holder(host, "", 0, pid, 0)
    return Holder(host, boot_id, namespace, pid, _started(pid) or 0)


def _started(pid: int, *, even_a_zombie: bool = False) -> int | None:
    """Return when a process started, in ticks since boot; None if it runs no more."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        # The mount option hidepid hides other users' processes.
        return _HIDDEN if _exists(pid) else None
    # proc_pid_stat(5).  The second field is the program's name, in parentheses, and
    # may have spaces and parentheses of its own.
    fields = stat[stat.rindex(b")") + 1 :].split()
    state, started = fields[0], fields[19]
    # A zombie has ended; its parent has not yet noticed.
    return None if state in b"ZX" and not even_a_zombie else int(started)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    # We may signal it, and yet it has no file: it is just ending, or starting.
    return Path(f"/proc/{pid}").exists()
