"""SessionStore keeps index, states, history and objects in step."""

from __future__ import annotations

import gc
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import create_engine, inspect, text

from sessionstore import (
    ConfigurationError,
    ConflictError,
    DecodeError,
    EncodeError,
    NotFoundError,
    Persistable,
    SchemaError,
    SessionStore,
    SqlStore,
    State,
    StoreUnavailableError,
    Task,
    TransitionError,
)
from sessionstore.jobs.rows import JobTable


def states(session: SessionStore, id_: int) -> list[tuple[str | None, str]]:
    return [(entry.from_state, entry.to_state) for entry in session.history(id_)]


def test_added_task_is_in_index_store_and_history(session: SessionStore) -> None:
    """G2: adding writes all of it."""
    task = Task("count")
    id_ = session.add(task)
    assert session.add(task) == id_
    assert list(session.ids()) == [id_]
    assert len(session) == 1
    assert id_ in session
    assert task in session
    assert list(session) == [task]
    assert session.counts() == {State.NEW: 1}
    assert states(session, id_) == [(None, "NEW")]


def test_order_is_that_of_adding(session: SessionStore) -> None:
    """Iteration follows the order added, over pages, whatever the IDs."""
    first = Task("stored before")
    session.store.save(first)
    ids = list(session.add_many(Task(str(n)) for n in range(600)))
    ids.append(session.add(first))
    assert list(session.ids()) == ids
    assert [task.persistent_id for task in session] == ids


def test_task_is_in_one_session_at_most(
    session: SessionStore, database_url: str
) -> None:
    """Adding it to a second one is a ConflictError, until the first forgets it."""
    second = SessionStore(session.store, "two")
    task = Task()
    id_ = session.add(task)
    with pytest.raises(ConflictError, match="another session"):
        second.add(task)
    for call in (
        lambda: second.load(id_),
        lambda: second.save(task),
        lambda: second.transition(task, State.SUBMITTED),
    ):
        with pytest.raises(NotFoundError):
            call()
    session.forget(id_)
    assert id_ not in session
    assert id_ in session.store
    second.add(task)
    assert list(second.ids()) == [id_]


def test_forgotten_object_can_be_added_by_anybody(
    session: SessionStore, other: SessionStore
) -> None:
    """G2: also by a process that reads it from the store, and its history goes on."""
    id_ = session.add(Task(value=1))
    session.transition(id_, State.SUBMITTED, returncode=7)
    session.forget(id_)
    task = other.store.load(id_)
    task.value = 2
    assert other.add(task) == id_
    assert task.execution.returncode == 7
    assert states(other, id_) == [(None, "NEW"), ("NEW", "SUBMITTED")]
    other.transition(task, State.RUNNING)
    assert session.counts() == {State.RUNNING: 1}
    session.store.invalidate_cache()
    task = session.load(id_)
    assert (task.value, task.execution.returncode) == (2, 7)


@pytest.mark.parametrize("reader", ["the same object", "the store", "another process"])
def test_workflow_moves_to_another_session_with_its_parts(
    session: SessionStore, other: SessionStore, reader: str
) -> None:
    """G2: the session that it has left does not destroy them, and they can be saved."""
    inner, shown = Task("inner"), Task("shown")
    middle = Task("middle", needs=inner)
    flow = Task("flow", tasks=[middle, shown])
    id_, _ = session.add_many([flow, shown])
    session.transition(middle, State.SUBMITTED, returncode=7)
    session.forget(id_)
    assert [*session.ids()] == [shown.persistent_id]
    session.forget(shown.persistent_id)
    new = SessionStore(
        other.store if reader == "another process" else session.store, "new"
    )
    if reader == "the store":
        session.store.invalidate_cache()
    if reader != "the same object":
        flow = new.store.load(id_)
    assert new.add(flow) == id_
    middle = flow.tasks[0]
    assert middle.execution.returncode == 7
    middle.needs.value = 1
    new.save_many([middle, middle.needs])
    session.destroy()
    new.store.invalidate_cache()
    del flow, middle
    [part] = [task for task in new.iter_workflow() if task.jobname == "middle"]
    assert (part.needs.value, part.execution.state) == (1, State.SUBMITTED)
    new.destroy()
    assert new.store.list() == []


