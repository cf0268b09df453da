"""The checker reports what it is there to find."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from sessionstore import SessionStore, Task
from tests.crash.checker import Holdings, check, filler, observe
from tests.crash.crew import create
from tests.crash.journal import Journal, Operation, Snapshot, WriterError, read
from tests.crash.writer import Writer

TASK = Snapshot(7, "listed", ("NEW",), None, 1)
ROOT = replace(TASK, tasks=("child",))
CHILD = replace(TASK, place="nested")
SAVED = replace(TASK, value=8, revision=2)


def held(**contents: Snapshot | int) -> Holdings:
    return Holdings(dict(contents), {name: n for n, name in enumerate(contents)})


def done(kind: str, **writes: Snapshot | int | None) -> Operation:
    return Operation(kind, dict(writes), "done")


def in_flight(kind: str, **writes: Snapshot | int | None) -> Operation:
    return Operation(kind, dict(writes))


@pytest.mark.parametrize(
    ("journal", "after", "said"),
    [
        ([done("add", a=TASK)], held(), "lost: a "),
        ([done("save", old=SAVED)], held(old=TASK), "lost: old "),
        ([done("remove", old=None)], held(old=TASK), "removed: old "),
        ([in_flight("add", a=ROOT, child=CHILD)], held(old=TASK, a=ROOT), "half done"),
        ([in_flight("block", old=SAVED, row=3)], held(old=TASK, row=3), "half done"),
        ([Operation("add", {"a": TASK}, "failed")], held(a=TASK), "never acknowledged"),
        ([Operation("add", {"a": TASK}, "unknown")], held(a=SAVED), "half done"),
        ([], held(old=TASK, a=TASK), "never acknowledged"),
        ([], held(old=replace(TASK, revision=2)), "changed: old "),
        ([done("add", a=TASK)], held(old=TASK, a=SAVED), "changed: a "),
    ],
)
def test_what_differs_from_the_journal_is_reported(
    journal: list[Operation], after: Holdings, said: str
) -> None:
    """G1, G2: lost, half done, done twice, or done and never acknowledged."""
    problems = check(held(old=TASK), [journal], after)
    assert [problem for problem in problems if said in problem]


@pytest.mark.parametrize("outcome", [None, "unknown"])
@pytest.mark.parametrize("is_there", [True, False])
def test_what_was_in_flight_may_be_there_or_not(
    outcome: str | None, is_there: bool
) -> None:
    """G2: both are right, and so is what was acknowledged before."""
    operation = Operation("add", {"a": ROOT, "child": CHILD, "row": 3}, outcome)
    added = {"a": ROOT, "child": CHILD, "row": 3} if is_there else {}
    after = held(old=SAVED, **added)
    assert check(held(old=TASK), [[done("save", old=SAVED), operation]], after) == []


def test_a_changed_id_and_one_given_twice_are_reported() -> None:
    """G5: an ID that was acknowledged is the object's for ever."""
    journal = [Operation("add", {name: TASK}, "done", {name: 5}) for name in ("a", "b")]
    problems = check(Holdings(), [journal], Holdings({"a": TASK, "b": TASK}, {"a": 6}))
    assert "an ID was given twice" in problems
    assert "a was given ID 5 and has 6" in problems


def test_a_journal_that_was_cut_off_leaves_an_operation_in_flight(
    tmp_path: Path,
) -> None:
    """G1: what is not acknowledged in full is not acknowledged."""
    path = tmp_path / "journal"
    journal = Journal(path)
    for name in ("a", "b"):
        journal.begin(Operation("add", {name: TASK, "row": 3, "gone": None}))
        journal.end("done", {name: 1}, 0.5)
    whole, cut = read(path.read_bytes()), read(path.read_bytes()[:-1])
    assert [operation.outcome for operation in whole] == ["done", "done"]
    assert whole[0] == Operation(
        "add", {"a": TASK, "row": 3, "gone": None}, "done", {"a": 1}, 0.5
    )
    assert [operation.outcome for operation in cut] == ["done", None]
    journal.error("oops")
    with pytest.raises(WriterError, match="oops"):
        read(path.read_bytes())


