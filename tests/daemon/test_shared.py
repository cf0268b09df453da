"""Daemons that share a session: each task is run to its end, by one at a time."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from sessionstore import SessionStore, State, Task
from tests import servers
from tests.daemon.conftest import Cli, all_ended, begun, has_ended, states, until
from tests.daemon.test_outage import opened


@pytest.fixture
def other(cli: Cli, make_cli: Callable[[Path, str], Cli], tmp_path: Path) -> Cli:
    """A second daemon's spool folder; the session is the same."""
    return make_cli(tmp_path / "other", cli.url)


def test_tasks_are_shared_and_each_runs_once(
    cli: Cli, other: Cli, tmp_path: Path
) -> None:
    """G6: two daemons with one worker each; no task is begun twice, none is left."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    mark = 'echo $$ >>"$0";'
    with SessionStore(cli.url) as session:
        # Each of the two can only end while the other runs.
        commands = [f"{mark} echo x >{gate}", f"{mark} read x <{gate}", *[mark] * 20]
        session.add_many(
            Task(str(n), command=["sh", "-c", text, f"{tmp_path}/{n}"])
            for n, text in enumerate(commands)
        )
        cli("start", "--workers", "1")
        other("start", "--workers", "1")
        until(lambda: all_ended(session))
        for n, task in enumerate(session):
            assert len(begun(tmp_path / str(n))) == 1
            assert task.execution.returncode == 0
        spools = {Path(task.output).parent.parent for task in session}
        assert spools == {cli.spool, other.spool}


def test_daemon_leaves_alone_what_others_hold(cli: Cli, other: Cli) -> None:
    """G6: one that starts ends and takes nothing that another one runs."""
    cli("start", "--workers", "1", "--grace", "0")
    running = int(cli("submit", "--", "sleep", "300"))
    foreign = int(cli("submit", "--", "true"))
    session = cli.session()
    until(lambda: states(session, running)[-1] == "RUNNING")
    session.transition(foreign, State.SUBMITTED, expect=State.NEW, info="somebody's")
    other("start")
    new = int(cli("submit", "--", "true"))
    until(lambda: states(session, new)[-1] == "TERMINATED")
    assert states(session, running) == ["NEW", "SUBMITTED", "RUNNING"]
    assert states(session, foreign) == ["NEW", "SUBMITTED"]
    assert session.load(new).output == f"{other.spool}/output/{new}"


def test_killed_daemons_task_is_taken_by_another_at_once(
    cli: Cli, other: Cli, tmp_path: Path
) -> None:
    """G6: long before its lease is over, and after its command was ended."""
    marks = tmp_path / "marks"
    # The second run fails if the first one's shell is there, other than as a zombie.
    again = f"! grep -s '^State:.[^Z]' /proc/$(cat {marks})/status"
    command = f"if [ -s {marks} ]; then {again}; exit; fi; echo $$ >{marks}; sleep 99"
    cli("start", "--lease", "3600")
    other("start", "--lease", "3600")
    with cli.session() as session:
        id_ = session.add(Task("", command=["sh", "-c", command]))
        until(lambda: begun(marks))
        until(lambda: states(session, id_)[-1] == "RUNNING")
        output = Path(session.load(id_).output)
        first = cli if output.is_relative_to(cli.spool) else other
        worker = session.history(id_)[-1].pid
        first.kill()
        until(lambda: all_ended(session))
        assert all(map(has_ended, [*begun(marks), worker]))
        task = session.load(id_)
        session.refresh(task)
        assert not Path(task.output).is_relative_to(first.spool)
        assert task.execution.exitcode == 0
        run = ["SUBMITTED", "RUNNING"]
        end = ["TERMINATING", "TERMINATED"]
        assert states(session, id_) == ["NEW", *run, "UNKNOWN", *run, *end]


@pytest.mark.backends("sqlite", "postgresql")
def test_daemon_that_hangs_loses_its_task_and_no_more(
    cli: Cli, other: Cli, tmp_path: Path
) -> None:
    """G6: its command ends before its lease does; it comes back, and is refused."""
    marks, gate = tmp_path / "marks", tmp_path / "gate"
    os.mkfifo(gate)
    cli("start", "--lease", "5", "--workers", "1")
    with cli.session() as session:
        command = ["sh", "-c", f"echo $$ >>{marks}; read line <{gate}"]
        id_ = session.add(Task("", command=command))
        until(lambda: begun(marks))
        hanging = psutil.Process(cli.pid())
        hanging.suspend()
        try:
            [first] = begun(marks)
            until(lambda: has_ended(first))
            other("start", "--workers", "1")
            until(lambda: len(begun(marks)) == 2)
            assert not has_ended(begun(marks)[1])
        finally:
            hanging.resume()
        new = session.add(Task("", command=["true"]))
        until(lambda: states(session, new)[-1] == "TERMINATED")
        assert session.load(new).output == f"{cli.spool}/output/{new}"
        gate.write_text("line\n")
        until(lambda: all_ended(session))
        lost = [e.info for e in session.history(id_) if e.to_state is State.UNKNOWN]
        assert len(lost) == 1
        assert "expired" in lost[0]
        assert states(session, id_)[-4:] == [
            "SUBMITTED",
            "RUNNING",
            "TERMINATING",
            "TERMINATED",
        ]


@pytest.mark.skipif(
    servers.postgresql_binary("initdb") is None, reason="there is no PostgreSQL"
)
def test_command_ends_with_a_lease_that_cannot_be_renewed(
    tmp_path: Path, make_cli: Callable[..., Cli]
) -> None:
    """G6: while the server is away; the task is run again when it is back."""
    server = servers.start_postgresql()
    try:
        cli = make_cli(tmp_path / "spool", server.url)
        marks = tmp_path / "marks"
        cli("start", "--lease", "5", "--grace", "0")
        with cli.session() as session:
            command = ["sh", "-c", f"echo $$ >>{marks}; exec sleep 300"]
            id_ = session.add(Task("", command=command))
            until(lambda: begun(marks))
        server.kill()
        [first] = begun(marks)
        until(lambda: has_ended(first))
        server.start_again()
        with opened(server.url) as session:
            until(lambda: len(begun(marks)) == 2)
            lost = [e.info for e in session.history(id_) if e.to_state is State.UNKNOWN]
            assert len(lost) == 1
            assert "could not be renewed" in lost[0] or "expired" in lost[0]
            cli("stop")
            last = session.history(id_)[-1]
            assert (last.to_state, last.returncode) == (
                State.TERMINATED,
                signal.SIGTERM,
            )
    finally:
        server.stop()


@pytest.mark.backends("sqlite")
@pytest.mark.parametrize("worker", ["me", [1], ["here", 1, 0.0], None, {}], ids=str)
def test_nothing_is_ended_for_a_task_of_another_make(
    cli: Cli, run_forked: Callable[..., object], worker: object
) -> None:
    """G6: what it says of its worker is no group of ours, and it is recovered."""
    with SessionStore(cli.url) as session:
        id_ = session.add(Task("", command=["true"], worker=worker))
        run_forked(session.claim)
        cli("start")
        until(lambda: all_ended(session))
        assert states(session, id_)[:2] == ["NEW", "UNKNOWN"]
