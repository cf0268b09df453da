"""The daemon as its user runs it, with a spool folder and a database of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from daemon_example import instance
from sessionstore import SessionStore, State

ROOT = Path(__file__).parent.parent.parent


class Cli:
    """Runs daemon-example with one spool folder and one database."""

    def __init__(self, spool: Path, url: str) -> None:
        self.spool = spool
        self.url = url
        #: Python's arguments.
        self.program = ("-m", "daemon_example")
        self.environment = {
            **os.environ,
            "DAEMON_EXAMPLE_SPOOL": str(spool),
            "DAEMON_EXAMPLE_STORE": url,
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "error",
        }

    def popen(self, *words: str | bytes, **options: object) -> subprocess.Popen[bytes]:
        """Start a command, without waiting for it."""
        return subprocess.Popen(
            [sys.executable, *self.program, *words],
            **{"env": self.environment, **options},
        )

    def __call__(self, *words: str | bytes, status: int = 0) -> str:
        """Run a command, and return what it printed, to stderr if it failed."""
        pipe = subprocess.PIPE
        process = self.popen(*words, stdout=pipe, stderr=pipe)
        out, err = (said.decode() for said in process.communicate(timeout=60))
        assert process.returncode == status, out + err
        assert "Traceback" not in err
        return out if status == 0 else err

    def session(self) -> SessionStore:
        """Return the daemon's session."""
        return SessionStore(self.url, create=False)

    def pid(self) -> int:
        """Return the running daemon's PID."""
        pid = instance.running(self.spool)
        assert pid is not None
        return pid

    def kill(self) -> None:
        """End the daemon as kill -9 does."""
        process = psutil.Process(self.pid())
        process.kill()
        process.wait(10)


@pytest.fixture
def make_cli() -> Iterator[Callable[[Path, str], Cli]]:
    """Make spool folders with a database; what runs on them is ended afterwards."""
    made: list[Cli] = []

    def make(spool: Path, url: str) -> Cli:
        made.append(Cli(spool, url))
        return made[-1]

    yield make
    for cli in made:
        pid = instance.running(cli.spool)
        if pid is None:
            continue
        with suppress(psutil.NoSuchProcess):  # it may be about to end by itself
            daemon = psutil.Process(pid)
            # Its workers too: a test that failed may have left them waiting.
            processes = daemon.children(recursive=True)
            daemon.terminate()
            _, left = psutil.wait_procs([daemon], timeout=20)
            for process in left + processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()


@pytest.fixture
def cli(database_url: str, tmp_path: Path, make_cli: Callable[..., Cli]) -> Cli:
    """A spool folder and an empty database of each backend in turn."""
    return make_cli(tmp_path / "spool", database_url)


def until(condition: Callable[[], object], timeout: float = 40) -> None:
    """Wait for a condition, with a bound."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def states(session: SessionStore, id_: int) -> list[str]:
    """Return what states a task went through."""
    return [entry.to_state.value for entry in session.history(id_)]


def has_ended(pid: int) -> bool:
    """Tell whether a process has ended, waited for or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def all_ended(session: SessionStore) -> bool:
    """Tell whether all tasks have."""
    return set(session.counts()) == {State.TERMINATED}


def begun(file: Path) -> list[int]:
    """Return the PIDs that commands have written to a file, a line each."""
    text = file.read_text() if file.exists() else ""
    return [int(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"]
