"""G6: a claimed task has one holder at a time, and nobody else writes it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text

from sessionstore import (
    Claim,
    ConfigurationError,
    ConflictError,
    DecodeError,
    LeaseLostError,
    NotFoundError,
    SessionStore,
    State,
    Task,
    TransitionError,
)
from sessionstore.database.statements import Statement
from sessionstore.jobs.leases import LeaseTable
from sessionstore.jobs.rows import JobTable

TERMINATED = {State.TERMINATED}


def end_lease(session: SessionStore, id_: int) -> None:
    """Let the lease have run out a second ago, by the database's clock."""
    with session.transaction() as connection:
        connection.execute(
            text(
                "UPDATE store_job SET lease_expires_at = updated_at - 1000000, "
                "claimable_at = updated_at - 1000000 WHERE job_id = :id"
            ),
            {"id": id_},
        )


def pass_on(session: SessionStore, id_: int) -> Claim:
    """Let the lease run out, and claim the task again."""
    end_lease(session, id_)
    assert session.recover() == [id_]
    [claim] = session.claim()
    assert claim.id == id_
    return claim


def states(session: SessionStore, id_: int) -> list[str]:
    return [entry.to_state.value for entry in session.history(id_)]


def test_oldest_are_claimed_first_and_once(
    session: SessionStore, other: SessionStore
) -> None:
    """G6: in the order added, whatever their state, nested and other ones left out."""
    flow = Task("flow", tasks=[Task("nested")])
    ids = session.add_many([Task("a"), flow, Task("c"), Task("d")])
    session.transition(ids[1], State.UNKNOWN)
    session.transition(ids[2], State.SUBMITTED)
    first = session.claim(2)
    assert [claim.id for claim in first] == ids[:2]
    assert [claim.id for claim in other.claim(5)] == ids[3:]
    assert other.claim() == session.claim() == []
    assert [claim.attempts for claim in first] == [1, 1]
    assert first[1].task is flow
    assert states(session, ids[0]) == ["NEW"]
    assert [c.id for c in session.claim(states=[State.SUBMITTED])] == [ids[2]]


def test_claimed_task_is_written_by_its_claim_alone(
    session: SessionStore, other: SessionStore
) -> None:
    """G6: whoever has no token gets ConflictError, and nothing is changed."""
    id_ = session.add(Task("a", tasks=[Task("nested")]))
    parent = other.add(Task("parent", tasks=[other.load(id_)]))
    theirs = other.load(id_)
    [claim] = session.claim()
    refused: list[Callable[[], object]] = [
        lambda: other.transition(id_, State.SUBMITTED),
        lambda: other.transition(other.load(id_), State.SUBMITTED),
        lambda: other.add(other.load(id_)),
        lambda: other.save(other.load(id_)),
        lambda: other.update(id_).__enter__(),
        lambda: other.forget(id_),
        lambda: other.remove(id_),
        lambda: other.remove(parent),
    ]
    for write in refused:
        with pytest.raises(ConflictError, match="claimed by") as caught:
            write()
        assert caught.value.id == id_
    with pytest.raises(TransitionError):
        other.redo(id_)
    theirs.note = "theirs"
    with pytest.raises(ConflictError, match="claimed by"):
        other.save(other.load(parent))
    claim.task.note = "mine"
    claim.save()
    claim.transition(State.SUBMITTED, info="go")
    assert states(session, id_) == ["NEW", "SUBMITTED"]
    other.refresh(theirs)
    assert theirs.note == "mine"


def test_holder_whose_lease_has_passed_on_is_refused(
    session: SessionStore, other: SessionStore
) -> None:
    """G6: with an old token every call is LeaseLostError, and nothing is changed."""
    id_ = session.add(Task("a", n=0))
    [old] = session.claim()
    old.task.n = 1
    new = pass_on(other, id_)
    assert new.token > old.token
    before = states(session, id_)
    refused: list[Callable[[], object]] = [
        old.renew,
        old.save,
        old.release,
        lambda: old.transition(State.SUBMITTED),
        lambda: old.transition(State.NEW),
        lambda: old.__exit__(None, None, None),
    ]
    for write in refused:
        with pytest.raises(LeaseLostError, match="stop working") as caught:
            write()
        assert caught.value.id == id_
        assert not caught.value.retryable
    assert states(session, id_) == before
    assert new.task.n == 0
    assert new.renew() is None
    new.transition(State.SUBMITTED)


