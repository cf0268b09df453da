"""A command as the work on a task."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from sessionstore import Claim, ForkError, SessionStore, State, Task
from sessionstore.testing import Child
from sessionstore.workers import WorkerPool, run_command
from sessionstore.workers import pool as pools
from tests.daemon.conftest import begun, has_ended, states, until
from tests.workers.conftest import MakePool, drive, run


def test_command_takes_its_task_to_its_end(
    session: SessionStore, other: SessionStore, make_pool: MakePool, tmp_path: Path
) -> None:
    """G2: its states are committed as it goes, and its status and output are kept."""
    id_ = session.add(Task("", command=["sh", "-c", "cat; echo out; echo err >&2"]))
    output = tmp_path / "output"
    output.write_text("before\n")

    def work(claim: Claim) -> None:
        assert run_command(claim, claim.task.command, output=output) == 0
        assert claim.task.execution.state is State.TERMINATED

    run(make_pool(work), session)
    ways = ["SUBMITTED", "RUNNING", "TERMINATING", "TERMINATED"]
    assert states(other, id_) == ["NEW", *ways]
    assert other.load(id_).output == str(output)
    assert output.read_text() == "before\nout\nerr\n"


@pytest.mark.backends("sqlite")
@pytest.mark.parametrize(
    ("command", "status", "info"),
    [
        (["sh", "-c", "exit 3"], 3 << 8, "exited with 3"),
        (["sh", "-c", "kill -s 36 $$"], 36, "was killed by signal 36"),
        (["/no/such/program"], 127 << 8, "cannot be run: "),
        (["echo", "\0"], 127 << 8, "cannot be run: "),
        ([], 127 << 8, "cannot be run: it has no command"),
        ("ls -l", 127 << 8, "cannot be run: it has no command"),
        (["ls", 1], 127 << 8, "cannot be run: it has no command"),
        (None, 127 << 8, "cannot be run: it has no command"),
    ],
    ids=str,
)
def test_command_that_fails_says_how(
    session: SessionStore,
    make_pool: MakePool,
    command: object,
    status: int,
    info: str,
) -> None:
    """Its status as of os.wait(), and it is not tried again."""
    id_ = session.add(Task("", command=command))
    run(make_pool(lambda c: run_command(c, c.task.command)), session)
    last = session.history(id_)[-1]
    assert last.returncode == session.load(id_).execution.returncode == status
    assert last.info.startswith(info)


@pytest.mark.backends("sqlite")
@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EMFILE, errno.ENOSPC])
def test_command_waits_for_a_host_that_has_no_room_for_it(
    session: SessionStore,
    make_pool: MakePool,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
) -> None:
    """A moment without a process, a descriptor or space ends no task, unrun."""
    id_ = session.add(Task("", command=["sh", "-c", "exit 3"]))
    start, failures = subprocess.Popen, iter([OSError(code, os.strerror(code))] * 2)

    def start_later(*arguments: Any, **keywords: Any) -> subprocess.Popen[bytes]:
        for error in failures:
            raise error
        return start(*arguments, **keywords)

    monkeypatch.setattr(subprocess, "Popen", start_later)
    pool = make_pool(lambda c: run_command(c, c.task.command), max_attempts=1)
    run(pool, session)
    assert session.history(id_)[-1].info == "exited with 3"


@pytest.mark.backends("sqlite")
def test_commands_environment_is_what_is_given(
    session: SessionStore,
    make_pool: MakePool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """G9: and no more, so that a password stays out of it."""
    session.add(Task("all", command=["/usr/bin/env"]))
    session.add(Task("given", command=["/usr/bin/env"]))
    monkeypatch.setenv("PASSWORD", "secret")

    def work(claim: Claim) -> None:
        name = claim.task.jobname
        environment = {"MINE": "kept"} if name == "given" else None
        output = tmp_path / name
        run_command(claim, claim.task.command, output=output, environment=environment)

    run(make_pool(work), session)
    assert "PASSWORD=secret" in (tmp_path / "all").read_text()
    assert (tmp_path / "given").read_text() == "MINE=kept\n"


@pytest.mark.backends("sqlite")
def test_command_is_run_by_a_pools_worker_alone(
    session: SessionStore, make_pool: MakePool
) -> None:
    """Elsewhere nobody would renew its lease, or end it in time."""
    session.add_many(Task("", command=["true"]) for _ in range(2))
    [foreign] = session.claim()
    with pytest.raises(ForkError, match="WorkerPool's worker"):
        run_command(foreign, ["true"])

    def work(claim: Claim) -> None:
        with pytest.raises(ForkError, match="WorkerPool's worker"):
            run_command(foreign, ["true"])

    pool = make_pool(work)
    drive(pool, lambda: State.TERMINATED in session.counts())
    assert states(session, foreign.id) == ["NEW"]


@pytest.mark.backends("sqlite")
def test_held_command_stands_still_until_it_is_resumed(
    session: SessionStore, other: SessionStore, make_pool: MakePool, marks: Path
) -> None:
    """STOPPED and its group stopped, soon after it was asked for; and then RUNNING."""
    id_ = session.add(Task())
    script = f"echo $$ >>{marks}; exec sleep 300"
    pool = make_pool(lambda c: run_command(c, ["sh", "-c", script]), lease=3600)
    drive(pool, lambda: begun(marks))
    command = psutil.Process(begun(marks)[0])
    other.request(id_, "hold")
    drive(pool, lambda: states(other, id_)[-1] == "STOPPED")
    drive(pool, lambda: command.status() == psutil.STATUS_STOPPED)
    other.request(id_, "resume")
    drive(pool, lambda: states(other, id_)[-1] == "RUNNING")
    drive(pool, lambda: command.status() != psutil.STATUS_STOPPED)
    other.request(id_, "hold")
    drive(pool, lambda: states(other, id_)[-1] == "STOPPED")
    pool.stop(grace=0)
    drive(pool, lambda: pool.is_done)
    assert other.history(id_)[-1].returncode == signal.SIGTERM


@pytest.mark.backends("sqlite")
def test_cancelled_command_is_recorded_as_such(
    session: SessionStore,
    other: SessionStore,
    make_pool: MakePool,
    marks: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long its many processes take to be killed, and not as one that failed."""
    id_ = session.add(Task())
    script = f"echo $$ >>{marks}; exec sleep 300"
    pool = make_pool(lambda c: run_command(c, ["sh", "-c", script]))
    drive(pool, lambda: begun(marks))
    kill_group = pools.signal_group

    def kill_slowly(group: int, number: signal.Signals) -> None:
        kill_group(group, number)
        until(lambda: has_ended(group))

    monkeypatch.setattr(pools, "signal_group", kill_slowly)
    other.request(id_, "cancel")
    run(pool, session)
    assert other.history(id_)[-1].info == "cancelled"