def test_parts_come_back_with_a_forgotten_workflow(session: SessionStore) -> None:
    """G2: and none is lost when it is added and removed."""
    flow = Task("flow", tasks=[Task("a", tasks=[Task("b")])])
    session.forget(session.add(flow))
    with pytest.raises(NotFoundError):
        session.save(flow.tasks[0])
    session.add(flow)
    flow.tasks[0].value = 1
    session.save(flow)
    session.remove(flow.persistent_id)
    assert session.store.list() == []


def test_copy_of_before_it_was_forgotten_is_stale(
    session: SessionStore, other: SessionStore
) -> None:
    """G3: what was read through a session is held against its revision as ever."""
    id_ = session.add(Task(value=1))
    stale = other.load(id_)
    session.transition(id_, State.SUBMITTED)
    session.forget(id_)
    with pytest.raises(ConflictError):
        other.add(stale)


def test_transition_of_an_id_moves_the_live_object_along(
    session: SessionStore, other: SessionStore
) -> None:
    """G3: the live object gets state, returncode and revision, and can be saved."""
    task = Task()
    id_ = session.add(task)
    entry = session.transition(id_, State.SUBMITTED, expect=State.NEW, info="queued")
    assert (entry.from_state, entry.to_state, entry.info) == (
        "NEW",
        "SUBMITTED",
        "queued",
    )
    session.transition(id_, "RUNNING")
    session.transition(id_, State.TERMINATED, returncode=256)
    assert task.execution.state is State.TERMINATED
    assert task.execution.exitcode == 1
    task.note = "seen"
    session.save(task)
    again = other.load(id_)
    assert (again.note, again.execution.returncode) == ("seen", 256)
    assert [to for _, to in states(session, id_)] == [
        "NEW",
        "SUBMITTED",
        "RUNNING",
        "TERMINATED",
    ]


def test_transition_of_a_task_saves_it(
    session: SessionStore, other: SessionStore
) -> None:
    """G2: state and changes are one transaction."""
    task = Task()
    id_ = session.add(task)
    task.note = "mine"
    session.transition(task, State.SUBMITTED, info="go")
    assert other.load(id_).note == "mine"
    assert session.history(id_)[-1].info == "go"
    with pytest.raises(TransitionError):
        session.transition(task, State.NEW)
    assert task.execution.state is State.SUBMITTED


def test_who_was_second_to_move_a_task_is_told_so(
    session: SessionStore, other: SessionStore
) -> None:
    """G3: what was asked was legal when the task was read, so to try again helps."""
    task = Task()
    session.add(task)
    other.transition(other.load(task.persistent_id), State.SUBMITTED)
    with pytest.raises(ConflictError, match="changed by another writer"):
        session.transition(task, State.SUBMITTED)
    assert task.execution.state is State.NEW


def test_unmet_expectation_is_a_conflict(session: SessionStore) -> None:
    """G3: compare-and-set, and expect is compared first."""
    id_ = session.add(Task())
    session.transition(id_, State.SUBMITTED)
    with pytest.raises(ConflictError, match="SUBMITTED"):
        session.transition(id_, State.SUBMITTED, expect=[State.NEW, State.UNKNOWN])
    with pytest.raises(TransitionError, match="RUNNING"):
        session.transition(id_, State.NEW)
    with pytest.raises(TransitionError, match="no state 'DONE'"):
        session.transition(id_, "DONE")
    with pytest.raises(NotFoundError):
        session.transition(10**9, State.SUBMITTED)
    assert len(session.history(id_)) == 2


FOLLOWING = {
    "NEW": "SUBMITTED UNKNOWN",
    "SUBMITTED": "RUNNING STOPPED TERMINATED UNKNOWN",
    "RUNNING": "TERMINATING TERMINATED STOPPED UNKNOWN",
    "STOPPED": "SUBMITTED RUNNING TERMINATING TERMINATED UNKNOWN",
    "TERMINATING": "TERMINATED UNKNOWN",
    "TERMINATED": "",
    "UNKNOWN": "SUBMITTED RUNNING STOPPED TERMINATING TERMINATED UNKNOWN",
}


def test_documentation_has_the_states_that_may_follow() -> None:
    """``State`` lists them, for each state in a line."""
    lines = re.findall(r"- ([A-Z]+) to ([A-Z, ]+)", State.__doc__ or "")
    assert {old: new.replace(",", "").strip() for old, new in lines} == {
        old: new for old, new in FOLLOWING.items() if new
    }


