"""What the service manager is told."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator

import pytest

from sessionstore import SessionStore, Task
from tests.daemon.conftest import Cli

pytestmark = pytest.mark.backends("sqlite")


@pytest.fixture
def manager(cli: Cli) -> Iterator[socket.socket]:
    """The socket that systemd would listen on."""
    address = cli.spool.parent / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(address))
        listener.settimeout(40)
        cli.environment["NOTIFY_SOCKET"] = str(address)
        yield listener


def heard(manager: socket.socket, wanted: str) -> list[str]:
    """Return what is said up to a message that begins as wanted."""
    said = [""]
    while not said[-1].startswith(wanted):
        said.append(manager.recv(4096).decode())
    return said[1:]


def test_manager_hears_of_every_stage(cli: Cli, manager: socket.socket) -> None:
    """READY=1 comes first; then work, a reload and the stop, each as it begins."""
    process = cli.popen("run", stderr=subprocess.DEVNULL)
    assert heard(manager, "READY=1") == ["READY=1"]
    assert "no tasks" in heard(manager, "WATCHDOG=1")[-1]
    with cli.session() as session:
        session.add(Task("", command=["true"]))
    while "STATUS=1 TERMINATED" not in heard(manager, "WATCHDOG=1")[-1]:
        pass
    process.send_signal(signal.SIGHUP)
    assert "MONOTONIC_USEC=" in heard(manager, "RELOADING=1")[-1]
    assert heard(manager, "READY=1") == ["READY=1"]
    process.send_signal(signal.SIGTERM)
    heard(manager, "STOPPING=1")
    assert process.wait(40) == 0


def test_daemon_that_cannot_write_is_never_ready(
    cli: Cli, manager: socket.socket
) -> None:
    """READY=1 is sent after the first committed write, and so not here."""
    with SessionStore(cli.url) as session, session.transaction() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER t BEFORE INSERT ON store "
            "BEGIN SELECT RAISE(ABORT, 'nothing is written here'); END"
        )
    assert "nothing is written here" in cli("run", status=1)
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(4096)
