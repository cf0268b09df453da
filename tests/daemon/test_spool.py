"""Job files: what becomes of good, bad and odd ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from daemon_example.spool import Spool
from sessionstore import SessionStore, State, StoreError, Task
from tests.daemon.conftest import Cli, until

BAD = {
    "torn": (b"command = [", "no TOML"),
    "empty": (b"", "no command"),
    "misspelt": (b'comand = ["true"]', "unknown key 'comand'"),
    "text": (b'command = "ls -l"', "no command"),
    "nothing": (b"command = []", "no command"),
    "numbers": (b"command = [1, 2]", "no command"),
    "name": (b'command = ["true"]\nname = 3', "the name is no string"),
    "latin": (b'command = ["\xe9"]', "no TOML"),
    "deep": (b"command = " + b"[" * 100_000, "recursion"),
}


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


@pytest.fixture
def session(tmp_path: Path) -> SessionStore:
    return SessionStore(f"sqlite:///{tmp_path}/tasks.db")


def put(spool: Spool, name: str, content: bytes) -> None:
    (spool.folder / "new" / name).write_bytes(content)


def only(folder: Path) -> Path:
    [path] = folder.iterdir()
    return path


@pytest.mark.parametrize("name", BAD)
def test_file_that_is_no_job_is_set_aside_with_the_reason(
    spool: Spool, session: SessionStore, name: str
) -> None:
    """It goes to bad/, and the next file is taken."""
    content, reason = BAD[name]
    put(spool, f"{name}.toml", content)
    put(spool, "z.toml", b'command = ["true"]\nname = "good"')
    spool.take(session)
    assert [task.jobname for task in session] == ["good"]
    assert only(spool.folder / "done").name.endswith("-z.toml")
    [bad] = (spool.folder / "bad").glob("*.toml")
    assert bad.read_bytes() == content
    assert reason in bad.with_suffix(".reason").read_text()
    assert not any((spool.folder / "new").iterdir())


def test_file_that_no_command_line_fills_is_not_read(
    spool: Spool, session: SessionStore
) -> None:
    """Else one of some gigabytes would end each daemon that is started there."""
    put(spool, "huge.toml", b"")
    os.truncate(spool.folder / "new" / "huge.toml", 2**40)
    spool.take(session)
    assert len(session) == 0
    [bad] = (spool.folder / "bad").glob("*.toml")
    assert "larger than" in bad.with_suffix(".reason").read_text()


def test_folder_that_cannot_be_read_is_told_of(
    spool: Spool, session: SessionStore
) -> None:
    """Jobs that wait there are not passed over in silence."""
    (spool.folder / "new").rmdir()
    with pytest.raises(FileNotFoundError, match="new"):
        spool.take(session)


def test_odd_files_do_not_stop_it(spool: Spool, session: SessionStore) -> None:
    """A folder, a FIFO, a dangling link, and names of any bytes and length."""
    new = spool.folder / "new"
    (new / "folder.toml").mkdir()
    os.mkfifo(new / "fifo.toml")
    (new / "link.toml").symlink_to("nowhere")
    put(spool, "x" * 250 + ".toml", b"bad")
    put(spool, os.fsdecode(b"\xff\n\x1b") + ".toml", b"bad")
    put(spool, os.fsdecode(b"good\xff") + ".toml", b'command = ["true"]')
    put(spool, ".hidden.toml", b'command = ["true"]')
    put(spool, "other", b'command = ["true"]')
    spool.take(session)
    assert len(session) == 1
    assert len(list((spool.folder / "bad").glob("*.reason"))) == 5
    assert {path.name for path in new.iterdir()} == {".hidden.toml", "other"}


def test_interrupted_file_is_neither_lost_nor_taken_twice(
    spool: Spool, session: SessionStore
) -> None:
    """What a killed daemon was taking becomes one task."""
    put(spool, "a.toml", b'command = ["true"]')
    put(spool, "b.toml", b'command = ["true"]')
    spool.take(session)
    added, begun = sorted((spool.folder / "done").iterdir())
    session.remove(next(t.persistent_id for t in session if t.spool_file == begun.name))
    for path in (added, begun):
        path.rename(spool.folder / "taken" / path.name)
    spool.finish(session)
    assert sorted(task.spool_file for task in session) == [added.name, begun.name]
    assert sorted((spool.folder / "done").iterdir()) == [added, begun]


@pytest.mark.backends("sqlite")
def test_file_becomes_a_task_that_runs(cli: Cli) -> None:
    """The running daemon takes what is renamed into new/."""
    cli("start")
    new = cli.spool / "new"
    (new / "job").write_text('command = ["true"]\nname = "from a file"')
    (new / "job").rename(new / "job.toml")
    session = cli.session()
    until(lambda: session.counts() == {State.TERMINATED: 1})
    assert "from a file" in cli("list")


def test_job_that_the_database_cannot_take_is_set_aside(
    spool: Spool, session: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps no other job waiting, and no daemon from starting again."""
    add = session.add

    def add_small(task: Task) -> int:
        if len(task.command) > 1:
            raise StoreError("more than the max_allowed_packet")
        return add(task)

    monkeypatch.setattr(session, "add", add_small)
    put(spool, "large.toml", b'command = ["true", "%s"]' % (b"x" * 2**20))
    put(spool, "small.toml", b'command = ["true"]')
    spool.take(session)
    assert len(session) == 1
    [bad] = (spool.folder / "bad").glob("*.toml")
    assert "max_allowed_packet" in bad.with_suffix(".reason").read_text()
