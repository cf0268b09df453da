"""What is typed wrong: one line, a status, the nearest right word, and no password."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, text

from sessionstore import SessionStore, SqlStore, Task
from sessionstore.cli.running import run
from tests.cli.conftest import Command, Real

pytestmark = pytest.mark.backends("sqlite")

PASSWORD = "s3cret"
SERVER = f"postgresql+psycopg://u:{PASSWORD}@127.0.0.1:1/d"
BAD = [
    ([], 2, "Missing command"),
    (["lss"], 2, "Did you mean 'ls'"),
    (["ls", "--sesion", "x"], 2, "--session"),
    (["ls", "--state", "RUNING"], 2, "did you mean 'RUNNING'"),
    (["ls", "--state", "new,stoped"], 2, "did you mean 'STOPPED'"),
    (["ls", "--columns", "id,nmae"], 2, "did you mean 'name'"),
    (["ls", "--columns", "zzz"], 2, "choose from"),
    (["ls", "--sort", "chnged"], 2, "did you mean 'changed'"),
    (["ls", "--since", "yesterday"], 2, "--since 'yesterday' is not a time"),
    (["ls", "--until", "9" * 400 + "d"], 2, "is not a time"),
    (["ls", "--since", "0001-01-01T00:00+14:00"], 2, "is not a time"),
    (["ls", "-n", "0"], 2, "--limit"),
    (["ls", "-n", "9" * 30], 2, "--limit"),
    (["unreadable", "--rename", "old:Old=new"], 2, "old.module:Old=new.module:New"),
    (["ls", "--session", "defualt"], 1, "did you mean 'default'"),
    (["ls", "--after", "5"], 1, "no task with ID 5"),
    (["show"], 2, "ID"),
    (["show", "seven"], 2, "ID"),
    (["show", "2"], 1, "the nearest is 1"),
    (["show", "9" * 30], 1, "no task with ID"),
    (["history", "2"], 1, "the nearest is 1"),
    (["show", "3", "--session", "default"], 1, "it is in the session 'other'"),
    (["redo"], 2, "--name '*' selects all"),
    (["redo", "1", "--name", "x"], 2, "either by ID, or by"),
    (["redo", "2", "--yes"], 1, "the nearest"),
    (["remove", "1"], 2, "remove 1 task of 'default'?"),
    (["prune"], 2, "--older-than"),
    (["prune", "--older-than", "30"], 2, "--older-than '30' is not a time"),
    (["ls", "--url", "nosuch://x"], 1, "nosuch"),
    (["ls", "--url", "plain/path"], 1, "sqlite:///"),
    (["ls", "--url", "sqlite:////tmp/\udcff.db"], 1, "not a database URL"),
    (["ls", "--url", "sqlite:////nowhere/at/all.db"], 1, "no SQLite database"),
    ([SERVER], 2, "No such command 'postgresql+psycopg://u:***@"),
    (["ls", SERVER], 2, "//u:***@"),
    (["ls", "--session", SERVER], 1, "//u:***@"),
    (["ls", "--columns", SERVER], 2, "//u:***@"),
    (["show", SERVER], 2, "ID"),
    (["ls", "--url", SERVER], 1, "cannot be reached"),
    (["ls", "--url", SERVER.replace(":1/", ":x/")], 1, "not a database URL"),
    (["ls", "--url", SERVER.replace("psycopg", "nosuch")], 1, "nosuch"),
    (["ls", "--url", f"{SERVER}#table={'x' * 99}"], 1, "characters"),
]


@pytest.mark.parametrize(("words", "status", "said"), BAD)
def test_bad_input_is_one_line_and_a_status(
    words: list[str],
    status: int,
    said: str,
    session: SessionStore,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """G9: exit status 2 for usage, 1 for the rest, no traceback, no password."""
    assert session.add(Task("count")) == 1
    with SessionStore(database_url, "other") as other:
        other.add_many([Task("x"), Task("y")])
        ids = [*other.ids()]
    monkeypatch.setenv("SESSIONSTORE_URL", database_url)
    words = [str(ids[0]) if word == "3" else word for word in words]
    assert run(words) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert len(err.splitlines()) == 1
    assert PASSWORD not in err
    assert len(session) == 1


def test_no_store_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says both ways to name one."""
    monkeypatch.delenv("SESSIONSTORE_URL", raising=False)
    assert run(["ls"]) == 2
    err = capsys.readouterr().err
    assert "--url" in err
    assert "SESSIONSTORE_URL" in err


