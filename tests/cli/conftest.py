"""The command line as its users run it: in a pipe, on a terminal, in this process."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest

from sessionstore import SessionStore
from sessionstore.cli.running import run

#: Seconds; a command that takes longer hangs.
BOUND = 60


@dataclass(frozen=True)
class Result:
    """What became of a command."""

    status: int
    out: str
    err: str = ""

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


Command = Callable[..., Result]


@pytest.fixture
def command(
    session: SessionStore,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """Run a command in this process, on the fixture's session."""
    monkeypatch.setenv("SESSIONSTORE_URL", database_url)

    def run_it(word: str, *words: str) -> Result:
        named = (
            ()
            if word in {"sessions"} or "--session" in words
            else ("--session", session.name)
        )
        capsys.readouterr()
        status = run([word, *named, *words])
        out, err = capsys.readouterr()
        return Result(status, out, err)

    return run_it


@pytest.fixture
def show(command: Command) -> Callable[..., list[str]]:
    """Run a command in this process that has to succeed, for its lines."""

    def lines(*words: str) -> list[str]:
        result = command(*words)
        assert (result.status, result.err) == (0, "")
        return result.lines

    return lines


class Terminal:
    """A command that runs on a terminal of its own."""

    def __init__(self, arguments: list[str], environment: dict[str, str], width: int):
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, width))
        self.process = subprocess.Popen(
            arguments, stdin=slave, stdout=slave, stderr=slave, env=environment
        )
        os.close(slave)
        self.said = ""

    def until(self, text: str) -> None:
        """Read until the command has said something."""
        deadline = time.monotonic() + BOUND
        while text not in self.said:
            assert self._read(deadline), f"{text!r} was not said:\n{self.said}"

    def answer(self, text: str) -> None:
        """Type a line."""
        os.write(self._master, f"{text}\n".encode())

    def interrupt(self) -> None:
        """Press Ctrl-C, and again if nothing comes of it.

        Python's input() misses one that comes just before it waits for a line.
        """
        while self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            while self._read(time.monotonic() + 2):
                pass
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(2)

    def end(self) -> Result:
        """Wait for the command's end."""
        deadline = time.monotonic() + BOUND
        while self._read(deadline):
            pass
        return Result(self.process.wait(timeout=BOUND), self.said.replace("\r\n", "\n"))

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)

    def _read(self, deadline: float) -> bool:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self._master], [], [], left)[0]:
            return False
        try:
            read = os.read(self._master, 65536)
        except OSError:  # EIO: nobody has the other end any more
            return False
        self.said += read.decode()
        return bool(read)


class Real:
    """Runs the real command, in processes of its own."""

    def __init__(self, url: str) -> None:
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if name not in {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"}
            },
            "SESSIONSTORE_URL": url,
            "PYTHONWARNINGS": "error",
            "PYTHONUTF8": "1",
            "TERM": "xterm-256color",
        }
        self._terminals: list[Terminal] = []

    def arguments(self, words: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "sessionstore", *words]

    def piped(self, *words: str) -> subprocess.Popen[str]:
        """Start a command whose output goes into a pipe."""
        return subprocess.Popen(
            self.arguments(words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
            text=True,
        )

    def __call__(self, *words: str) -> Result:
        """Run a command in a pipe to its end."""
        process = self.piped(*words)
        out, err = process.communicate(timeout=BOUND)
        return Result(process.returncode, out, err)

    def on_terminal(self, *words: str, width: int = 80, **environment: str) -> Terminal:
        """Start a command on a terminal."""
        terminal = Terminal(
            self.arguments(words), {**self.environment, **environment}, width
        )
        self._terminals.append(terminal)
        return terminal

    def close(self) -> None:
        for terminal in self._terminals:
            terminal.close()


@pytest.fixture
def real(session: SessionStore, database_url: str) -> Iterator[Real]:
    """The real command, on the fixture's database."""
    runner = Real(database_url)
    yield runner
    runner.close()
