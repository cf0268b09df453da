"""One connection for each process and thread, replaced when it is lost."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import pymysql
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from sessionstore import (
    ConflictError,
    SessionStore,
    SqlStore,
    State,
    StoreError,
    StoreUnavailableError,
    Task,
)
from sessionstore.database import scopes
from sessionstore.database.connections import Connections
from sessionstore.database.kept import KeptConnection
from sessionstore.fork.hooks import gate
from tests.servers import MYSQLD

COUNT = {
    "postgresql": (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid()"
    ),
    "mysql": (
        "SELECT count(*) FROM information_schema.processlist WHERE db = database() "
        "AND id <> connection_id()"
    ),
}
KILL = {
    "postgresql": (
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    ),
    "mysql": (
        "SELECT id FROM information_schema.processlist WHERE db = database() "
        "AND id <> connection_id()"
    ),
}


class Server:
    """Looks at a database from outside the store."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine(url, isolation_level="AUTOCOMMIT")

    def connections(self) -> int:
        with self.engine.connect() as connection:
            return int(
                connection.execute(text(COUNT[self.engine.dialect.name])).scalar_one()
            )

    def cut_all(self) -> None:
        with self.engine.connect() as connection:
            rows = connection.execute(text(KILL[self.engine.dialect.name])).all()
            if self.engine.dialect.name == "mysql":
                for (number,) in rows:
                    connection.execute(text(f"KILL {number}"))


@pytest.fixture
def server(database_url: str):
    server = Server(database_url)
    yield server
    server.engine.dispose()


def until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(400):
        if condition():
            return
        pause.wait(0.02)
    pytest.fail("it did not come true in time")


@pytest.mark.backends("postgresql", "mariadb")
def test_thread_has_one_connection_and_takes_it_along(database_url, server) -> None:
    """A thread's connection is closed when the thread ends."""
    store = SqlStore(database_url)
    store.save(Task())
    assert server.connections() == 1
    reached, go_on = threading.Barrier(5), threading.Event()

    def use() -> None:
        store.save(Task())
        store.counts()
        reached.wait()
        go_on.wait()

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    reached.wait()
    assert server.connections() == 5
    go_on.set()
    for thread in threads:
        thread.join()
    until(lambda: server.connections() == 1)
    store.close()
    until(lambda: server.connections() == 0)
    assert len(store) == 5


def test_ended_threads_leave_nothing_behind(session: SessionStore) -> None:
    """Or a program that starts a thread for each request would grow for ever."""

    def references() -> int:
        gc.collect()
        return sum(isinstance(obj, weakref.ref) for obj in gc.get_objects())

    def use_threads(number: int) -> None:
        for _ in range(number):
            thread = threading.Thread(target=len, args=(session,))
            thread.start()
            thread.join()

    use_threads(10)
    before = references()
    use_threads(200)
    # Each left one at least; some come from elsewhere in this process.
    assert references() < before + 100


def test_close_lets_another_thread_finish(database_url, monkeypatch) -> None:
    """G2: a transaction goes on though its store is closed in the middle of it."""
    monkeypatch.setattr("sessionstore.fork.hooks.WAIT", 0.05)
    store = SqlStore(database_url)
    begun, closed = threading.Event(), threading.Event()

    def use() -> None:
        with store.transaction():
            store.save(Task("before"))
            begun.set()
            closed.wait(30)
            store.save(Task("after"))
        store.save(Task("later"))

    thread = threading.Thread(target=use)
    thread.start()
    begun.wait(30)
    store.close()
    closed.set()
    thread.join()
    assert [task.jobname for task in store.iter_objects()] == [
        "before",
        "after",
        "later",
    ]


def test_dropped_store_takes_its_connections_along(database_url) -> None:
    """Whoever opens store after store need not close each."""
    gc.collect()  # what other tests have left
    before = psutil.Process().num_fds()
    for _ in range(5):
        session = SessionStore(database_url)
        session.add(Task())
        session.wait(0)
        del session
    gc.collect()
    assert psutil.Process().num_fds() <= before


@pytest.mark.backends("postgresql", "mariadb")
def test_lost_idle_connection_is_replaced(database_url, server) -> None:
    """What was cut while idle is nobody's trouble, for reads as for writes."""
    session = SessionStore(database_url)
    id_ = session.add(Task())
    server.cut_all()
    assert len(session) == 1
    server.cut_all()
    session.transition(id_, State.SUBMITTED)
    server.cut_all()
    with session.transaction():
        session.add(Task())
    assert len(session) == 2


@pytest.mark.backends("postgresql", "mariadb")
def test_transaction_that_loses_its_connection_is_undone(database_url, server) -> None:
    """G2: an error is raised, and objects are as before."""
    session = SessionStore(database_url)
    first, second = Task(), Task()

    def lose() -> None:
        with session.transaction():
            session.add(first)
            server.cut_all()
            session.add(second)

    with pytest.raises(Exception, match=r"lost|closed|gone"):
        lose()
    assert first.persistent_id is second.persistent_id is None
    session.add_many([first, second])
    assert len(session) == 2


