"""What ``sessions``, ``ls``, ``show`` and ``history`` print, on every backend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

from sqlalchemy import text

from sessionstore import SessionStore, State, Task
from tests.cli.conftest import Command

Show = Callable[..., list[str]]


def test_sessions_are_listed_with_their_tasks_by_state(
    session: SessionStore, database_url: str, show: Show
) -> None:
    """Each session is a line, those without tasks too."""
    first, _ = session.add_many([Task("a"), Task("b")])
    session.transition(first, State.SUBMITTED)
    SessionStore(database_url, "empty")
    rows = [json.loads(line) for line in show("sessions", "--json")]
    assert [row["name"] for row in rows] == [session.name, "empty"]
    assert (rows[0]["tasks"], rows[0]["NEW"], rows[0]["SUBMITTED"]) == (2, 1, 1)
    assert (rows[1]["tasks"], rows[1]["changed"]) == (0, None)


def test_pages_follow_each_other_in_each_order(
    session: SessionStore, show: Show
) -> None:
    """What --after continues is the same list, without a gap or a repetition."""
    ids = session.add_many([Task(f"task-{n % 3}") for n in range(11)])
    for id_ in ids[::2]:
        session.transition(id_, State.SUBMITTED)
    session.claim(2, states=[State.SUBMITTED])
    orders = [[], ["--reverse"], ["--state", "new,submitted"]]
    orders += [["--sort", name] for name in ("name", "state", "changed", "id")]
    orders += [["--sort", "name", "--reverse"], ["--state", "submitted", "-r"]]
    for order in orders:
        words = ["ls", "--columns", "id", *order]
        whole = show(*words, "--all")
        pages: list[str] = []
        while page := show(
            *words, "-n", "3", *(["--after", pages[-1]] if pages else [])
        ):
            pages += page
        assert pages == whole
        assert len(whole) == (6 if "submitted" in order else 11)
    assert show("ls", "--columns", "id") == [str(i) for i in ids]
    assert show("ls", "--columns", "id", "-r", "--all") == [str(i) for i in ids[::-1]]


def test_tasks_of_one_position_are_each_on_one_page(
    session: SessionStore, show: Show
) -> None:
    """Tasks that were added at the same moment may have the same place."""
    ids = session.add_many([Task("x") for _ in range(5)])
    with session.transaction() as connection:
        connection.execute(text("UPDATE store_job SET position = 1"))
    for order in [], ["--state", "new"]:
        seen: list[str] = []
        while page := show(
            "ls",
            "--columns",
            "id",
            "-n",
            "2",
            *order,
            *(["--after", seen[-1]] if seen else []),
        ):
            seen += page
        assert seen == [str(id_) for id_ in ids]


def test_filters_let_through_what_they_say(session: SessionStore, show: Show) -> None:
    """Names by the shell's patterns, holders by host and PID, times of last changes."""
    names = ["a1", "a2", "A1", "b_1", "b%1", "b!1", "[x]", "'; DROP TABLE store; --"]
    ids = dict(zip(names, session.add_many(map(Task, names)), strict=True))
    [claim] = session.claim(1)

    def found(*words: str) -> set[str]:
        rows = [json.loads(line) for line in show("ls", "--json", *words)]
        return {row["name"] for row in rows}

    assert found("--name", "a*") == {"a1", "a2"}
    assert found("--name", "[aA]1") == {"a1", "A1"}
    assert found("--name", "[!a]1") == {"A1"}
    assert found("--name", "b?1") == {"b_1", "b%1", "b!1"}
    assert found("--name", "b%1") == {"b%1"}
    assert found("--name", "b!1") == {"b!1"}
    assert found("--name", "[[]x]") == {"[x]"}
    assert found("--name", "*DROP*") == {"'; DROP TABLE store; --"}
    assert found("--name", "a") == set()
    held = {"a1"}
    assert found("--holder", "*") == held
    assert found("--holder", "*", "--state", "new") == held
    assert found("--holder", "*", "--state", "running") == set()
    holder = json.loads(show("ls", "--json", "--holder", "*")[0])["holder"]
    assert found("--holder", holder) == held
    assert found("--holder", holder.split("/")[0]) == held
    assert found("--holder", "nobody") == set()
    claim.release()
    changed = json.loads(show("ls", "--json", "--name", "a2")[0])["changed"]
    assert found("--since", changed) >= set(names)
    assert found("--until", changed) == set()
    assert found("--since", "1h") == set(names)
    assert found("--until", "1h") == set()
    assert len(ids) == len(names)


