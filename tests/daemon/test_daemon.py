"""The example daemon, run as its user would run it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from sessionstore import SessionStore, State

ROOT = Path(__file__).parent.parent.parent


class Cli:
    """Runs daemon-example with one spool folder and one database."""

    def __init__(self, spool: Path, url: str) -> None:
        self.spool = spool
        self.url = url
        self.environment = {
            **os.environ,
            "DAEMON_EXAMPLE_SPOOL": str(spool),
            "DAEMON_EXAMPLE_STORE": url,
            "PYTHONPATH": str(ROOT),
        }

    def __call__(self, *words: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "daemon_example", *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if status == 0 else done.stderr

    def pid(self) -> int:
        return int((self.spool / "daemon.pid").read_text().split()[0])


@pytest.fixture
def cli(database_url: str, tmp_path: Path) -> Iterator[Cli]:
    cli = Cli(tmp_path / "spool", database_url)
    yield cli
    if (cli.spool / "daemon.pid").exists():
        cli("stop")


def until(condition: Callable[[], object], timeout: float = 40) -> None:
    """Wait for a condition, with a bound."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def session_of(cli: Cli) -> SessionStore:
    return SessionStore(cli.url, create=False)


def to_states(session: SessionStore, id_: int) -> list[str]:
    return [entry.to_state.value for entry in session.history(id_)]


def test_submitted_command_runs_to_its_end(cli: Cli) -> None:
    """A job goes through its states; its output and exit code are kept."""
    cli("start", "--workers", "2")
    good = int(cli("submit", "--name", "greet", "--", "echo", "hello"))
    bad = int(cli("submit", "--", "sh", "-c", "exit 3"))
    missing = int(cli("submit", "--", "/no/such/program"))
    session = session_of(cli)
    until(lambda: session.counts() == {State.TERMINATED: 3})
    assert to_states(session, good) == [
        "NEW",
        "SUBMITTED",
        "RUNNING",
        "TERMINATING",
        "TERMINATED",
    ]
    assert (cli.spool / "output" / str(good)).read_text() == "hello\n"
    assert session.load(bad).execution.exitcode == 3
    assert session.load(missing).execution.exitcode == 127
    assert "greet" in cli("list")
    assert "exited with 0" in cli("history", str(good))
    assert "exitcode: 3" in cli("show", str(bad))
    assert "3 TERMINATED" in cli("status")
    pid = cli.pid()
    cli("stop")
    assert not psutil.pid_exists(pid)
    assert "not running" not in cli("status", status=1)


def test_spool_files_become_tasks_or_are_set_aside(cli: Cli) -> None:
    """A file that is no job goes to bad/ with the reason beside it."""
    cli("start")
    new = cli.spool / "new"
    for name, text in {
        "good": 'command = ["true"]\nname = "from a file"',
        "torn": "command = [",
        "empty": 'name = "x"',
    }.items():
        (new / f".{name}").write_text(text)
        (new / f".{name}").rename(new / f"{name}.toml")
    session = session_of(cli)
    until(lambda: session.counts() == {State.TERMINATED: 1})
    until(lambda: len(list((cli.spool / "bad").glob("*.reason"))) == 2)
    reasons = {
        path.name.partition("-")[2]: path.read_text()
        for path in (cli.spool / "bad").glob("*.reason")
    }
    assert "is no TOML" in reasons["torn.reason"]
    assert "has no command" in reasons["empty.reason"]
    assert len(list((cli.spool / "done").iterdir())) == 1


def test_killed_worker_is_recorded_and_its_task_tried_again(cli: Cli) -> None:
    """A worker's kill -9 is in the history, at most --attempts times."""
    cli("start", "--attempts", "2")
    id_ = int(cli("submit", "--", "sleep", "60"))
    session = session_of(cli)
    for attempt in (1, 2):
        until(lambda n=attempt: to_states(session, id_).count("RUNNING") == n)
        worker = session.history(id_)[-1].pid
        os.kill(worker, signal.SIGKILL)
    until(lambda: session.counts() == {State.TERMINATED: 1})
    history = session.history(id_)
    assert (
        "killed by SIGKILL" in next(e for e in history if e.to_state == "UNKNOWN").info
    )
    assert history[-1].info == "attempts exhausted"
    assert [to for to in to_states(session, id_) if to != "TERMINATING"] == [
        "NEW",
        *["SUBMITTED", "RUNNING", "UNKNOWN"] * 2,
        "TERMINATED",
    ]


def test_next_daemon_picks_up_what_a_killed_one_left(cli: Cli) -> None:
    """The orphaned command is ended before its task runs again."""
    cli("start")
    marks = cli.spool / "marks"
    command = f'echo $$ >>{marks}; [ "$(wc -l <{marks})" -gt 1 ] || sleep 300'
    id_ = int(cli("submit", "--", "sh", "-c", command))
    until(marks.exists)
    session = session_of(cli)
    worker = session.history(id_)[-1].pid
    os.kill(cli.pid(), signal.SIGKILL)
    orphan = int(marks.read_text())
    assert psutil.pid_exists(orphan)
    cli("start")
    until(lambda: session.counts() == {State.TERMINATED: 1})
    for pid in (orphan, worker):
        assert not psutil.pid_exists(pid) or (
            psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        )
    assert "its daemon died" in [entry.info for entry in session.history(id_)]
    assert len(marks.read_text().splitlines()) == 2


def test_stop_ends_what_does_not_end_by_itself(cli: Cli) -> None:
    """After the grace the command is ended, and its task's state is true."""
    cli("start", "--grace", "0.2")
    id_ = int(cli("submit", "--", "sleep", "300"))
    session = session_of(cli)
    until(lambda: session.counts() == {State.RUNNING: 1})
    cli("stop")
    task = session.load(id_)
    assert task.execution.state is State.TERMINATED
    assert task.execution.signal == signal.SIGTERM


@pytest.mark.backends("sqlite")
def test_one_daemon_for_each_spool(cli: Cli) -> None:
    """A second one is told the first one's PID."""
    cli("start")
    assert str(cli.pid()) in cli("start", status=1)
    assert str(cli.pid()) in cli("run", status=1)


@pytest.mark.backends("sqlite")
def test_bad_input_is_one_line_and_a_status(cli: Cli, tmp_path: Path) -> None:
    """Exit status 2 for usage, 1 for the rest, never a traceback."""
    config = tmp_path / "config.toml"
    config.write_text("wrokers = 3")
    store = "postgresql+psycopg://u:s3cret@127.0.0.1:1/d"
    for words, status, said in (
        (["fly"], 2, "invalid choice"),
        (["submit"], 2, "required"),
        (["list", "--store", "nosuch://x"], 1, "nosuch"),
        (["list", "--store", store], 1, "cannot be reached"),
        (["start", "--store", store], 1, "cannot be reached"),
        (["run", "--config", str(config)], 1, "unknown setting 'wrokers'"),
        (["run", "--workers", "0"], 1, "workers"),
        (["show", "7"], 1, "no SQLite database"),
    ):
        error = cli(*words, status=status)
        assert said in error, error
        assert "s3cret" not in error
        if status == 1:
            assert len(error.splitlines()) == 1
