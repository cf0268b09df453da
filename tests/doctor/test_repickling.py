"""Payloads are written anew, and nobody's changes are lost by it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sessionstore import SessionStore, SqlStore, State, Task
from sessionstore.cli.running import run
from sessionstore.doctor import repickle, unreadable
from sessionstore.serializers import (
    PickleSerializer,
    SignedSerializer,
    new_key,
    read_keys,
)
from tests.serializers.parts import Trap


class Moved(Task):
    """A class that had another name once."""


NAMES = {"old_place:Old": f"{__name__}:Moved"}


@pytest.fixture
def ids(session: SessionStore, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Three tasks of a class that has moved, and one of another class."""
    old = type("Old", (Task,), {"__module__": "old_place", "__qualname__": "Old"})
    module = ModuleType("old_place")
    module.Old = old  # type: ignore[attr-defined]
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "old_place", module)
        ids = [*session.add_many([old(n=n) for n in range(3)]), session.add(Task())]
    session.store.invalidate_cache()
    return ids


def test_moved_objects_are_written_under_the_new_name(
    session: SessionStore, ids: list[int]
) -> None:
    """G7: unreadable before, they need no renaming afterwards; all else stays."""
    assert [error.id for error in unreadable(session.store)] == ids[:3]
    renaming = SqlStore(session.store.url, rename=NAMES, create=False)
    assert [*unreadable(renaming)] == []
    assert {one.id for one in repickle(renaming, dry_run=True)} == {*ids[:3]}
    assert [error.id for error in unreadable(session.store)] == ids[:3]
    history = [session.history(id_) for id_ in ids]
    assert {one.id for one in repickle(renaming)} == {*ids[:3]}
    assert [*unreadable(session.store)] == []
    assert [task.n for task in session.load_many(ids[:3]).values()] == [0, 1, 2]
    assert [session.history(id_) for id_ in ids] == history
    assert [*repickle(renaming)] == []


def test_claimed_task_is_left_to_its_holder(
    session: SessionStore, ids: list[int]
) -> None:
    """G6: and the others are written."""
    renaming = SessionStore(session.store.url, rename=NAMES)
    [claim] = renaming.claim()
    problems = {one.id: one.problem for one in repickle(renaming.store)}
    assert problems.pop(claim.id) == "it is claimed; run repickle again later"
    assert problems == dict.fromkeys(ids[1:3], "")
    claim.transition(State.SUBMITTED)
    assert [error.id for error in unreadable(session.store)] == [claim.id]


def test_live_object_can_be_saved_afterwards(
    session: SessionStore, ids: list[int]
) -> None:
    """G3: it is no conflict, as nothing was changed."""
    renaming = SessionStore(session.store.url, rename=NAMES)
    task = renaming.load(ids[0])
    assert len([*repickle(renaming.store)]) == 3
    task.n = 7
    renaming.save(task)
    assert session.load(ids[0]).n == 7


def test_payloads_are_signed_from_now_on(session: SessionStore, ids: list[int]) -> None:
    """What was plain is signed; then plain ones need not be read any more."""
    keys = [new_key()]
    session.remove(ids[0])
    lenient = SignedSerializer(PickleSerializer(), keys, allow_plain=True)
    url = session.store.url
    store = SqlStore(url, serializer=lenient, rename=NAMES, create=False)
    assert len([*repickle(store)]) == 3
    strict = SqlStore(url, serializer=SignedSerializer(PickleSerializer(), keys))
    assert [*unreadable(strict)] == []


def test_what_cannot_be_read_is_told_and_left(
    session: SessionStore, ids: list[int]
) -> None:
    """G7: its payload stays as it is."""
    told = {one.id: one.problem for one in repickle(session.store)}
    assert {*told} == {*ids[:3]}
    assert all("old_place" in problem for problem in told.values())
    renaming = SqlStore(session.store.url, rename=NAMES, create=False)
    assert [*unreadable(renaming)] == []


@pytest.mark.backends("postgresql", "mariadb")
def test_commands(
    session: SessionStore,
    database_url: str,
    ids: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As a person would mend it."""
    monkeypatch.setenv("SESSIONSTORE_URL", database_url)
    rename = [f"--rename={old}={new}" for old, new in NAMES.items()]

    def lines(*words: str, status: int = 0) -> list[dict[str, object]]:
        assert run([*words, "--json"]) == status
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert [row["id"] for row in lines("unreadable", status=1)] == ids[:3]
    assert lines("unreadable", *rename) == []
    assert len(lines("repickle", "--dry-run", *rename)) == 3
    assert len(lines("unreadable", status=1)) == 3
    assert len(lines("repickle", *rename)) == 3
    assert lines("unreadable") == []


@pytest.mark.backends("sqlite")
def test_bad_options(
    database_url: str,
    session: SessionStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A clear line, and status 2."""
    monkeypatch.setenv("SESSIONSTORE_URL", database_url)
    for words, said in {
        ("--rename", "x"): "old.module:Old=new.module:New",
        ("--rename", "a:B=c"): "old.module:Old=new.module:New",
        ("--serializer", "x"): "write module:name",
        ("--serializer", "no.such:thing"): "No module named 'no'",
        ("--serializer", "os:nothing"): "has no attribute 'nothing'",
        ("--serializer", "os:path"): "must have dumps and loads",
        ("--serializer", "os:path", "--keys", "x"): "not both",
    }.items():
        assert run(["unreadable", *words]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.backends("sqlite")
def test_serializer_is_found_by_its_name(
    database_url: str,
    session: SessionStore,
    ids: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a module of the program's."""
    module = ModuleType("my_settings")
    module.serializer = SignedSerializer(  # type: ignore[attr-defined]
        PickleSerializer(), [new_key()]
    )
    monkeypatch.setitem(sys.modules, "my_settings", module)
    monkeypatch.setenv("SESSIONSTORE_URL", database_url)
    monkeypatch.setenv("SESSIONSTORE_SERIALIZER", "my_settings:serializer")
    assert run(["unreadable"]) == 1
    assert "no signature" in capsys.readouterr().out


@pytest.mark.backends("sqlite")
def test_with_keys_only_what_was_signed_is_unpickled(
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A trap that somebody wrote without a key is shown by its ID, and not sprung."""
    keys = tmp_path / "keys"
    keys.write_text(new_key())
    keys.chmod(0o600)
    serializer = SignedSerializer(PickleSerializer(), read_keys(keys))
    with SessionStore(database_url, serializer=serializer) as session:
        signed = session.add(Task("signed"))
    with SessionStore(database_url) as session:
        trap = session.add(Task(trap=Trap(tmp_path / "trapped")))
    monkeypatch.setenv("SESSIONSTORE_URL", database_url)
    assert run(["show", str(signed), "--keys", str(keys)]) == 0
    assert ".jobname\tsigned" in capsys.readouterr().out
    monkeypatch.setenv("SESSIONSTORE_KEYS", str(keys))
    assert run(["show", str(trap)]) == 1
    assert "no signature" in capsys.readouterr().err
    assert not (tmp_path / "trapped").exists()
    keys.chmod(0o644)
    assert run(["show", str(signed)]) == 1
    assert f"chmod 600 {keys}" in capsys.readouterr().err