@pytest.mark.backends("sqlite")
def test_commands_status_is_known_where_children_are_ignored(
    session: SessionStore, start_forked: Callable[..., Child]
) -> None:
    """SIGCHLD is the worker's own: a failure is no success."""
    id_ = session.add(Task())

    def supervise() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        pool = WorkerPool(session, lambda c: run_command(c, ["sh", "-c", "exit 3"]))
        run(pool, session)

    start_forked(supervise).wait()
    assert session.load(id_).execution.exitcode == 3


@pytest.mark.backends("sqlite")
def test_worker_is_no_part_of_its_commands_group(
    session: SessionStore, make_pool: MakePool, marks: Path
) -> None:
    """The group is called by the worker's PID, and is the command's alone."""
    id_ = session.add(Task())
    script = f"echo $$ >>{marks}; exec sleep 300"
    pool = make_pool(lambda c: run_command(c, ["sh", "-c", script]))
    drive(pool, lambda: begun(marks))
    worker = session.history(id_)[-1].pid
    drive(pool, lambda: os.getpgid(worker) == os.getpgrp())
    assert os.getpgid(begun(marks)[0]) == worker
    os.kill(begun(marks)[0], signal.SIGINT)
    run(pool, session)
    assert session.history(id_)[-1].returncode == signal.SIGINT
