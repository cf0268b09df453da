"""G4, where the matrix does not look: many at once, again and again, live objects."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import sqlite3
import threading
from contextlib import suppress
from functools import partial
from typing import ClassVar

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from sessionstore import ForkError, SessionStore, SqlStore, State, Task, protect
from sessionstore.fork import hooks


def write(store: SqlStore, number: int) -> None:
    for _ in range(number):
        store.save(Task())


def test_parent_and_four_children_write_at_once(database_url, start_forked) -> None:
    """G4, G5: no row is lost and no ID is given twice."""
    store = SqlStore(database_url)
    write(store, 3)
    children = [start_forked(lambda: write(store, 40)) for _ in range(4)]
    write(store, 40)
    for child in children:
        child.wait()
    assert len(store) == len(set(store.list())) == 203


def test_fork_while_threads_write(database_url, start_forked) -> None:
    """G4: the child's store works though other threads were in the middle of calls."""
    store = SqlStore(database_url)
    write(store, 1)
    done = threading.Event()
    written = [0, 0]

    def busy(place: int) -> None:
        while not done.is_set():
            write(store, 1)
            written[place] += 1

    threads = [threading.Thread(target=busy, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            start_forked(lambda: write(store, 2)).wait()
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert len(store) == 1 + sum(written) + 20


def test_threads_that_fork_at_once_take_turns(start_forked) -> None:
    """G4: nothing is being closed in one thread while another one forks."""

    class Watcher:
        order: ClassVar[list[str]] = []

        def before_fork(self) -> None:
            self.order.append("before")
            if not closing.is_set():
                closing.set()
                forking.wait(0.5)
            forking.set()

        def after_in_parent(self) -> None:
            self.order.append("after")

        def after_in_child(self) -> None: ...

    def fork() -> None:
        start_forked(lambda: None).wait()

    closing, forking = threading.Event(), threading.Event()
    watcher = Watcher()
    hooks.watchers.add(watcher)
    try:
        thread = threading.Thread(target=fork)
        thread.start()
        closing.wait()
        fork()
        thread.join()
    finally:
        hooks.watchers.discard(watcher)
    assert watcher.order == ["before", "after"] * 2


@pytest.mark.parametrize("how", ["returned", "disposed of", "dropped"])
def test_no_connection_is_being_closed_at_a_fork(how, tmp_path, start_forked) -> None:
    """G4: a child does not inherit the locks that SQLite has while it closes a file."""
    order = []
    closing, forked = threading.Event(), threading.Event()

    class Slow(sqlite3.Connection):
        def close(self) -> None:
            closing.set()
            forked.wait(0.5)
            super().close()
            order.append("closed")

    url, arguments = f"sqlite:///{tmp_path}/slow.db", {"factory": Slow}

    def use() -> None:
        if how == "dropped":
            SqlStore(url, engine_options={"connect_args": arguments}).list()
            gc.collect()
            return
        pool = NullPool if how == "returned" else None
        engine = protect(create_engine(url, connect_args=arguments, poolclass=pool))
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        engine.dispose()

    thread = threading.Thread(target=use)
    thread.start()
    closing.wait()
    child = start_forked(SqlStore(url).count)
    order.append("forked")
    forked.set()
    assert child.wait() == 0
    thread.join()
    assert order[0] == "closed"


def test_threads_wait_while_one_does_the_childs_part_late(
    database_url, start_forked
) -> None:
    """G4: after a fork from C, no thread meets a store that is not disowned yet."""
    stores = [SqlStore(database_url, table_name=name) for name in ("one", "two")]
    for store in stores:
        write(store, 1)
        store.pre_fork()

    def child() -> None:
        threads: list[threading.Thread] = []
        half_way, disowned, written = (threading.Event() for _ in range(3))

        def write_around(store: SqlStore) -> None:
            with store.transaction():
                write(store, 1)
                half_way.set()
                disowned.wait()
                write(store, 1)
            written.set()

        def while_disowning(other: SqlStore) -> None:
            if not threads:
                threads.append(threading.Thread(target=write_around, args=(other,)))
                threads[0].start()
                half_way.wait(0.5)

        for store, other in (stores, reversed(stores)):
            store._objects.database.on_reset.append(partial(while_disowning, other))
        # As uWSGI does it: Python is not told, and the forking thread has the GIL.
        pid = ctypes.PyDLL(None).fork()
        if pid:
            assert os.waitpid(pid, 0)[1] == 0
            return
        signal.alarm(30)
        stores[0].list()
        disowned.set()
        threads[0].join()
        os._exit(0 if written.is_set() else 1)

    start_forked(child).wait()
    assert sum(len(store) for store in stores) == 4


def test_child_goes_on_without_a_word(database_url, start_forked, caplog) -> None:
    """G4: what happens to the parent's connections is nothing to log in each child."""
    store = SqlStore(database_url)

    def child() -> None:
        write(store, 1)
        pid = ctypes.PyDLL(None).fork()
        if pid:
            assert os.waitpid(pid, 0)[1] == 0
            return
        signal.alarm(30)
        with suppress(ForkError):
            write(store, 1)
        gc.collect()
        os._exit(len(caplog.records))

    start_forked(child).wait()


def test_fork_without_a_descriptor_left(database_url, run_forked) -> None:
    """G4, G5: the child gives the parent's connection up by that connection's own."""

    def parent() -> tuple[int, list[int]]:
        store = SqlStore(database_url)
        store.save(Task())
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        taken = []
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        child = os.fork()
        for descriptor in taken:
            os.close(descriptor)
        if child == 0:
            status = 1
            try:
                store.save(Task())
                status = 0
            finally:
                os._exit(status)
        status = os.waitpid(child, 0)[1]
        store.save(Task())
        return status, store.list()

    status, ids = run_forked(parent)
    assert status == 0
    first, second, childs = sorted(ids)
    assert (first, second) == (1, 2)
    assert childs > 3  # of a block of its own


def test_callers_statement_is_refused_after_a_fork_from_c(
    database_url, start_forked
) -> None:
    """G4: the connection that a transaction yields is the parent's, hooks or not."""
    store = SqlStore(database_url)

    def parent() -> None:
        with store.transaction() as connection:
            store.save(Task("before"))
            pid = ctypes.PyDLL(None).fork()
            if pid == 0:
                signal.alarm(30)
                try:
                    connection.execute(text("DELETE FROM store"))
                except ForkError:
                    os._exit(0)
                os._exit(1)
            assert os.waitpid(pid, 0)[1] == 0
            store.save(Task("after"))

    start_forked(parent).wait()
    assert len(store) == 2


def test_engine_that_is_in_use_already_can_be_protected(
    database_url, run_forked
) -> None:
    """G4: connections that were opened before are watched as later ones are."""
    engine = create_engine(database_url)
    idle, busy = engine.connect(), engine.connect()
    busy.execute(text("CREATE TABLE t (a INTEGER)"))
    busy.execute(text("INSERT INTO t VALUES (1)"))
    idle.close()
    protect(engine)

    def child() -> None:
        with pytest.raises(ForkError):
            busy.execute(text("INSERT INTO t VALUES (2)"))

    run_forked(child)
    busy.commit()
    assert busy.execute(text("SELECT a FROM t")).all() == [(1,)]
    busy.close()
    engine.dispose()


def test_in_memory_database_that_is_open_already_can_be_protected(run_forked) -> None:
    """G4: the child would go on with a copy that nobody else sees."""
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (a INTEGER)"))
    protect(engine)

    def child() -> None:
        with pytest.raises(ForkError):
            engine.connect()

    run_forked(child)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO t VALUES (1)"))


def test_objects_of_an_inherited_transaction_are_not_trusted(
    database_url, start_forked
) -> None:
    """G4: in the child, what the open transaction touched is as if never written."""
    session = SessionStore(database_url)
    kept, touched = Task("kept"), Task("touched")
    session.add_many([kept, touched])

    def child() -> None:
        assert session.store._objects.identities._live.get(kept.persistent_id) is kept
        assert (
            session.store._objects.identities._live.get(touched.persistent_id) is None
        )
        assert touched.execution.state is State.NEW

    with session.transaction():
        session.save(touched)
        session.transition(touched.persistent_id, State.SUBMITTED)
        start_forked(child).wait()
    assert touched.execution.state is State.SUBMITTED
