"""The replay itself: it finds no fault where there is none, and finds each that is."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from sessionstore import State, Transition
from tests.hosts.replay import Line, problems

#: Host one runs it until its lease is over, then two does.
STORY = [
    ("NEW", "test", 1, ""),
    ("SUBMITTED", "one", 10, ""),
    ("RUNNING", "one", 10, ""),
    ("UNKNOWN", "two", 5, "the lease of one/boot/1/2/3 expired"),
    ("SUBMITTED", "two", 20, ""),
    ("RUNNING", "two", 20, ""),
    ("TERMINATING", "two", 20, ""),
    ("TERMINATED", "two", 20, "exited with 0"),
]
WRITTEN = ["one begin", "one beat", "two begin", "two beat", "two end"]


def history(story: list[tuple[str, str, int, str]]) -> list[Transition]:
    """Return a history that is told as in ``STORY``."""
    entries = []
    state, at = None, datetime(2026, 1, 1, tzinfo=UTC)
    for name, host, pid, info in story:
        returncode = 0 if name == "TERMINATED" else None
        to = State(name)
        entries.append(Transition(1, state, to, at, info, returncode, host, pid))
        state, at = to, at + timedelta(seconds=1)
    return entries


def lines(written: list[str]) -> list[Line]:
    """Return what is told as in ``WRITTEN``."""
    words = [line.split() for line in written]
    return [Line(host, len(host), at, what) for at, (host, what) in enumerate(words)]


def test_a_task_that_was_passed_on_is_right() -> None:
    """G6: another host's work after the first one's is no fault."""
    assert list(problems(history(STORY), lines(WRITTEN))) == []


def test_a_worker_may_end_before_its_command_begins() -> None:
    """G6: an attempt that wrote nothing is no fault."""
    assert list(problems(history(STORY), lines(WRITTEN[2:]))) == []


@pytest.mark.parametrize(
    ("at", "entry", "fault"),
    [
        (3, ("UNKNOWN", "three", 7, "its worker was killed"), "was at work on it"),
        (6, ("TERMINATING", "one", 10, ""), "was at work on it"),
        (6, ("RUNNING", "two", 20, ""), "out of order"),
        (7, ("UNKNOWN", "two", 20, ""), "it was lost"),
        (5, ("RUNNING", "three", 20, ""), "it ended on two"),
    ],
)
def test_a_wrong_history_is_found(
    at: int, entry: tuple[str, str, int, str], fault: str
) -> None:
    """G6: one entry is another than it was."""
    story = [*STORY[:at], entry, *STORY[at + 1 :]]
    assert fault in " ".join(problems(history(story), lines(WRITTEN)))


@pytest.mark.parametrize(
    ("written", "fault"),
    [
        ([*WRITTEN[:3], "one beat", *WRITTEN[3:]], "others did"),
        ([*WRITTEN, "three begin", "three end"], "it ran on"),
        (WRITTEN[:-1], "did not end"),
        ([*WRITTEN, "two begin", "two end"], "its commands began"),
        (WRITTEN[1:], "its commands began"),
        ([], "did not end"),
    ],
)
def test_commands_that_did_something_else_are_found(
    written: list[str], fault: str
) -> None:
    """G6: the history is the right one."""
    assert fault in " ".join(problems(history(STORY), lines(written)))


def test_a_failure_and_a_clock_that_went_back_are_found() -> None:
    """G6: all entries are there, and one of them says something else."""
    right = history(STORY)
    failed = [*right[:-1], replace(right[-1], returncode=256)]
    assert "it was lost" in " ".join(problems(failed, lines(WRITTEN)))
    early = [*right[:-1], replace(right[-1], at=right[0].at)]
    assert "go back" in " ".join(problems(early, lines(WRITTEN)))
