"""What keeps a task from being worked on twice at once, and what happens without it.

Each test is run once as it is, and once with the protection taken out, where it has to
find that out.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import psutil
import pytest

from sessionstore import Claim, SessionStore, State, StoreUnavailableError, Task
from sessionstore.testing import Child
from sessionstore.workers import WorkerPool, assignment, patiently, run_command
from sessionstore.workers import pool as pools
from sessionstore.workers.deadline import Deadline
from tests.daemon.conftest import begun, has_ended, states, until
from tests.workers.conftest import MakePool, drive, mark, run, wait_for_ever

pytestmark = pytest.mark.backends("sqlite")

#: Seconds.
LEASE = 3.0


@pytest.fixture(params=[True, False], ids=["protected", "unprotected"])
def is_protected(request: pytest.FixtureRequest) -> bool:
    """Whether the protection is there."""
    return bool(request.param)


@pytest.fixture
def marks(marks: Path) -> Iterator[Path]:
    """The file of ``mark``; who is in it, and is there still, ends with the test."""
    yield marks
    for pid in begun(marks):
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            # A worker of ours, or what one has started.
            if process.cwd() == os.getcwd():
                process.kill()


def begin(claim: Claim) -> None:
    """Say that the work begins."""
    claim.transition(State.SUBMITTED)
    claim.transition(State.RUNNING)


#: Writes the time down, again and again; ``argv[1]`` is the file.
CLOCK = (
    "import sys, time\n"
    "with open(sys.argv[1], 'a', buffering=1) as file:\n"
    "    while True:\n"
    "        file.write(f'{time.monotonic()}\\n')\n"
    "        time.sleep(0.01)\n"
)


@pytest.mark.parametrize("kind", ["command", "python"])
def test_work_ends_before_a_lease_that_is_not_renewed(
    session: SessionStore,
    make_pool: MakePool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    is_protected: bool,
) -> None:
    """G6: though the pool hangs; the work itself says until when it went on."""
    id_ = session.add(Task())
    times = tmp_path / "times"
    if not is_protected:
        monkeypatch.setattr(Deadline, "enforce", lambda self: None)

    def work(claim: Claim) -> None:
        if kind == "command":
            run_command(claim, [sys.executable, "-c", CLOCK, str(times)])
        begin(claim)
        with times.open("a", buffering=1) as file:
            while True:
                file.write(f"{time.monotonic()}\n")

    def last() -> float:
        lines = times.read_text().splitlines(keepends=True) if times.exists() else []
        return max((float(line) for line in lines if line[-1] == "\n"), default=0)

    began = time.monotonic()
    pool = make_pool(work, lease=LEASE, max_attempts=1)
    pool.step()
    [worker] = pool._workers
    if is_protected:
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
        assert began < last() < began + LEASE
        run(pool, session)
        assert "could not be renewed" in session.history(id_)[-2].info
    else:
        until(lambda: last() > began + LEASE)


def test_work_deep_in_a_call_is_ended_by_the_pool(
    session: SessionStore,
    make_pool: MakePool,
    monkeypatch: pytest.MonkeyPatch,
    is_protected: bool,
) -> None:
    """G6: no handler runs there; the pool kills it, though the database is away."""
    session.add(Task())

    def work(claim: Claim) -> None:
        begin(claim)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

    def renew(self: Claim) -> None:
        raise StoreUnavailableError("away")

    monkeypatch.setattr(Claim, "renew", renew)
    pool = make_pool(work, lease=LEASE, max_attempts=1)
    pool.step()
    [worker] = pool._workers
    if not is_protected:
        monkeypatch.setattr(Deadline, "has_passed", False)
    while time.monotonic() < worker.deadline.at + 0.1:
        with suppress(StoreUnavailableError):
            pool.step()
    if is_protected:
        until(lambda: has_ended(worker.pid))
    else:
        assert not has_ended(worker.pid)


def test_result_is_kept_while_the_database_is_away(
    session: SessionStore,
    make_pool: MakePool,
    monkeypatch: pytest.MonkeyPatch,
    is_protected: bool,
) -> None:
    """G1: longer than the lease; whoever only writes is not ended, but refused."""
    id_ = session.add(Task())
    if not is_protected:
        monkeypatch.setattr(assignment, "deadline_lifted", nullcontext)

    def work(claim: Claim) -> None:
        begin(claim)
        me = assignment.current()
        assert me is not None

        def end() -> None:
            if time.monotonic() < me.deadline.at + 0.2:
                raise StoreUnavailableError("away")
            claim.transition(State.TERMINATED, info="kept")

        patiently(end)

    def renew(self: Claim) -> None:
        raise StoreUnavailableError("away")

    with monkeypatch.context() as patch:
        patch.setattr(Claim, "renew", renew)
        pool = make_pool(work, lease=1, max_attempts=1)
        pool.step()
        while pool.running:
            with suppress(StoreUnavailableError):
                pool.step()
    run(pool, session)
    info = session.history(id_)[-1].info
    assert info == ("kept" if is_protected else "attempts exhausted")


@pytest.mark.parametrize("kind", ["command", "python"])
def test_what_outlives_a_killed_pool_ends_before_its_task_is_tried_again(
    session: SessionStore,
    make_pool: MakePool,
    start_forked: Callable[..., Child],
    marks: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    is_protected: bool,
) -> None:
    """G6: the second attempt looks whether the first is there still."""
    id_ = session.add(Task())

    def work(claim: Claim) -> None:
        if claim.attempts == 2:
            claim.task.found = [has_ended(pid) for pid in begun(marks)]
        elif kind == "command":
            run_command(claim, ["sh", "-c", f"echo $$ >>{marks}; exec sleep 300"])
        else:
            begin(claim)
            mark(marks)
            wait_for_ever()

    first = start_forked(lambda: run(WorkerPool(session, work), session))
    until(lambda: begun(marks))
    first.kill()
    if not is_protected:
        monkeypatch.setattr(pools, "end_group", lambda task: None)
    run(make_pool(work, lease=3600), session)
    assert session.load(id_).found == [is_protected]


def test_worker_that_has_written_nothing_is_refused(
    session: SessionStore,
    make_pool: MakePool,
    start_forked: Callable[..., Child],
    marks: Path,
    tmp_path: Path,
) -> None:
    """G6: nobody can tell that it is there when its pool has been killed."""
    id_ = session.add(Task())
    gate = tmp_path / "gate"
    os.mkfifo(gate)

    def work(claim: Claim) -> None:
        if claim.attempts == 1:
            mark(marks)
            gate.read_text()
            claim.task.result = "late"
        else:
            claim.task.result = "good"

    first = start_forked(lambda: run(WorkerPool(session, work), session))
    until(lambda: begun(marks))
    first.kill()
    run(make_pool(work), session)
    gate.write_text("go on")
    until(lambda: has_ended(begun(marks)[0]))
    assert states(session, id_) == ["NEW", "UNKNOWN", "TERMINATED"]
    assert session.load(id_).result == "good"


@pytest.mark.parametrize("out", ["nothing", "killing", "waiting"])
def test_command_of_a_dead_worker_ends_before_its_task_is_tried_again(
    session: SessionStore,
    make_pool: MakePool,
    marks: Path,
    monkeypatch: pytest.MonkeyPatch,
    out: str,
) -> None:
    """G6: its group is killed, and waited for where it takes long to die."""
    id_ = session.add(Task())

    def work(claim: Claim) -> None:
        if claim.attempts == 2:
            claim.task.found = has_ended(begun(marks)[0])
        else:
            run_command(claim, ["sh", "-c", f"echo $$ >>{marks}; exec sleep 300"])

    killpg = os.killpg

    def kill(*what: int) -> None:
        with suppress(ProcessLookupError):  # it is killed more than once
            killpg(*what)

    late: list[tuple[int, ...]] = []
    if out == "nothing":
        monkeypatch.setattr(
            os, "killpg", lambda *what: threading.Timer(0.3, kill, what).start()
        )
    else:
        monkeypatch.setattr(pools, "has_ended", lambda group: True)
        # Nobody waits for it: it dies after the second attempt has looked, or never.
        note = late.append if out == "waiting" else lambda _: None
        monkeypatch.setattr(os, "killpg", lambda *what: note(what))
    pool = make_pool(work)
    drive(pool, lambda: begun(marks))
    os.kill(pool._workers[0].pid, signal.SIGKILL)
    run(pool, session)
    assert session.load(id_).found is (out == "nothing")
    for what in late:
        kill(*what)


def test_only_a_command_is_held(
    session: SessionStore,
    other: SessionStore,
    make_pool: MakePool,
    marks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_protected: bool,
) -> None:
    """G4: other work may be in a transaction that everybody waits for."""
    id_ = session.add(Task())
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    if not is_protected:
        monkeypatch.setattr(os, "getpgid", lambda pid: 0)

    def work(claim: Claim) -> None:
        begin(claim)
        mark(marks)
        gate.read_text()

    pool = make_pool(work)
    drive(pool, lambda: begun(marks))
    [worker] = pool._workers
    before = worker.renewed_at
    other.request(id_, "hold")
    drive(pool, lambda: worker.renewed_at > before)
    if is_protected:
        assert states(other, id_)[-1] == "RUNNING"
        assert psutil.Process(worker.pid).status() != psutil.STATUS_STOPPED
        gate.write_text("go on")
        run(pool, session)
        assert states(other, id_)[-2:] == ["RUNNING", "TERMINATED"]
    else:
        until(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED)


def test_cancelled_work_ends_with_all_that_it_has_started(
    session: SessionStore, other: SessionStore, make_pool: MakePool, marks: Path
) -> None:
    """Soon, as ``wait`` says that something has changed; and it is not tried again."""
    id_ = session.add(Task())

    def work(claim: Claim) -> None:
        begin(claim)
        mark(marks, os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "300"))
        mark(marks)
        wait_for_ever()

    pool = make_pool(work, lease=3600)
    drive(pool, lambda: len(begun(marks)) == 2)
    other.request(id_, "cancel")
    run(pool, session)
    assert states(other, id_) == ["NEW", "SUBMITTED", "RUNNING", "TERMINATED"]
    last = other.history(id_)[-1]
    assert (last.info, last.returncode) == ("cancelled", signal.SIGKILL)
    assert all(map(has_ended, begun(marks)))
