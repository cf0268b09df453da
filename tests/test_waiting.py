"""Waiting for a change: soon, without missing any, and for next to nothing."""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from collections.abc import Callable

import pytest

from sessionstore import SessionStore, State, StoreError, StoreUnavailableError, Task
from sessionstore.database.kept import KeptConnection
from sessionstore.testing import Child
from tests.unreliable import Proxy


@pytest.fixture
def session(database_url: str) -> SessionStore:
    """A session that this thread watches."""
    session = SessionStore(database_url, "one")
    session.wait(0)
    return session


@pytest.fixture
def other(session: SessionStore, database_url: str) -> SessionStore:
    """The same session, as another process would open it."""
    return SessionStore(database_url, "one", create=False)


def until_quiet(session: SessionStore) -> None:
    """Have all that has happened be seen."""
    deadline = time.monotonic() + 20
    while session.wait(0.1):
        assert time.monotonic() < deadline


def test_every_change_is_reported(session: SessionStore, other: SessionStore) -> None:
    """What came between two calls is told by the second, and nothing else is."""
    changes: list[Callable[[], object]] = [
        lambda: other.add_many([Task(), Task()]),
        lambda: other.transition(1, State.SUBMITTED),
        lambda: other.save(other.load(1)),
        lambda: other.request(1, "hold"),
        lambda: other.claim()[0].release(),
        lambda: other.forget(2),
        lambda: other.remove(1),
    ]
    until_quiet(session)
    for change in changes:
        change()
        assert session.wait(20)
        until_quiet(session)


def test_change_rolled_back_or_elsewhere_is_none(
    session: SessionStore, other: SessionStore, backend: str
) -> None:
    """But on SQLite, which knows of its file only."""
    until_quiet(session)
    with pytest.raises(KeyError):
        with other.transaction():
            other.add(Task())
            raise KeyError
    assert not session.wait(0.1)
    SessionStore(other.store, "two").add(Task())
    assert session.wait(0.2) is (backend == "sqlite")


def test_wait_ends_soon_after_the_change(
    session: SessionStore, other: SessionStore
) -> None:
    """Half of the changes are heard of within 50 ms."""
    id_ = other.add(Task())
    until_quiet(session)
    delays = []
    for what in 8 * ["hold", "resume"]:
        changed_at: list[float] = []

        def change(what: str, changed_at: list[float]) -> None:
            other.request(id_, what)
            changed_at.append(time.monotonic())

        thread = threading.Timer(0.05, change, (what, changed_at))
        thread.start()
        assert session.wait(20)
        heard_at = time.monotonic()
        thread.join()
        delays.append(heard_at - changed_at[0])
        until_quiet(session)
    assert statistics.median(delays) < 0.05


def test_signal_ends_the_wait(session: SessionStore) -> None:
    """After its handler has run; whoever else wanted to hear of it does so too."""
    noted: list[int] = []
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.signal(signal.SIGUSR1, lambda number, _: noted.append(number))
    old = signal.set_wakeup_fd(writer)
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
    until_quiet(session)
    try:
        timer.start()
        started_at = time.monotonic()
        assert session.wait(30) is False
        assert time.monotonic() - started_at < 20
        assert noted == [signal.SIGUSR1]
        assert os.read(reader, 10) == bytes(noted)
        assert signal.set_wakeup_fd(old) == writer
    finally:
        signal.set_wakeup_fd(old)
        signal.signal(signal.SIGUSR1, before)
        timer.join()
        os.close(reader)
        os.close(writer)