def test_lease_that_ran_out_untaken_is_renewed(session: SessionStore) -> None:
    """G6: only its passing to another ends a claim."""
    id_ = session.add(Task())
    [claim] = session.claim(lease=30)
    until = claim.lease_expires_at
    end_lease(session, id_)
    claim.transition(State.SUBMITTED)
    assert claim.renew() is None
    assert claim.lease_expires_at > until
    assert session.recover() == []
    claim.transition(State.RUNNING)


def test_recovered_task_is_nobodys(session: SessionStore) -> None:
    """G6: the old holder is refused before anybody else claims the task."""
    id_ = session.add(Task())
    [claim] = session.claim()
    end_lease(session, id_)
    assert session.recover() == [id_]
    with pytest.raises(LeaseLostError):
        claim.renew()
    with pytest.raises(LeaseLostError):
        claim.transition(State.SUBMITTED)


def test_termination_ends_the_claim(session: SessionStore) -> None:
    """Of an ID and of a changed task; what is left to do then is nothing."""
    ids = session.add_many([Task(), Task()])
    for claim, n in zip(session.claim(2), (None, 1), strict=True):
        with claim:
            claim.transition(State.SUBMITTED)
            if n is not None:
                claim.task.n = n
            claim.transition(State.TERMINATED, returncode=0, info="done")
        with pytest.raises(LeaseLostError, match="no longer claimed"):
            claim.renew()
        assert claim.task.execution.returncode == 0
    assert session.recover() == session.claim(states=set(State) - TERMINATED) == []
    with pytest.raises(TransitionError, match="redo"):
        session.claim(states=TERMINATED)
    assert session.redo(ids[1]).to_state is State.NEW
    [claim] = session.claim()
    assert (claim.id, claim.attempts) == (ids[1], 1)


def test_released_task_is_claimed_again(session: SessionStore) -> None:
    """What was under way is UNKNOWN; tokens and attempts only grow."""
    id_ = session.add(Task())
    tokens = []
    for attempt, moves in enumerate(([], ["SUBMITTED"], ["SUBMITTED", "RUNNING"]), 1):
        [claim] = session.claim()
        assert claim.attempts == attempt
        tokens.append(claim.token)
        with claim:
            for state in moves:
                claim.transition(state)
        claim.release()
    assert tokens == sorted(set(tokens))
    assert states(session, id_) == (
        ["NEW", "SUBMITTED", "UNKNOWN", "SUBMITTED", "RUNNING", "UNKNOWN"]
    )
    assert session.history(id_)[-1].info == "released"


def test_what_comes_after_a_claims_end_does_not_matter_to_it(
    session: SessionStore, other: SessionStore
) -> None:
    """The block that ended it ends well, whoever has the task by then, or nobody."""
    ids = session.add_many([Task(), Task(), Task()])
    first, second, third = session.claim(3)
    with first:
        first.transition(State.SUBMITTED)
        first.transition(State.TERMINATED)
        other.remove(ids[0])
    with second:
        second.task.execution.state = State.SUBMITTED
        second.save()
        second.task.execution.state = State.TERMINATED
        second.save()
        other.redo(ids[1])
        [again] = other.claim()
    with third:
        third.release()
        [taken] = other.claim()
    assert [(c.id, c.renew()) for c in (again, taken)] == [(i, None) for i in ids[1:]]


def test_end_that_is_rolled_back_is_none(
    session: SessionStore, other: SessionStore
) -> None:
    """G6: of a claim, and of a lease."""
    ids = session.add_many([Task(), Task()])
    claims = session.claim(2)
    until = claims[0].lease_expires_at
    for claim in claims:
        claim.transition(State.SUBMITTED)
    with pytest.raises(KeyError):
        with session.transaction():
            claims[0].renew()
            claims[0].release()
            claims[1].transition(State.TERMINATED)
            raise KeyError
    assert claims[0].lease_expires_at == until
    for claim in claims:
        claim.release()
    assert {claim.id for claim in other.claim(5)} == {*ids}


def test_child_that_unwinds_a_block_releases_nothing(
    session: SessionStore, run_forked
) -> None:
    """G4, G6: its parent is still at work; what the child enters itself is its own."""
    session.add_many([Task(), Task()])
    [claim] = session.claim()

    def child() -> None:
        block.close()
        with session.claim()[0] as own:
            pass
        with pytest.raises(LeaseLostError):
            own.renew()

    with ExitStack() as block:
        block.enter_context(claim)
        run_forked(child)
        assert claim.renew() is None
    with pytest.raises(LeaseLostError):
        claim.renew()


