"""Figures: durations to 1 %, ends by time, failures by reason."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from statistics import quantiles

import pytest

from sessionstore import SessionStore, State, Task, Transition
from sessionstore.cli.summing import bars
from sessionstore.jobs.figures import MOST_REASONS, OTHERS, Durations, Figures, Span
from tests.cli.conftest import Command

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def life(
    *steps: tuple[str, float] | tuple[str, float, str] | tuple[str, float, str, int],
) -> list[Transition]:
    """Return a task's transitions: to which state, after how many minutes, why."""
    entries: list[Transition] = []
    for to, minutes, *rest in steps:
        info, returncode = [*rest, "", None][:2] if len(rest) < 2 else rest
        before = entries[-1].to_state if entries else None
        at = BEGIN + timedelta(minutes=minutes)
        entries.append(
            Transition(1, before, State(to), at, str(info), returncode, "host", 1)
        )
    return entries


def figures(lives: Iterable[list[Transition]]) -> Figures:
    found = Figures(Span(BEGIN, BEGIN + 10 * HOUR, 10))
    for entries in lives:
        found.add(entries)
    return found


def test_quantiles_are_true_to_one_percent() -> None:
    """From microseconds to weeks."""
    chance = random.Random(1)
    seconds = [10 ** chance.uniform(-5, 6) for _ in range(20_000)]
    durations = Durations()
    for number in seconds:
        durations.add(timedelta(seconds=number))
    exact = quantiles(seconds, n=100)
    for percent in (5, 50, 95):
        found = durations.quantile(percent / 100)
        assert found is not None
        # Between two of them that are next to each other it may be either.
        assert found.total_seconds() == pytest.approx(exact[percent - 1], rel=0.02)
    one = Durations()
    one.add(HOUR)
    [alone] = {one.quantile(0.5), one.quantile(0.95)}
    assert alone is not None
    assert alone / HOUR == pytest.approx(1, rel=0.01)
    assert Durations().quantile(0.5) is None


def test_clock_that_was_set_back_is_borne() -> None:
    """A stay of less than nothing counts as nothing."""
    durations = Durations()
    durations.add(timedelta(seconds=-5))
    found = durations.quantile(0.5)
    assert found is not None
    assert found < timedelta(milliseconds=1)


def test_ends_are_counted_where_they_were() -> None:
    """What lies outside the span is left out."""
    found = figures(
        life(("NEW", 0), ("UNKNOWN", 1), ("TERMINATED", minutes))
        for minutes in (30, 59, 61, 600, 601)
    )
    assert found.ended == [2, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    assert found.stays[State.NEW].number == 5
    assert found.stays[State.UNKNOWN].number == 4
    minute = found.stays[State.NEW].quantile(1)
    assert minute is not None
    assert minute / timedelta(minutes=1) == pytest.approx(1, rel=0.01)


def test_failures_are_counted_once_by_reason() -> None:
    """A returncode, an end from UNKNOWN, and UNKNOWN if more came of it."""
    ok = life(("NEW", 0), ("RUNNING", 1), ("TERMINATED", 2, "fine", 0))
    silent = life(("NEW", 0), ("RUNNING", 1), ("TERMINATED", 2))
    bad = life(("NEW", 0), ("RUNNING", 1), ("TERMINATED", 2, "disk full", 256))
    mute = life(("NEW", 0), ("RUNNING", 1), ("TERMINATED", 2, "", 9))
    again = life(
        ("RUNNING", 0), ("UNKNOWN", 1, "lost"), ("RUNNING", 2), ("TERMINATED", 3, "", 0)
    )
    given_up = life(
        ("RUNNING", 0), ("UNKNOWN", 1, "lost too"), ("TERMINATED", 2, "gave up")
    )
    left = life(("RUNNING", 0), ("UNKNOWN", 1))
    found = figures([ok, silent, bad, bad, mute, again, given_up, left])
    assert found.failures == {
        "disk full": 2,
        "returncode 9": 1,
        "lost": 1,
        "gave up": 1,
        "UNKNOWN without a reason": 1,
    }


def test_reasons_beyond_number_take_no_memory() -> None:
    """Reasons that are all different are counted together."""
    found = figures(
        life(("NEW", 0), ("TERMINATED", 1, f"reason {n}", 1))
        for n in range(MOST_REASONS + 50)
    )
    assert len(found.failures) == MOST_REASONS + 1
    assert found.failures[OTHERS] == 50


def test_plot_shows_the_least_and_the_most() -> None:
    """The highest column is full, and no number but 0 is invisible."""
    lines = [*bars([0, 1, 500, 1000], 4)]
    assert [line[3] for line in lines] == ["█"] * 4
    assert [line[2] for line in lines] == [" ", " ", "█", "█"]
    assert lines[-1][:2] == " ▁"
    assert [*bars([0, 1, 4], 2, plain=True)] == ["  #", " ##"]
    assert [*bars([0, 0], 1)] == ["  "]


def test_stats_come_from_each_database(session: SessionStore, command: Command) -> None:
    """Counts, stays, ends and failures, of more tasks than a page has."""
    ids = session.add_many([Task(f"t{n}") for n in range(620)])
    with session.transaction():
        for id_ in ids[:3] + ids[-2:]:
            session.transition(id_, State.SUBMITTED)
            session.transition(id_, State.TERMINATED, returncode=1, info="too late")
    rows = [line.split("\t") for line in command("stats").lines]
    assert ["states", "NEW", "615", "5"] in [row[:4] for row in rows]
    assert ["states", "SUBMITTED", "0", "5"] in [row[:4] for row in rows]
    assert [row[3] for row in rows if row[0] == "throughput"] == ["5"]
    records = map(json.loads, command("stats", "--json").lines)
    ends = [row["ended"] for row in records if row["section"] == "throughput"]
    assert (len(ends), sum(ends)) == (48, 5)
    assert rows[-1] == ["failures", "5", "too late"]
    assert ["failures", "5", "too late"] not in [
        line.split("\t") for line in command("stats", "--since", "2999-01-01").lines
    ]
