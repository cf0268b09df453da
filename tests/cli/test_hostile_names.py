"""Names that would move the cursor, pass for markup, or end a statement."""

from __future__ import annotations

import json
import time
import unicodedata

import pytest

from sessionstore import SessionStore, Task
from sessionstore.cli.output import visible
from tests.cli.conftest import Command, Real

pytestmark = pytest.mark.backends("sqlite")

HOSTILE = [
    "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "two\nlines\r\tand\x00a NUL",
    "\x9b31mC1 \x85next",
    "abc\u202etxt.exe\u2066\u200f",
    "[bold red]markup[/] [link=http://x]y[/link] :smile:",
    "'; DROP TABLE store; --",
    '"; DROP TABLE store_job; --',
    "%s %(x)s {0} $HOME `id`",
    "\u2028\u2029\ufeff\ud800",
    "x" * 10_000,
    "",
]
COMMANDS = (
    ("ls",),
    ("ls", "--json"),
    ("ls", "--name", "*", "--sort", "name"),
    ("show", "1"),
    ("history", "1"),
    ("history", "1", "--json"),
    ("redo", "--name", "*", "--dry-run"),
    ("cancel", "--name", "*", "--dry-run", "--json"),
    ("stats",),
)


@pytest.fixture
def hostile(session: SessionStore) -> SessionStore:
    for name in HOSTILE:
        task = Task(name.replace("\ud800", ""), value=name)
        id_ = session.add(task)
        session.transition(id_, "UNKNOWN", info=name)
        session.transition(id_, "SUBMITTED")
    return session


def harmful(text: str) -> set[str]:
    """Return the characters that a terminal does not just show."""
    return {c for c in text if unicodedata.category(c)[0] == "C" or c in "\u2028\u2029"}


def test_nothing_hostile_comes_out_of_a_pipe(
    hostile: SessionStore, command: Command
) -> None:
    """Each task stays one line of printable characters, and the tables stay."""
    for words in COMMANDS:
        for id_ in hostile.ids() if "1" in words else [1]:
            result = command(*(str(id_) if word == "1" else word for word in words))
            assert (result.status, result.err) == (0, "")
            assert harmful(result.out) <= {"\n", "\t"}
    SessionStore(hostile.store, HOSTILE[0] + HOSTILE[3])
    sessions = command("sessions")
    assert (len(sessions.lines), harmful(sessions.out)) == (2, {"\n", "\t"})
    assert len(command("ls").lines) == len(HOSTILE)
    assert len(hostile) == len(HOSTILE)


def test_json_gives_back_the_very_name(hostile: SessionStore, command: Command) -> None:
    """What is escaped for the eye is whole for programs."""
    rows = [json.loads(line) for line in command("ls", "--json").lines]
    assert rows[5]["name"] == HOSTILE[5]
    assert rows[0]["name"] == HOSTILE[0]
    assert rows[3]["name"] == HOSTILE[3]
    [shown] = command("show", "10", "--json").lines
    assert json.loads(shown)["attributes"]["value"] == HOSTILE[9]


def test_nothing_hostile_reaches_a_terminal(hostile: SessionStore, real: Real) -> None:
    """Markup is shown as it was written, and no line is wider than the terminal."""
    for words in ("ls",), ("show", "1"), ("history", "5"), ("stats",):
        result = real.on_terminal(*words, width=100, TERM="dumb").end()
        assert result.status == 0
        assert harmful(result.out) <= {"\n"}
        assert max(map(len, result.lines)) <= 100
        if words == ("ls",):
            assert "[bold red]markup[/]" in result.out
            assert "\\x1b[31mred" in result.out
            assert "\\u202e" in result.out


def test_hostile_words_are_escaped_in_complaints(
    session: SessionStore, command: Command
) -> None:
    """What was typed may come from elsewhere, as from a script's variable."""
    for name in HOSTILE:
        for words in (
            ("ls", "--session", name),
            ("ls", "--state", name or "?"),
            ("ls", "--columns", name or "?"),
            ("ls", "--since", name or "?"),
            ("show", name or "?"),
            (name or "?",),
        ):
            if "\x00" in name and words[1:2] == ("--session",):
                continue  # not to be had on a command line
            result = command(*words)
            assert result.status in {1, 2}
            assert harmful(result.err) <= {"\n"}
            assert len(result.err.splitlines()) == 1


def test_visible_leaves_alone_what_can_be_seen() -> None:
    """Letters of all scripts stay, and all control and format characters go."""
    text = "naïve 日本語 עברית 🙂 a\\b"
    assert visible(text) == text
    begun = time.monotonic()
    everything = visible("".join(map(chr, range(0x110000))))
    assert harmful(everything) == set()
    assert time.monotonic() - begun < 60
