"""The real command on a terminal and in a pipe: how it looks, asks, and ends."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

import pytest

from sessionstore import SessionStore, State, Task
from tests.cli.conftest import BOUND, Real

pytestmark = pytest.mark.backends("sqlite")

#: Of the sequences that set colours and the like, those for colours.
COLOUR = re.compile("\x1b\\[(?:[0-9]+;)*3[0-9](?:;[0-9]+)*m")
ESCAPE = re.compile("\x1b\\[[0-9;?]*[A-Za-z]")


def test_terminal_gets_a_table_and_a_pipe_plain_columns(
    session: SessionStore, real: Real
) -> None:
    """Heads and colours are for people; --json is the same on both."""
    id_ = session.add(Task("count words"))
    shown = real.on_terminal("ls").end()
    piped = real("ls")
    assert (shown.status, piped.status) == (0, 0)
    assert COLOUR.search(shown.out)
    assert re.search(r"id\s+state\s+name\s+changed", ESCAPE.sub("", shown.out))
    [line] = piped.lines
    assert line.split("\t")[:3] == [str(id_), "NEW", "count words"]
    assert piped.err == ""
    on_terminal = real.on_terminal("ls", "--json").end()
    assert json.loads(on_terminal.out) == json.loads(real("ls", "--json").out)


def test_no_color_is_respected(session: SessionStore, real: Real) -> None:
    """With NO_COLOR set, whatever to, no colour is set (no-color.org)."""
    session.add(Task("count"))
    result = real.on_terminal("ls", NO_COLOR="1").end()
    assert "count" in result.out
    assert not COLOUR.search(result.out)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_width_is_respected(width: int, session: SessionStore, real: Real) -> None:
    """What is too long is cut with a mark, and the ID never is."""
    ids = session.add_many([Task("x" * 300), Task("short")])
    terminal = real.on_terminal("ls", width=width)
    lines = [ESCAPE.sub("", line) for line in terminal.end().lines]
    assert max(map(len, lines)) <= width
    assert any("xx…" in line for line in lines)
    assert any(re.match(rf"\s*{ids[1]}\s.*short", line) for line in lines)


def test_more_pages_are_pointed_to(session: SessionStore, real: Real) -> None:
    """Somebody who reads along is told how to go on, with the words to type."""
    ids = session.add_many([Task(f"t{n}") for n in range(5)])
    result = real.on_terminal("ls", "-n", "2").end()
    assert f"--after {ids[1]}" in result.out
    assert "--after" not in real.on_terminal("ls", "-n", "5").end().out


def test_terminal_is_asked_with_a_count(
    session: SessionStore, other: SessionStore, real: Real
) -> None:
    """No is an answer too: status 1, and nothing is changed."""
    session.add_many([Task("a"), Task("b")])
    for answer, status, left in (("n", 1, 2), ("", 1, 2), ("y", 0, 0)):
        terminal = real.on_terminal("remove", "--name", "*")
        terminal.until("remove 2 tasks of 'default'?")
        assert len(other) == 2
        terminal.answer(answer)
        assert terminal.end().status == status
        assert len(other) == left


def test_closed_pipe_ends_a_command_quietly(session: SessionStore, real: Real) -> None:
    """As with head: not a word on standard error."""
    session.add_many([Task(f"t{n}" + "x" * 200) for n in range(3000)])
    with real.piped("ls", "--all", "--json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["name"].startswith("t0x")
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=BOUND) == 1


def test_output_that_cannot_be_written_is_told_of(
    session: SessionStore, real: Real
) -> None:
    """In one line and by the status, however little it was."""
    id_ = session.add(Task("count"))
    words = real.arguments(("history", str(id_)))
    environment = {**real.environment, "PYTHONUNBUFFERED": ""}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            words, stdout=full, stderr=subprocess.PIPE, env=environment, check=False
        )
    said = b"sessionstore: No space left on device\n"
    assert (done.stderr, done.returncode) == (said, 1)


def test_command_runs_where_nothing_is_open(session: SessionStore, real: Real) -> None:
    """As cron jobs have it: what it prints goes nowhere."""
    id_ = session.add(Task("count"))
    closing = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh"]
    words = [*closing, *real.arguments(("hold", str(id_), "--yes"))]
    subprocess.run(words, env=real.environment, check=True, timeout=BOUND)
    assert session.counts() == {State.STOPPED: 1}


def test_no_value_is_cut_for_blanks(session: SessionStore, real: Real) -> None:
    """On a narrow terminal a short name does not take what a number needs."""
    id_ = session.add(Task("a"))
    for state in (State.SUBMITTED, State.RUNNING):
        session.transition(id_, state)
    session.transition(id_, State.TERMINATED, returncode=0)
    terminal = real.on_terminal("ls", width=60)
    rows = [ESCAPE.sub("", line).split() for line in terminal.end().lines]
    assert any(row[:1] == [str(id_)] and row[-1] == "0" for row in rows)


def test_ctrl_c_ends_a_question_quietly(session: SessionStore, real: Real) -> None:
    """Status 130, no traceback, and nothing is changed."""
    session.add(Task("a"))
    terminal = real.on_terminal("forget", "--name", "*")
    terminal.until("[y/N]")
    terminal.interrupt()
    result = terminal.end()
    assert result.status == 130
    assert "Traceback" not in result.out
    assert "Abort" not in result.out
    assert len(session) == 1


def test_watch_shows_what_changes_until_ctrl_c(
    session: SessionStore, real: Real
) -> None:
    """A table that is drawn anew: the tasks at work, and the counts."""
    _, working = session.add_many([Task("waiting"), Task("work [b]ing")])
    terminal = real.on_terminal("watch", width=100)
    terminal.until("NEW 2")
    session.transition(working, State.SUBMITTED)
    terminal.until("SUBMITTED 1")
    terminal.until("work [b]ing")
    session.transition(working, State.TERMINATED, returncode=0)
    terminal.until("TERMINATED 1")
    terminal.interrupt()
    result = terminal.end()
    assert result.status == 0
    assert "Traceback" not in result.out
    assert result.out.rstrip().endswith("\x1b[?25h"), "the cursor is shown again"
    assert " waiting" not in result.out


def test_watch_in_a_pipe_is_a_line_for_each_change(
    session: SessionStore, real: Real
) -> None:
    """The counts by state, at once rather than when a buffer is full."""
    id_ = session.add(Task("a"))
    process = real.piped("watch", "--json")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["NEW"] == 1
    session.transition(id_, State.SUBMITTED)
    row = json.loads(process.stdout.readline())
    assert (row["NEW"], row["SUBMITTED"]) == (0, 1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=BOUND)
    assert (process.returncode, out, err) == (0, "", "")


def test_tail_follows_transitions_until_ctrl_c(
    session: SessionStore, real: Real
) -> None:
    """One a line, at once, each of them once; --since begins in the past."""
    id_ = session.add(Task("two\nlines"))
    process = real.piped("tail", "--since", "1h")
    assert process.stdout is not None
    lines = [process.stdout.readline()]
    for state in State.SUBMITTED, State.RUNNING:
        session.transition(id_, state, info=f"to {state}")
        lines.append(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=BOUND)
    assert (process.returncode, out, err) == (0, "", "")
    rows = [line.rstrip("\n").split("\t")[1:] for line in lines]
    assert rows == [
        [str(id_), "two\\nlines", "-", "NEW", "-", "-"],
        [str(id_), "two\\nlines", "NEW", "SUBMITTED", "-", "to SUBMITTED"],
        [str(id_), "two\\nlines", "SUBMITTED", "RUNNING", "-", "to RUNNING"],
    ]


def test_tail_ends_with_the_last_task(session: SessionStore, real: Real) -> None:
    """Only when all are TERMINATED, and not before that was printed."""
    ids = session.add_many([Task("a"), Task("b")])
    process = real.piped("tail", "--since", "1h", "--until-ended")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in ids]
    for id_ in ids:
        for state in State.SUBMITTED, State.TERMINATED:
            session.transition(id_, state)
            lines.append(process.stdout.readline())
    out, err = process.communicate(timeout=BOUND)
    assert (process.returncode, out, err) == (0, "", "")
    assert [line.split("\t")[4] for line in lines] == [
        *["NEW", "NEW", "SUBMITTED", "TERMINATED", "SUBMITTED", "TERMINATED"]
    ]


def test_progress_is_shown_of_what_takes_long(
    session: SessionStore, real: Real
) -> None:
    """A bar on the terminal, gone at the end; none where all is done at once."""
    session.add_many([Task(f"t{n}") for n in range(40)])
    code = (
        "import sys; from sessionstore.cli import progress, running\n"
        "progress.PATIENCE = float(sys.argv[1])\n"
        "sys.exit(running.run(['forget', '--name', sys.argv[2], '--yes']))"
    )
    real.arguments = lambda words: [sys.executable, "-c", code, *words]  # type: ignore[method-assign]
    at_once = real.on_terminal("60", "t?").end()
    assert at_once.out == "forgotten: 10\n"
    slow = real.on_terminal("0", "*").end()
    assert slow.status == 0
    assert "forget ━" in ESCAPE.sub("", slow.out)
    assert "forgotten: 30" in slow.out


def test_shells_complete_commands_options_states_and_sessions(
    session: SessionStore, database_url: str, real: Real
) -> None:
    """Session names come from the store that the environment names."""
    SessionStore(database_url, "nightly")
    SessionStore(database_url, "weekly\x1b[31m")

    def completed(*words: str) -> list[str]:
        real.environment.update(
            _SESSIONSTORE_COMPLETE="complete_bash",
            COMP_WORDS=" ".join(("sessionstore", *words)),
            COMP_CWORD=str(len(words)),
        )
        return real().out.split()

    assert completed("h") == ["history", "hold"]
    assert completed("ls", "--st") == ["--state"]
    assert completed("ls", "--state", "R") == ["RUNNING"]
    assert completed("ls", "--session", "n") == ["nightly"]
    assert completed("ls", "--session", "w") == []
