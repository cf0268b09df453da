"""G6: a task whose holder is no more becomes anybody's, and no task before that."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from sqlalchemy import Engine, event, text

from sessionstore import ConflictError, LeaseLostError, SessionStore, State, Task
from sessionstore.jobs.holder import MAX_HOLDER, Holder
from sessionstore.jobs.leases import LeaseTable
from tests.test_claims import end_lease, states


def hand_to(session: SessionStore, id_: int, **differences: Any) -> None:
    """Have a task held by a process like this one, but for something."""
    holder = Holder.current()._replace(**differences)
    with session.transaction() as connection:
        connection.execute(
            text("UPDATE store_job SET holder = :h WHERE job_id = :id"),
            {"h": str(holder), "id": id_},
        )


# Holders


def test_holder_is_read_as_it_was_written() -> None:
    """In 255 characters at most, whatever the host's name."""
    here = Holder.current()
    assert Holder.parse(str(here)) == here
    assert here.pid == os.getpid()
    long = here._replace(host="ü" * 300)
    assert len(str(long)) == MAX_HOLDER
    read = Holder.parse(str(long))
    assert read is not None
    assert read.host == "ü" * len(read.host)
    assert read._replace(host=here.host) == here
    for wrong in ("", "somebody", "a/b/c/d/e", "a/b/1/2"):
        assert Holder.parse(wrong) is None


def test_holder_does_not_move_with_the_wall_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its start is in ticks since boot, unlike psutil's create_time()."""
    here = Holder.current()
    seen = psutil.Process().create_time()
    boot = psutil.boot_time()
    ticks = os.sysconf("SC_CLK_TCK")
    assert abs(boot + here.started / ticks - seen) < 1.5
    monkeypatch.setattr("time.time", lambda: 0.0)
    monkeypatch.setattr("sessionstore.jobs.holder._current", None)
    assert Holder.current() == here


def test_child_is_another_holder(start_forked) -> None:
    """It has a PID of its own, and is gone when it has ended, waited for or not."""
    here = Holder.current()
    reader, writer = os.pipe()

    def child() -> None:
        assert Holder.current() != here
        assert not here.is_gone()
        os.write(writer, str(Holder.current()).encode())
        signal.pause()

    running = start_forked(child)
    held = Holder.parse(os.read(reader, 1000).decode())
    assert held is not None
    assert held.pid == running.pid
    assert not held.is_gone()
    os.kill(running.pid, signal.SIGKILL)
    os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOWAIT)
    assert held.is_gone()
    running.kill()
    assert held.is_gone()


@pytest.mark.parametrize(
    ("differences", "is_gone"),
    [
        ({}, False),
        ({"started": 1}, True),
        ({"boot_id": "another"}, True),
        ({"boot_id": "another", "host": "elsewhere"}, False),
        ({"pid_namespace": 1, "started": 1}, False),
        ({"host": "elsewhere", "started": 1}, False),
    ],
    ids=str,
)
def test_holder_is_gone_where_that_can_be_known(
    differences: dict[str, Any], is_gone: bool
) -> None:
    """On its own host, by its boot; or by its start, in its own PID namespace."""
    holder = Holder.current()._replace(**differences)
    assert holder.is_gone() is is_gone


def test_holder_has_its_pid_until_a_later_process_has_it(start_forked) -> None:
    """A zombie has it still, its own or a later one; and once it is free, it is its."""
    here = Holder.current()
    assert here.had_its_pid_last()
    assert not here._replace(started=1).had_its_pid_last()
    child = start_forked(lambda: str(Holder.current()))
    held = Holder.parse(child.wait())
    assert held is not None
    assert held.had_its_pid_last()
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    ticks = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[19])
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    zombie = here._replace(pid=child, started=ticks)
    assert zombie.had_its_pid_last()
    assert not zombie._replace(started=ticks - 1).had_its_pid_last()
    os.waitpid(child, 0)


