"""What takes processes of its own to measure: forks, imports and memory."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from sessionstore import SessionStore, SqlStore, Task
from tests.benchmarks.raw import SESSION

#: Seconds that a child may take before SIGALRM ends it.
_BOUND = 120


class Crew:
    """Forked writers that are ready, and wait to be told to go.

    ``writer`` is called in each child with its number, to open what it needs, and
    returns what the child calls over and over.
    """

    SIZE = 4

    def __init__(
        self,
        writer: Callable[[int], Callable[[], None]],
        calls: int,
        size: int = SIZE,
    ) -> None:
        self._size = size
        go, self._go = os.pipe()
        self._ready, ready = os.pipe()
        self._results, results = os.pipe()
        self._pids = []
        for number in range(size):
            pid = os.fork()
            if pid == 0:
                os.close(self._go)
                _in_child(results, lambda: _write(writer, number, calls, ready, go))  # noqa: B023
            self._pids.append(pid)
        for descriptor in (go, ready, results):
            os.close(descriptor)
        count = 0
        while some := os.read(self._ready, size):
            count += len(some)
            if count == size:
                break
        os.close(self._ready)

    def run(self) -> float:
        """Let them write, wait for all, and return how long the slowest call took."""
        os.close(self._go)
        with os.fdopen(self._results) as pipe:
            lines = [json.loads(line) for line in pipe]
        for pid in self._pids:
            os.waitpid(pid, 0)
        errors = [line for line in lines if isinstance(line, str)]
        if errors or len(lines) != self._size:
            raise RuntimeError("\n".join(errors) or "a writer has died")
        return float(max(lines))


def _write(
    writer: Callable[[int], Callable[[], None]],
    number: int,
    calls: int,
    ready: int,
    go: int,
) -> float:
    write = writer(number)
    write()
    os.write(ready, b".")
    os.read(go, 1)  # the end of the file comes when the parent says so
    slowest = 0.0
    for _ in range(calls):
        start = time.perf_counter()
        write()
        slowest = max(slowest, time.perf_counter() - start)
    return slowest


def _in_child(result: int, function: Callable[[], float]) -> None:
    """Write what a function returns, or its traceback, as a line, and end."""
    signal.alarm(_BOUND)
    try:
        said: float | str = function()
    except BaseException:
        said = traceback.format_exc()[-3_000:]
    # One short write to a pipe is never mixed with another's (pipe(7), PIPE_BUF).
    os.write(result, json.dumps(said).encode() + b"\n")
    os._exit(0)


def import_ms(bytecode: str) -> float:
    """Return how long a new process imports the package, SQLAlchemy being there.

    ``bytecode`` is a folder for what Python has compiled at the first call; pip does
    that when it installs, but for a folder that is worked on.
    """
    return _in_new_process(
        "import time, sqlalchemy\n"
        "start = time.perf_counter()\n"
        "from sessionstore import SqlStore\n"
        "print((time.perf_counter() - start) * 1000)\n",
        PYTHONPYCACHEPREFIX=bytecode,
        PYTHONDONTWRITEBYTECODE="",
    )


def open_ms(url: str) -> float:
    """Return how long it takes to open a session that is there."""
    gc.collect()
    start = time.perf_counter()
    session = SessionStore(url, SESSION, create=False)
    end = time.perf_counter()
    session.close()
    return (end - start) * 1000


def fork_ms(urls: Sequence[str]) -> float:
    """Return how long a fork keeps its caller, with a store open at each URL."""
    with ExitStack() as stack:
        stores = [stack.enter_context(SqlStore(url)) for url in urls]
        for store in stores:
            _ = 1 in store  # connects
        gc.collect()
        start = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        end = time.perf_counter()
        os.waitpid(pid, 0)
    return (end - start) * 1000


def first_write_ms(store: SqlStore, task: Task) -> float:
    """Return how long a forked child's first save takes, on a store that is open."""

    def save() -> float:
        start = time.perf_counter()
        store.save(task)
        return (time.perf_counter() - start) * 1000

    return in_fork(save)


def in_fork(function: Callable[[], float]) -> float:
    """Return what a function returns in a forked child."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _in_child(writer, function)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = json.loads(pipe.read())
    os.waitpid(pid, 0)
    if isinstance(said, str):
        raise RuntimeError(said)
    return float(said)


def growth_mib(url: str, number: int) -> float:
    """Return by how much a process grows that goes through a store and a session."""
    # VmHWM, the peak; ru_maxrss would begin at the peak of the parent process.
    return _in_new_process(
        "import re, sys\n"
        "from sessionstore import SessionStore\n"
        "def peak():\n"
        "    with open('/proc/self/status') as status:\n"
        "        return int(re.search(r'VmHWM:\\s+(\\d+)', status.read())[1]) / 1024\n"
        f"session = SessionStore(sys.stdin.read(), {SESSION!r}, create=False)\n"
        "before = peak()\n"
        "for objects in (session.store.iter_objects(), session):\n"
        f"    assert sum(1 for _ in objects) >= {number}\n"
        "print(peak() - before)\n",
        url,
    )


def _in_new_process(code: str, said: str = "", **environment: str) -> float:
    run = subprocess.run(
        [sys.executable, "-c", code],
        input=said,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    if run.returncode:
        raise RuntimeError(run.stderr)
    return float(run.stdout)
