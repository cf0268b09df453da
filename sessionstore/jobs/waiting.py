"""Waiting until something changes in a session."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import termios
import threading
import time
import weakref
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from sqlalchemy import text

from sessionstore.database.access import Database
from sessionstore.database.dialects import Telling
from sessionstore.database.kept import KeptConnection
from sessionstore.database.statements import Statement
from sessionstore.errors import StoreError, StoreUnavailableError
from sessionstore.fork import hooks
from sessionstore.fork.inherited import descriptor_of
from sessionstore.jobs.index import Index

__all__ = ["Waiting"]

#: Seconds between two looks where nobody tells of changes; half of it is the median
#: delay.  A look takes up to 0.2 ms of a core for a file, and 0.5 ms where a server is
#: asked, as the CPU's caches are cold after each pause.  Waiting is to take less
#: than 1 % of a core.
INTERVAL_OF_FILE = 0.04
INTERVAL_OF_COUNTER = 0.06
#: The most seconds that poll() is given: it takes an int of milliseconds.
_LONG = 86_400.0


class Watch(Protocol):
    """What one thread has seen of a session's changes."""

    #: Readable when there may be something new; None where nobody tells of changes.
    descriptor: int | None
    #: Seconds until the next look, if nobody tells of anything sooner.
    interval: float

    def look(self) -> bool:
        """Say whether something has changed since the last look."""


class Waiting:
    """Waits for changes of one session.

    What was seen is noted for each thread, so that none misses what came while it was
    busy with the changes before.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._database = index.database
        self._data_version = Statement(text("PRAGMA data_version"))
        self._thread = _ThreadState()

    def wait(self, timeout: float) -> bool:
        """Wait for a change, or a signal, or until the time is over."""
        if self._database.scope is not None:
            raise StoreError(
                "wait() inside a transaction would block every other writer; leave "
                "the transaction block first"
            )
        until = time.monotonic() + timeout
        state = self._thread
        if state.pid != os.getpid():
            # What a fork brought along is the parent's, and so is its connection.
            state.watch, state.has_missed, state.pid = None, False, os.getpid()
        if state.watch is None:
            state.watch = self._begin()
            if state.has_missed:
                state.has_missed = False
                return True
        watch = state.watch
        try:
            return self._watch(watch, until)
        except StoreUnavailableError:
            # Whatever happened while the connection was away.
            state.watch, state.has_missed = None, True
            if watch.descriptor is None:
                raise
        # At once: the caller looks at the session now, and the next call tells what
        # comes after that.
        return self.wait(0)

    def _watch(self, watch: Watch, until: float) -> bool:
        with _signals() as (signalled, has_come):
            poll = select.poll()
            for descriptor in (watch.descriptor, signalled):
                if descriptor is not None:
                    poll.register(descriptor, select.POLLIN)
            while not watch.look():
                left = until - time.monotonic()
                if left <= 0 or has_come:
                    return False
                ready = poll.poll(min(left, watch.interval) * 1000)
                if any(descriptor == signalled for descriptor, _ in ready):
                    return watch.look()
            return True

    def _begin(self) -> Watch:
        database, index = self._database, self._index
        telling = database.settings.telling
        if telling is Telling.NOTIFY:
            return _Listening(database, index.changes.channel(index.id))
        if telling is Telling.COUNTER:
            return _Polling(
                lambda: database.read(lambda k: index.changes.count(k, index.id)),
                INTERVAL_OF_COUNTER,
            )
        return _Polling(lambda: database.read(self._look_at_file), INTERVAL_OF_FILE)

    def _look_at_file(self, kept: KeptConnection) -> object:
        # What others have committed changes the one (sqlite.org/pragma.html), what
        # was done on this connection the other.  Both are this connection's own, and
        # on another one, as after a fork, something may have changed.
        version = kept.row(self._data_version)
        return weakref.ref(kept), version, getattr(kept.driver, "total_changes", 0)


class _ThreadState(threading.local):
    watch: Watch | None = None
    #: Whether a watch broke off, and no other has begun since.
    has_missed = False
    pid = 0


class _Polling:
    """Compares a value that is another one after each change."""

    descriptor: int | None = None

    def __init__(self, value: Callable[[], object], interval: float) -> None:
        self.interval = interval
        self._value = value
        self._seen = value()

    def look(self) -> bool:
        before, self._seen = self._seen, self._value()
        return self._seen != before


class _Listening:
    """Listens on PostgreSQL, on a connection of its own.

    The engine's fork guard knows that connection as it knows all others.
    """

    interval = _LONG

    def __init__(self, database: Database, channel: str) -> None:
        with hooks.gate.inside():
            self._kept = database.connections.open()
            self._kept.command(f"LISTEN {channel}")
        self.descriptor: int | None = descriptor_of(self._kept.driver)

    def look(self) -> bool:
        with hooks.gate.inside():
            return bool(self._kept.notifications())


@contextmanager
def _signals() -> Iterator[tuple[int | None, bool]]:
    """Yield a descriptor that is readable once a signal has come, and whether one has.

    Python goes on waiting when a signal's handler has returned (PEP 475), but a handler
    that only makes a note relies on the wait to end.  The descriptor is None in any
    other thread than the main one, as no handler runs there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield None, False
        return
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader, _is_unread(before)
    finally:
        signal.set_wakeup_fd(before, warn_on_full_buffer=False)
        _pass_on(reader, before)
        os.close(reader)
        os.close(writer)


def _is_unread(descriptor: int) -> bool:
    """Say whether there is something to read in the caller's own wakeup descriptor.

    Such a signal came after the caller had looked there, and before we watched.
    """
    # We have the end that is written to.  Linux counts the unread bytes here too; other
    # systems say 0.
    count = array("i", [0])
    try:
        fcntl.ioctl(descriptor, termios.FIONREAD, count)
    except (OSError, ValueError):  # there is none, or it cannot tell
        return False
    return count[0] > 0


def _pass_on(reader: int, to: int) -> None:
    # Whoever set the descriptor before has to be woken too.
    try:
        came = os.read(reader, 4096)
        if to != -1:
            os.write(to, came)
    except OSError:  # nothing came, or nobody reads what did
        return
