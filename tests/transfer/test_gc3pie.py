"""Sessions of GC3Pie's become sessions, with GC3Pie not installed."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sessionstore import ConfigurationError, ConflictError, SessionStore, State, Task
from sessionstore.errors import DecodeError
from sessionstore.transfer import import_gc3pie, items
from tests.transfer import scene

_GC3PIE = Path(__file__).with_name("gc3pie")
#: By kind of store and pickle protocol, the newest and Python 2's.
KINDS = [("sql", 2), ("sql", pickle.HIGHEST_PROTOCOL), ("folder", 2), ("folder", 4)]


def run(script: str, *arguments: object) -> str:
    """Run a script where GC3Pie is installed, or what stands for it."""
    done = subprocess.run(
        [sys.executable, _GC3PIE / script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(_GC3PIE)},
        check=False,
        capture_output=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


Make = Callable[..., Path]


@pytest.fixture
def make_session(tmp_path: Path) -> Make:
    """Make a session directory; its objects are numbered from ``first`` on."""

    def make(kind: str, protocol: int = 4, first: int = 5) -> Path:
        run("make_session.py", tmp_path / "old", kind, protocol, first)
        return tmp_path / "old"

    return make


def loaded(url: str, name: str = "old") -> dict[str, object]:
    return json.loads(run("load_session.py", url, name))


WHOLE = {
    "names": ["done", "outer", "inner", "shared"],
    "classes": ["ShellApp", "Task", "ShellApp", "Task"],
    "states": ["TERMINATED", "RUNNING", "SUBMITTED", "NEW"],
    "shared": True,
    "inner": True,
    "long": 100_000,
}


@pytest.mark.parametrize(("kind", "protocol"), KINDS)
def test_session_keeps_its_ids_where_they_are_free(
    kind: str, protocol: int, make_session: Make, target_url: str
) -> None:
    """Tasks, what they refer to, states, names and times come, read without GC3Pie."""
    assert importlib.util.find_spec("gc3libs") is None
    done = import_gc3pie(make_session(kind, protocol), target_url)
    assert (done.session, done.objects, done.mapped) == ("old", 4, {})
    assert done.missing == done.unreadable == []
    session = SessionStore(target_url, "old", create=False)
    assert [*session.ids()] == [7, 8]
    assert [*session.store.iter_ids()] == [5, 6, 7, 8]
    assert session.counts() == {State.TERMINATED: 1, State.RUNNING: 1}
    assert session.created_at == datetime.fromtimestamp(1_500_000_000, UTC)
    assert session.finished_at == datetime.fromtimestamp(1_600_000_000, UTC)
    [entry] = session.history(7)
    assert (entry.from_state, entry.to_state) == (None, State.TERMINATED)
    assert entry.returncode == 3 << 8
    with pytest.raises(DecodeError, match="gc3libs"):
        session.load(7)
    rows = scene.everything(target_url)
    assert [row[3] for row in rows["jobs"]] == ["shared", "inner", "done", "outer"]
    assert [row[2] for row in rows["objects"]] == [
        "NEW",
        "SUBMITTED",
        "TERMINATED",
        "RUNNING",
    ]
    assert loaded(target_url) == WHOLE


def test_pickles_in_a_database_come_byte_for_byte(
    make_session: Make, target_url: str
) -> None:
    """Where no ID is changed nothing of a payload is."""
    old = make_session("sql")
    import_gc3pie(old, target_url)
    with sqlite3.connect(old / "jobs.db") as connection:
        before = connection.execute("SELECT id, data, state FROM store").fetchall()
    connection.close()
    assert scene.everything(target_url)["objects"] == before


@pytest.mark.parametrize(("kind", "protocol"), KINDS)
def test_taken_ids_are_mapped_and_references_follow(
    kind: str, protocol: int, make_session: Make, target_url: str
) -> None:
    """Two numbers are other objects' there; new ones are given, and told (G5)."""
    check_mapped(kind, make_session(kind, protocol), target_url)


def test_taken_ids_are_mapped_on_every_database(
    make_session: Make, database_url: str
) -> None:
    """Where new IDs come from and rows go to is each database's own matter (G5)."""
    check_mapped("folder", make_session("folder"), database_url)


def check_mapped(kind: str, old: Path, url: str) -> None:
    there = SessionStore(url, "there")
    before = there.add_many([Task(f"{n}") for n in range(6)])
    done = import_gc3pie(old, url)
    names = {"5", "6"} if kind == "sql" else {"Task.5", "ShellApp.6"}
    assert done.mapped.keys() == names
    new = [*done.mapped.values()]
    assert min(new) > 8
    session = SessionStore(url, "old", create=False)
    assert [*session.ids()] == [7, 8]
    assert {*session.store.iter_ids()} == {*before, 7, 8, *new}
    assert loaded(url) == WHOLE
    assert [task.jobname for task in there] == [f"{n}" for n in range(6)]
    assert SessionStore(url, "later").add(Task("later")) > max(new)


