"""The demo, as ``make demo`` runs it."""

from __future__ import annotations

import os
import subprocess
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


def test_make_shows_no_password() -> None:
    """G9: the URL reaches the demo by its environment."""
    make = ["make", "--dry-run", "demo", "URL=postgresql+psycopg://u:s3cret@h/d"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    done = subprocess.run(
        make, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert "daemon_example demo" in done.stdout
    assert "s3cret" not in done.stdout + done.stderr
