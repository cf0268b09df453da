"""Work that does what nobody has thought of, and requests at odd moments."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from sessionstore import Claim, SessionStore, State, StoreUnavailableError, Task
from sessionstore.testing import Child
from sessionstore.workers import WorkerPool, patiently, run_command
from sessionstore.workers import pool as pools
from tests.daemon.conftest import begun, has_ended, states, until
from tests.workers.conftest import MakePool, drive, mark, run, wait_for_ever

pytestmark = pytest.mark.backends("sqlite")


def fail() -> NoReturn:
    """Raise."""
    raise ValueError("no good")


@pytest.mark.parametrize(
    ("leave", "status"),
    [(lambda: None, 0), (lambda: sys.exit(3), 3), (sys.exit, 0), (fail, 1)],
    ids=["return", "exit", "exit well", "raise"],
)
def test_what_the_work_forks_ends_without_a_word(
    session: SessionStore,
    other: SessionStore,
    make_pool: MakePool,
    leave: Callable[[], object],
    status: int,
) -> None:
    """G6: however it ends, its parent works on the task still."""
    id_ = session.add(Task())

    def work(claim: Claim) -> None:
        claim.transition(State.SUBMITTED)
        pid = os.fork()
        if pid == 0:
            leave()
            return
        _, ended = os.waitpid(pid, 0)
        claim.task.status = os.waitstatus_to_exitcode(ended)

    run(make_pool(work, max_attempts=1), session)
    assert states(other, id_) == ["NEW", "SUBMITTED", "TERMINATED"]
    assert other.load(id_).status == status


@pytest.mark.parametrize("state", [State.TERMINATED, State.RUNNING])
def test_state_that_the_work_has_only_set_does_not_keep_the_task(
    session: SessionStore, other: SessionStore, make_pool: MakePool, state: State
) -> None:
    """It is not saved, so that the work has not ended its task."""
    id_ = session.add(Task())

    def work(claim: Claim) -> None:
        claim.task.execution.state = state
        claim.task.result = 1

    run(make_pool(work), session)
    assert states(other, id_) == ["NEW", "SUBMITTED", "TERMINATED"]
    assert other.load(id_).result == 1


@pytest.mark.parametrize("leave", [lambda: None, fail], ids=["return", "raise"])
def test_transaction_that_is_left_open_is_a_failure(
    session: SessionStore,
    other: SessionStore,
    make_pool: MakePool,
    leave: Callable[[], object],
) -> None:
    """G2: nothing of it is committed, and the task is tried again."""
    id_ = session.add(Task())
    kept = []

    def work(claim: Claim) -> None:
        if claim.attempts == 1:
            kept.append(session.transaction())
            kept[0].__enter__()
            claim.transition(State.SUBMITTED)
            leave()

    run(make_pool(work), session)
    assert states(other, id_) == ["NEW", "UNKNOWN", "TERMINATED"]
    assert "exited with 1" in other.history(id_)[1].info


def test_threads_of_the_work_have_patience_too(
    session: SessionStore, other: SessionStore, make_pool: MakePool
) -> None:
    """No handler can be set there, and none needs to be."""
    id_ = session.add(Task())

    def work(claim: Claim) -> None:
        results: list[object] = []
        thread = threading.Thread(
            target=lambda: results.append(patiently(lambda: "there"))
        )
        thread.start()
        thread.join()
        claim.task.results = results

    run(make_pool(work), session)
    assert other.load(id_).results == ["there"]


def test_patience_ends_where_a_transaction_is_open(
    session: SessionStore, make_pool: MakePool
) -> None:
    """It was lost with its connection, and so will be whatever is repeated in it."""
    id_ = session.add(Task())

    def away() -> NoReturn:
        raise StoreUnavailableError("the connection was lost")

    def work(claim: Claim) -> None:
        with session.transaction():
            patiently(away)

    run(make_pool(work, max_attempts=1), session)
    assert "StoreUnavailableError" in session.history(id_)[1].info


def test_error_is_recorded_with_its_notes(
    session: SessionStore, make_pool: MakePool
) -> None:
    """The notes are no substitute for what went wrong."""
    id_ = session.add(Task())

    def work(claim: Claim) -> None:
        error = ValueError("no good")
        error.add_note("look there")
        raise error

    run(make_pool(work, max_attempts=1), session)
    info = session.history(id_)[1].info
    assert info.endswith("raised ValueError: no good\nlook there")


def test_what_failed_work_has_started_ends_before_its_task_is_tried_again(
    session: SessionStore, other: SessionStore, make_pool: MakePool, marks: Path
) -> None:
    """G6: here the pool has not seen yet that it failed."""
    session.add(Task())

    def work(claim: Claim) -> None:
        mark(marks, subprocess.Popen(["sleep", "300"]).pid)
        fail()

    pool = make_pool(work)
    pool.step()
    until(lambda: State.UNKNOWN in other.counts())
    assert has_ended(begun(marks)[0])


def test_work_before_a_command_begins_with_a_save(
    session: SessionStore, other: SessionStore, make_pool: MakePool, marks: Path
) -> None:
    """The task says who works on it, and the command's transitions are to come."""
    id_ = session.add(Task())

    def work(claim: Claim) -> None:
        claim.save()
        mark(marks, int(other.load(id_).worker.split("/")[-2]))
        run_command(claim, ["true"])

    run(make_pool(work, max_attempts=1), session)
    assert begun(marks) == [session.history(id_)[-1].pid]
    assert session.history(id_)[-1].returncode == 0


