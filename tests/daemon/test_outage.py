"""The database goes away and comes back while the daemon works."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from sessionstore import SessionStore, State, StoreUnavailableError, Task
from tests import servers
from tests.daemon.conftest import Cli, states, until


def opened(url: str) -> SessionStore:
    """Return the session as soon as the server answers."""
    sessions: list[SessionStore] = []

    def is_there() -> bool:
        try:
            sessions.append(SessionStore(url))
        except StoreUnavailableError:
            return False
        return True

    until(is_there)
    return sessions[0]


@pytest.mark.skipif(
    servers.postgresql_binary("initdb") is None, reason="there is no PostgreSQL"
)
def test_daemon_waits_for_a_server_that_was_killed(
    tmp_path: Path, make_cli: Callable[..., Cli]
) -> None:
    """G1: a worker that ended meanwhile writes its result then; nothing is lost."""
    server = servers.start_postgresql()
    try:
        cli = make_cli(tmp_path / "spool", server.url)
        cli("start", "--workers", "3", "--attempts", "2", "--grace", "0")
        log = cli.spool / "daemon.log"
        gate = tmp_path / "gate"
        os.mkfifo(gate)
        with cli.session() as session:
            ended, killed = session.add_many(
                Task("", command=["sh", "-c", f"read line <{gate}"]) for _ in range(2)
            )
            until(lambda: session.counts() == {State.RUNNING: 2})
            worker = session.history(killed)[-1].pid
        server.kill()
        with (cli.spool / "new" / "x").open("w") as file:
            file.write('command = ["true"]')
        Path(file.name).rename(cli.spool / "new" / "x.toml")
        os.kill(worker, signal.SIGKILL)
        gate.write_text("line\n")
        until(lambda: log.read_text().count("waiting for the database") >= 1)
        until(lambda: log.read_text().count("waiting: ") >= 2)
        assert "cannot be reached" in cli("list", status=1)
        pid = cli.pid()
        server.start_again()
        session = opened(server.url)
        until(lambda: states(session, ended)[-1] == "TERMINATED")
        until(lambda: states(session, killed).count("RUNNING") == 2)
        gate.write_text("line\n")
        until(lambda: session.counts() == {State.TERMINATED: 3})
        assert states(session, ended) == [
            "NEW",
            "SUBMITTED",
            "RUNNING",
            "TERMINATING",
            "TERMINATED",
        ]
        assert "was killed by signal 9" in session.history(killed)[3].info
        assert cli.pid() == pid
        session.close()
        cli("stop")
    finally:
        server.stop()


@pytest.mark.skipif(
    servers.postgresql_binary("initdb") is None, reason="there is no PostgreSQL"
)
def test_daemon_waits_for_a_database_that_refuses_it(
    tmp_path: Path, make_cli: Callable[..., Cli]
) -> None:
    """It was right at the start: to end now would lose what the workers have done."""
    server = servers.start_postgresql()
    try:
        cli = make_cli(tmp_path / "spool", server.make_database())
        cli("start")
        pid, log = cli.pid(), cli.spool / "daemon.log"
        gate = tmp_path / "gate"
        os.mkfifo(gate)
        with cli.session() as session:
            id_ = session.add(Task("", command=["sh", "-c", f"read line <{gate}"]))
            until(lambda: states(session, id_)[-1] == "RUNNING")
        servers.execute(
            server.url,
            "ALTER DATABASE crash ALLOW_CONNECTIONS false",
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE datname = 'crash'",
            "ALTER DATABASE crash RENAME TO moved",
        )
        gate.write_text("line\n")
        refused = '"crash" does not exist'
        for who in ("waiting: ", "waiting for the database: "):
            until(
                lambda who=who: any(
                    who in line and refused in line
                    for line in log.read_text().splitlines()
                )
            )
        servers.execute(
            server.url,
            "ALTER DATABASE moved RENAME TO crash",
            "ALTER DATABASE crash ALLOW_CONNECTIONS true",
        )
        with opened(cli.url) as session:
            until(lambda: states(session, id_)[-1] == "TERMINATED")
            assert states(session, id_).count("RUNNING") == 1
        assert cli.pid() == pid
        cli("stop")
    finally:
        server.stop()


@pytest.mark.skipif(
    servers.postgresql_binary("initdb") is None, reason="there is no PostgreSQL"
)
def test_daemon_can_be_stopped_while_the_server_is_away(
    tmp_path: Path, make_cli: Callable[..., Cli]
) -> None:
    """What could not be recorded is so at the next start."""
    server = servers.start_postgresql()
    try:
        cli = make_cli(tmp_path / "spool", server.url)
        cli("start", "--grace", "0")
        id_ = int(cli("submit", "--", "sleep", "300"))
        with cli.session() as session:
            until(lambda: session.counts() == {State.RUNNING: 1})
        server.kill()
        cli("stop")
        assert "cannot be reached" in cli("start", status=1)
        server.start_again()
        with opened(server.url) as session:
            until(lambda: session.counts() == {State.RUNNING: 1})
            cli("start", "--attempts", "1")
            until(lambda: session.counts() == {State.TERMINATED: 1})
            assert session.history(id_)[-1].info == "attempts exhausted"
    finally:
        server.stop()