def test_signal_from_just_before_ends_the_wait(session: SessionStore) -> None:
    """It came when its caller had looked already, and must not wait for the timeout."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.signal(signal.SIGUSR1, lambda number, _: None)
    old = signal.set_wakeup_fd(writer)
    until_quiet(session)
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        started_at = time.monotonic()
        assert session.wait(30) is False
        assert time.monotonic() - started_at < 20
        assert os.read(reader, 10) == bytes([signal.SIGUSR1])
        assert session.wait(0.2) is False
        assert time.monotonic() - started_at >= 0.2
    finally:
        signal.set_wakeup_fd(old)
        signal.signal(signal.SIGUSR1, before)
        os.close(reader)
        os.close(writer)


def test_handlers_exception_comes_through(session: SessionStore) -> None:
    """As from any call that waits."""

    def handle(number: int, frame: object) -> None:
        raise KeyError(number)

    before = signal.signal(signal.SIGUSR1, handle)
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
    try:
        with pytest.raises(KeyError):
            timer.start()
            while True:
                session.wait(30)
    finally:
        signal.signal(signal.SIGUSR1, before)
        timer.join()


def test_parent_and_child_both_wait(
    session: SessionStore, other: SessionStore, start_forked: Callable[..., Child]
) -> None:
    """G4: each on a connection of its own, and both hear of the change."""
    until_quiet(session)
    reader, writer = os.pipe()

    def wait() -> None:
        session.wait(0)
        until_quiet(session)
        os.write(writer, b".")
        assert session.wait(30)

    children = [start_forked(wait) for _ in range(2)]
    for _ in children:
        os.read(reader, 1)
    other.add(Task())
    for child in children:
        child.wait()
    assert session.wait(30)


def test_threads_wait_each_for_itself(
    session: SessionStore, other: SessionStore
) -> None:
    """What one has seen the other has not."""
    heard = []
    ready = threading.Barrier(3)

    def wait() -> None:
        session.wait(0)
        until_quiet(session)
        ready.wait(30)
        heard.append(session.wait(30))

    threads = [threading.Thread(target=wait) for _ in range(2)]
    for thread in threads:
        thread.start()
    ready.wait(30)
    other.add(Task())
    for thread in threads:
        thread.join()
    assert heard == [True, True]


def test_closed_store_is_watched_anew(
    session: SessionStore, other: SessionStore
) -> None:
    """G4: pre_fork closes what it listens on too, and what came meanwhile is told."""
    until_quiet(session)
    session.store.pre_fork()
    other.add(Task())
    assert session.wait(20)
    until_quiet(session)
    other.add(Task())
    assert session.wait(20)


def test_change_after_a_lost_connection_is_told(
    session: SessionStore, other: SessionStore
) -> None:
    """A call that says that something may have come watches on at once."""
    until_quiet(session)
    session.store.pre_fork()
    session.wait(0)
    other.add(Task())
    assert session.wait(20)


@pytest.mark.backends("postgresql", "mariadb")
def test_change_while_the_database_was_away_is_told(
    database_url: str, other: SessionStore
) -> None:
    """The first call that reaches it again says that something may have come."""
    proxy = Proxy(database_url)
    session = SessionStore(proxy.url, "one")
    session.wait(0)
    proxy.refusals = 1000
    proxy.cut()
    with pytest.raises(StoreUnavailableError):
        session.wait(20)
    proxy.refusals = 0
    proxy.cut()
    other.add(Task())
    assert session.wait(20)
    session.close()
    proxy.close()


@pytest.mark.backends("postgresql")
def test_psycopg2_listens_too(session: SessionStore, database_url: str) -> None:
    """On either driver, whichever the others use."""
    url = database_url.replace("+psycopg:", "+psycopg2:")
    second = SessionStore(url, "one")
    second.wait(0)
    until_quiet(second)
    session.add(Task())
    assert second.wait(20)
    until_quiet(session)
    second.add(Task())
    assert session.wait(20)


@pytest.mark.backends("sqlite")
def test_memory_is_watched_too(backend: str) -> None:
    """All threads share one connection, which sees its own changes."""
    session = SessionStore("sqlite://")
    session.wait(0)
    until_quiet(session)
    thread = threading.Thread(target=session.add, args=(Task(),))
    thread.start()
    assert session.wait(20)
    thread.join()


def test_waiting_inside_a_transaction_is_refused(session: SessionStore) -> None:
    """It would keep everybody from changing anything."""
    with session.transaction(), pytest.raises(StoreError, match="transaction"):
        session.wait(1)


def test_waiting_costs_next_to_nothing(
    session: SessionStore, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks 40 times in a second, or never where the server tells; one query each.

    What such a look takes depends on the machine; ``make bench`` measures it.
    """
    until_quiet(session)
    looks: list[object] = []
    database = session._index.database
    read = database.read

    def look(work: Callable[[KeptConnection], object]) -> object:
        looks.append(work)
        return read(work)

    monkeypatch.setattr(database, "read", look)
    started_at = time.process_time()
    session.wait(2)
    assert len(looks) <= (2 if backend == "postgresql" else 85)
    # No loop goes on and on in between.
    assert (time.process_time() - started_at) / 2 < 0.3