@pytest.mark.backends("postgresql", "mariadb")
def test_lost_connection_under_a_statement_of_ones_own(database_url, server) -> None:
    """G2: the block ends with the error that says retry, whoever notices it first."""
    session = SessionStore(database_url)
    task = Task()

    def lose() -> None:
        with session.transaction() as connection:
            session.add(task)
            server.cut_all()
            connection.execute(text("SELECT 1"))

    with pytest.raises(StoreUnavailableError, match="lost") as caught:
        lose()
    assert isinstance(caught.value.__cause__, DBAPIError)
    assert not caught.value.outcome_unknown
    assert task.persistent_id is None
    session.add(task)
    assert len(session) == 1


@pytest.mark.backends("postgresql", "mariadb")
def test_statement_that_the_server_ends_can_be_retried(database_url, server) -> None:
    """G2: a limit of the server's, or an administrator, is no reason to give up."""
    if MYSQLD and server.engine.dialect.name == "mysql":
        pytest.skip("MySQL limits no statement that locks rows")
    limit = {
        "postgresql": "SET statement_timeout = 100",
        "mysql": "SET max_statement_time = 0.1",
    }[server.engine.dialect.name]
    session = SessionStore(database_url)
    id_ = session.add(Task(""))

    def limited() -> None:
        with session.transaction() as connection:
            connection.execute(text(limit))
            session.transition(id_, State.SUBMITTED)

    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE store_job SET name = 'locked'"))
        with pytest.raises(StoreUnavailableError, match="has ended a statement"):
            limited()
    engine.dispose()
    assert [entry.to_state for entry in session.history(id_)] == [State.NEW]
    session.transition(id_, State.SUBMITTED)


def test_concurrent_transitions_have_one_winner(database_url, start_forked) -> None:
    """G3: of four processes that take the same tasks, one takes each."""
    session = SessionStore(database_url)
    ids = list(session.add_many(Task() for _ in range(40)))
    reader, writer = os.pipe()

    def take() -> None:
        for id_ in ids:
            try:
                session.transition(id_, State.SUBMITTED, expect=State.NEW)
            except ConflictError:
                continue
            os.write(writer, b".")

    children = [start_forked(take) for _ in range(4)]
    for child in children:
        child.wait()
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert len(pipe.read()) == 40
    assert session.counts() == {State.SUBMITTED: 40}
    for id_ in ids:
        assert len(session.history(id_)) == 2


def test_concurrent_updates_all_count(database_url, start_forked) -> None:
    """G3: read, change, write from many processes loses nothing."""
    session = SessionStore(database_url)
    id_ = session.add(Task(n=0))

    def count() -> None:
        for _ in range(15):
            with session.update(id_) as task:
                task.n += 1

    children = [start_forked(count) for _ in range(4)]
    for child in children:
        child.wait()
    task = session.load(id_)
    session.refresh(task)
    assert task.n == 60


def test_threads_share_a_session(database_url) -> None:
    """Calls are thread-safe."""
    session = SessionStore(database_url)
    errors: list[BaseException] = []

    def use() -> None:
        try:
            for number in range(15):
                id_ = session.add(Task(str(number)))
                session.transition(id_, State.SUBMITTED)
                assert session.load(id_).execution.state is State.SUBMITTED
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert session.counts() == {State.SUBMITTED: 60}


def test_threads_that_share_a_connection_take_turns(database_url: str) -> None:
    """G1: or one thread's rollback would take back what another has saved."""
    store = SqlStore(database_url, engine_options={"poolclass": StaticPool})
    store.list()
    thread = threading.Thread(target=lambda: store.save(Task("other")))
    with suppress(ZeroDivisionError), store.transaction():
        store.save(Task("mine"))
        thread.start()
        thread.join(0.1)
        raise ZeroDivisionError
    thread.join()
    assert [task.jobname for task in store.iter_objects()] == ["other"]
    store.close()


def test_watched_engine_does_the_same(database_url: str) -> None:
    """With echo, as with a tracer's events, SQLAlchemy runs the statements."""
    session = SessionStore(database_url, engine_options={"echo": True})
    id_, other = session.add(Task()), *session.add_many([Task()])
    session.transition(id_, State.SUBMITTED)
    [claim] = session.claim()
    assert (claim.id, [*session.ids()]) == (other, [id_, other])


@pytest.mark.backends("sqlite", "postgresql")
@pytest.mark.timeout(30)
def test_busy_timeout_of_nothing_does_not_wait(database_url: str) -> None:
    """To PostgreSQL 0 would mean for ever."""
    holder = SqlStore(database_url)
    id_ = holder.save(Task())
    other = SqlStore(database_url, busy_timeout=0)
    task = other.load(id_)
    with holder.transaction():
        holder.save(holder.load(id_))
        with pytest.raises(StoreUnavailableError, match="busy"):
            other.save(task)


