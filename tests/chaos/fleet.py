"""Four daemons that share a session, and what befalls them."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest

from daemon_example import instance
from daemon_example.spool import Spool
from tests.daemon.conftest import Cli
from tests.servers import Server, end_with_parent

COMMAND = Path(__file__).with_name("command.py")
#: How often a task is started before it is given up.
ATTEMPTS = 4
#: Seconds.  Short, so that leases run out too while a daemon hangs.
LEASE = 4.0
#: How often a daemon is struck that is only about to begin.
EARLY = 0.2
#: Seconds until something befalls somebody though no task was begun meanwhile.
LONGEST = 1.5
#: Drawn as from a deck of cards, so that none is missing for long.
MISFORTUNES = [*11 * ["worker"], *4 * ["daemon"], "hang", "server"]


class Daemon:
    """One spool folder, and the process that works on it, again and again."""

    def __init__(self, cli: Cli) -> None:
        self.cli = cli
        Spool(cli.spool)  # so that it is there for tasks before the daemon is
        self.log = cli.spool / "log"
        self.process: subprocess.Popen[bytes] | None = None
        #: When it is started, or goes on, by the monotonic clock.
        self.back_at = 0.0
        self.hangs = False
        self.lease = LEASE

    def start(self) -> None:
        """Be there from now on."""
        options = ("--workers", "3", "--attempts", ATTEMPTS, "--lease", self.lease)
        with self.log.open("ab") as log:
            self.process = self.cli.popen(
                *("run", *map(str, options)),
                stdout=log,
                stderr=log,
                preexec_fn=partial(end_with_parent, signal.SIGTERM),
            )

    def kill(self) -> None:
        """Die at once, and leave the workers alone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process, self.hangs = None, False

    def is_up(self) -> bool:
        """Say whether it has come so far as to open the session."""
        pid = self.process.pid if self.process else None
        return pid is not None and instance.running(self.cli.spool) == pid

    def workers(self) -> list[psutil.Process]:
        """Return the workers that are at work."""
        try:
            return psutil.Process(self.process.pid).children() if self.process else []
        except psutil.NoSuchProcess:
            return []


class Fleet:
    """The daemons, their server if it is theirs alone, and their misfortunes."""

    def __init__(
        self, daemons: list[Daemon], server: Server | None, journals: Path, seed: str
    ) -> None:
        self.daemons = daemons
        self._journals = journals
        self.befell: Counter[str] = Counter()
        self._folder = daemons[0].cli.spool.parent
        self._server = server
        self._server_back_at: float | None = None
        self._random = random.Random(seed)
        self._deck: list[str] = []

    def __enter__(self) -> Fleet:
        for daemon in self.daemons:
            daemon.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for daemon in self.daemons:
            daemon.kill()
        end_processes(self._folder)

    def begun(self) -> int:
        """Return how many tasks were begun."""
        return len(list(self._journals.iterdir()))

    def strike(self) -> None:
        """Let something befall somebody, after a while."""
        begun, patience = self.begun(), time.monotonic() + LONGEST
        time.sleep(self._random.uniform(0, 0.4))
        # On a busy machine nobody would ever come to work.
        while self.begun() == begun and time.monotonic() < patience:
            time.sleep(0.02)
        self.restore(time.monotonic())
        if not self._deck:
            self._deck = self._random.sample(MISFORTUNES, k=len(MISFORTUNES))
        what = self._deck.pop()
        daemon = self._random.choice(self.daemons)
        # The same numbers are drawn, whoever happens to be there.
        place, after = self._random.random(), self._random.uniform(0, 1.5)
        back_at = time.monotonic() + after
        if what == "server":
            if self._server is None or self._server_back_at is not None:
                return
            self._server.kill()
            # So long that others are struck, or come back, meanwhile.
            self._server_back_at = time.monotonic() + 2 * after
        elif what == "worker":
            workers = daemon.workers()
            if not workers:
                return
            with suppress(psutil.NoSuchProcess):
                workers[int(place * len(workers))].kill()
        elif daemon.hangs or not (daemon.is_up() or (daemon.process and place < EARLY)):
            return
        elif what == "hang":
            daemon.process.send_signal(signal.SIGSTOP)
            daemon.hangs, daemon.back_at = True, back_at + LEASE
        else:
            daemon.kill()
            daemon.back_at = back_at
        self.befell[what] += 1

    def restore(self, until: float) -> None:
        """Bring back what is to be there again at an instant."""
        if self._server_back_at is not None and self._server_back_at <= until:
            assert self._server is not None
            # Its daemons do not wait until it answers either.
            self._server.process = self._server.run()
            self._server_back_at = None
        for daemon in self.daemons:
            # None ends by itself, a server that is away neither.
            if daemon.process is not None and daemon.process.poll() is not None:
                pytest.fail(f"{daemon.cli.spool}: {daemon.log.read_text()[-2000:]}")
            if daemon.back_at > until:
                continue
            if daemon.process is None:
                daemon.start()
            elif daemon.hangs:
                daemon.process.send_signal(signal.SIGCONT)
                daemon.hangs = False

    def calm(self) -> bool:
        """Bring all back, and say whether they are there."""
        self.restore(until=float("inf"))
        return all(daemon.is_up() for daemon in self.daemons)

    def stop(self) -> None:
        """Have all daemons stop as they should, and read what they have said."""
        for daemon in self.daemons:
            assert daemon.process is not None
            daemon.process.terminate()
        for daemon in self.daemons:
            assert daemon.process is not None
            status, log = daemon.process.wait(60), daemon.log.read_text()
            assert status == 0, log
            assert "Traceback" not in log, log


def command(journals: Path, name: str, seconds: float, code: int) -> list[str]:
    """Return a command line that notes in ``journals`` what it does."""
    # Without site-packages, it begins in a few milliseconds.
    python = [sys.executable, "-I", "-S", str(COMMAND)]
    return [*python, str(journals / name), str(seconds), str(code)]


def processes(folder: Path) -> list[psutil.Process]:
    """Return the workers and commands of all daemons with a spool in a folder."""
    return [process for process in psutil.process_iter() if _is_of(process, folder)]


def end_processes(folder: Path) -> None:
    """End all that dead daemons have left behind."""
    # A worker may be about to start a command.
    while found := processes(folder):
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _is_of(process: psutil.Process, folder: Path) -> bool:
    # Workers have their daemon's environment, and commands are not told of it.
    try:
        spool = process.environ().get("DAEMON_EXAMPLE_SPOOL", "")
        return f"{folder}/" in "\0".join([spool, *process.cmdline()])
    except psutil.Error:  # it has ended, or is another user's
        return False
