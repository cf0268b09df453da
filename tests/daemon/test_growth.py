"""A daemon may run for years: a task that has ended leaves nothing in it."""

from __future__ import annotations

import gc
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon_example import instance
from daemon_example.settings import Settings
from daemon_example.signals import Signals
from daemon_example.spool import Spool, new_task
from daemon_example.supervisor import Supervisor
from sessionstore import SessionStore, State
from sessionstore.testing import Child
from sessionstore.workers import command

#: Tasks before the first count, and after it.
WARM, MORE = 40, 160
#: What there is of these while a task is at work.
OF_A_TASK = ("Claim", "Task", "Run", "Worker", "Deadline", "Ending")


class Census(Signals):
    """Counts what there is in a daemon between its tasks, and then has it stop."""

    def __init__(self, session: SessionStore) -> None:
        super().__init__(signal.SIGCHLD)
        self._session = session
        self._counts: list[Counter[str]] = []

    def take(self) -> list[int]:
        """Return the signals noted, and SIGTERM when all is counted."""
        taken = super().take()
        if set(self._session.counts()) - {State.TERMINATED} or has_workers():
            return taken
        self._counts.append(census())
        if len(self._counts) == 3:
            return [*taken, signal.SIGTERM]
        number = WARM if len(self._counts) == 1 else MORE
        self._session.add_many([new_task(["true"]) for _ in range(number)])
        return taken

    def grown(self) -> dict[str, int]:
        """Return of what there is more than before, or any at all of a task."""
        # The first count is of what other tests have left in the process.
        first, before, after = self._counts
        of_a_task = {name: (after - first)[name] for name in OF_A_TASK}
        return dict(after - before) | {n: more for n, more in of_a_task.items() if more}


def has_workers() -> bool:
    """Tell whether any are running, or to be reaped."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def census() -> Counter[str]:
    """Count the objects that the garbage collector knows of, and descriptors."""
    gc.collect()
    found = Counter(type(thing).__name__ for thing in gc.get_objects())
    found["descriptors"] = len(os.listdir("/proc/self/fd"))
    return found


@pytest.mark.backends("sqlite", "postgresql")
@pytest.mark.timeout(400)
def test_ended_task_leaves_nothing_in_the_daemon(
    database_url: str,
    tmp_path: Path,
    start_forked: Callable[..., Child],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither it, nor its claim, nor a descriptor, nor a bit of any other kind."""
    # The commands themselves are other processes, and take time.
    monkeypatch.setattr(command, "_run", lambda *_: (0, "exited with 0"))
    found = Settings(tmp_path, store=database_url, workers=4)

    def run() -> dict[str, int]:
        Spool(tmp_path)
        session = SessionStore(database_url)
        signals = Census(session)
        lock = instance.lock(tmp_path)
        Supervisor(session, found, lock, signals).run(lambda: None, lambda: found)
        return signals.grown()

    grown = start_forked(run, timeout=350).wait()
    assert not grown.keys() & {*OF_A_TASK, "descriptors"}
    # One for each task would be MORE.  What happens for the first time, on a busy
    # machine, such as an import, leaves a few things for good.
    assert {name: more for name, more in grown.items() if more >= MORE // 2} == {}
