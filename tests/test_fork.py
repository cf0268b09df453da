"""G4: parent and children go on after a fork, each on connections of its own."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from functools import partial

import daemon
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from sessionstore import ForkError, SessionStore, SqlStore, State, Task, protect


def write(store: SqlStore, number: int) -> None:
    for _ in range(number):
        store.save(Task())


def test_parent_and_four_children_write_at_once(database_url, fork) -> None:
    """G4, G5: no row is lost and no ID is given twice."""
    store = SqlStore(database_url)
    write(store, 3)
    children = [fork(lambda: write(store, 40)) for _ in range(4)]
    write(store, 40)
    for child in children:
        child.wait()
    assert len(store) == len(set(store.list())) == 203


def test_grandchild_writes(database_url, fork) -> None:
    """G4: after nested forks all three generations write."""
    store = SqlStore(database_url)
    write(store, 1)

    def child() -> None:
        write(store, 5)
        grandchild = fork(lambda: write(store, 5))
        write(store, 5)
        grandchild.wait()

    running = fork(child)
    write(store, 5)
    running.wait()
    assert len(store) == 21


def test_inherited_transaction_is_refused(database_url, fork) -> None:
    """G4: the child's use of it is ForkError, and the parent's commit holds all."""
    store = SqlStore(database_url)

    def child() -> None:
        with pytest.raises(ForkError):
            store.save(Task())
        with pytest.raises(ForkError):
            len(store)

    with store.transaction() as connection:
        store.save(Task("before"))
        fork(child).wait()
        connection.execute(text("SELECT 1"))
        store.save(Task("after"))
    assert len(store) == 2


def test_exception_unwinds_an_inherited_block(database_url, fork) -> None:
    """G4: SystemExit passes through, and nothing reaches the parent's transaction."""
    store = SqlStore(database_url)
    parent = os.getpid()
    children = []

    def body() -> None:
        with store.transaction():
            store.save(Task("before"))

            def in_child() -> None:
                raise SystemExit(3)

            children.append(os.fork())
            if os.getpid() != parent:
                in_child()
            assert os.waitpid(children[0], 0)[1] == 3 << 8
            store.save(Task("after"))

    try:
        body()
    except SystemExit as error:
        os._exit(int(str(error.code)))
    assert len(store) == 2


def test_normal_end_of_an_inherited_block_is_refused(database_url) -> None:
    """G4: the child cannot commit what its parent began."""
    store = SqlStore(database_url)
    parent = os.getpid()
    pid = 0
    try:
        with store.transaction():
            store.save(Task())
            pid = os.fork()
            if pid:
                assert os.waitpid(pid, 0)[1] == 0
    except ForkError:
        os._exit(0 if os.getpid() != parent else 1)
    if os.getpid() != parent:
        os._exit(2)
    assert len(store) == 1


def test_fork_while_threads_write(database_url, fork) -> None:
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
            fork(lambda: write(store, 2)).wait()
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert len(store) == 1 + sum(written) + 20


def test_threads_wait_while_one_does_the_childs_part_late(database_url, fork) -> None:
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

    fork(child).wait()
    assert sum(len(store) for store in stores) == 4


def test_child_goes_on_without_a_word(database_url, fork, caplog) -> None:
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

    fork(child).wait()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_hands_the_store_over(database_url, method) -> None:
    """G4: a store is an argument of a process by all three methods."""
    store = SqlStore(database_url)
    write(store, 1)
    context = multiprocessing.get_context(method)
    processes = [context.Process(target=write, args=(store, 5)) for _ in range(2)]
    for process in processes:
        process.start()
    write(store, 5)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(store) == 16


def test_protected_engine_works_on_both_sides(database_url, fork) -> None:
    """G4: a user's own engine is as safe as a store's."""
    engine = protect(create_engine(database_url))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (x INTEGER)"))

    def add() -> None:
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO t VALUES (1)"))

    children = [fork(add) for _ in range(3)]
    add()
    for child in children:
        child.wait()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM t")).scalar() == 4
    engine.dispose()


def test_inherited_connection_of_a_protected_engine_is_refused(
    database_url, fork
) -> None:
    """G4: using it is ForkError; the parent's transaction lives on."""
    engine = protect(create_engine(database_url))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (x INTEGER)"))
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO t VALUES (1)"))

        def child() -> None:
            with pytest.raises(ForkError):
                connection.execute(text("INSERT INTO t VALUES (2)"))

        fork(child).wait()
        connection.execute(text("INSERT INTO t VALUES (3)"))
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT x FROM t ORDER BY x")).scalars().all()
    assert rows == [1, 3]
    engine.dispose()


def test_store_outlives_becoming_a_daemon(database_url, tmp_path, fork) -> None:
    """G4: python-daemon closes every descriptor; pre_fork() before it is enough."""
    store = SqlStore(database_url)
    write(store, 1)
    done = tmp_path / "done"

    def become_daemon() -> None:
        # pytest's stand-ins have no descriptors to redirect.
        sys.stdin, sys.stdout, sys.stderr = (
            sys.__stdin__,
            sys.__stdout__,
            sys.__stderr__,
        )
        store.pre_fork()
        with daemon.DaemonContext(detach_process=True, signal_map={}):
            write(store, 5)
            done.write_text("yes")
            os._exit(0)

    fork(become_daemon).wait()
    write(store, 5)
    for _ in range(500):
        if done.exists():
            break
        time.sleep(0.02)
    assert len(store) == 11


def test_objects_of_an_inherited_transaction_are_not_trusted(
    database_url, fork
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
        fork(child).wait()
    assert touched.execution.state is State.SUBMITTED


@pytest.mark.parametrize("protected", [True, False])
@pytest.mark.backends("postgresql", "mariadb")
def test_garbage_in_the_child_harms_only_unprotected_parents(
    database_url, fork, protected
) -> None:
    """G4: without protection the child's garbage collection ends the transaction."""
    engine = create_engine(database_url)
    if protected:
        protect(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (x INTEGER)"))
    holder = [engine.connect()]
    holder[0].execute(text("INSERT INTO t VALUES (1)"))

    def child() -> None:
        if not protected:
            engine.dispose(close=False)
        holder.clear()
        gc.collect()

    fork(child).wait()
    survived = True
    try:
        holder[0].execute(text("INSERT INTO t VALUES (2)"))
        holder[0].commit()
    except DBAPIError:
        survived = False
        holder[0].invalidate()
    with create_engine(database_url, poolclass=NullPool).connect() as connection:
        rows = connection.execute(text("SELECT x FROM t ORDER BY x")).scalars().all()
    assert (survived and rows == [1, 2]) is protected
    holder[0].close()
    engine.dispose()


@pytest.mark.backends("sqlite")
def test_memory_database_is_refused_in_the_child(fork, backend) -> None:
    """G4: an in-memory database stays the parent's."""
    store = SqlStore("sqlite://")
    write(store, 2)

    def child() -> None:
        with pytest.raises(ForkError, match="in-memory"):
            store.save(Task())

    fork(child).wait()
    write(store, 1)
    assert len(store) == 3