def test_mistake_in_the_program_shows_no_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """G9: neither a traceback nor the message, which may quote the URL."""

    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError(f"cannot use {SERVER}")

    monkeypatch.setattr("sessionstore.cli.common.sql_store", fail)
    assert run(["ls", "--url", SERVER]) == 1
    err = capsys.readouterr().err
    assert "RuntimeError in test_bad_input.py, line" in err
    assert PASSWORD not in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("module", ["typer", "rich"])
def test_missing_extra_is_named(module: str) -> None:
    """Installed without its extra, the command says what to install."""
    code = (
        f"import sys, runpy; sys.modules[{module!r}] = None\n"
        "runpy.run_module('sessionstore', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "pip install 'sessionstore[cli]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_password_of_the_environment_is_not_in_the_help(
    real: Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G9: --help names the variable, not what is in it."""
    real.environment["SESSIONSTORE_URL"] = SERVER
    result = real("ls", "--help")
    assert result.status == 0
    assert "SESSIONSTORE_URL" in result.out
    assert PASSWORD not in result.out + result.err


def test_each_command_says_in_a_line_what_it_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """--help lists all commands, and each has a short help of its own."""
    assert run(["--help"]) == 0
    listed = re.findall(r"^│ (\w+)  +\S", capsys.readouterr().out, re.MULTILINE)
    assert {"sessions", "ls", "show", "watch", "redo", "prune"} <= {*listed}
    for name in listed:
        assert run([name, "--help"]) == 0
        out = capsys.readouterr().out
        assert "--url" in out or "SRC" in out
        assert len(out.splitlines()) < 60


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever reports a mistake can say which version made it."""
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"sessionstore {version('sessionstore')}\n"


def test_looking_creates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """G8: neither a file nor, beside an old table, any of the other tables."""
    url = f"sqlite:///{tmp_path}/old.db"
    monkeypatch.setenv("SESSIONSTORE_URL", url)
    for words in (["sessions"], ["ls"], ["stats"], ["redo", "--name", "*", "-y"]):
        assert run(words) == 1
        assert not (tmp_path / "old.db").exists()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TABLE store (id INTEGER PRIMARY KEY, data BLOB, "
                "state VARCHAR(128))"
            )
        )
    for words in (["sessions"], ["ls"], ["show", "1"], ["cancel", "1", "-y"]):
        assert run(words) == 1
        assert "has no sessions" in capsys.readouterr().err
    assert inspect(engine).get_table_names() == ["store"]
    engine.dispose()


def test_looking_migrates_nothing(
    session: SessionStore, command: Command, database_url: str
) -> None:
    """Tables of an older version are read as they are."""
    session.add(Task("count"))
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE store_version SET version_num = '0001'"))
    for words in (["sessions"], ["ls"], ["stats"], ["history", "1"], ["show", "1"]):
        assert command(*words).status == 0
    with engine.connect() as connection:
        version = connection.execute(text("SELECT version_num FROM store_version"))
        assert version.scalar() == "0001"
    engine.dispose()


def test_migrate_creates_no_database(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelt file name is an error, and not a new store."""
    assert run(["migrate", "--url", f"sqlite:///{tmp_path}/misspelt.db"]) == 1
    assert "no SQLite database" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_looking_leaves_a_sqlite_file_as_it_is(
    session: SessionStore, command: Command
) -> None:
    """One that is not in WAL mode, as a copy by VACUUM INTO, stays so."""
    session.add(Task("count"))
    path = Path(str(session.store.url.database))
    session.store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()
    before = path.read_bytes()
    for words in (["sessions"], ["ls"], ["stats"], ["history", "1"], ["show", "1"]):
        assert command(*words).status == 0
    assert path.read_bytes() == before


def test_objects_that_are_in_no_session_are_told_apart(
    session: SessionStore, command: Command
) -> None:
    """An ID that the session has forgotten is not said to be unknown."""
    first, second = session.add_many([Task("a"), Task("b")])
    session.forget(second)
    assert (
        "it was removed from its session with forget"
        in command("show", str(second)).err
    )
    saved = SqlStore(session.store.url).save(Task("c"))
    assert f"the nearest is {first}" in command("show", str(saved)).err


@pytest.mark.parametrize("words", [["doctor", "--fix"], ["repickle"]])
def test_store_that_is_read_only_is_not_mended(
    words: list[str],
    session: SessionStore,
    database_url: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the database refuses is said as it is anywhere else."""
    session.add(Task("count"))
    # Not the payload's state, which repickle would write anew, nor the job's.
    with create_engine(database_url).begin() as connection:
        connection.execute(text("UPDATE store SET state = 'RUNNING'"))
    session.close()
    path = database_url.removeprefix("sqlite:///")
    url = f"sqlite:///file:{path}?mode=ro&uri=true"
    assert run([*words, "--url", url]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "cannot be used: attempt to write a readonly database" in line