@pytest.fixture
def graph(tmp_path: Path) -> tuple[str, Holdings]:
    """The URL of a database in which one graph lies, and what is right there."""
    url = f"sqlite:///{tmp_path}/store.db"
    create(url)
    path = tmp_path / "journal"
    with SessionStore(url) as session:
        writer = Writer(session, Journal(path), "w", Holdings())
        writer.do(writer.add_graph())
        writer.do(writer.together([writer.add()]))
        root = next(i for i in session.ids() if hasattr(session.load(i), "tasks"))
        session.transition(root, "SUBMITTED")
        session.transition(root, "RUNNING")
    right = observe(url)
    assert right.problems == []
    assert check(Holdings(), [read(path.read_bytes())], right) != []  # two transitions
    return url, right


ROOT_ID = "(SELECT job_id FROM store_job WHERE state = 'RUNNING')"
CHILD_ID = "(SELECT min(job_id) FROM store_job WHERE position IS NULL)"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (f"DELETE FROM store WHERE id = {ROOT_ID}", "has no object"),
        (f"DELETE FROM store_job WHERE job_id = {CHILD_ID}", "has no job row"),
        (f"DELETE FROM store WHERE id = {CHILD_ID}", "inside it is not there"),
        (f"UPDATE store SET state = 'NEW' WHERE id = {ROOT_ID}", "its object NEW"),
        (f"UPDATE store SET data = x'8004' WHERE id = {CHILD_ID}", "cannot be read"),
        ("DELETE FROM store_transition WHERE to_state = 'RUNNING'", "history ends"),
        ("DELETE FROM store_transition WHERE to_state = 'SUBMITTED'", "not chain"),
        (f"DELETE FROM store_transition WHERE job_id = {CHILD_ID}", "history ends"),
        ("UPDATE store_job SET revision = 1", "past its row"),
        (f"UPDATE store_job SET name = 'x' WHERE job_id = {ROOT_ID}", "names it 'x'"),
        (
            "INSERT INTO store_transition (job_id, revision, to_state, at, info, host,"
            " pid) VALUES (99, 1, 'NEW', 0, '', '', 0)",
            "history and no row",
        ),
    ],
)
def test_tables_that_contradict_each_other_are_reported(
    graph: tuple[str, Holdings], damage: str, said: str
) -> None:
    """G2: index, objects, job rows and history are held against each other."""
    url, _ = graph
    engine = create_engine(url)
    with engine.begin() as connection:
        assert connection.execute(text(damage)).rowcount > 0
    engine.dispose()
    assert [problem for problem in observe(url).problems if said in problem]


def test_a_payload_of_another_value_is_reported(graph: tuple[str, Holdings]) -> None:
    """G2: each payload has parts that must fit each other."""
    url, _ = graph
    with SessionStore(url) as session:
        session.add(Task("mixed", value=7, filler=filler(8)))
    [problem] = observe(url).problems
    assert "is not the one of its value" in problem


def test_a_row_of_the_users_own_that_is_gone_is_reported(
    graph: tuple[str, Holdings],
) -> None:
    """G2: it was committed together with objects, and must stay with them."""
    url, right = graph
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM mine"))
    engine.dispose()
    [problem] = check(right, [], observe(url))
    assert problem.startswith("lost: w.row")


def test_a_damaged_file_is_reported(graph: tuple[str, Holdings]) -> None:
    """G1: SQLite itself is asked whether its file is whole."""
    url, _ = graph
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("PRAGMA writable_schema = ON"))
        connection.execute(
            text("UPDATE sqlite_schema SET rootpage = 2 WHERE name = 'mine'")
        )
    engine.dispose()
    [problem] = observe(url).problems
    assert problem.startswith("integrity_check")