def test_exception_in_the_block_comes_through(
    session: SessionStore, other: SessionStore
) -> None:
    """The claim is released, and where that fails, it is not what the caller hears."""
    id_ = session.add(Task())
    with pytest.raises(KeyError):
        with session.claim()[0] as claim:
            raise KeyError
    [claim] = session.claim()
    with pytest.raises(KeyError):
        with claim:
            pass_on(other, id_)
            raise KeyError


def test_task_tried_too_often_is_terminated(session: SessionStore) -> None:
    """It is out of the way of those behind it, and its history is legal."""
    first, second = session.add_many([Task(), Task()])
    for _ in range(2):
        session.claim(max_attempts=2)[0].release()
    assert [claim.id for claim in session.claim(max_attempts=2)] == [second]
    assert states(session, first) == ["NEW", "UNKNOWN", "TERMINATED"]
    assert session.history(first)[-1].info == "attempts exhausted"


def test_tasks_tried_too_often_hide_none_behind_them(
    session: SessionStore, other: SessionStore
) -> None:
    """However many they are: an empty list says that there is nothing to claim."""
    ids = session.add_many([Task() for _ in range(13)])
    for claim in session.claim(12):
        claim.release()
    assert [claim.id for claim in other.claim(max_attempts=1)] == ids[12:]
    assert other.claim(max_attempts=1) == []
    assert session.counts() == {State.NEW: 1, State.TERMINATED: 12}


def test_holder_hears_what_is_requested(
    session: SessionStore, other: SessionStore
) -> None:
    """Until its claim ends; where there is none, the next holder hears of it."""
    id_ = session.add(Task())
    assert other.request(id_, "hold") is False
    [claim] = session.claim()
    assert claim.renew() == "hold"
    assert other.request(id_, "cancel") is True
    claim.transition(State.SUBMITTED)
    assert claim.renew() == claim.renew() == "cancel"
    claim.release()
    [claim] = session.claim()
    assert claim.renew() is None
    with pytest.raises(TransitionError, match="cancel, hold, resume"):
        other.request(id_, "stop")
    claim.transition(State.TERMINATED)
    with pytest.raises(TransitionError, match="nothing to cancel"):
        other.request(id_, "cancel")


def test_claim_in_a_transaction_that_rolls_back_is_none(
    session: SessionStore, other: SessionStore
) -> None:
    """G6: the task is free, and the token, which is given again, is not this one's."""
    id_ = session.add(Task())
    with pytest.raises(KeyError):
        with session.transaction():
            [dead] = session.claim()
            dead.transition(State.SUBMITTED)
            raise KeyError
    [claim] = session.claim()
    assert (claim.id, claim.attempts) == (id_, 1)
    for write in (dead.renew, dead.save, dead.release):
        with pytest.raises(LeaseLostError):
            write()
    claim.transition(State.SUBMITTED)
    assert states(other, id_) == ["NEW", "SUBMITTED"]


def test_claim_crosses_pickling(session: SessionStore) -> None:
    """G6: the copy is the same claim, in a session of its own."""
    session.add(Task("x", n=1))
    [claim] = session.claim()
    assert claim.task.n == 1
    copy = pickle.loads(pickle.dumps(claim))
    assert copy == claim
    assert copy.task is not claim.task
    copy.task.n = 2
    copy.transition(State.SUBMITTED)
    claim.renew()
    with pytest.raises(ConflictError):
        claim.save()
    session.refresh(claim.task)
    assert (claim.task.n, claim.task.execution.state) == (2, State.SUBMITTED)


def test_holders_child_compiles_no_statement(
    session: SessionStore, other: SessionStore, run_forked, monkeypatch
) -> None:
    """Its parent has, or else each child would, before its first write."""
    other.add(Task("a"))
    [claim] = session.claim()

    def refuse(self: Statement, dialect: object) -> None:
        raise AssertionError(f"compiled in the child: {self.construct}")

    def work() -> None:
        monkeypatch.setattr(Statement, "compile", refuse)
        claim.task.changed = True
        claim.transition(State.SUBMITTED)
        claim.transition(State.RUNNING)

    run_forked(work)
    assert states(other, claim.id) == ["NEW", "SUBMITTED", "RUNNING"]


