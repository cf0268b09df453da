"""What commands change, and what they leave alone, on every backend."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from sessionstore import ConflictError, SessionStore, State, Task
from sessionstore.cli.changing import CHANGES, _make
from sessionstore.jobs.listing import Listing
from tests.cli.conftest import Command

Show = Callable[..., list[str]]


def ended(session: SessionStore, *names: str) -> list[int]:
    """Add tasks that have ended."""
    ids = [*session.add_many(map(Task, names))]
    for id_ in ids:
        session.transition(id_, State.UNKNOWN)
        session.transition(id_, State.TERMINATED, returncode=0)
    return ids


def test_tasks_are_changed_by_id_or_by_filter(
    session: SessionStore, other: SessionStore, show: Show
) -> None:
    """Of those that a filter lets through only the ones with which it can be done."""
    [first, second] = ended(session, "a", "b")
    new = session.add(Task("c"))
    assert show("redo", "--name", "*", "--yes") == ["redone: 2"]
    assert other.counts() == {State.NEW: 3}
    assert show("hold", str(first), str(first), "--yes")[0].endswith(": 1")
    assert show("hold", "--name", "[ab]", "--yes")[0].endswith(": 1")
    assert other.counts() == {State.NEW: 1, State.STOPPED: 2}
    assert show("resume", "--state", "stopped", "--yes")[0].endswith(": 2")
    assert other.counts() == {State.NEW: 1, State.UNKNOWN: 2}
    assert show("cancel", "--name", "c", "--yes")[0].endswith(": 1")
    assert [entry.to_state for entry in other.history(new)][-1] == State.TERMINATED
    assert show("forget", str(second), "--yes") == ["forgotten: 1"]
    assert (second in other, second in other.store) == (False, True)
    [line] = show("remove", "--name", "*", "--yes", "--json")
    assert json.loads(line) == {"command": "remove", "done": 2, "failed": 0}
    assert len(other) == 0


def test_id_that_is_not_there_keeps_no_other_from_it(
    session: SessionStore, other: SessionStore, command: Command
) -> None:
    """It is named, and the status says that something could not be done."""
    [id_] = ended(session, "a")
    ids = [str(id_ + 1), str(id_), str(id_ + 1)]
    result = command("redo", *ids, "--dry-run")
    assert (result.status, result.out) == (1, f"{id_}\tTERMINATED\ta\n")
    result = command("redo", *ids, "--yes", "--json")
    done = {"command": "redo", "done": 1, "failed": 1}
    assert (result.status, json.loads(result.out)) == (1, done)
    assert len(result.err.splitlines()) == 1
    assert f"no task with ID {id_ + 1}" in result.err
    assert other.counts() == {State.NEW: 1}


def test_who_holds_a_task_is_asked(
    session: SessionStore, other: SessionStore, show: Show, command: Command
) -> None:
    """G6: a claimed task is its holder's; it hears of it, and nothing is written."""
    id_ = session.add(Task("held"))
    [claim] = session.claim()
    show("cancel", str(id_), "--yes")
    assert claim.renew() == "cancel"
    assert other.counts() == {State.NEW: 1}
    result = command("remove", str(id_), "--yes")
    assert (result.status, result.out) == (1, "removed: 0\n")
    assert "is claimed by" in result.err
    assert id_ in other


def test_dry_run_and_a_question_that_nobody_answers_change_nothing(
    session: SessionStore, other: SessionStore, show: Show, command: Command
) -> None:
    """Without a terminal to ask on, --yes has to be given."""
    ids = ended(session, "a", "b")
    for verb in "redo", "forget", "remove":
        listed = show(verb, "--name", "*", "--dry-run")
        assert [line.split("\t")[0] for line in listed] == [str(id_) for id_ in ids]
    assert len(show("prune", "--older-than", "0s", "--dry-run")) == 2
    for words in (["redo", "--name", "*"], ["prune", "--older-than", "0s"]):
        result = command(*words)
        assert (result.status, result.out) == (2, "")
        assert "2 " in result.err
        assert "--yes" in result.err
    assert other.counts() == {State.TERMINATED: 2}


def test_what_changed_since_it_was_listed_is_left_alone(
    session: SessionStore, other: SessionStore
) -> None:
    """G3: a task that was redone meanwhile is not removed for having ended."""
    [id_] = ended(session, "a")
    listing = Listing(session.store)
    row = listing.job(listing.session_id(session.name), id_)
    other.redo(id_)
    [remove] = [change for change in CHANGES if change.name == "remove"]
    with pytest.raises(ConflictError, match="since it was listed"):
        _make(remove, session, listing, row)
    assert id_ in other


def test_prune_removes_finished_tasks_with_what_is_inside_them(
    session: SessionStore, other: SessionStore, show: Show
) -> None:
    """What has not ended stays, however old; histories go with their tasks."""
    inner = Task("inner")
    outer = Task("outer", tasks=[inner])
    session.add(outer)
    session.transition(outer.persistent_id, State.UNKNOWN)
    session.transition(outer.persistent_id, State.TERMINATED)
    ended(session, *(f"t{n}" for n in range(120)))
    stays = session.add(Task("stays"))
    assert show("prune", "--older-than", "1h", "--yes") == []
    assert show("prune", "--older-than", "0s", "--yes") == ["removed: 121"]
    assert [*other.ids()] == [stays]
    assert other.store.list() == [stays]
    listing = Listing(session.store)
    histories = [*listing.histories(listing.session_id(session.name))]
    assert [len(entries) for entries in histories] == [1]


def test_prune_goes_on_where_one_task_was_inside_another(
    session: SessionStore, show: Show
) -> None:
    """A task may be listed and be inside another one too, and is removed once."""
    inner = Task("inner")
    outer = Task("outer", tasks=[inner])
    session.add_many([outer, inner, Task("other")])
    for id_ in [*session.ids()]:
        session.transition(id_, State.UNKNOWN)
        session.transition(id_, State.TERMINATED)
    show("prune", "--older-than", "0s", "--yes")
    assert len(session) == 0
