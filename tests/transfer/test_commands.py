"""The commands ``copy``, ``export`` and ``import``."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sessionstore import SessionStore, Task
from sessionstore.cli import moving
from sessionstore.cli.output import Output
from sessionstore.cli.running import run
from sessionstore.transfer.archive import ArchiveReader
from tests.transfer import scene

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command, for its status and what it says on both streams."""

    def of(*words: object) -> tuple[int, str, str]:
        status = run([str(word) for word in words])
        return status, *capsys.readouterr()

    return of


def test_store_is_copied_exported_and_imported(
    source_url: str, target_url: str, tmp_path: Path, command: Command
) -> None:
    """All three say what came, and the same digest."""
    scene.fill(source_url)
    path = tmp_path / "archive"
    said = [
        command("copy", source_url, target_url, "--verify", "--json"),
        command("export", path, "--url", source_url, "--verify", "--json"),
        command("import", path, "--url", f"{target_url}-2", "--verify", "--json"),
    ]
    digest = ArchiveReader(path).digest
    assert [status for status, _, _ in said] == [0, 0, 0]
    assert [json.loads(out) for _, out, _ in said] == 3 * [
        {
            "objects": scene.OBJECTS,
            "written": scene.OBJECTS,
            "sessions": ["one", "two words"],
            "sha256": digest,
        }
    ]
    there = scene.everything(f"{target_url}-2")
    assert there == scene.everything(source_url) == scene.everything(target_url)


def test_one_session_goes_under_another_name(
    source_url: str, target_url: str, tmp_path: Path, command: Command
) -> None:
    """In a pipe each value is a line, with its name before it."""
    scene.fill(source_url)
    path = tmp_path / "archive"
    status, out, err = command(
        "copy", source_url, target_url, "--session", "one", "--as", "uno"
    )
    assert (status, out, err) == (0, "objects\t3\nwritten\t3\nsessions\tuno\n", "")
    status, _, _ = command(
        "export", path, "--url", source_url, "--session", "two words"
    )
    assert status == 0
    assert command("import", path, "--url", target_url, "--as", "due")[0] == 0
    assert len(SessionStore(target_url, "due", create=False)) == 5


def test_session_directory_is_imported(
    tmp_path: Path, target_url: str, command: Command
) -> None:
    """What has another ID is told; the status is 1 where something was missing."""
    old = tmp_path / "old"
    (old / "jobs").mkdir(parents=True)
    (old / "store.url").write_text(f"file://{old}/jobs")
    (old / "session_ids.txt").write_text("Task.1\nTask.2\nTask.3\n")
    for name in ("Task.1", "Task.2"):
        (old / "jobs" / name).write_bytes(b"torn")
    SessionStore(target_url).add(Task("has the first ID"))
    status, out, _ = command("import", old, "--url", target_url)
    assert status == 1
    assert out == (
        "session\told\nobjects\t2\n"
        "Task.1\tis 257 here\nTask.3\tis missing\n"
        "Task.1\tcannot be read\nTask.2\tcannot be read\n"
    )
    status, out, _ = command("import", old, "--url", target_url, "--as", "b", "--json")
    assert json.loads(out)["objects"] == 2


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["export", "x"], 2, "no store is given"),
        (["import", "x"], 2, "no store is given"),
        (
            ["import", "x", "--url", "sqlite:///{}/s.db", "--objects", "y"],
            2,
            "--objects",
        ),
        (
            ["import", "{}", "--url", "sqlite:///{}/s.db", "--verify"],
            2,
            "--verify works with archives only",
        ),
        (["import", "{}", "--url", "sqlite:///{}/s.db"], 1, "no session directory"),
        (["import", "{}/no", "--url", "sqlite:///{}/s.db"], 1, "No such file"),
        (["copy", "sqlite:///{}/no.db", "sqlite:///{}/s.db"], 1, "no SQLite database"),
        (["copy", "sqlite:///{}/no.db", "sqlite:///{}/no.db"], 1, "the same table"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_made(
    words: list[str], status: int, said: str, tmp_path: Path, command: Command
) -> None:
    """The status is 2 where the command line is wrong, else 1."""
    before = {*tmp_path.iterdir()}
    got, out, err = command(*(word.replace("{}", str(tmp_path)) for word in words))
    assert (got, out) == (status, "")
    assert said in err
    assert err.count("\n") == 1
    assert {*tmp_path.iterdir()} == before


def test_what_takes_long_shows_how_far_it_is(source_url: str, target_url: str) -> None:
    """A bar on a terminal, for each part of the work; none for what is quick."""
    SessionStore(source_url).add_many([Task(f"{n}") for n in range(20)])
    words = ["copy", source_url, target_url, "--verify"]
    assert "copying" not in on_terminal(60.0, words)
    said = on_terminal(0.0, words)
    for part in ("checking", "copying", "verifying"):
        assert part in said


_PATIENT = """
import sys
from sessionstore.cli import progress, running
from sessionstore.transfer import store_reader
progress.PATIENCE = float(sys.argv[1])
store_reader.BATCH_OBJECTS = 5
sys.exit(running.run(sys.argv[2:]))
"""


def on_terminal(patience: float, words: list[str]) -> str:
    """Run a command on a terminal of its own, for what is shown there."""
    terminal, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _PATIENT, str(patience), *words],
        stdin=side,
        stdout=side,
        stderr=side,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(side)
    shown = b""
    with contextlib.suppress(OSError):  # as Linux tells that nobody writes any more
        while some := os.read(terminal, 1000):
            shown += some
    os.close(terminal)
    assert process.wait(60) == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())


def test_bars_advance_by_what_was_done() -> None:
    """A part's steps add up to its objects, and each part has its own."""
    steps: list[object] = []

    class Recorded(Output):
        @contextlib.contextmanager
        def progress(self, label: str, total: int | None) -> Iterator[Any]:
            steps.append((label, total))
            yield steps.append

    with moving.bars(Recorded()) as progress:
        for done in (5, 8):
            progress("copying", done, 8)
        progress("verifying", 8, 8)
    assert steps == [("copying", 8), 5, 3, ("verifying", 8), 8]
