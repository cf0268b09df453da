"""The example daemon, run as its user would run it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from daemon_example import instance
from daemon_example.supervisor import try_to_write
from sessionstore import ConflictError, SessionStore, SqlStore, State, Task
from sessionstore.testing import Child, ChildError
from tests.daemon.conftest import Cli, all_ended, begun, has_ended, states, until


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
    assert ".exitcode\t3\n" in shown
    assert f".output\t{cli.spool}/output/{bad}\n" in shown
    assert "4 TERMINATED" in cli("status")
    pid = cli.pid()
    cli("stop")
    assert has_ended(pid)
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
    orphans = [int(marks.read_text()), session.history(id_)[-1].pid]
    cli.kill()
    assert not any(map(has_ended, orphans))
    cli("start")
    until(lambda: all_ended(session))
    assert all(map(has_ended, orphans))
    lost = [e.info for e in session.history(id_) if e.to_state is State.UNKNOWN]
    assert len(lost) == 1
    assert "is gone" in lost[0]
    assert len(marks.read_text().splitlines()) == 2


@pytest.mark.backends("sqlite")
def test_every_stage_that_a_killed_daemon_left_is_picked_up(
    cli: Cli, run_forked
) -> None:
    """G6: claimed, submitted or running, it is run again."""
    ways = [[], [State.SUBMITTED], [State.SUBMITTED, State.RUNNING]]
    with SessionStore(cli.url) as session:
        ids = session.add_many(Task("", command=["true"]) for _ in ways)

        def claim_and_die() -> None:
            for claim, way in zip(session.claim(3), ways, strict=True):
                for state in way:
                    claim.transition(state)

        run_forked(claim_and_die)
        cli("start")
        until(lambda: all_ended(session))
        rest = ["SUBMITTED", "RUNNING", "TERMINATING", "TERMINATED"]
        for id_, way in zip(ids, ways, strict=True):
            assert states(session, id_) == ["NEW", *way, "UNKNOWN", *rest]


@pytest.mark.backends("sqlite")
def test_end_of_a_command_is_recorded_at_once_or_not_at_all(cli: Cli) -> None:
    """G2: no worker that dies leaves a task TERMINATING, which would run again."""
    with SessionStore(cli.url) as session:
        with session.transaction() as connection:
            connection.exec_driver_sql(
                "CREATE TRIGGER t BEFORE INSERT ON store_transition "
                "WHEN NEW.to_state = 'TERMINATED' "
                "BEGIN SELECT RAISE(ABORT, 'nothing ends here'); END"
            )
        id_ = session.add(Task("", command=["true"]))
        cli("start", "--attempts", "100")
        until(lambda: "UNKNOWN" in states(session, id_))
        with session.transaction() as connection:
            connection.exec_driver_sql("DROP TRIGGER t")
        until(lambda: all_ended(session))
        *before, terminating, terminated = states(session, id_)
        assert "TERMINATING" not in before
        assert (terminating, terminated) == ("TERMINATING", "TERMINATED")


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
    assert ".command\t" not in cli("show", str(ids[0]))
    assert ".command\tls -l\n" in cli("show", str(ids[1]))
    assert "use --raw to show everything else" in cli("show", str(ids[-1]), status=1)
    assert f"payload_begin\t{b'no pickle'.hex()}\n" in cli(
        "show", "--raw", str(ids[-1])
    )


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
    until(lambda: all(map(has_ended, pids)))


@pytest.mark.backends("sqlite")
def test_what_a_command_leaves_in_its_group_ends_with_it(cli: Cli) -> None:
    """A background process does not outlive the task that it was part of."""
    cli("start")
    id_ = int(cli("submit", "--", "sh", "-c", "sleep 300 & echo $!"))
    session = cli.session()
    until(lambda: all_ended(session))
    pid = int((cli.spool / "output" / str(id_)).read_text())
    until(lambda: has_ended(pid))


@pytest.mark.backends("sqlite")
def test_removed_task_does_not_stop_the_daemon(cli: Cli) -> None:
    """G6: it is refused; if its row goes all the same, its command is ended."""
    cli("start", "--workers", "1", "--lease", "5")
    session = cli.session()
    gone = session.add(Task("gone", command=["sleep", "300"]))
    until(lambda: states(session, gone)[-1] == "RUNNING")
    with pytest.raises(ConflictError):
        session.remove(gone)
    with session.transaction() as connection:
        connection.exec_driver_sql(f"DELETE FROM store_job WHERE job_id = {gone}")
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


@pytest.mark.backends("sqlite")
def test_command_has_no_terminal(cli: Cli) -> None:
    """A daemon in the foreground keeps its terminal, and no command asks there."""
    ours, terminal = os.openpty()
    name = os.ttyname(terminal)
    # Who leads a session gets the first terminal that it opens.
    script = 'exec "$0" -m daemon_example run <"$1"'
    process = subprocess.Popen(
        ["sh", "-c", script, sys.executable, name],
        env=cli.environment,
        start_new_session=True,
    )
    try:
        until(lambda: instance.running(cli.spool) == process.pid)
        assert psutil.Process(process.pid).terminal() == name
        id_ = int(cli("submit", "--", "sh", "-c", ": </dev/tty"))
        session = cli.session()
        until(lambda: all_ended(session))
        assert session.load(id_).execution.exitcode not in (0, None)
        assert "/dev/tty" in (cli.spool / "output" / str(id_)).read_text()
        process.terminate()
        assert process.wait(40) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(terminal)


def test_first_write_leaves_nothing_behind(
    database_url: str,
    start_forked: Callable[..., Child],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """G2: nor does one in whose midst the daemon is killed."""
    with SessionStore(database_url) as session:
        try_to_write(session)
        assert session.store.list() == []

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(SqlStore, "remove", die)
    child = start_forked(lambda: try_to_write(SessionStore(database_url)))
    with pytest.raises(ChildError, match="ended by signal 9"):
        child.wait()
    assert SqlStore(database_url).list() == []


@pytest.mark.backends("sqlite")
def test_task_whose_command_does_not_end_stays_claimed(
    cli: Cli, tmp_path: Path
) -> None:
    """G6: it is run again when the command is gone."""
    cli.program = ("-c", DEATHLESS)
    marks = tmp_path / "marks"
    cli("start", "--lease", "5")
    with cli.session() as session:
        command = ["sh", "-c", f"echo $$ >>{marks}; exec sleep 300"]
        id_ = session.add(Task("", command=command))
        until(lambda: states(session, id_)[-1] == "RUNNING")
        until(lambda: begun(marks))
        with suppress(ProcessLookupError):  # its lease could not be renewed in time
            os.kill(session.history(id_)[-1].pid, signal.SIGKILL)
        log = cli.spool / "daemon.log"
        until(lambda: f"task {id_}: its command does not end" in log.read_text())
        until(lambda: f"task {id_} stays claimed" in log.read_text())
        assert states(session, id_)[-1] == "RUNNING"
        [pid] = begun(marks)
        os.kill(pid, signal.SIGKILL)
        until(lambda: len(begun(marks)) == 2)
        os.kill(begun(marks)[1], signal.SIGTERM)
        until(lambda: all_ended(session))


#: A daemon that kills no group, as the kernel cannot while one waits for a disk.
DEATHLESS = (
    "import os, sys; from daemon_example.__main__ import main;"
    "os.killpg = lambda *_: None; sys.exit(main())"
)