@pytest.mark.backends("sqlite")
def test_coroutine_does_not_write_into_the_transaction_of_another(
    session: SessionStore,
) -> None:
    """G2: with that one's rollback its own write would go, which was acknowledged."""

    async def fail(is_inside: asyncio.Event, is_over: asyncio.Event) -> None:
        with pytest.raises(KeyError):
            with session.transaction():
                session.add(Task("rolled back"))
                is_inside.set()
                await is_over.wait()
                raise KeyError

    async def intrude(is_inside: asyncio.Event, is_over: asyncio.Event) -> None:
        await is_inside.wait()
        try:
            for call in (lambda: session.add(Task("lost")), session.counts):
                with pytest.raises(StoreError, match="another coroutine"):
                    call()
            await asyncio.to_thread(list, session)
        finally:
            is_over.set()

    async def both() -> None:
        events = asyncio.Event(), asyncio.Event()
        await asyncio.wait_for(asyncio.gather(fail(*events), intrude(*events)), 30)
        session.add(Task("kept"))

    asyncio.run(both())
    assert [task.jobname for task in session] == ["kept"]


@pytest.mark.backends("sqlite")
def test_transaction_takes_in_the_coroutines_that_are_run_in_it(
    session: SessionStore,
) -> None:
    """Where it is not a coroutine's, nobody else can mean another one."""

    async def add() -> None:
        session.add(Task())

    with session.transaction():
        asyncio.run(add())
        assert len(session) == 1
    assert len(session) == 1


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (scopes.Scope, "__init__"),
        (scopes.Scopes, "add"),
        (scopes.Transaction, "_end"),
        (scopes.Transaction, "_commit"),
        (scopes.Transaction, "_roll_back"),
        (scopes.Transaction, "leave"),
        (scopes.Scopes, "remove"),
        (Connections, "leave"),
        (scopes.Transaction, "__exit__"),
    ],
)
def test_no_transaction_is_left_open_whatever_a_signals_handler_interrupts(
    session: SessionStore,
    other: SessionStore,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
) -> None:
    """G3: as when Ctrl-C comes; others do not wait, and nothing is half done."""
    id_ = session.add(Task())
    run = getattr(owner, name)

    def interrupted(*arguments: Any) -> None:
        monkeypatch.setattr(owner, name, run)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt), session.transaction():
        session.transition(id_, State.SUBMITTED)
        if name != "_commit":
            raise KeyboardInterrupt
    assert other.transition(id_, State.UNKNOWN).from_state is State.NEW
    assert threading.get_ident() not in gate._inside
    session.transition(id_, State.SUBMITTED)
    assert [str(entry.to_state) for entry in other.history(id_)] == [
        "NEW",
        "UNKNOWN",
        "SUBMITTED",
    ]


@contextmanager
def interrupting(handler: Callable[[], None], after: int) -> Iterator[list[object]]:
    """Call ``handler`` once, ``after`` so many calls, as for a signal."""
    called: list[object] = []
    left = after

    def profile(frame: object, what: str, _: object) -> None:
        nonlocal left
        if what in ("call", "c_return"):
            left -= 1
            if left == 0:
                sys.setprofile(None)
                called.append(what)
                handler()

    sys.setprofile(profile)
    try:
        yield called
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("is_connected", [True, False])
def test_signals_handler_writes_or_is_refused_wherever_it_interrupts(
    session: SessionStore, database_url: str, is_connected: bool
) -> None:
    """G1, G3: nothing hangs, and what was refused is not there."""
    added = []

    def handle() -> None:
        with suppress(StoreError):
            added.append(session.add(Task("handler")))

    for after in itertools.count(1, 11 if is_connected else 151):
        if not is_connected:
            session.close()
            session = SessionStore(database_url, session.name, create=False)
            session.close()
        with interrupting(handle, after) as called:
            added.append(session.add(Task("interrupted")))
        if not called:
            break
    assert after > 50
    assert sorted(added) == sorted(session.ids())
    session.close()


@pytest.mark.parametrize(
    ("owner", "name"),
    [(KeptConnection, "end_logical_transaction"), (Connections, "leave")],
)
def test_fork_does_not_wait_for_a_read_that_a_signals_handler_interrupted(
    session: SessionStore, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    """G4: as when Ctrl-C comes at the end of a read."""
    run = getattr(owner, name)

    def interrupted(self: Any) -> None:
        monkeypatch.setattr(owner, name, run)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        len(session)
    assert threading.get_ident() not in gate._inside


@pytest.mark.backends("mariadb")
def test_answer_to_a_call_that_broke_off_is_nobodys(
    session: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G3: as when Ctrl-C comes between a statement and its answer."""
    id_ = session.add(Task())
    read = pymysql.connections.Connection._read_query_result
    statements = []

    def interrupted(self: Any, unbuffered: bool = False) -> None:
        statements.append(self)
        if len(statements) == 2:
            raise KeyboardInterrupt
        read(self, unbuffered)

    with monkeypatch.context() as patch:
        patch.setattr(pymysql.connections.Connection, "_read_query_result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.transition(id_, State.SUBMITTED)
    assert len(session) == 1
    session.transition(id_, State.SUBMITTED)
    assert [str(entry.to_state) for entry in session.history(id_)] == [
        "NEW",
        "SUBMITTED",
    ]