def test_process_that_cannot_be_looked_at_is_not_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With hidepid another user's process has no file in /proc."""
    here = Holder.current()
    gone = here._replace(pid=2**22 + 1)
    assert gone.is_gone()

    def kill(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr("os.kill", kill)
    assert not gone.is_gone()


# Recovery


def test_killed_holder_is_recovered_at_once(
    session: SessionStore, start_forked
) -> None:
    """G6: on this host; its task is UNKNOWN, and anybody's."""
    id_ = session.add(Task())
    reader, writer = os.pipe()

    def hold() -> None:
        [claim] = session.claim(lease=3600)
        claim.transition(State.SUBMITTED)
        claim.transition(State.RUNNING)
        os.write(writer, b".")
        signal.pause()

    child = start_forked(hold)
    os.read(reader, 1)
    assert session.recover() == session.claim() == []
    child.kill()
    assert session.recover() == [id_]
    assert states(session, id_) == ["NEW", "SUBMITTED", "RUNNING", "UNKNOWN"]
    assert "is gone" in session.history(id_)[-1].info
    [claim] = session.claim()
    assert (claim.attempts, claim.token) == (2, 2)


def test_holder_elsewhere_is_recovered_when_its_lease_has_run_out(
    session: SessionStore, other: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G6: by the database's clock, whatever this host's says."""
    id_ = session.add(Task())
    [claim] = session.claim()
    hand_to(session, id_, host="elsewhere", started=1)
    for now in (0.0, 4e9):
        monkeypatch.setattr("time.time", lambda now=now: now)
        monkeypatch.setattr("time.time_ns", lambda now=now: int(now * 1e9))
        assert other.recover() == []
    end_lease(session, id_)
    assert other.recover() == [id_]
    assert "expired" in session.history(id_)[-1].info
    with pytest.raises(LeaseLostError):
        claim.transition(State.SUBMITTED)


def test_stopped_task_stays_stopped(session: SessionStore) -> None:
    """It is nobody's, but is not to be run again by itself."""
    id_ = session.add(Task())
    [claim] = session.claim()
    for state in (State.SUBMITTED, State.STOPPED):
        claim.transition(state)
    end_lease(session, id_)
    assert session.recover(max_attempts=1) == [id_]
    assert states(session, id_)[-1] == "STOPPED"
    assert session.claim() == []
    session.transition(id_, State.UNKNOWN, info="resume")
    assert [claim.id for claim in session.claim()] == [id_]


@pytest.mark.parametrize("reap", [None, lambda task: None], ids=["", "reaped"])
def test_task_tried_too_often_is_terminated(session: SessionStore, reap: Any) -> None:
    """From whatever state, by transitions that there are."""
    paths = ["NEW", "SUBMITTED", "SUBMITTED RUNNING", "SUBMITTED RUNNING TERMINATING"]
    ids = session.add_many([Task() for _ in paths])
    for claim, path in zip(session.claim(4), paths, strict=True):
        for state in path.split():
            if state != "NEW":
                claim.transition(state)
        end_lease(session, claim.id)
    assert sorted(session.recover(max_attempts=1, reap=reap)) == ids
    for id_ in ids:
        last = session.history(id_)[-1]
        assert (last.to_state, last.info) == (State.TERMINATED, "attempts exhausted")
    assert session.recover() == session.claim() == []


def test_task_is_reaped_before_it_is_claimable(
    session: SessionStore, other: SessionStore
) -> None:
    """G6: while it is reaped its old holder is out, and nobody else is in yet."""
    id_ = session.add(Task("x"))
    [old] = session.claim()
    old.transition(State.SUBMITTED)
    end_lease(session, id_)
    reaped = []

    def reap(task: Task) -> None:
        assert task.jobname == "x"
        with pytest.raises(LeaseLostError):
            old.transition(State.RUNNING)
        with pytest.raises(ConflictError):
            other.transition(id_, State.UNKNOWN)
        assert other.claim() == other.recover() == []
        reaped.append(task.persistent_id)

    assert session.recover(reap=reap) == [id_] == reaped
    assert states(session, id_) == ["NEW", "SUBMITTED", "UNKNOWN"]
    assert other.claim()[0].attempts == 2


def test_task_that_could_not_be_reaped_is_not_claimable(
    session: SessionStore, other: SessionStore
) -> None:
    """G6: its commands may be running; the others are recovered, and it is later."""
    bad, good = session.add_many([Task("bad"), Task("good")])
    for claim in session.claim(2):
        end_lease(session, claim.id)

    def reap(task: Task) -> None:
        if task.jobname == "bad":
            raise TimeoutError("its command does not end")

    with pytest.raises(TimeoutError, match="does not end"):
        session.recover(reap=reap)
    assert [claim.id for claim in other.claim(5)] == [good]
    assert states(session, bad) == ["NEW"]
    assert other.recover(reap=lambda task: None) == [bad]
    assert [claim.id for claim in session.claim()] == [bad]


@pytest.mark.parametrize("path", ["", "SUBMITTED", "SUBMITTED RUNNING TERMINATING"])
def test_unreadable_task_is_not_recovered_unreaped(
    session: SessionStore, other: SessionStore, path: str
) -> None:
    """G6, G7: what it left running cannot be known, so that it is STOPPED, once."""
    id_, good = session.add_many([Task(), Task()])
    old, _ = session.claim(2)
    for state in path.split():
        old.transition(state)
    for held in (id_, good):
        end_lease(session, held)
    with session.transaction() as connection:
        connection.execute(
            text("UPDATE store SET data = :d WHERE id = :id"), {"d": b"junk", "id": id_}
        )
    reaped: list[int] = []

    def recover() -> list[int]:
        return other.recover(reap=lambda task: reaped.append(task.persistent_id))

    assert sorted(recover()) == [id_, good]
    assert (recover(), reaped) == ([], [good])
    assert [claim.id for claim in other.claim(5)] == [good]
    assert states(session, id_) == ["NEW", *path.split(), "UNKNOWN", "STOPPED"]
    assert "cannot be read" in session.history(id_)[-1].info
    with pytest.raises(LeaseLostError):
        old.transition(State.UNKNOWN)
    # Anybody may decide what becomes of it.
    session.transition(id_, State.UNKNOWN, expect=State.STOPPED)
    assert [claim.id for claim in other.claim(5)] == [id_]


def test_unreadable_task_without_a_reaper_is_anybodys(session: SessionStore) -> None:
    """G7: its state can be changed as any other's."""
    id_ = session.add(Task())
    session.claim()
    end_lease(session, id_)
    with session.transaction() as connection:
        connection.execute(text("UPDATE store SET data = :d"), {"d": b"junk"})
    assert session.recover() == [id_]
    assert states(session, id_) == ["NEW", "UNKNOWN"]


def test_what_keeps_failing_is_logged_once(
    session: SessionStore, caplog: pytest.LogCaptureFixture
) -> None:
    """For as long as it is the same; it is raised at each call."""
    id_ = session.add(Task())
    session.claim()
    end_lease(session, id_)
    problems = ["first", "first", "second", "second"]

    def reap(task: Task) -> None:
        raise PermissionError(problems.pop(0))

    while problems:
        with pytest.raises(PermissionError):
            session.recover(reap=reap)
    said = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert said == [f"task {id_} stays claimed: {p}" for p in ("first", "second")]


@pytest.fixture
def set_clock(backend: str) -> Iterator[Callable[[float], None]]:
    """Set the database's clock by some seconds, as connections opened later see it."""
    offset = 0.0

    def julianday(what: str) -> float:
        return 2440587.5 + (time.time() + offset) / 86400

    def configure(connection: Any, record: object) -> None:
        if backend == "sqlite":
            connection.create_function("julianday", 1, julianday)
            return
        with connection.cursor() as cursor:
            if backend == "mariadb":
                cursor.execute("SET timestamp = UNIX_TIMESTAMP() + %s", (offset,))
                return
            cursor.execute(
                "CREATE OR REPLACE FUNCTION public.clock_timestamp() "
                "RETURNS timestamptz LANGUAGE sql AS "
                f"$$SELECT pg_catalog.clock_timestamp() + interval '{offset} s'$$"
            )
            cursor.execute("SET search_path = public, pg_catalog")
        connection.commit()

    def set_(seconds: float) -> None:
        nonlocal offset
        offset = seconds

    event.listen(Engine, "connect", configure)
    yield set_
    event.remove(Engine, "connect", configure)


def test_clock_that_is_set_ends_no_lease(
    database_url: str,
    set_clock: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """G6: forth or back, its holder has as long to renew it as it had before."""
    session, other = SessionStore(database_url), SessionStore(database_url)
    id_ = session.add(Task())
    [claim] = session.claim()
    hand_to(session, id_, host="elsewhere")
    assert other.recover() == []
    began_at = claim.lease_expires_at
    for seconds in (86_400.0, -86_400.0, 864_000.0):
        set_clock(seconds)
        for store in (session.store, other.store):
            store.pre_fork()  # what is open has the old time
        assert other.recover() == []
        claim.renew()
        moved = (claim.lease_expires_at - began_at).total_seconds()
        assert abs(moved - seconds) < 600
        assert other.recover() == other.claim() == []
    set_clock(1_728_000.0)
    other.store.pre_fork()
    for later, recovered in ((50, []), (70, [id_])):
        clock = SimpleNamespace(monotonic=lambda later=later: time.monotonic() + later)
        monkeypatch.setattr("sessionstore.jobs.recovery.time", clock)
        assert other.recover() == recovered
    assert states(session, id_) == ["NEW", "UNKNOWN"]


def test_lease_renewed_meanwhile_is_kept(
    session: SessionStore, other: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G6: what recovers looks at the lease again, under the row's lock."""
    id_ = session.add(Task())
    [claim] = session.claim()
    end_lease(session, id_)
    index = other._index
    seen = index.database.read(lambda kept: index.leases.held(kept, index.id))
    assert len(seen) == 1
    claim.renew()
    monkeypatch.setattr(LeaseTable, "held", lambda *_: seen)
    for reap in (None, lambda task: pytest.fail("reaped")):
        assert other.recover(reap=reap) == []
    claim.transition(State.SUBMITTED)


@pytest.mark.backends("postgresql", "mariadb")
@pytest.mark.parametrize("reap", [None, lambda task: None], ids=["", "reaped"])
def test_row_that_somebody_has_locked_keeps_no_other_waiting(
    session: SessionStore, other: SessionStore, reap: Any
) -> None:
    """G6: its holder may have vanished while it wrote; the next time will do."""
    locked, free = session.add_many([Task(), Task()])
    for claim in session.claim(2):
        end_lease(session, claim.id)
    lock = text("SELECT 1 FROM store_job WHERE job_id = :id FOR UPDATE")

    def recover() -> list[int]:
        return other.recover(reap=reap)

    with session.transaction() as connection, ThreadPoolExecutor(1) as pool:
        connection.execute(lock, {"id": locked})
        # A lock is waited for longer, for 30 seconds.
        assert pool.submit(recover).result(15) == [free]
    assert other.recover(reap=reap) == [locked]


def test_each_task_is_recovered_once(
    session: SessionStore, start_forked, tmp_path: Path
) -> None:
    """G6: by one of many who try at the same time."""
    ids = session.add_many([Task() for _ in range(12)])
    for claim in session.claim(len(ids)):
        end_lease(session, claim.id)

    def reap(task: Task) -> None:
        os.close(os.open(tmp_path / str(task.persistent_id), os.O_CREAT | os.O_EXCL))

    def recover() -> None:
        session.recover(reap=reap)

    for child in [start_forked(recover) for _ in range(4)]:
        child.wait()
    assert {int(path.name) for path in tmp_path.glob("[0-9]*")} == set(ids)
    assert all(states(session, id_) == ["NEW", "UNKNOWN"] for id_ in ids)


def test_threads_share_one_holder(session: SessionStore) -> None:
    """A claim made in one thread is not another's to recover, nor to claim."""
    session.add_many([Task() for _ in range(8)])
    claimed: list[int] = []

    def work() -> None:
        while claims := session.claim():
            claimed.extend(claim.id for claim in claims)
            assert session.recover() == []

    threads = [threading.Thread(target=work) for _ in range(4)]
    run: Callable[[threading.Thread], None]
    for run in (threading.Thread.start, threading.Thread.join):
        for thread in threads:
            run(thread)
    assert len(claimed) == len(set(claimed)) == 8
