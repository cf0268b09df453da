"""What becomes of a task, however its worker ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sessionstore import (
    Claim,
    ConfigurationError,
    ForkError,
    Persistable,
    SessionStore,
    State,
    StoreError,
    StoreUnavailableError,
    Task,
)
from sessionstore.testing import Child
from sessionstore.workers import WorkerPool, patiently
from sessionstore.workers import pool as pools
from tests.daemon.conftest import begun, states
from tests.workers.conftest import MakePool, drive, mark, run, wait_for_ever


def square(claim: Claim) -> None:
    """Do the simplest work."""
    claim.task.result = claim.task.n**2


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("size", -1, "an integer, 0 or more"),
        ("size", "2", "an integer, 0 or more"),
        ("lease", 0, "a number of seconds greater than 0"),
        ("lease", "60", "a number of seconds greater than 0"),
        ("max_attempts", 0, "an integer, 1 or more"),
    ],
)
def test_option_that_cannot_be_used_is_refused_at_once(
    session: SessionStore, name: str, value: Any, expected: str
) -> None:
    """The constructor names the option, what it was given, and what it takes."""
    with pytest.raises(
        ConfigurationError, match=f"{name}={value!r} must be {expected}"
    ):
        WorkerPool(session, square, **{name: value})


def test_in_memory_database_is_refused_at_once() -> None:
    """G4: no worker could use it."""
    with pytest.raises(ConfigurationError, match="in-memory database; use a file"):
        WorkerPool(SessionStore("sqlite://"), square)


# How work ends


def test_work_that_returns_has_ended_its_task(
    session: SessionStore, other: SessionStore, make_pool: MakePool
) -> None:
    """G2: TERMINATED with returncode 0, in one commit with what it changed."""
    ids = session.add_many(Task("square", n=n) for n in range(5))
    run(make_pool(square, size=2), session)
    for n, id_ in enumerate(ids):
        task = other.load(id_)
        assert (task.result, task.execution.returncode) == (n**2, 0)
        assert states(other, id_) == ["NEW", "SUBMITTED", "TERMINATED"]


@pytest.mark.backends("sqlite")
def test_task_that_was_ended_is_left_alone(
    session: SessionStore, make_pool: MakePool
) -> None:
    """By the work itself, and with the returncode that it gave."""
    id_ = session.add(Task())

    def work(claim: Claim) -> None:
        for state in (State.SUBMITTED, State.RUNNING):
            claim.transition(state)
        claim.transition(State.TERMINATED, returncode=3 << 8, info="by itself")

    run(make_pool(work), session)
    assert states(session, id_) == ["NEW", "SUBMITTED", "RUNNING", "TERMINATED"]
    assert session.history(id_)[-1].info == "by itself"
    assert session.history(id_)[-1].returncode == 3 << 8


@pytest.mark.backends("sqlite")
def test_task_that_was_stopped_stays_so(
    session: SessionStore, other: SessionStore, make_pool: MakePool
) -> None:
    """The work returns, and nobody holds the task any more."""
    id_ = session.add(Task())

    def work(claim: Claim) -> None:
        claim.transition(State.SUBMITTED)
        claim.transition(State.STOPPED, info="for somebody to look into")

    pool = make_pool(work)
    drive(pool, lambda: states(session, id_)[-1] == "STOPPED" and pool.running == 0)
    assert other.transition(id_, State.TERMINATED).from_state is State.STOPPED


@pytest.mark.backends("sqlite")
def test_task_that_was_given_back_is_tried_again(
    session: SessionStore, make_pool: MakePool
) -> None:
    """A release is no end; here each attempt but the second one gives it back."""
    id_ = session.add(Task())

    def work(claim: Claim) -> None:
        claim.transition(State.SUBMITTED)
        if claim.attempts < 2:
            claim.release("not now")

    run(make_pool(work), session)
    rest = ["SUBMITTED", "UNKNOWN", "SUBMITTED", "TERMINATED"]
    assert states(session, id_) == ["NEW", *rest]
    assert session.history(id_)[2].info == "not now"


def test_work_that_raises_is_tried_again(
    session: SessionStore, other: SessionStore, make_pool: MakePool
) -> None:
    """UNKNOWN with the reason, whatever state it was in; what was not saved is gone."""
    early, late = session.add_many([Task("early"), Task("late")])

    def work(claim: Claim) -> None:
        if claim.task.jobname == "late":
            claim.transition(State.SUBMITTED)
            claim.transition(State.RUNNING)
        claim.task.result = "half"
        raise ValueError(f"no good, attempt {claim.attempts}")

    run(make_pool(work, max_attempts=2), session)
    end = ["UNKNOWN", "TERMINATED"]
    assert states(other, early) == ["NEW", "UNKNOWN", *end]
    run_ = ["SUBMITTED", "RUNNING"]
    assert states(other, late) == ["NEW", *run_, "UNKNOWN", *run_, *end]
    for id_ in (early, late):
        said = [e.info for e in other.history(id_) if e.to_state is State.UNKNOWN]
        for n, info in enumerate(said, start=1):
            assert info.endswith(f"raised ValueError: no good, attempt {n}")
        assert other.history(id_)[-1].info == "attempts exhausted"
        assert not hasattr(other.load(id_), "result")


@pytest.mark.backends("sqlite")
def test_result_that_cannot_be_stored_is_a_failure(
    session: SessionStore, make_pool: MakePool
) -> None:
    """G2: the task is as it was, and its history says why."""
    id_ = session.add(Task())

    def work(claim: Claim) -> None:
        claim.task.result = lambda: None

    run(make_pool(work, max_attempts=1), session)
    assert "EncodeError" in session.history(id_)[-2].info


@pytest.mark.backends("sqlite")
@pytest.mark.parametrize(
    ("end", "how"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed by signal 9"),
        (lambda: os._exit(0), "exited with 0"),
        (lambda: os._exit(7), "exited with 7"),
        (lambda: sys.exit(0), "raised SystemExit: 0"),
    ],
    ids=["killed", "0", "7", "sys.exit"],
)
@pytest.mark.parametrize("way", [[], [State.SUBMITTED, State.RUNNING]], ids=len)
def test_worker_that_is_gone_is_recorded(
    session: SessionStore,
    make_pool: MakePool,
    end: Callable[[], object],
    how: str,
    way: list[State],
) -> None:
    """At whatever point of the work, and the task is tried again."""
    id_ = session.add(Task())

    def work(claim: Claim) -> None:
        if claim.attempts == 1:
            for state in way:
                claim.transition(state)
            end()

    run(make_pool(work), session)
    passed = ["NEW", *way, "UNKNOWN", "TERMINATED"]
    assert states(session, id_) == passed
    assert how in session.history(id_)[-2].info


@pytest.mark.backends("sqlite")
def test_unreadable_task_is_not_worked_on(
    session: SessionStore, make_pool: MakePool, marks: Path
) -> None:
    """G7: it ends with the reason, its object stays, and it can be done again."""
    id_ = session.add(Task("", n=3))
    table = session.store._tables
    row = table.c.id == id_
    with session.transaction() as connection:
        data = connection.execute(table.select().where(row)).one().data
        connection.execute(table.update().where(row).values(data=b"no pickle"))
    session.store.invalidate_cache()
    pool = make_pool(lambda claim: (mark(marks), square(claim)))
    run(pool, session)
    assert begun(marks) == []
    last = session.history(id_)[-1]
    assert last.info.startswith("cannot be run: ")
    assert last.returncode == 127 << 8
    with session.transaction() as connection:
        connection.execute(table.update().where(row).values(data=data))
    session.redo(id_)
    run(pool, session)
    assert session.load(id_).result == 9


@pytest.mark.backends("sqlite")
def test_object_without_a_state_of_its_own_is_worked_on(
    session: SessionStore, make_pool: MakePool
) -> None:
    """Its state is in the index alone, and nothing is written into the object."""
    id_ = session.add(Persistable())
    run(make_pool(lambda claim: None), session)
    assert states(session, id_) == ["UNKNOWN", "TERMINATED"]
    assert not hasattr(session.load(id_), "worker")


def test_nothing_is_recorded_of_a_task_that_is_anothers(
    session: SessionStore, other: SessionStore, make_pool: MakePool, tmp_path: Path
) -> None:
    """G6: LeaseLostError ends the worker, and its pool says no more either."""
    id_ = session.add(Task())
    gate = tmp_path / "gate"
    os.mkfifo(gate)

    def work(claim: Claim) -> None:
        claim.transition(State.SUBMITTED)
        gate.read_text()

    pool = make_pool(work)
    drive(pool, lambda: states(session, id_)[-1] == "SUBMITTED")
    with other.transaction() as connection:
        connection.exec_driver_sql(
            f"UPDATE store_job SET lease_expires_at = 1 WHERE job_id = {id_}"
        )
    assert other.recover() == [id_]
    [claim] = other.claim()
    gate.write_text("go on")
    drive(pool, lambda: pool.running == 0)
    assert states(other, id_) == ["NEW", "SUBMITTED", "UNKNOWN"]
    claim.transition(State.TERMINATED)


# The pool


@pytest.mark.backends("sqlite")
def test_as_many_workers_run_as_there_is_room_for(
    session: SessionStore, make_pool: MakePool, marks: Path
) -> None:
    """And ``size`` can be another one at any time."""
    session.add_many(Task() for _ in range(4))

    def work(claim: Claim) -> None:
        mark(marks)
        wait_for_ever()

    pool = make_pool(work, size=1)
    drive(pool, lambda: len(begun(marks)) == 1)
    pool.step()
    assert pool.running == 1
    pool.size = 3
    drive(pool, lambda: len(begun(marks)) == 3)
    pool.step()
    assert pool.running == 3
    assert session.counts() == {State.NEW: 4}


@pytest.mark.backends("sqlite")
def test_initializer_is_called_in_each_worker_first(
    session: SessionStore, make_pool: MakePool, marks: Path
) -> None:
    """Before a database that is away is waited for; what it raises is recorded."""
    ids = session.add_many(Task() for _ in range(2))

    def initialize() -> None:
        mark(marks)
        if len(begun(marks)) == 1:
            raise OSError("the first one cannot")

    run(make_pool(lambda claim: mark(marks), initializer=initialize), session)
    first, again, work, *_ = begun(marks)
    assert first != again == work
    assert os.getpid() not in begun(marks)
    assert "the first one cannot" in session.history(ids[0])[1].info


@pytest.mark.backends("sqlite")
def test_stopped_pool_takes_no_more(
    session: SessionStore, make_pool: MakePool, tmp_path: Path
) -> None:
    """And is done when what runs has ended, here within the grace."""
    first, second = session.add_many(Task() for _ in range(2))
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    pool = make_pool(lambda claim: gate.read_text())
    pool.step()
    pool.stop(grace=3600)
    pool.step()
    assert (pool.running, pool.is_done) == (1, False)
    gate.write_text("go on")
    drive(pool, lambda: pool.is_done)
    assert states(session, first)[-1] == "TERMINATED"
    assert states(session, second) == ["NEW"]


@pytest.mark.backends("sqlite")
def test_stop_asks_and_then_kills(
    session: SessionStore,
    make_pool: MakePool,
    marks: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGTERM is for who has a handler; whom it does not end is killed."""
    monkeypatch.setattr(pools, "FIRM", 0.5)
    polite, deaf = session.add_many([Task("polite"), Task("deaf")])

    def work(claim: Claim) -> None:
        if claim.task.jobname == "polite":
            signal.signal(signal.SIGTERM, lambda *_: sys.exit("asked to"))
        mark(marks)
        wait_for_ever()

    pool = make_pool(work, size=2)
    drive(pool, lambda: len(begun(marks)) == 2)
    pool.stop(grace=0)
    drive(pool, lambda: pool.is_done)
    assert session.history(polite)[-1].info.endswith("raised SystemExit: asked to")
    assert "killed by signal 9" in session.history(deaf)[-1].info
    assert session.counts() == {State.UNKNOWN: 2}