def test_second_import_is_refused_and_changes_nothing(
    make_session: Make, target_url: str
) -> None:
    """Another name makes a copy, with new IDs."""
    old = make_session("folder")
    import_gc3pie(old, target_url)
    before = scene.everything(target_url)
    with pytest.raises(ConflictError, match="has a session 'old'"):
        import_gc3pie(old, target_url)
    assert scene.everything(target_url) == before
    done = import_gc3pie(old, target_url, name="copy")
    assert len(done.mapped) == 4
    assert loaded(target_url, "copy") == WHOLE


def test_interrupted_import_leaves_nothing(make_session: Make, target_url: str) -> None:
    """It is one transaction (G2)."""

    def stop(what: str, done: int, total: int | None) -> None:
        if what == "copying":
            raise KeyboardInterrupt

    old = make_session("folder")
    with pytest.raises(KeyboardInterrupt):
        import_gc3pie(old, target_url, progress=stop)
    assert not any(scene.everything(target_url).values())
    assert import_gc3pie(old, target_url).mapped == {}


@pytest.mark.backends("postgresql", "mariadb")
def test_id_that_is_taken_meanwhile_is_mapped(
    make_session: Make, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All begins anew with another ID for it, and what refers to it follows (G5)."""
    monkeypatch.setattr(items, "BATCH_OBJECTS", 1)
    was_taken = []

    def take(what: str, done: int, total: int | None) -> None:
        if what == "copying" and not was_taken:
            was_taken.append(done)
            taken = "INSERT INTO store (id, data, state) VALUES (5, NULL, 'NEW')"
            scene.write(database_url, taken)

    old = make_session("folder")
    done = import_gc3pie(old, database_url, progress=take)
    assert was_taken == [1]
    assert done.mapped.keys() == {"Task.5"}
    assert loaded(database_url) == WHOLE


def test_missing_and_unreadable_objects_are_told(
    make_session: Make, target_url: str
) -> None:
    """What is torn comes as it is (G7), and the former content where there is one."""
    old = make_session("folder")
    (old / "jobs" / "Task.5").unlink()
    torn = (old / "jobs" / "ShellApp.7").read_bytes()[:-20]
    (old / "jobs" / "ShellApp.7").write_bytes(torn)
    (old / "jobs" / "Task.8").rename(old / "jobs" / "Task.8.OLD")
    (old / "jobs" / "Task.8").write_bytes(b"")
    done = import_gc3pie(old, target_url)
    assert (done.objects, done.missing) == (3, ["Task.5"])
    assert done.unreadable == ["ShellApp.7"]
    rows = scene.everything(target_url)["objects"]
    assert [row[0] for row in rows] == [6, 7, 8]
    assert rows[1][1:] == (torn, "UNKNOWN")
    session = SessionStore(target_url, "old", create=False)
    assert session.transition(7, State.TERMINATED).to_state is State.TERMINATED


@pytest.mark.parametrize("kind", ["sql", "folder"])
def test_moved_directory_is_found_again(
    kind: str, make_session: Make, target_url: str, tmp_path: Path
) -> None:
    """What it says of its objects' place is of where it was before."""
    old = make_session(kind)
    new = old.rename(tmp_path / "new")
    assert import_gc3pie(new, target_url).session == "new"
    assert loaded(target_url, "new") == WHOLE
    elsewhere = (new / ("jobs.db" if kind == "sql" else "jobs")).rename(tmp_path / "x")
    with pytest.raises(ConfigurationError, match="say where they are now"):
        import_gc3pie(new, target_url, name="again")
    url = f"sqlite:///{elsewhere}" if kind == "sql" else str(elsewhere)
    import_gc3pie(new, target_url, name="again", store_url=url)
    assert loaded(target_url, "again") == WHOLE


def test_references_do_not_lead_out_of_the_folder(
    make_session: Make, target_url: str, tmp_path: Path
) -> None:
    """An ID with a path in it names no object."""
    old = make_session("folder")
    (tmp_path / "secret.1").write_bytes(b"secret")
    with (old / "session_ids.txt").open("a") as file:
        file.write("../../secret.1\n..\n")
    done = import_gc3pie(old, target_url)
    assert done.missing == ["../../secret.1", ".."]
    assert done.objects == 4


def test_directory_that_does_not_say_where_its_objects_are_is_told(
    make_session: Make, target_url: str, tmp_path: Path
) -> None:
    """Nothing is made, so that the import can be run again with their place."""
    old = make_session("sql")
    (old / "store.url").write_text("\n")
    with pytest.raises(ConfigurationError, match="say where they are now"):
        import_gc3pie(old, target_url)
    import_gc3pie(old, target_url, store_url=f"sqlite:///{old}/jobs.db")
    assert loaded(target_url, "old") == WHOLE


def test_what_is_no_session_directory_is_told(tmp_path: Path, target_url: str) -> None:
    """One line, and no file made."""
    with pytest.raises(
        ConfigurationError, match=r"its session_ids\.txt cannot be read"
    ):
        import_gc3pie(tmp_path, target_url)
    (tmp_path / "session_ids.txt").write_text("")
    with pytest.raises(ConfigurationError, match=r"its store\.url cannot be read"):
        import_gc3pie(tmp_path, target_url)
    assert not Path(target_url.removeprefix("sqlite:///")).exists()
