"""The chaos test's checker finds each kind of wrong, and nothing in what is right."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from sessionstore import SessionStore, State, Task
from tests.chaos.checker import check
from tests.chaos.evidence import (
    Entry,
    Record,
    Run,
    read_records,
    read_runs,
    still_running,
)

ADDED = Entry(None, "NEW", 1.0, 1)
#: What a first worker, of PID 7, and a second one, of PID 8, go through.
BEGUN = [Entry("NEW", "SUBMITTED", 10.0, 7), Entry("SUBMITTED", "RUNNING", 11.0, 7)]
LOST = Entry("RUNNING", "UNKNOWN", 20.0, 2, "its holder is gone")
AGAIN = [
    Entry("UNKNOWN", "SUBMITTED", 30.0, 8),
    Entry("SUBMITTED", "RUNNING", 31.0, 8),
]
ENDED = [
    Entry("RUNNING", "TERMINATING", 40.0, 8),
    Entry("TERMINATING", "TERMINATED", 41.0, 8, returncode=3 << 8),
]
EXHAUSTED = Entry("RUNNING", "TERMINATED", 40.0, 2, "attempts exhausted")
RIGHT = Record("TERMINATED", 2, [ADDED, *BEGUN, LOST, *AGAIN, *ENDED], 3 << 8)
GIVEN_UP = Record("TERMINATED", 2, [ADDED, *BEGUN, LOST, *AGAIN, EXHAUSTED])
KILLED = Run(7, 111.0, 12.0)
WHOLE = Run(8, 132.0, 32.0, 138.0, 38.0, 3)
RUNS = [KILLED, WHOLE]


def found(*records: Record, runs: list[Run] = RUNS) -> list[str]:
    """Check one task, of which 2 attempts are allowed."""
    return check(["a"], {"a": records} if records else {}, {"a": runs}, 2)


def with_history(*history: Entry) -> Record:
    return replace(RIGHT, history=list(history))


@pytest.mark.parametrize(
    ("record", "runs"),
    [
        (RIGHT, RUNS),
        (RIGHT, [WHOLE]),
        (GIVEN_UP, RUNS),
        (GIVEN_UP, []),
        (
            with_history(
                ADDED,
                # Who claimed it died before it was SUBMITTED.
                Entry("NEW", "UNKNOWN", 2.0, 2),
                Entry("UNKNOWN", "UNKNOWN", 3.0, 2),
                *AGAIN,
                *ENDED,
            ),
            [WHOLE],
        ),
    ],
)
def test_what_is_right_is_not_reported(record: Record, runs: list[Run]) -> None:
    """G6: killed and run again, given up, or not begun the first time."""
    assert found(record, runs=runs) == []


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (replace(RIGHT, state="RUNNING"), "left RUNNING"),
        (replace(RIGHT, holder="somebody"), "holds it still"),
        (replace(RIGHT, attempts=3), "tried 3 times, of 2"),
        (replace(RIGHT, attempts=1), "RUNNING 2 times, in 1 attempts"),
        (replace(RIGHT, problems=["its rows differ"]), "its rows differ"),
        (replace(RIGHT, returncode=0), "returncode 0, of a run that left with 3"),
        (replace(GIVEN_UP, attempts=1), "given up after 1 attempts of 2"),
        (with_history(ADDED, BEGUN[1]), "nobody recorded the run of worker 8"),
        (
            with_history(ADDED, Entry("NEW", "RUNNING", 11.0, 8), *ENDED),
            "from NEW to RUNNING there is no way",
        ),
        (
            with_history(ADDED, *BEGUN, LOST, *AGAIN, *ENDED, AGAIN[0]),
            "SUBMITTED was before TERMINATED",
        ),
        (
            with_history(*RIGHT.history, Entry("TERMINATED", "UNKNOWN", 50.0, 2)),
            "from TERMINATED to UNKNOWN there is no way",
        ),
        (
            # The first worker ends what the second one has begun.
            with_history(
                ADDED, *BEGUN, LOST, *AGAIN, *(replace(e, pid=7) for e in ENDED)
            ),
            "two holders wrote: 8 RUNNING, 7 TERMINATING",
        ),
        (
            with_history(ADDED, BEGUN[0], replace(BEGUN[1], pid=8), *ENDED),
            "two holders wrote: 7 SUBMITTED, 8 RUNNING",
        ),
    ],
)
def test_wrong_record_is_reported(record: Record, said: str) -> None:
    """G2, G6: states, attempts, holders, results, and the order of transitions."""
    assert [problem for problem in found(record) if said in problem]


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([KILLED], "TERMINATED without a run to its end"),
        ([], "TERMINATED without a run to its end"),
        ([KILLED, replace(WHOLE, code=1)], "of a run that left with 1"),
        ([KILLED, replace(WHOLE, alone=False)], "two at once"),
        ([replace(KILLED, ended=133.0), WHOLE], "two at once"),
        ([*RUNS, Run(9, 150.0, 35.0)], "nobody recorded the run of worker 9"),
        ([*RUNS, Run(8, 150.0, 35.0)], "nobody recorded the run of worker 8"),
        ([replace(KILLED, begun_at=10.5), WHOLE], "began while it was not RUNNING"),
        ([replace(KILLED, begun_at=20.5), WHOLE], "began while it was not RUNNING"),
        (
            [replace(KILLED, ended=125.0, ended_at=20.5), WHOLE],
            "went on when it was not RUNNING",
        ),
    ],
)
def test_wrong_runs_are_reported(runs: list[Run], said: str) -> None:
    """G6: none, two at once, unrecorded ones, and those at the wrong time."""
    assert [problem for problem in found(RIGHT, runs=runs) if said in problem]


def test_tasks_lost_doubled_and_strange_are_reported() -> None:
    """G1, G2: each task that was submitted is there once, and no other."""
    assert [problem for problem in found() if "a: lost" in problem]
    assert [problem for problem in found(RIGHT, RIGHT) if "a: there twice" in problem]
    [problem] = check([], {"b": [RIGHT]}, {"b": RUNS}, 2)
    assert problem == "b: nobody submitted it"


def test_evidence_is_what_happened(database_url: str) -> None:
    """G2: the records say what a session did, and where its tables were damaged."""
    with SessionStore(database_url) as session:
        session.add_many(Task(name) for name in ("a", "b", "c"))
        [claim] = session.claim()
        claim.transition(State.SUBMITTED, info="begun")
        claim.transition(State.TERMINATED, returncode=256)
        session.claim()
    records = read_records(database_url)
    [ended], [held], [new] = records["a"], records["b"], records["c"]
    assert (ended.state, ended.attempts, ended.returncode) == ("TERMINATED", 1, 256)
    assert [(e.old, e.new) for e in ended.history] == [
        (None, "NEW"),
        ("NEW", "SUBMITTED"),
        ("SUBMITTED", "TERMINATED"),
    ]
    assert {entry.pid for entry in ended.history} == {os.getpid()}
    assert [entry.info for entry in ended.history] == ["", "begun", ""]
    assert str(os.getpid()) in (held.holder or "")
    assert (new.state, new.attempts, new.holder) == ("NEW", 0, None)
    assert ended.problems == held.problems == new.problems == []
    engine = create_engine(database_url)
    with engine.begin() as connection:
        for statement in (
            "DELETE FROM store_transition WHERE to_state = 'SUBMITTED'",
            "DELETE FROM store_job WHERE name = 'b'",
            "DELETE FROM store WHERE id = (SELECT job_id FROM store_job"
            " WHERE name = 'c')",
        ):
            assert connection.execute(text(statement)).rowcount == 1
    engine.dispose()
    damaged = read_records(database_url)
    [ended], [new] = damaged.pop("a"), damaged.pop("c")
    [(_, [rest])] = damaged.items()
    for record, said in (
        (ended, "does not chain"),
        (new, "no object"),
        (rest, "and no row"),
    ):
        assert [problem for problem in record.problems if said in problem]


def test_runs_are_read_as_the_commands_wrote_them(tmp_path: Path) -> None:
    """A line that says when it began, and for one that was not killed another."""
    common = {"pid": 5, "worker": 4, "monotonic": 1.0, "at": 2.0}
    lines = [
        {**common, "what": "begin", "alone": True},
        {**common, "what": "end", "monotonic": 3.0, "at": 4.0, "code": 1},
        {**common, "pid": 6, "monotonic": 2.0, "what": "begin", "alone": False},
    ]
    (tmp_path / "a").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_runs(tmp_path) == {
        "a": [Run(4, 1.0, 2.0, 3.0, 4.0, 1), Run(4, 2.0, 2.0, alone=False)]
    }
    assert still_running(tmp_path) == []