@pytest.mark.backends("sqlite")
def test_step_that_failed_loses_nothing(
    session: SessionStore, other: SessionStore, make_pool: MakePool, marks: Path
) -> None:
    """G1: what could not be recorded then is recorded by the next one."""
    id_ = session.add(Task())

    def work(claim: Claim) -> None:
        claim.transition(State.SUBMITTED)
        mark(marks)
        wait_for_ever()

    busy = SessionStore(other.store.url, busy_timeout=0.1, create=False)
    pool = WorkerPool(busy, work, max_attempts=1)
    drive(pool, lambda: begun(marks))
    [pid] = begun(marks)
    os.kill(pid, signal.SIGKILL)
    with other.transaction():
        other.request(id_, "cancel")  # a write, which keeps all others waiting
        with pytest.raises(StoreUnavailableError):
            drive(pool, lambda: False)
        assert (pool.running, pool.is_done) == (0, False)
    run(pool, session)
    assert "was killed by signal 9" in session.history(id_)[-2].info
    busy.close()


@pytest.mark.backends("sqlite")
def test_task_whose_worker_cannot_be_forked_is_given_back(
    session: SessionStore, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not wait for its lease to run out."""
    id_ = session.add(Task("", n=2))
    pool = make_pool(square, lease=3600)

    def fork() -> int:
        raise BlockingIOError("too many processes")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", fork)
        with pytest.raises(BlockingIOError):
            pool.step()
    run(pool, session)
    assert "too many processes" in session.history(id_)[1].info
    assert session.load(id_).result == 4


def test_fork_that_fails_is_no_attempt(
    session: SessionStore, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host without room for a process does not use up all tasks' attempts."""
    ids = session.add_many([Task("", n=n) for n in range(3)])
    pool = make_pool(square, max_attempts=1)

    def fork() -> int:
        raise BlockingIOError("too many processes")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", fork)
        for _ in range(4):
            with pytest.raises(BlockingIOError):
                pool.step()
    run(pool, session)
    assert [session.load(id_).result for id_ in ids] == [0, 1, 4]


@pytest.mark.backends("sqlite")
def test_worker_that_somebody_else_has_reaped(
    session: SessionStore, make_pool: MakePool, start_forked: Callable[..., Child]
) -> None:
    """Where SIGCHLD is ignored the kernel does so: what the worker recorded is true."""
    good, bad = session.add_many([Task("good", n=5), Task("bad")])

    def work(claim: Claim) -> None:
        if claim.task.jobname == "good":
            square(claim)
        elif claim.attempts == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def supervise() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        run(WorkerPool(session, work), session)

    start_forked(supervise).wait()
    assert session.load(good).result == 25
    assert states(session, good) == ["NEW", "SUBMITTED", "TERMINATED"]
    assert states(session, bad) == ["NEW", "UNKNOWN", "TERMINATED"]


@pytest.mark.backends("sqlite")
def test_pool_belongs_to_the_process_that_forked_its_workers(
    session: SessionStore, make_pool: MakePool, run_forked, marks: Path
) -> None:
    """G4: a child with a copy of it ends and records nothing."""
    session.add(Task())

    def work(claim: Claim) -> None:
        mark(marks)
        wait_for_ever()

    pool = make_pool(work)
    drive(pool, lambda: begun(marks))

    def child() -> None:
        with pytest.raises(ForkError, match="another process's"):
            pool.step()

    run_forked(child)
    pool.step()
    assert pool.running == 1


@pytest.mark.backends("sqlite")
def test_pool_does_not_fork_in_a_transaction(
    session: SessionStore, make_pool: MakePool
) -> None:
    """Its claims would not be committed, and the worker could do nothing."""
    session.add(Task())
    pool = make_pool(square)
    with session.transaction():
        with pytest.raises(StoreError, match="in a transaction"):
            pool.step()
    assert pool.running == 0


@pytest.mark.backends("sqlite")
def test_what_is_printed_appears_once(session: SessionStore, tmp_path: Path) -> None:
    """What the parent printed before, and what the worker prints before it leaves."""
    script = (
        "from sessionstore import SessionStore, Task\n"
        "from sessionstore.workers import WorkerPool\n"
        f"session = SessionStore({str(session.store.url)!r})\n"
        "session.add(Task())\n"
        "print('parent')\n"
        "pool = WorkerPool(session, lambda claim: print('worker'))\n"
        "pool.step()\n"
        "pool.stop()\n"
        "while not pool.is_done:\n"
        "    pool.wait(0.1)\n"
        "    pool.step()\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "parent\nworker\n"


def test_package_does_not_bring_it_in() -> None:
    """Who forks no workers does not wait for its import."""
    code = "import sessionstore, sys; sys.exit('sessionstore.workers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.backends("sqlite")
def test_patience_is_for_a_database_that_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The call is made again; what else it raises goes through."""
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    outcomes: list[Exception] = [StoreUnavailableError("away")] * 9

    def call() -> str:
        if outcomes:
            raise outcomes.pop()
        return "back"

    assert patiently(call) == "back"
    assert pauses[0] < pauses[1] < pauses[-1] == 5
    outcomes.append(ValueError("no good"))
    with pytest.raises(ValueError, match="no good"):
        patiently(call)
