"""What ``sessions`` and ``ls`` show, on every backend."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from sessionstore import SessionStore, State, Task
from sessionstore.cli.running import run

Lines = Callable[..., list[str]]


@pytest.fixture
def lines(
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Lines:
    """Run a command that has to succeed, on the session ``one``, for its lines."""
    monkeypatch.setenv("SESSIONSTORE_URL", database_url)

    def of(*words: str) -> list[str]:
        code = run(words)
        out, err = capsys.readouterr()
        assert (code, err) == (0, "")
        return out.splitlines()

    return of


def test_sessions_are_listed_with_their_tasks_by_state(
    session: SessionStore, database_url: str, lines: Lines
) -> None:
    """Each session is a line, those without tasks too."""
    first, _ = session.add_many([Task("a"), Task("b")])
    session.transition(first, State.SUBMITTED)
    SessionStore(database_url, "empty")
    rows = [json.loads(line) for line in lines("sessions", "--json")]
    assert [row["name"] for row in rows] == ["default", "empty"]
    assert (rows[0]["tasks"], rows[0]["NEW"], rows[0]["SUBMITTED"]) == (2, 1, 1)
    assert (rows[1]["tasks"], rows[1]["changed"]) == (0, None)


def test_pages_follow_each_other_in_each_order(
    session: SessionStore, lines: Lines
) -> None:
    """What --after continues is the same list, without a gap or a repetition."""
    ids = session.add_many([Task(f"task-{n % 3}") for n in range(11)])
    for id_ in ids[::2]:
        session.transition(id_, State.SUBMITTED)
    orders = [[], ["--reverse"], ["--state", "new,submitted"]]
    orders += [["--sort", name] for name in ("name", "state", "changed", "id")]
    orders += [["--sort", "name", "--reverse"], ["--state", "submitted", "-r"]]
    for order in orders:
        words = ["ls", "--columns", "id", *order]
        whole = lines(*words, "--all")
        pages: list[str] = []
        while page := lines(
            *words, "-n", "3", *(["--after", pages[-1]] if pages else [])
        ):
            pages += page
        assert pages == whole
        assert len(whole) == (6 if "submitted" in order else 11)
    assert lines("ls", "--columns", "id") == [str(i) for i in ids]
