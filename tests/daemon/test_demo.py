"""The demo, as ``make demo`` runs it."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests import servers
from tests.daemon.conftest import ROOT, Cli


@pytest.mark.backends("sqlite", "postgresql")
def test_demo_tells_what_the_database_says(cli: Cli, tmp_path: Path) -> None:
    """G9: all tasks end, the killed worker's too; no process shows the password."""
    folder = tmp_path / "demo"
    process = cli.popen("demo", "--folder", str(folder), stdout=subprocess.PIPE)
    demo = psutil.Process(process.pid)
    shown = set()
    out = b""
    with process:
        for line in process.stdout:
            out += line
            with suppress(psutil.Error):
                for one in [demo, *demo.children(recursive=True)]:
                    shown.add(" ".join(one.cmdline()))
    assert process.returncode == 0
    said = out.decode()
    assert "\nstates\tTERMINATED\t13\t" in said
    assert "\tfail\tTERMINATING\tTERMINATED\t512\texited with 2\n" in said
    killed, history = said.split("the task whose worker was killed:")
    for text in (killed, history):
        assert "RUNNING\tUNKNOWN\t" in text
        assert "was killed by signal 9" in text
    assert said.endswith("history, index and store agree\n")
    assert len(list(folder.glob("*.gz"))) == 3
    assert any("daemon_example run" in line for line in shown)
    assert not any(servers._LOGIN in text for text in [said, *shown])


@pytest.mark.backends("sqlite")
def test_demo_does_not_wait_for_a_daemon_that_has_failed(
    cli: Cli, tmp_path: Path
) -> None:
    """Where its spool folder would be there is a file; the log is named at once."""
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "spool").touch()
    began = time.monotonic()
    said = cli("demo", "--folder", str(folder), status=1)
    assert said == f"daemon-example: not all tasks ended; see {folder}/daemon.log\n"
    assert time.monotonic() < began + 30
    assert "spool folder cannot be used" in (folder / "daemon.log").read_text()


def test_make_shows_no_password() -> None:
    """G9: the URL reaches the demo by its environment."""
    make = ["make", "--dry-run", "demo", "URL=postgresql+psycopg://u:s3cret@h/d"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    done = subprocess.run(
        make, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert "daemon_example demo" in done.stdout
    assert "s3cret" not in done.stdout + done.stderr
