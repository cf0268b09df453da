"""The example daemon at work, and idle, as its users have it: a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from daemon_example.spool import new_task
from sessionstore import SessionStore, State
from tests.benchmarks.raw import SESSION

#: Seconds for what should take far less.
_BOUND = 1_200


@contextmanager
def running(url: str) -> Iterator[psutil.Process]:
    """Run a daemon on a session, in a spool folder of its own; it is ready."""
    with tempfile.TemporaryDirectory() as spool:
        environment = {
            **os.environ,
            "DAEMON_EXAMPLE_STORE": url,
            "DAEMON_EXAMPLE_SESSION": SESSION,
            "DAEMON_EXAMPLE_SPOOL": spool,
        }
        log = Path(spool, "log")
        command = [sys.executable, "-m", "daemon_example", "run", "--workers=4"]
        with log.open("wb") as file:
            process = subprocess.Popen(command, env=environment, stderr=file)
        try:
            # It says which tasks there are when all is set up.
            _until(lambda: process.poll() is not None or b"tasks: " in log.read_bytes())
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
            yield psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def idle_percent(daemon: psutil.Process, seconds: float) -> float:
    """Return how much of a core an idle daemon takes."""
    before, began_at = daemon.cpu_times(), time.monotonic()
    time.sleep(seconds)
    after, elapsed = daemon.cpu_times(), time.monotonic() - began_at
    used = after.user + after.system - before.user - before.system
    return 100 * used / elapsed


def submitted_ms(session: SessionStore) -> float:
    """Return how long a task waits for an idle daemon, until its command runs."""
    # Out of step with whatever looks at intervals.
    time.sleep(0.1 + os.urandom(1)[0] / 1_000)
    id_ = session.add(new_task(["true"]))
    _until(lambda: session.history(id_)[-1].to_state == State.TERMINATED)
    at = {entry.to_state: entry.at for entry in session.history(id_)}
    return (at[State.RUNNING] - at[State.NEW]).total_seconds() * 1e3


def growth_mib(daemon: psutil.Process, session: SessionStore, tasks: int) -> float:
    """Return by how much a daemon grows from its first tasks to its last."""
    warm = tasks // 10
    session.add_many([new_task(["true"]) for _ in range(tasks)])
    start = session.counts().get(State.TERMINATED, 0)
    sizes = []
    for number in (warm, tasks):
        _until(lambda: session.counts().get(State.TERMINATED, 0) >= start + number)  # noqa: B023
        status = Path(f"/proc/{daemon.pid}/status").read_text()
        [size] = re.findall(r"VmHWM:\s+(\d+)", status)
        sizes.append(int(size) / 1024)
    return sizes[1] - sizes[0]


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + _BOUND
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("it did not come true in time")
        time.sleep(0.02)
