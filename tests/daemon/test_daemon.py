"""The example daemon, run as its user would run it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from sessionstore import SessionStore, State, Task
from tests.daemon.conftest import Cli, states, until


def all_ended(session: SessionStore) -> bool:
    return set(session.counts()) == {State.TERMINATED}


def test_submitted_command_runs_to_its_end(cli: Cli) -> None:
    """A job goes through its states; its output and exit code are kept."""
    cli("start", "--workers", "2")
    good = int(cli("submit", "--name", "greet", "--", "echo", "hello"))
    session = cli.session()
    bad, missing, killed = session.add_many(
        Task("", command=command)
        for command in (
            ["sh", "-c", "exit 3"],
            ["/no/such/program"],
            ["sh", "-c", "kill -s 36 $$"],
        )
    )
    until(lambda: all_ended(session))
    assert states(session, good) == [
        "NEW",
        "SUBMITTED",
        "RUNNING",
        "TERMINATING",
        "TERMINATED",
    ]
    assert (cli.spool / "output" / str(good)).read_text() == "hello\n"
    assert session.load(bad).execution.exitcode == 3
    assert session.load(missing).execution.exitcode == 127
    assert "/no/such/program" in session.history(missing)[-1].info
    assert session.load(killed).execution.signal == 36
    assert "greet" in cli("list")
    assert "exited with 0" in cli("history", str(good))
    shown = cli("show", str(bad))
    assert "exitcode: 3" in shown
    assert f"output:   {cli.spool}/output/{bad}" in shown
    assert "4 TERMINATED" in cli("status")
    pid = cli.pid()
    cli("stop")
    assert not psutil.pid_exists(pid)
    assert "no daemon" in cli("stop")
    cli("status", status=1)


def test_killed_worker_is_recorded_and_its_task_tried_again(cli: Cli) -> None:
    """A worker's kill -9 is in the history, at most --attempts times."""
    cli("start", "--attempts", "2")
    id_ = int(cli("submit", "--", "sleep", "60"))
    session = cli.session()
    for attempt in (1, 2):
        until(lambda n=attempt: states(session, id_).count("RUNNING") == n)
        os.kill(session.history(id_)[-1].pid, signal.SIGKILL)
    until(lambda: all_ended(session))
    history = session.history(id_)
    lost = [entry.info for entry in history if entry.to_state is State.UNKNOWN]
    assert len(lost) == 2
    assert all("was killed by signal 9" in info for info in lost)
    assert history[-1].info == "attempts exhausted"
    again = ["SUBMITTED", "RUNNING", "UNKNOWN"]
    assert states(session, id_) == ["NEW", *again, *again, "TERMINATED"]


def test_next_daemon_picks_up_what_a_killed_one_left(cli: Cli) -> None:
    """The orphaned command is ended before its task runs again."""
    cli("start")
    marks = cli.spool / "marks"
    command = f'echo $$ >>{marks}; [ "$(wc -l <{marks})" -gt 1 ] || sleep 300'
    id_ = int(cli("submit", "--", "sh", "-c", command))
    until(lambda: marks.exists() and marks.read_text().endswith("\n"))
    session = cli.session()
    orphans = [psutil.Process(int(marks.read_text()))]
    orphans.append(psutil.Process(session.history(id_)[-1].pid))
    cli.kill()
    assert all(orphan.is_running() for orphan in orphans)
    cli("start")
    until(lambda: all_ended(session))
    for orphan in orphans:
        assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
    assert "its daemon died" in [entry.info for entry in session.history(id_)]
    assert len(marks.read_text().splitlines()) == 2


@pytest.mark.backends("sqlite")
def test_every_stage_that_a_killed_daemon_left_is_picked_up(cli: Cli) -> None:
    """Taken and not begun: run again. Ended and not recorded: not run again."""
    cli("start")
    first = int(cli("submit", "--", "true"))
    session = cli.session()
    until(lambda: all_ended(session))
    mark = session.history(first)[1].info
    cli.kill()
    taken, ended = session.add_many(Task("", command=["true"]) for _ in range(2))
    for id_ in (taken, ended):
        session.transition(id_, State.SUBMITTED, info=mark)
    session.transition(ended, State.RUNNING)
    session.transition(ended, State.TERMINATING, info="exited with 7", returncode=1792)
    cli("start")
    until(lambda: all_ended(session))
    rest = ["SUBMITTED", "RUNNING", "TERMINATING", "TERMINATED"]
    assert states(session, taken) == ["NEW", "SUBMITTED", "UNKNOWN", *rest]
    assert states(session, ended) == ["NEW", *rest]
    assert session.history(ended)[-1].info == "exited with 7"
    session.store.invalidate_cache()
    assert session.load(ended).execution.exitcode == 7


def test_daemons_with_one_session_leave_each_other_alone(
    cli: Cli, make_cli: object, tmp_path: Path
) -> None:
    """A daemon that starts ends and takes nothing that another one runs."""
    cli("start", "--workers", "1", "--grace", "0")
    running = int(cli("submit", "--", "sleep", "300"))
    foreign = int(cli("submit", "--", "true"))
    session = cli.session()
    until(lambda: states(session, running)[-1] == "RUNNING")
    session.transition(foreign, State.SUBMITTED, expect=State.NEW, info="somebody's")
    other = make_cli(tmp_path / "other", cli.url)
    other("start")
    new = int(cli("submit", "--", "true"))
    until(lambda: states(session, new)[-1] == "TERMINATED")
    assert states(session, running) == ["NEW", "SUBMITTED", "RUNNING"]
    assert states(session, foreign) == ["NEW", "SUBMITTED"]
    assert str(other.spool) in session.history(new)[1].info