@pytest.mark.backends("sqlite")
@pytest.mark.parametrize("by", ["id", "task"])
def test_every_pair_of_states_is_legal_or_not(session: SessionStore, by: str) -> None:
    """G3: from each state into each other, of an ID and of a task."""
    for old, following in FOLLOWING.items():
        for new in State:
            task = Task()
            task.execution.state = State(old)
            id_ = session.add(task)
            what = id_ if by == "id" else task
            if new in following.split():
                entry = session.transition(what, new)
                assert (entry.from_state, entry.to_state) == (old, new)
                assert states(session, id_) == [(None, old), (old, new)]
                assert task.execution.state is new
            else:
                with pytest.raises(TransitionError):
                    session.transition(what, new)
                assert states(session, id_) == [(None, old)]
                assert task.execution.state == old


def test_save_of_a_stale_object_is_a_conflict(
    session: SessionStore, other: SessionStore
) -> None:
    """G3: nothing that somebody else wrote is overwritten."""
    task = Task(n=0)
    id_ = session.add(task)
    theirs = other.load(id_)
    theirs.n = 1
    other.save(theirs)
    task.n = 2
    with pytest.raises(ConflictError) as caught:
        session.save(task)
    assert caught.value.retryable
    assert caught.value.id == id_
    session.transition(id_, State.SUBMITTED)
    with pytest.raises(ConflictError):
        session.save(task)
    session.refresh(task)
    assert task.n == 1
    assert task.execution.state is State.SUBMITTED
    task.n = 3
    session.save(task)


def test_update_saves_at_its_end_or_leaves_the_object(
    session: SessionStore, other: SessionStore
) -> None:
    """G3: read, change, write under one lock."""
    task = Task(n=0)
    id_ = session.add(task)
    with other.update(id_) as theirs:
        theirs.n = 1
    with session.update(id_) as mine:
        assert mine is task
        mine.n += 1
    assert task.n == 2
    with pytest.raises(ZeroDivisionError), session.update(id_) as mine:
        mine.n = 1 / 0
    task.n = 5
    with pytest.raises(ConflictError, match="unsaved changes"), session.update(id_):
        pass


def test_changed_state_is_a_checked_transition_when_saved(
    session: SessionStore,
) -> None:
    """G2, G3: save records a changed execution.state, and refuses an illegal one."""
    task = Task()
    id_ = session.add(task)
    task.execution.state = State.SUBMITTED
    session.save(task)
    task.execution.state = State.NEW
    with pytest.raises(TransitionError):
        session.save(task)
    assert states(session, id_) == [(None, "NEW"), ("NEW", "SUBMITTED")]


def test_rollback_undoes_transitions_on_objects(session: SessionStore) -> None:
    """G2: state, revision and index are as before."""
    task = Task()
    id_ = session.add(task)

    def fail() -> None:
        with session.transaction():
            session.transition(id_, State.SUBMITTED)
            session.add(Task())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert task.execution.state is State.NEW
    assert list(session.ids()) == [id_]
    task.note = 1
    session.save(task)
    assert states(session, id_) == [(None, "NEW")]


def test_nested_tasks_are_written_but_not_listed(session: SessionStore) -> None:
    """G3: nested objects have revisions too, and workflows are walked."""
    flow = Task("flow")
    flow.tasks = [Task("a"), Task("b")]
    id_ = session.add(flow)
    assert list(session.ids()) == [id_]
    assert [task.jobname for task in session.iter_workflow()] == ["flow", "a", "b"]
    inner = flow.tasks[0]
    session.transition(inner, State.SUBMITTED)
    assert len(session.history(inner.persistent_id)) == 2
    session.remove(id_)
    assert len(session) == len(session.store) == 0


def test_parts_added_while_a_workflow_is_gone_through_are_met(
    session: SessionStore,
) -> None:
    """Each of them, though what was met before may have been in the same memory."""
    session.add_many([Task(tasks=[]) for _ in range(200)])
    met = 0
    for task in session.iter_workflow():
        if task.jobname == "part":
            met += 1
        else:
            task.tasks.append(Task("part"))
    assert met == 200


