"""The servers that the tests start are theirs alone, and end with them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from sqlalchemy import create_engine, inspect, text

ROOT = Path(__file__).parent.parent


def test_each_test_finds_an_empty_database_that_it_can_write(database_url: str) -> None:
    """What one test leaves behind, the next does not see."""
    engine = create_engine(database_url)
    assert inspect(engine).get_table_names() == []
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE left_behind (x INTEGER)"))
    assert inspect(engine).get_table_names() == ["left_behind"]
    engine.dispose()


@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_a_killed_run_leaves_no_server(name: str) -> None:
    """Servers listen on loopback only, and end when their run gets kill -9."""
    if f"SESSIONSTORE_TEST_{name.upper()}" not in os.environ:
        pytest.skip(f"there is no {name} server on this machine")
    script = (
        "import sys\n"
        "from tests import servers\n"
        f"server = servers.start_{name}()\n"
        "print(server.process.pid, server.folder, flush=True)\n"
        "sys.stdin.read()\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with run:
        assert run.stdout is not None
        pid, folder = run.stdout.readline().decode().split()
        server = psutil.Process(int(pid))
        listening = {
            connection.laddr.ip
            for connection in server.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        run.send_signal(signal.SIGKILL)
    assert listening == {"127.0.0.1"}
    server.wait(30)
    shutil.rmtree(folder)