def test_tasks_that_cannot_be_run_end_with_the_reason(cli: Cli) -> None:
    """G7: an unreadable object, or one with no command, does not stop the daemon."""
    with SessionStore(cli.url) as session:
        ids = [
            session.add(Task("foreign")),
            session.add(Task("no list", command="ls -l")),
            session.add(Task("no program", command=[])),
            session.add(Task("NUL", command=["echo", "\0"])),
            session.add(Task("unreadable", command=["true"])),
        ]
        table = session.store._tables
        with session.transaction() as connection:
            connection.execute(
                table.update().where(table.c.id == ids[-1]).values(data=b"no pickle")
            )
    cli("start")
    session = cli.session()
    until(lambda: all_ended(session))
    for id_ in ids:
        last = session.history(id_)[-1]
        assert last.info.startswith("cannot be run: ")
        assert last.returncode == 127 << 8
    assert "foreign" in cli("list")
    assert "command:  -" in cli("show", str(ids[0]))
    assert "cannot be" in cli("show", str(ids[-1]), status=1)


def test_stop_ends_what_does_not_end_by_itself(cli: Cli) -> None:
    """After the grace the command is ended, and its task's state is true."""
    cli("start", "--grace", "0.2")
    id_ = int(cli("submit", "--", "sleep", "300"))
    session = cli.session()
    until(lambda: session.counts() == {State.RUNNING: 1})
    cli("stop")
    task = session.load(id_)
    assert task.execution.state is State.TERMINATED
    assert task.execution.signal == signal.SIGTERM


@pytest.mark.backends("sqlite")
def test_stop_kills_what_ignores_it(cli: Cli) -> None:
    """A command that ignores SIGTERM gets SIGKILL, with all of its group."""
    cli("start", "--grace", "0")
    script = 'trap "" TERM; (trap "" TERM; sleep 300) & echo $! $$; wait'
    id_ = int(cli("submit", "--", "sh", "-c", script))
    output = cli.spool / "output" / str(id_)
    until(lambda: output.exists() and output.read_text().endswith("\n"))
    pids = [int(pid) for pid in output.read_text().split()]
    cli("stop")
    session = cli.session()
    assert states(session, id_)[-1] == "UNKNOWN"
    assert "killed by signal 9" in session.history(id_)[-1].info
    until(
        lambda: (
            not any(
                psutil.pid_exists(pid)
                and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
                for pid in pids
            )
        )
    )


@pytest.mark.backends("sqlite")
def test_what_a_command_leaves_in_its_group_ends_with_it(cli: Cli) -> None:
    """A background process does not outlive the task that it was part of."""
    cli("start")
    id_ = int(cli("submit", "--", "sh", "-c", "sleep 300 & echo $!"))
    session = cli.session()
    until(lambda: all_ended(session))
    pid = int((cli.spool / "output" / str(id_)).read_text())
    until(
        lambda: (
            not psutil.pid_exists(pid)
            or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        )
    )


@pytest.mark.backends("sqlite")
def test_removed_task_does_not_stop_the_daemon(cli: Cli) -> None:
    """Whoever removes a task that runs ends neither the daemon nor other tasks."""
    cli("start", "--workers", "1")
    session = cli.session()
    gone = session.add(Task("gone", command=["sleep", "300"]))
    until(lambda: states(session, gone)[-1] == "RUNNING")
    worker = session.history(gone)[-1].pid
    session.remove(gone)
    os.kill(worker, signal.SIGKILL)
    other = session.add(Task("other", command=["true"]))
    until(lambda: states(session, other)[-1] == "TERMINATED")


@pytest.mark.backends("sqlite")
def test_command_inherits_nothing_of_the_daemon(cli: Cli) -> None:
    """G9: no descriptor, no password, no systemd socket; and it has its own group."""
    cli.environment |= {"NOTIFY_SOCKET": f"{cli.spool}/nobody", "MINE": "kept"}
    cli("start")
    script = "ls -l /proc/self/fd; env; umask; ps -o pgid= -p $$"
    id_ = int(cli("submit", "--", "sh", "-c", script))
    session = cli.session()
    until(lambda: all_ended(session))
    text = (cli.spool / "output" / str(id_)).read_text()
    links = [line.split(" -> ")[1] for line in text.splitlines() if " -> " in line]
    own = ["/dev/null", *[f"{cli.spool}/output/{id_}"] * 2]
    assert sorted(link for link in links if not link.startswith("/proc/")) == own
    assert "MINE=kept" in text
    for name in ("DAEMON_EXAMPLE_STORE", "NOTIFY_SOCKET"):
        assert name not in text
    assert "0077" in text
    worker = next(e.pid for e in session.history(id_) if e.to_state == "RUNNING")
    assert text.split()[-1] == str(worker)


@pytest.mark.backends("sqlite")
def test_reload_takes_good_settings_and_refuses_bad_ones(
    cli: Cli, tmp_path: Path
) -> None:
    """SIGHUP reads the file again, and opens a log that was moved anew."""
    config = tmp_path / "config.toml"
    config.write_text("workers = 1\ngrace = 0")
    cli("start", "--config", str(config))
    log = cli.spool / "daemon.log"
    config.write_text('workers = "many"')
    os.kill(cli.pid(), signal.SIGHUP)
    until(lambda: "the old settings stay: workers cannot be 'many'" in log.read_text())
    log.rename(cli.spool / "daemon.log.1")
    config.write_text("workers = 2\ngrace = 0")
    os.kill(cli.pid(), signal.SIGHUP)
    until(lambda: log.exists() and "workers=2" in log.read_text())
    assert cli.url not in log.read_text()
    session = cli.session()
    session.add_many(Task("", command=["sleep", "300"]) for _ in range(3))
    until(lambda: session.counts() == {State.RUNNING: 2, State.NEW: 1})