# Requests


def test_task_that_was_cancelled_before_is_not_begun(
    session: SessionStore, other: SessionStore, make_pool: MakePool, marks: Path
) -> None:
    """The request was made when nobody held it, and the next one hears of it."""
    cancelled, good = session.add_many([Task("cancelled"), Task("good")])
    assert not other.request(cancelled, "cancel")
    run(make_pool(lambda claim: mark(marks, claim.id)), session)
    assert begun(marks) == [good]
    assert other.history(cancelled)[-1].info == "cancelled"
    assert other.history(cancelled)[-1].to_state is State.TERMINATED


@pytest.mark.parametrize("end", [fail, lambda: os._exit(1)], ids=["raises", "dies"])
def test_cancelled_work_that_fails_is_not_tried_again(
    session: SessionStore,
    other: SessionStore,
    make_pool: MakePool,
    end: Callable[[], object],
) -> None:
    """The pool had not heard of the request yet."""
    id_ = session.add(Task())

    def work(claim: Claim) -> None:
        other.request(claim.id, "cancel")
        end()

    run(make_pool(work, max_attempts=3), session)
    assert states(other, id_) == ["NEW", "UNKNOWN", "TERMINATED"]
    assert "its worker" in other.history(id_)[1].info
    assert other.history(id_)[-1].info == "cancelled"


# Signals


def test_worker_blocks_no_signals(
    session: SessionStore, other: SessionStore, make_pool: MakePool
) -> None:
    """A program that waits for signals blocks them; its workers' deadline is one."""
    id_ = session.add(Task())

    def work(claim: Claim) -> None:
        claim.task.blocked = len(signal.pthread_sigmask(signal.SIG_BLOCK, []))

    numbers = [signal.SIGALRM, signal.SIGTERM, signal.SIGUSR1]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        run(make_pool(work), session)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before | set(numbers)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert other.load(id_).blocked == 0


def test_early_signal_does_not_find_the_pools_handler_in_a_worker(
    session: SessionStore,
    start_forked: Callable[..., Child],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """G4: it would go on with the program of its parent from where that raises."""
    id_ = session.add(Task())
    fork = os.fork

    def signalled() -> int:
        pid = fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return pid

    def supervise() -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))
        monkeypatch.setattr(os, "fork", signalled)
        run(WorkerPool(session, lambda claim: None), session)

    start_forked(supervise).wait()
    assert states(session, id_) == ["NEW", "SUBMITTED", "TERMINATED"]


@pytest.mark.parametrize("number", [signal.SIGTSTP, signal.SIGQUIT])
def test_what_a_terminal_sends_to_the_pool_is_not_the_workers(
    session: SessionStore, make_pool: MakePool, marks: Path, number: signal.Signals
) -> None:
    """G6: it has left its group to its command, and ends that in time."""
    id_ = session.add(Task())
    script = f"echo $$ >>{marks}; exec sleep 300"
    pool = make_pool(lambda claim: run_command(claim, ["sh", "-c", script]))
    drive(pool, lambda: begun(marks))
    [worker] = pool._workers
    drive(pool, lambda: os.getpgid(worker.pid) == os.getpgrp())
    os.kill(worker.pid, number)
    os.kill(begun(marks)[0], signal.SIGINT)
    run(pool, session)
    assert session.history(id_)[-1].returncode == signal.SIGINT


def test_leases_are_renewed_while_others_start(
    session: SessionStore, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G6: of many workers the first one's may be due before the last one is there."""
    session.add_many(Task() for _ in range(3))
    pool = make_pool(lambda claim: wait_for_ever(), size=3)

    def slowly() -> None:
        for worker in pool._workers:
            worker.renew_at = 0.0

    monkeypatch.setattr(pools, "flush", slowly)
    pool.step()
    assert [worker.renew_at > 0 for worker in pool._workers] == [True] * 3
