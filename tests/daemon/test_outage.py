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