def test_workflow_of_many_jobs_is_not_held_in_memory(session: SessionStore) -> None:
    """And one that is in another, far behind it, is met once."""
    first = Task("first")
    session.add_many([first, *(Task() for _ in range(200)), Task(tasks=[first])])
    del first
    most = 0
    names = []
    for task in session.iter_workflow():
        names.append(task.jobname)
        del task
        most = max(most, sum(isinstance(obj, Task) for obj in gc.get_objects()))
    assert names.count("first") == 1
    assert len(names) == 202
    assert most < 150


def test_unreadable_object_is_kept_and_its_state_can_change(
    session: SessionStore,
) -> None:
    """G7: reported by ID, skipped by iteration, still in index and history."""
    good, bad = session.add_many([Task("good"), Task("bad")])
    with session.transaction() as connection:
        connection.execute(
            text("UPDATE store SET data = :d WHERE id = :i"), {"d": b"junk", "i": bad}
        )
    session.store.invalidate_cache()
    assert [task.persistent_id for task in session] == [good]
    assert [error.id for error in session.unreadable()] == [bad]
    with pytest.raises(DecodeError):
        session.load(bad)
    session.transition(bad, State.SUBMITTED)
    assert len(session.history(bad)) == 2
    session.remove(bad)
    assert list(session.ids()) == [good]


def test_redo_makes_a_terminated_task_new(session: SessionStore) -> None:
    """A finished task can be done again; its history stays."""
    task = Task()
    id_ = session.add(task)
    with pytest.raises(TransitionError, match="only a TERMINATED"):
        session.redo(id_)
    session.transition(id_, State.UNKNOWN)
    session.transition(id_, State.TERMINATED, returncode=9)
    session.redo(id_)
    assert task.execution.state is State.NEW
    assert task.execution.returncode is None
    assert len(session.history(id_)) == 4


def test_returncode_may_be_a_truth_value(session: SessionStore) -> None:
    """As of a program that asks whether its command failed, on each database."""
    task = Task()
    task.execution.returncode = True
    id_ = session.add(task)
    session.transition(id_, State.UNKNOWN, returncode=False)
    session.transition(id_, State.TERMINATED, returncode=True)
    assert [entry.returncode for entry in session.history(id_)] == [1, 0, 1]
    assert session.load(id_).execution.returncode == 1


def test_hostile_info_is_recorded(session: SessionStore) -> None:
    """A transition is never refused for what its info holds."""
    id_ = session.add(Task())
    entry = session.transition(
        id_, State.SUBMITTED, info="a\0b\udc80'; DROP TABLE store" + "x" * 5000
    )
    assert session.history(id_)[-1] == entry
    assert entry.info.startswith("a\\x00b\\udc80")
    assert len(entry.info) == 4000
    why: Any = ValueError("no text")
    assert session.transition(id_, State.UNKNOWN, info=why).info == "no text"


def test_session_crosses_pickling(session: SessionStore) -> None:
    """A session pickles as its recipe."""
    id_ = session.add(Task("x"))
    assert pickle.loads(pickle.dumps(session)).load(id_).jobname == "x"


def test_missing_session_and_plain_path_are_refused(
    session: SessionStore, database_url: str
) -> None:
    """A ConfigurationError says what to do."""
    with pytest.raises(ConfigurationError, match="no session 'nosuch'"):
        SessionStore(database_url, "nosuch", create=False)
    with pytest.raises(ConfigurationError, match="sqlite:///"):
        SessionStore("/tmp/x.db")
    with pytest.raises(EncodeError):
        session.add({"no": "Persistable"})  # type: ignore[arg-type]
    id_ = session.add(Persistable())  # type: ignore[arg-type]
    assert session.counts() == {State.UNKNOWN: 1}
    with pytest.raises(TransitionError, match=r"no execution"):
        session.transition(session.load(id_), State.SUBMITTED)


class Bare(Task):
    """A task without the attributes that a task has."""

    def __init__(self) -> None:
        pass


def test_task_without_name_and_state_can_be_told_of(session: SessionStore) -> None:
    """Errors name it, as any other."""
    with pytest.raises(NotFoundError, match=r"<Bare '' id=None no execution>"):
        session.save(Bare())
    task = Bare()
    session.add(task)
    with pytest.raises(TransitionError, match="no execution"):
        session.transition(task, State.RUNNING)


def test_destroy_removes_the_session_and_its_objects(session: SessionStore) -> None:
    """Other sessions stay."""
    second = SessionStore(session.store, "two")
    kept = second.add(Task())
    session.add_many([Task(), Task()])
    assert session.finished_at is None
    session.finish()
    assert session.finished_at >= session.created_at
    session.destroy()
    assert list(session.store.list()) == [kept]
    with pytest.raises(ConfigurationError):
        session.created_at  # noqa: B018


