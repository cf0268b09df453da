"""The engine, and the connection that each thread keeps.

A kept connection is in the driver's autocommit mode: a read is one round trip, and
``access`` begins a write in the way that its database wants.  It belongs to one
process and one thread.  A forked child opens another, and it is closed when its
thread ends.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, ExceptionContext, create_engine
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool, StaticPool

from sessionstore.database import dialects, silence
from sessionstore.database.failures import ConnectionLostError, translated
from sessionstore.database.kept import INTERRUPTING, KeptConnection
from sessionstore.errors import (
    ConfigurationError,
    SessionStoreError,
    StoreError,
    StoreUnavailableError,
)
from sessionstore.fork import hooks
from sessionstore.fork.guard import Guard, is_in_memory

__all__ = ["Connections"]

#: Seconds that a login takes at most if it is cut off, and not waited for in vain.
MOMENT = 1


class _ThreadState(threading.local):
    kept: KeptConnection | None = None
    life: object = None
    is_opening: bool = False


class _ThreadLife:
    """Dies with its thread."""


def _weakly(method: Callable[..., None]) -> Callable[..., None]:
    """Return a function that calls a method for as long as its object lives.

    SQLAlchemy keeps an engine's pool, and the listeners on it, for as long as a
    connection is checked out.  Ours are checked out until the object that keeps them is
    gone, which the listeners must not prevent.
    """
    reference = weakref.WeakMethod(method)

    def call(*arguments: Any) -> None:
        method = reference()
        if method is not None:
            method(*arguments)

    return call


class Connections:
    """One engine, and its connections of all threads of this process.

    ``on_end`` is called before SQLAlchemy commits or rolls back a connection,
    ``on_abort`` when a caller's own statement met a deadlock, and ``reset`` in a
    forked child, to drop what else must not cross a fork.
    """

    def __init__(
        self,
        url: URL,
        *,
        options: dialects.Options,
        engine_options: Mapping[str, Any] | None,
        on_end: Callable[[Connection], None],
        on_abort: Callable[[Connection, BaseException, str], None],
        reset: Callable[[], None],
    ) -> None:
        self.url = dialects.absolute(url)
        self._options = options
        self._engine_options = dict(engine_options or {})
        self._on_end = on_end
        self._on_abort = on_abort
        self._reset = reset
        self._open_engine()

    def _open_engine(self) -> None:
        dialect = dialects.load_dialect(self.url)
        self.settings = dialects.settings_of(dialect)
        self.is_in_memory = is_in_memory(dialect, self.url)
        keywords: dict[str, Any] = {
            "poolclass": StaticPool if self.is_in_memory else NullPool,
            # Payloads and passwords must not show in the text of an exception.
            "hide_parameters": True,
        }
        if self.settings.begin is not None:
            keywords["isolation_level"] = "AUTOCOMMIT"
            keywords["skip_autocommit_rollback"] = True
            _refuse_isolation(self._engine_options)
        keywords.update(self._engine_options)
        if dialect.name == "sqlite":
            # A fork closes the connections of all threads.
            keywords["connect_args"] = {
                **keywords.get("connect_args", {}),
                "check_same_thread": False,
            }
        try:
            self.engine = create_engine(self.url, **keywords)
        except (ArgumentError, TypeError, ImportError) as error:
            raise ConfigurationError(
                f"cannot use the database URL {self.url!r}: {error}"
            ) from error
        self._start_anew()
        for name in ("commit", "rollback"):
            event.listen(self.engine, name, self._on_end)
        event.listen(self.engine, "handle_error", _weakly(self._on_error))
        event.listen(self.engine, "connect", _weakly(self._configure))
        event.listen(self.engine, "do_connect", _weakly(self._before_connect))
        self._guard = Guard(
            self.engine,
            close_idle=_weakly(self._close_idle),
            reset=_weakly(self._reset_in_child),
            connect=self.settings.connect,
        )

    def _start_anew(self) -> None:
        #: Those of threads, and all that are open.
        self._kept: dict[int, KeptConnection] = {}
        self._opened: dict[int, weakref.ref[KeptConnection]] = {}
        self._thread = _ThreadState()
        # Where all threads share one connection, as an in-memory database's, one of
        # them at a time may use it.
        is_shared = isinstance(self.engine.pool, StaticPool)
        self._turn = threading.RLock() if is_shared else None

    def _before_connect(
        self, dialect: Any, record: Any, arguments: list[Any], keywords: dict[str, Any]
    ) -> None:
        if dialect.name == "sqlite" and not self.is_in_memory:
            dialects.prepare_sqlite_file(
                str(arguments[0]),
                is_uri=bool(keywords.get("uri")),
                create=self._options.create,
            )
        # What the user chose is in there already.
        ours = silence.connect_options(dialect.driver, self._options.busy_timeout)
        for name, value in ours.items():
            keywords.setdefault(name, value)

    def _configure(self, connection: Any, record: Any) -> None:
        driver = self.engine.dialect.driver
        silence.watch(driver, connection, self._options.busy_timeout)
        cursor = connection.cursor()
        try:
            self.settings.on_connect(cursor, self._options)
        finally:
            cursor.close()

    def _on_error(self, context: ExceptionContext) -> None:
        error, settings = context.original_exception, self.settings
        is_deadlock = dialects.matches(
            dialects.error_code(error), settings.deadlock_codes
        )
        if context.connection and settings.begin and is_deadlock:
            self._on_abort(context.connection, error, settings.begin)

    def enter(self) -> None:
        """Pass the fork gate before a call; ``leave`` has to follow it."""
        # In this order: whoever waits for a turn must not be inside the gate.
        if self._turn is not None:
            self._turn.acquire()
        hooks.gate.enter()

    def leave(self) -> None:
        """End what ``enter`` began."""
        hooks.gate.leave()
        if self._turn is not None:
            self._turn.release()

    @property
    def busy_timeout(self) -> float:
        """Seconds to wait for whatever keeps the database from answering."""
        return self._options.busy_timeout

    def has_one(self) -> bool:
        """Say whether this thread has a connection that was used before."""
        kept = self._thread.kept
        return kept is not None and kept.is_open

    def may_be_dead(self) -> bool:
        """Say whether the server seems to have closed this thread's connection."""
        kept = self._thread.kept
        return kept is not None and kept.is_open and kept.may_be_dead()

    def of_thread(self) -> KeptConnection:
        """Return this thread's connection, opened if need be."""
        self._guard.check()
        kept = self._thread.kept
        if kept is not None:
            kept.refuse_interruption()
            if kept.is_open and not kept.is_outdated:
                return kept
            self.discard(kept)
        kept = self.open()
        thread = threading.get_ident()
        self._thread.kept = self._kept[thread] = kept
        if self._thread.life is None:
            # The thread's own storage must not hold the only reference: a forked
            # child frees the other threads' storage before any hook runs there.
            self._thread.life = _ThreadLife()
            ending = weakref.finalize(
                self._thread.life,
                _thread_ended,
                weakref.ref(self),
                thread,
                os.getpid(),
            )
            ending.atexit = False
        return kept

    def open(self) -> KeptConnection:
        """Return a new connection, which is the caller's to close."""
        if self._thread.is_opening:  # SQLAlchemy would wait for its own lock
            raise StoreError(INTERRUPTING)
        began_at = time.monotonic()
        try:
            self._thread.is_opening = True
            with translated(self.url, self.settings):
                kept = KeptConnection(
                    self.engine.connect(), self.settings, self.url, self._options
                )
        except ConnectionLostError as error:
            # A login that is cut off is tried again; to wait once more is of no use.
            if time.monotonic() - began_at < MOMENT:
                raise
            raise StoreUnavailableError(
                f"{self.url!r} cannot be reached: it accepted the connection and then "
                "sent nothing; check that the database server is running there"
            ) from error.__cause__
        except SessionStoreError:
            raise
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            # The driver cannot use the URL: an unknown option, a certificate that does
            # not exist, a NUL in a path; or it lacks a package, as PyMySQL does for
            # MySQL's passwords without TLS.
            raise ConfigurationError(
                f"cannot connect to {self.url!r}: {error}; check the URL"
            ) from error
        finally:
            self._thread.is_opening = False
        opened, key = self._opened, id(kept)
        opened[key] = weakref.ref(kept, lambda _: opened.pop(key, None))
        return kept

    def discard(self, kept: KeptConnection) -> None:
        """Close a connection and forget it."""
        for thread, other in list(self._kept.items()):
            if other is kept:
                del self._kept[thread]
        if self._thread.kept is kept:
            self._thread.kept = None
        kept.close()

    def dispose(self) -> None:
        """Close the connections of all threads; the next call opens one.

        A connection that another thread does not give up in time is closed at that
        thread's next call.
        """
        with hooks.gate.closed(hooks.WAIT):
            for reference in list(self._opened.values()):
                kept = reference()
                if kept is not None and kept.is_busy:
                    kept.is_outdated = True
                elif kept is not None:
                    self.discard(kept)
            self.engine.dispose()

    def _thread_ended(self, thread: int) -> None:
        # Without ``_thread``, which the ending thread would make anew, and nobody would
        # ever free that.
        kept = self._kept.get(thread)
        if kept is not None:
            with hooks.gate.inside():  # while it waits there, the fork closes it
                self._kept.pop(thread, None)
                kept.close()

    # At a fork

    def _close_idle(self) -> None:
        for kept in list(self._kept.values()):
            if not kept.is_busy:
                dialects.close_soon(kept.driver)
                self.discard(kept)

    def _reset_in_child(self) -> None:
        self._start_anew()
        self._reset()
        # Another thread was making the first connection, so that SQLAlchemy's dialect
        # stays half set up.
        if self._guard.half_initialised and self._guard.refusal is None:
            self._open_engine()


def _refuse_isolation(engine_options: Mapping[str, Any]) -> None:
    # In any other level the driver would begin a transaction that nobody commits: what
    # was saved would be lost.
    for options in (engine_options, engine_options.get("execution_options", {})):
        level = options.get("isolation_level", "AUTOCOMMIT")
        if level != "AUTOCOMMIT":
            raise ConfigurationError(
                f"engine_options cannot have isolation_level={level!r}: a store "
                "chooses the isolation level of its transactions itself; leave it out"
            )


def _thread_ended(reference: weakref.ref[Connections], thread: int, pid: int) -> None:
    connections = reference()
    if connections is not None and pid == os.getpid():
        connections._thread_ended(thread)