def test_claim_goes_on_in_a_forked_child(session: SessionStore, start_forked) -> None:
    """G4, G6: the worker writes with its supervisor's claim, which renews it."""
    id_ = session.add(Task("x"))
    [claim] = session.claim()
    assert claim.task.jobname == "x"

    def work() -> None:
        claim.task.worker = os.getpid()
        for state in (State.SUBMITTED, State.RUNNING):
            claim.transition(state)
            claim.renew()
        assert session.claim() == []

    child = start_forked(work)
    while claim.renew() is None and "RUNNING" not in states(session, id_):
        pass
    child.wait()
    assert session.recover() == []
    claim.transition(State.UNKNOWN, info="the supervisor's copy is an old one")
    with pytest.raises(ConflictError):
        claim.save()
    session.refresh(claim.task)
    assert claim.task.worker == child.pid
    claim.release()


def test_unreadable_task_can_be_ended_by_its_holder(
    session: SessionStore, database_url: str
) -> None:
    """G7: it is claimed as any other, and does not stand in the way for ever."""
    id_ = session.add(Task())
    with session.transaction() as connection:
        connection.execute(text("UPDATE store SET data = :d"), {"d": b"junk"})
    session.store.invalidate_cache()
    [claim] = session.claim()
    with pytest.raises(DecodeError):
        claim.task  # noqa: B018
    claim.transition(State.UNKNOWN)
    claim.transition(State.TERMINATED, info="unreadable")
    assert states(session, id_)[-1] == "TERMINATED"


def test_task_in_memory_is_as_the_last_holder_left_it(
    session: SessionStore, other: SessionStore
) -> None:
    """G3: a live object that was read before others wrote it is read again."""
    task = Task(n=0)
    session.add(task)
    with other.claim()[0] as theirs:
        theirs.task.n = 1
        theirs.save()
    [claim] = session.claim()
    assert claim.task is task
    assert task.n == 1
    claim.save()


def test_holder_of_what_was_destroyed_is_refused(session: SessionStore) -> None:
    """G6: also in the process that destroyed it, where the object is live."""
    session.add(Task())
    [claim] = session.claim()
    claim.task.n = 1
    session.destroy()
    writes: list[Callable[[], object]] = [
        claim.renew,
        claim.save,
        claim.release,
        lambda: claim.transition(State.SUBMITTED),
    ]
    for write in writes:
        with pytest.raises(LeaseLostError, match="no longer in its session"):
            write()
    assert claim.task.n == 1


def test_part_that_is_gone_is_no_lost_lease(
    session: SessionStore, other: SessionStore
) -> None:
    """The error is the part's, and the claim holds."""
    id_ = session.add(Task("flow", part=Task("part")))
    [claim] = session.claim()
    part = claim.task.part
    other.remove(part.persistent_id)
    part.n = 1
    with pytest.raises(NotFoundError) as caught:
        claim.save()
    assert caught.value.id == part.persistent_id
    claim.task.part = None
    claim.save()
    assert other.load(id_).part is None


def test_task_that_was_read_before_a_rollback_is_read_again(
    session: SessionStore, other: SessionStore
) -> None:
    """G3: and is the live one, so that it keeps up with what the holder writes."""
    id_ = other.add(Task(n=0))
    [claim] = session.claim()
    with pytest.raises(KeyError):
        with session.transaction():
            task = claim.task
            raise KeyError
    assert claim.task is task
    assert session.load(id_) is task
    claim.transition(State.SUBMITTED)
    task.n = 1
    claim.save()
    other.store.invalidate_cache()
    assert other.load(id_).n == 1


def test_wrong_arguments_are_refused(session: SessionStore) -> None:
    """Nothing is claimed by a call that makes no sense."""
    session.add(Task())
    for lease in (0, -1, float("nan"), float("inf"), 1e300):
        with pytest.raises(ConfigurationError, match="lease"):
            session.claim(lease=lease)
    for number in (-1, 1.5, float("inf"), 2**63):
        with pytest.raises(ConfigurationError, match="cannot claim"):
            session.claim(number)
    for ends_all in (session.claim, session.recover):
        with pytest.raises(ConfigurationError, match="max_attempts"):
            ends_all(max_attempts=0)
    with pytest.raises(TransitionError):
        session.claim(states=["DONE"])
    assert session.claim(0) == session.claim(states=[]) == []
    assert len(session.claim(10)) == 1


# With many processes