def test_failed_transition_leaves_the_task_as_it_was(session: SessionStore) -> None:
    """G2: neither its state nor a mark stays, also when the caller rolls back."""
    task = Task("x")
    id_ = session.add(task)
    with pytest.raises(TransitionError):
        session.transition(task, State.TERMINATED)
    assert (task.execution.state, task.changed) == (State.NEW, False)
    with pytest.raises(KeyError):
        with session.transaction():
            session.transition(task, State.SUBMITTED, returncode=1)
            raise KeyError
    assert (task.execution.state, task.changed) == (State.NEW, False)
    assert task.execution.returncode is None
    session.transition(task, State.SUBMITTED)
    assert states(session, id_) == [(None, "NEW"), ("NEW", "SUBMITTED")]


def test_no_state_expected_is_none_met(session: SessionStore) -> None:
    """An empty ``expect`` is not the same as none given."""
    task = Task()
    id_ = session.add(task)
    for what in (id_, task):
        with pytest.raises(ConflictError):
            session.transition(what, State.SUBMITTED, expect=[])


def test_failed_update_takes_back_a_change_inside_a_container(
    session: SessionStore,
) -> None:
    """Such a change leaves no mark, and must not be saved by a later one."""
    id_ = session.add(Task("x", words=["a"]))
    with pytest.raises(KeyError):
        with session.update(id_) as task:
            task.words.append("b")
            raise KeyError
    assert task.words == ["a"]


