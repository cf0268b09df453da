"""Who holds a task: one process, told apart from all that ever had its PID."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import NamedTuple

__all__ = ["MAX_HOLDER", "Holder"]

#: As many characters as the column has.
MAX_HOLDER = 255
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: When a process started that is another user's, where those cannot be looked at.
_HIDDEN = -1


class Holder(NamedTuple):
    """A process, on whatever host.

    A PID comes back, on the same host too.  So it goes with the PID namespace that
    it counts in, the boot, and the start of the process in ticks since that boot.
    (psutil's ``create_time()`` is made of the same ticks and the wall clock, and
    shifts with it.)  Where there is no ``/proc`` the last three are empty or 0.
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

        Known it is on the process's own host only, to those in its PID namespace, or
        when the host was booted since.  Hosts that share a session need names of
        their own.
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
        """Say whether no later process than this one has its PID, or may have it.

        Nobody gets a PID by which a process group is called that has anybody in it: if
        there is one by this PID, it is this process's.  False where nobody knows.
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
        # With the mount option hidepid another user's process seems not to be there.
        return _HIDDEN if _exists(pid) else None
    # proc_pid_stat(5).  The second field is the program's name, in parentheses, and
    # may have spaces and parentheses of its own.
    fields = stat[stat.rindex(b")") + 1 :].split()
    state, started = fields[0], fields[19]
    # A zombie has ended, and waits for its parent to notice.
    return None if state in b"ZX" and not even_a_zombie else int(started)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    # Ours to signal, and yet without a file: it is on its way out, or just coming.
    return Path(f"/proc/{pid}").exists()