def test_show_and_history_tell_of_one_task(
    session: SessionStore, command: Command, show: Show
) -> None:
    """Attributes come with show, and with history how long each state lasted."""
    task = Task("count", path="/etc/passwd")
    id_ = session.add(task)
    session.transition(id_, State.SUBMITTED, info="queued")
    session.transition(id_, State.RUNNING)
    session.transition(id_, State.TERMINATED, returncode=256, info="no such file")
    [line] = show("show", str(id_), "--json")
    shown = json.loads(line)
    assert (shown["state"], shown["returncode"]) == ("TERMINATED", 256)
    assert shown["attributes"]["path"] == "/etc/passwd"
    assert shown["attributes"]["exitcode"] == 1
    assert ".path\t/etc/passwd" in show("show", str(id_))
    rows = [json.loads(line) for line in show("history", str(id_), "--json")]
    assert [row["to"] for row in rows] == ["NEW", "SUBMITTED", "RUNNING", "TERMINATED"]
    assert [row["lasted"] is None for row in rows] == [False, False, False, True]
    assert rows[3]["info"] == "no such file"


def test_what_is_empty_is_marked(session: SessionStore, show: Show) -> None:
    """A dash in a pipe, so that no column is missed there, and null in JSON."""
    id_ = session.add(Task(""))
    for word in ("ls", "history", "show"):
        words = (word,) if word == "ls" else (word, str(id_))
        assert all("" not in line.split("\t") for line in show(*words))
        [line] = show(*words, "--json")
        assert "" not in json.loads(line).values()


def test_numbers_that_json_or_python_cannot_write(
    session: SessionStore, show: Show
) -> None:
    """Are shown by their names, so that any program can read the line."""
    values = {"a": float("nan"), "b": -float("inf"), "c": 10**5000, "d": 1.5, "e": True}
    id_ = session.add(Task("odd", **values))
    [line] = show("show", str(id_), "--json")
    shown = json.loads(line, parse_constant=lambda name: f"no JSON: {name}")
    assert [shown["attributes"][name] for name in values] == [
        *("nan", "-inf", "<its repr raised ValueError>", 1.5, True)
    ]
    assert ".a\tnan" in show("show", str(id_))


def test_what_cannot_be_unpickled_is_listed_all_the_same(
    session: SessionStore, command: Command, show: Show
) -> None:
    """G7: no command that lists reads an object; show says why it cannot."""
    id_ = session.add(Task("torn"))
    with session.transaction() as connection:
        connection.execute(
            text("UPDATE store SET data = :data"), {"data": b"\x80\x05no pickle"}
        )
    session.store.invalidate_cache()
    assert "torn" in show("ls")[0]
    assert len(show("history", str(id_))) == 1
    raw = show("show", str(id_), "--raw")
    assert "payload_bytes\t11" in raw
    assert "payload_begin\t" + b"\x80\x05no pickle".hex() in raw
    assert show("stats")[0].split("\t")[:3] == ["states", "NEW", "1"]
    result = command("show", str(id_))
    assert (result.status, result.out) == (1, "")
    assert "cannot be read" in result.err
    assert "--raw" in result.err


def test_looking_imports_nothing_of_other_commands(
    session: SessionStore, database_url: str
) -> None:
    """Who types ``ls`` does not wait for what examines and moves stores."""
    code = (
        "import sys\n"
        "from sessionstore.cli.running import run\n"
        "assert run(['ls', '--session', sys.argv[1]]) == 0\n"
        "print(*sys.modules, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, session.name],
        env={**os.environ, "SESSIONSTORE_URL": database_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    others = {"sessionstore.doctor", "sessionstore.transfer", "rich.live", "alembic"}
    assert others & set(done.stdout.splitlines()) == set()
