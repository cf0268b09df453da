"""Process groups: each worker has one, with all that it starts in it.

A group's number is its leader's PID, which is not used again as long as anybody is in
the group.  What leaves for a group of its own, as by setsid(1), is not looked after.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil

from sessionstore.jobs.holder import Holder

__all__ = ["end_group", "end_others", "has_ended", "mark", "signal_group"]

#: Seconds that a killed group gets to be gone.
PATIENCE = 1.0


def mark(task: object) -> None:
    """Note in a task that this process works on it, for ``end_group``."""
    # Without a state there is no transition that would save it.
    if hasattr(getattr(task, "execution", None), "state"):
        task.worker = str(Holder.current())  # type: ignore[attr-defined]


def end_group(task: object) -> None:
    """End what the worker of a task has left running on this host.

    For ``SessionStore.recover(reap=end_group)``, which a pool calls by itself.  Nothing
    is done for a task that no pool's worker has had, or one of another host.

    Raises TimeoutError if it does not end within a second, and PermissionError if it
    has become another user's.
    """
    worker = getattr(task, "worker", None)
    leader = Holder.parse(worker) if isinstance(worker, str) else None
    if leader is None or not leader.had_its_pid_last():
        return
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)
        if not has_ended(leader.pid):
            raise TimeoutError(f"process group {leader.pid} does not end")


def end_others() -> bool:
    """End what this worker has started in its group; say whether all has ended."""
    me = os.getpid()

    def end() -> bool:
        others = [pid for pid in _members(me) if pid != me]
        for pid in others:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        return not others

    return _comes_true(end)


def signal_group(group: int, number: signal.Signals) -> None:
    """Send a signal to those in a group that it can be sent to."""
    # None is left, or they run as another user, as by sudo.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def has_ended(group: int) -> bool:
    """Wait, a second at most, until nobody is left in a group that was killed.

    Dying takes time, in which a command still has its locks and ports.
    """
    return _comes_true(lambda: not any(_members(group)))


def _comes_true(condition: Callable[[], bool]) -> bool:
    patience = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > patience:
            return False
        time.sleep(0.005)
    return True


def _members(group: int) -> Iterator[int]:
    return (pid for pid in psutil.pids() if _is_in(group, pid))


def _is_in(group: int, pid: int) -> bool:
    with suppress(ProcessLookupError, psutil.NoSuchProcess):
        return (
            os.getpgid(pid) == group
            and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        )
    return False