def hold(path: Path) -> None:
    """Be alone with a file, or fail."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL))


def test_many_processes_hold_each_task_one_at_a_time(
    session: SessionStore, other: SessionStore, start_forked, tmp_path: Path
) -> None:
    """G6: six processes claim, write, give back and end tasks; none is lost."""
    ids = session.add_many([Task(n=0) for _ in range(20)])

    def work() -> None:
        while session.counts().get(State.TERMINATED, 0) < len(ids):
            for claim in session.claim(2, lease=30):
                path = tmp_path / str(claim.id)
                hold(path)
                claim.task.n += 1
                claim.transition(State.SUBMITTED, info=str(claim.token))
                path.unlink()
                if claim.attempts < 3:
                    claim.release()
                else:
                    claim.transition(State.TERMINATED)

    for child in [start_forked(work) for _ in range(6)]:
        child.wait()
    for id_ in ids:
        assert states(session, id_) == ["NEW", *3 * ["SUBMITTED", "UNKNOWN"]][:-1] + [
            "TERMINATED"
        ]
        entries = session.history(id_)[1:]
        tokens = [int(e.info) for e in entries if e.to_state is State.SUBMITTED]
        assert tokens == [1, 2, 3]
        # What one began the same one ended.
        pairs = zip(entries[::2], entries[1::2], strict=True)
        assert all(begun.pid == ended.pid for begun, ended in pairs)
        assert other.load(id_).n == 3


# What each protection is good for


def both_claim(session: SessionStore, other: SessionStore, monkeypatch: Any) -> bool:
    """Say whether two claim a job that the second saw before the first took it.

    So it is on another node of a cluster, which locks do not reach.
    """
    session.add(Task())
    index = other._index
    seen = index.database.write(
        lambda kept: index.leases.free(kept, index.id, [State.NEW], 1)
    )
    [_] = session.claim()
    answers = iter([seen])
    monkeypatch.setattr(LeaseTable, "free", lambda *_: next(answers, []))
    return bool(other.claim())


def test_claim_needs_no_lock(
    session: SessionStore, other: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G6: the UPDATE's condition decides, where row locks do not reach."""
    assert not both_claim(session, other, monkeypatch)


def test_without_its_condition_a_claim_would_not_hold(
    session: SessionStore, other: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G6: the test before this one would see it."""
    put = JobTable.put

    def blindly(table: JobTable, kept: Any, job: Any, **values: Any) -> int:
        there = table.read(kept, [job.job_id])[job.job_id]
        return put(table, kept, there, **values)

    monkeypatch.setattr(JobTable, "put", blindly)
    assert both_claim(session, other, monkeypatch)


@pytest.mark.parametrize("is_checked", [True, False])
def test_tokens_are_what_keeps_an_old_holder_out(
    session: SessionStore,
    other: SessionStore,
    monkeypatch: pytest.MonkeyPatch,
    is_checked: bool,
) -> None:
    """G6: with the check an old holder's transition is refused, without it not."""
    id_ = session.add(Task())
    [old] = session.claim()
    pass_on(other, id_)
    if not is_checked:
        for module in ("rows", "transitions"):
            name = f"sessionstore.jobs.{module}.check_holder"
            monkeypatch.setattr(name, lambda *_: None)
    try:
        old.transition(State.SUBMITTED)
    except LeaseLostError:
        assert is_checked
    else:
        assert not is_checked


def test_one_index_serves_a_claim(session: SessionStore, database_url: str) -> None:
    """A claim's cost does not grow: no sort, and no scan of more than it takes."""
    tasks = [Task() for _ in range(3000)]
    for task in tasks[::2]:
        task.execution.state = State.TERMINATED
    session.add_many(tasks)
    statements: list[tuple[str, Any]] = []
    engine = create_engine(database_url)
    watched = session._index.database.connections.engine
    session.close()

    def note(connection, cursor, statement, parameters, context, many) -> None:
        if "SELECT" in statement and "claimable_at IS NULL" in statement:
            statements.append((statement, parameters))

    event.listen(watched, "before_cursor_execute", note)
    session.claim()
    event.remove(watched, "before_cursor_execute", note)
    assert len(statements) == 2
    name = engine.dialect.name
    explain = {"sqlite": "EXPLAIN QUERY PLAN "}.get(name, "EXPLAIN ")
    with engine.connect() as connection:
        if name == "postgresql":
            connection.exec_driver_sql("ANALYZE store_job")
        for statement, parameters in statements:
            plan = connection.exec_driver_sql(explain + statement, parameters).all()
            said = "\n".join(" ".join(map(str, row)) for row in plan)
            assert "ix_store_job_claim" in said
            assert "sort" not in said.lower(), said
            assert "temp b-tree" not in said.lower(), said
    engine.dispose()
