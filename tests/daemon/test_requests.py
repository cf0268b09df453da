"""What a task's holder is asked for, from any host, through the database."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from sessionstore import SessionStore, Task
from tests.daemon.conftest import Cli, all_ended, begun, has_ended, states, until


def waiting(marks: Path) -> Task:
    """Return a task with two processes, whose PIDs are written to a file."""
    text = f"sleep 300 & echo $! >>{marks}; echo $$ >>{marks}; wait"
    return Task("", command=["sh", "-c", text])


def test_cancelled_tasks_processes_all_end(cli: Cli, tmp_path: Path) -> None:
    """The history says so, and it is not tried again until it is done again."""
    marks = tmp_path / "marks"
    cli("start")
    with cli.session() as session:
        id_ = session.add(waiting(marks))
        until(lambda: len(begun(marks)) == 2)
        cli("cancel", str(id_))
        until(lambda: all_ended(session))
        until(lambda: all(map(has_ended, begun(marks))))
        last = session.history(id_)[-1]
        assert (last.info, last.returncode) == ("cancelled", 9)
        assert states(session, id_) == ["NEW", "SUBMITTED", "RUNNING", "TERMINATED"]
        assert "nothing to cancel" in cli("cancel", str(id_), status=1)
        cli("redo", str(id_))
        until(lambda: len(begun(marks)) == 4)
        cli("cancel", str(id_))
        until(lambda: all_ended(session))


def test_held_task_stands_still_until_it_is_resumed(cli: Cli, tmp_path: Path) -> None:
    """STOPPED, with all its processes; and its lease is renewed meanwhile."""
    marks = tmp_path / "marks"
    cli("start", "--lease", "5", "--grace", "0")
    with cli.session() as session:
        id_ = session.add(waiting(marks))
        until(lambda: len(begun(marks)) == 2)
        processes = [psutil.Process(pid) for pid in begun(marks)]
        cli("hold", str(id_))
        stopped = {psutil.STATUS_STOPPED}
        until(lambda: {process.status() for process in processes} == stopped)
        until(lambda: states(session, id_)[-1] == "STOPPED")
        # The worker of another task is no part of it, and neither is the daemon.
        other = session.add(Task("", command=["true"]))
        until(lambda: states(session, other)[-1] == "TERMINATED")
        renewed = [lease(session, id_)]
        until(lambda: lease(session, id_) - renewed[0] > 5_000_000)
        cli("resume", str(id_))
        until(lambda: stopped.isdisjoint(process.status() for process in processes))
        until(lambda: states(session, id_)[-1] == "RUNNING")
        cli("hold", str(id_))
        until(lambda: states(session, id_)[-1] == "STOPPED")
        cli("stop")
        assert states(session, id_) == [
            *["NEW", "SUBMITTED", "RUNNING", "STOPPED", "RUNNING", "STOPPED"],
            *["TERMINATING", "TERMINATED"],
        ]
        assert all(map(has_ended, begun(marks)))


def lease(session: SessionStore, id_: int) -> int:
    """Return when a task's lease ends, in microseconds."""
    with session.transaction() as connection:
        query = f"SELECT lease_expires_at FROM store_job WHERE job_id = {id_}"
        return connection.exec_driver_sql(query).scalar_one()


@pytest.mark.backends("sqlite")
def test_task_of_nobodys_needs_no_daemon(cli: Cli) -> None:
    """Cancelled, held and resumed before anybody has taken it."""
    with SessionStore(cli.url) as session:
        gone, kept = session.add_many(Task("", command=["true"]) for _ in range(2))
        cli("cancel", str(gone))
        assert states(session, gone) == ["NEW", "UNKNOWN", "TERMINATED"]
        cli("hold", str(kept))
        assert states(session, kept)[-1] == "STOPPED"
        other = session.add(Task("", command=["true"]))
        cli("start")
        until(lambda: states(session, other)[-1] == "TERMINATED")
        assert states(session, kept) == ["NEW", "UNKNOWN", "STOPPED"]
        cli("resume", str(kept))
        until(lambda: all_ended(session))
        assert session.load(kept).execution.returncode == 0
        assert states(session, gone)[-1] == "TERMINATED"


@pytest.mark.backends("sqlite")
def test_check_tells_by_its_status(cli: Cli) -> None:
    """0 if a write is committed and the daemon runs, else 1 and the reason."""
    assert "no session" in cli("check", status=1)
    cli("start")
    assert cli("check") == ""
    cli.kill()
    assert "no daemon works on" in cli("check", status=1)
    with SessionStore(cli.url) as session:
        assert session.counts() == {}
        with session.transaction() as connection:
            connection.exec_driver_sql(
                "CREATE TRIGGER t BEFORE INSERT ON store "
                "BEGIN SELECT RAISE(ABORT, 'nothing is written here'); END"
            )
    cli("start", status=1)
    assert "nothing is written here" in cli("check", status=1)