def test_update_can_be_tried_again_when_the_database_is_back(
    session: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it changed is not there any more, though it could not be read again."""
    id_ = session.add(Task("x", n=1))

    def away(*_: object) -> None:
        raise StoreUnavailableError("away")

    for in_transaction in (nullcontext(), session.transaction()):
        with pytest.raises(StoreUnavailableError), in_transaction:
            with session.update(id_) as task:
                task.n += 1
                monkeypatch.setattr(SessionStore, "refresh", away)
                raise StoreUnavailableError("away")
        monkeypatch.undo()
        assert task.n == 2
        assert session.load(id_).n == 1
    with session.update(id_) as task:
        task.n += 1
    assert session.load(id_).n == 2


def test_what_update_changed_is_read_again_after_a_rollback_around_it(
    session: SessionStore, other: SessionStore
) -> None:
    """G2: it is not taken for unsaved, and nothing of it is saved by the next try."""
    task = Task("x", n=0, words=[])
    id_ = session.add(task)
    for updates in (1, 2):
        with pytest.raises(KeyError), session.transaction():
            for _ in range(updates):
                with session.update(id_) as mine:
                    mine.n += 1
                    mine.words.append("a")
            raise KeyError
        assert not task.changed
        with pytest.raises(ConflictError):
            session.save(task)
        assert session.load(id_) is task
        assert (task.n, task.words) == (0, [])
    for _ in range(2):
        with pytest.raises(KeyError), session.transaction():
            with session.update(id_) as mine:
                mine.n += 1
            raise KeyError
    with other.update(id_) as theirs:
        theirs.n = 10
    with session.update(id_) as mine:
        assert mine is task
        mine.n += 1
    assert other.store.load(id_).n == 10
    other.refresh(theirs)
    assert theirs.n == task.n == 11


@pytest.mark.parametrize("around", [True, False], ids=["around", "inside"])
def test_parts_that_update_changed_are_read_again_too(
    session: SessionStore, other: SessionStore, around: bool
) -> None:
    """G2: however deep, where the block or a transaction around it fails."""
    deep = Task("deep", n=0)
    part = Task("part", n=0, tasks=[deep])
    task = Task("x", tasks=[part])
    id_ = session.add(task)

    def fail() -> None:
        with session.transaction() if around else nullcontext():
            with session.update(id_) as mine:
                mine.tasks[0].tasks[0].n += 1
                if not around:
                    raise KeyError
            raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            fail()
        assert (deep.changed, part.changed, task.changed) == (False, False, False)
    with session.update(id_) as mine:
        mine.tasks[0].tasks[0].n += 1
    assert mine.tasks == [part]
    assert part.tasks == [deep]
    assert other.load(id_).tasks[0].tasks[0].n == deep.n == 1


@pytest.mark.parametrize("around", [True, False], ids=["around", "inside"])
def test_what_update_did_not_change_stays_unsaved(
    session: SessionStore, around: bool
) -> None:
    """A part that was changed before, and what was changed since, keep their marks."""
    part, spare = Task("part", n=0), Task("spare", n=0)
    task = Task("x", n=0, tasks=[part, spare])
    id_ = session.add(task)
    part.n = 1
    with pytest.raises(KeyError):
        with session.transaction() if around else nullcontext():
            with session.update(id_) as mine:
                mine.n = 5
                if not around:
                    raise KeyError
            spare.n = 1
            raise KeyError
    assert (part.n, part.changed) == (1, True)
    assert (spare.n, spare.changed) == ((1, True) if around else (0, False))
    session.save_many([part, spare])
    with session.update(id_) as mine:
        assert mine.n == 0


def test_change_after_an_update_is_unsaved_after_a_rollback(
    session: SessionStore,
) -> None:
    """It is somebody's own; but what was rolled back must not be saved with it."""
    task = Task("x", n=0, m=0)
    id_ = session.add(task)
    with pytest.raises(KeyError), session.transaction():
        with session.update(id_) as mine:
            mine.n = 1
        mine.m = 1
        raise KeyError
    assert (task.m, task.changed) == (1, True)
    with pytest.raises(ConflictError, match="unsaved"), session.update(id_):
        raise AssertionError
    with pytest.raises(ConflictError):
        session.save(task)
    session.refresh(task)
    assert (task.n, task.m) == (0, 0)
    task.m = 2
    with pytest.raises(KeyError), session.transaction():
        session.save(task)
        with session.update(id_) as mine:
            mine.n = 1
        raise KeyError
    assert task.changed


def test_refused_update_leaves_the_object(
    session: SessionStore, other: SessionStore
) -> None:
    """Its holder may have changed what leaves no mark, and is yet to save it."""
    id_ = session.add(Task("x", words=["a"]))
    [claim] = session.claim()
    claim.task.words.append("b")
    with pytest.raises(ConflictError, match="claimed"):
        with session.update(id_):
            raise AssertionError
    claim.save()
    assert other.load(id_).words == ["a", "b"]


def test_update_that_cannot_begin_says_so_once(
    session: SessionStore, caplog: pytest.LogCaptureFixture
) -> None:
    """G7: nothing has to be put back, and the log has nothing to add to the error."""
    task = Task(note="kept")
    session.add(task)
    with session.transaction() as connection:
        connection.execute(text("UPDATE store SET data = :d"), {"d": b"junk"})
    with pytest.raises(DecodeError), session.update(task.persistent_id):
        raise AssertionError
    assert task.note == "kept"
    assert caplog.records == []


def test_job_may_refer_to_what_is_not_in_its_session(
    session: SessionStore, database_url: str
) -> None:
    """G7: it stays readable when a part is forgotten or was never added."""
    stored, forgotten = Task("stored"), Task("forgotten")
    session.store.save(stored)
    id_ = session.add(Task("outer", parts=[stored, forgotten]))
    session.forget(forgotten.persistent_id)
    read = SessionStore(database_url).load(id_)
    assert [part.jobname for part in read.parts] == ["stored", "forgotten"]
    with pytest.raises(NotFoundError):
        session.load(stored.persistent_id)
    assert session.unreadable() == []


def test_destroyed_session_takes_no_more_jobs(
    session: SessionStore, database_url: str
) -> None:
    """What is added to it would be nobody's, or some later session's."""
    session.destroy()
    later = SessionStore(database_url, "later")
    with pytest.raises(ConfigurationError, match="destroyed"):
        session.add(Task())
    assert len(later) == 0
    assert len(later.store) == 0


def test_destroyed_session_does_not_come_back(
    session: SessionStore, database_url: str
) -> None:
    """Neither by a pickle of it, nor as another one that has its name."""
    data = pickle.dumps(session)
    session.destroy()
    for call in (
        lambda: pickle.loads(data),
        lambda: SessionStore(database_url, session.name, create=False),
    ):
        with pytest.raises(ConfigurationError, match="there is no session"):
            call()
    namesake = SessionStore(database_url, session.name)
    for call in (session.finish, lambda: session.created_at):
        with pytest.raises(ConfigurationError, match="destroyed"):
            call()
    assert namesake.finished_at is None
    namesake.finish()
    assert namesake.finished_at is not None


@pytest.mark.parametrize("number", [1, 2])
def test_session_is_not_destroyed_under_an_addition(
    session: SessionStore, database_url: str, number: int
) -> None:
    """What is being added to it would be nobody's."""
    other = SessionStore(database_url, session.name, busy_timeout=0.1)
    with ThreadPoolExecutor(1) as thread:
        with session.transaction():
            ids = session.add_many([Task() for _ in range(number)])
            with pytest.raises(StoreUnavailableError):
                thread.submit(other.destroy).result(60)
        thread.submit(other.close).result(60)
    assert [*session.ids()] == ids


@pytest.mark.backends("postgresql", "mariadb")
def test_object_that_leaves_a_session_is_not_destroyed_with_it(
    session: SessionStore, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G2: nobody is told that it stays in the store while it is being deleted."""
    ids = session.add_many([Task("a"), Task("b")])
    other = SessionStore(database_url, session.name, busy_timeout=0.1)
    other.forget(ids[1])
    remove = JobTable.remove

    def forget_meanwhile(*arguments: Any) -> None:
        with pytest.raises(StoreUnavailableError):
            thread.submit(other.forget, ids[0]).result(60)
        remove(*arguments)

    with ThreadPoolExecutor(1) as thread:
        monkeypatch.setattr(JobTable, "remove", forget_meanwhile)
        session.destroy()
        with pytest.raises(NotFoundError):
            thread.submit(other.forget, ids[0]).result(60)
        thread.submit(other.close).result(60)
    assert session.store.list() == [ids[1]]


@pytest.mark.backends("postgresql", "mariadb")
def test_save_that_adds_nothing_does_not_wait_for_the_session(
    session: SessionStore, database_url: str
) -> None:
    """Its row is for those who add, and for who destroys it."""
    id_ = session.add(Task())

    def save() -> None:
        with SessionStore(database_url, session.name, busy_timeout=0.1) as other:
            task = other.load(id_)
            task.execution.state = State.SUBMITTED
            other.save(task)
            task.parts = [Task()]
            with pytest.raises(StoreUnavailableError):
                other.save(task)

    with session.transaction() as connection, ThreadPoolExecutor(1) as thread:
        connection.execute(text("SELECT 1 FROM store_session FOR UPDATE"))
        thread.submit(save).result(60)
    assert states(session, id_) == [(None, "NEW"), ("NEW", "SUBMITTED")]


@pytest.mark.parametrize(
    "tasks", [3, None, "ab", [1, None], {"a": 1}], ids=lambda tasks: repr(tasks)
)
def test_tasks_may_be_any_attribute(session: SessionStore, tasks: object) -> None:
    """What is no task is no part of a workflow, and hinders nothing."""
    task = Task("x", tasks=tasks)
    id_ = session.add(task)
    assert list(session.iter_workflow()) == [task]
    session.remove(id_)
    assert len(session.store) == 0


def test_removing_takes_what_others_have_put_inside(
    session: SessionStore, other: SessionStore
) -> None:
    """Else it would be left over, with nothing that leads to it."""
    flow = Task("flow", tasks=[Task("a")])
    id_ = session.add(flow)
    with other.update(id_) as theirs:
        theirs.tasks.append(Task("b", tasks=[Task("c")]))
    session.remove(id_)
    assert session.store.list() == []
    assert flow.persistent_id is None


def test_removing_spares_what_only_looks_like_a_part(
    session: SessionStore, tmp_path: Path
) -> None:
    """A part of another store has an ID from there, which is a bystander's here."""
    bystander = session.add(Task("bystander"))
    flow = Task("flow", tasks=[])
    id_ = session.add(flow)
    stranger = Task("stranger")
    assert SqlStore(f"sqlite:///{tmp_path}/other.db").save(stranger) == bystander
    flow.tasks.append(stranger)
    session.remove(id_)
    assert list(session.ids()) == [bystander]


def test_session_that_cannot_be_opened_leaves_no_connection(
    session: SessionStore, database_url: str
) -> None:
    """Nobody has the store, to close it; one that was given is its giver's."""
    session.store.close()
    process = psutil.Process()
    gc.collect()  # what other tests have dropped
    before = process.num_fds()
    with pytest.raises(ConfigurationError) as caught:  # which has the frames
        SessionStore(database_url, "nope", create=False)
    assert process.num_fds() <= before
    with SqlStore(database_url) as store:
        assert store.list() == []
        with pytest.raises(ConfigurationError, match=str(caught.value)[:20]):
            SessionStore(store, "nope", create=False)
        assert store._objects.database.connections.has_one()


def test_session_that_is_not_there_is_named_whatever_else_is_missing(
    database_url: str,
) -> None:
    """With create=False nothing is made, and the error is the same."""
    with pytest.raises(ConfigurationError, match="no session 'one'"):
        SessionStore(database_url, "one", create=False)
    engine = create_engine(database_url)
    blob = "BYTEA" if engine.dialect.name == "postgresql" else "BLOB"
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TABLE store (id INTEGER PRIMARY KEY NOT NULL, "
                f"data {blob}, state VARCHAR(128))"
            )
        )
    with pytest.raises(ConfigurationError, match="no session 'one'"):
        SessionStore(database_url, "one", create=False)
    with pytest.raises(SchemaError, match="no session tables"):
        SessionStore(SqlStore(database_url, create=False), "one")
    assert inspect(engine).get_table_names() == ["store"]
    engine.dispose()


def test_session_names_are_told_apart(session: SessionStore) -> None:
    """By case and accents on every backend; not by a space at the end, so refused."""
    session.add(Task())
    for name in ("One", "öne", " one", "one\t"):
        assert len(SessionStore(session.store, name)) == 0
    with pytest.raises(ConfigurationError, match="space"):
        SessionStore(session.store, "one ")


@pytest.mark.parametrize("how", ["load", "refresh"])
def test_what_was_read_before_a_rollback_must_be_read_again(
    session: SessionStore, other: SessionStore, how: str
) -> None:
    """G3: a revision that never came to be is not taken for somebody else's."""
    task = Task(n=0)
    id_ = session.add(task)

    def fail() -> Task:
        with session.transaction():
            session.transition(id_, State.SUBMITTED)
            if how == "refresh":
                session.refresh(task)
                read.append(task)
            else:
                session.store.invalidate_cache()
                read.append(session.load(id_))
            raise KeyError

    read: list[Task] = []
    with pytest.raises(KeyError):
        fail()
    other.transition(id_, State.UNKNOWN)
    [mine] = read
    mine.n = 1
    with pytest.raises(ConflictError):
        session.save(mine)
    session.refresh(mine)
    mine.n = 2
    session.save(mine)
    assert states(session, id_) == [(None, "NEW"), ("NEW", "UNKNOWN")]


def test_removed_task_can_be_added_again_in_the_same_block(
    session: SessionStore,
) -> None:
    """G5: under another ID, as it would be after the block."""
    task = Task("x")
    old = session.add(task)
    with session.transaction():
        session.remove(old)
        new = session.add(task)
    assert new != old
    assert list(session.ids()) == [new]
    with pytest.raises(KeyError):
        with session.transaction():
            session.remove(new)
            raise KeyError
    assert (task.persistent_id, session.load(new)) == (new, task)


class Frank(Task):
    """Pickles all that it has, as many a __getstate__ does."""

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__.copy()


def test_object_that_pickles_everything_is_no_staler_than_others(
    session: SessionStore,
) -> None:
    """G3: the revision in its payload is an old one, and not its own."""
    id_ = session.add(Frank("x"))
    for n in range(3):
        with session.update(id_) as task:
            task.n = n
    del task
    session.store.load(id_)
    with session.update(id_) as task:
        task.n = 4
    task.n = 5
    session.save(task)


def test_task_that_was_added_to_another_store_is_that_ones(
    session: SessionStore, tmp_path: Path
) -> None:
    """G3: what becomes of the row that it had before does not reach it any more."""
    second = SessionStore(f"sqlite:///{tmp_path}/second.db")
    ids = session.add_many([Task("a"), Task("b")])
    tasks = []
    for task in session:
        second.add(task)
        tasks.append(task)
    session.transition(ids[0], State.SUBMITTED)
    session.remove(ids[1])
    assert [*session.ids()] == [ids[0]]
    with session.update(ids[0]) as first:
        assert first is not tasks[0]
    assert [task.execution.state for task in tasks] == [State.NEW, State.NEW]
    second.save_many(tasks)
    assert [*second] == tasks
    assert second.counts() == {State.NEW: 2}
