"""What is done around a fork with the connections of one engine."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import NullPool, SingletonThreadPool
from sqlalchemy.pool.base import _ConnectionRecord

from sessionstore.errors import ForkError
from sessionstore.fork.hooks import gate, watchers
from sessionstore.fork.inherited import PARENTS, ParentsConnection, disown, is_disowned

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Connection, Engine

__all__ = ["Guard", "is_guarded", "is_in_memory", "refuse_inherited"]

_refused_files: set[object] = set()


class Guard:
    """Watches one engine's driver connections, and deals with them at a fork.

    ``close_idle`` closes the idle connections that its owner keeps outside the pool;
    ``reset`` drops, in a child, what else of the owner's must not cross a fork.
    Without them the engine is a user's own, and a connection is busy from checkout to
    checkin.  ``connect`` takes the place of the dialect's.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        close_idle: Callable[[], None] | None = None,
        reset: Callable[[], None] | None = None,
        connect: Callable[..., Any] | None = None,
    ) -> None:
        self.engine = weakref.ref(engine)
        self.is_sqlite = engine.dialect.name == "sqlite"
        self.refusal: str | None = None
        self._in_memory = is_in_memory(engine.dialect, engine.url)
        self._close_idle = close_idle
        self._reset = reset
        self._connect = connect
        self._live: dict[int, tuple[Any, weakref.ref[Any]]] = {}
        #: SQLAlchemy's record of the connection that a thread is setting up, by thread.
        self._opening: dict[int, weakref.ref[Any]] = {}
        self._file: str | None = None
        self._pinned: list[object] = []
        self._connecting = self._connected = False
        event.listen(engine, "do_connect", self._on_connecting)
        event.listen(engine, "connect", self._on_connect)
        event.listen(engine, "close", self._on_close)
        event.listen(engine, "close_detached", self._on_close)
        # After a fork from C, these may be the first to notice it.
        event.listen(engine, "commit", _before_end)
        event.listen(engine, "rollback", _before_end)
        event.listen(engine, "rollback_savepoint", _before_savepoint_ends)
        event.listen(engine, "reset", _before_reset)
        event.listen(engine, "before_cursor_execute", refuse_inherited, retval=True)
        if close_idle is None:
            event.listen(engine, "checkout", self._on_checkout)
            event.listen(engine, "checkin", self._on_checkin)
            event.listen(engine, "handle_error", _show_fork_error)
            self._take_in_opened(engine)
        watchers.add(self)

    def _take_in_opened(self, engine: Engine) -> None:
        """Watch the connections that were opened before the guard was there."""
        # Pools have no list of those that are checked out.
        for record in gc.get_objects():
            if type(record) is not _ConnectionRecord:
                continue
            connection = record.dbapi_connection
            pool = record._ConnectionRecord__pool  # type: ignore[attr-defined]
            if pool is engine.pool and connection is not None:
                self._note_file(*engine.dialect.create_connect_args(engine.url))
                self._on_connect(connection, record)
                if record.in_use:
                    gate.hold(id(connection))

    def check(self) -> None:
        """Raise ForkError if this process must not use the engine any more."""
        if self.refusal is not None:
            raise ForkError(self.refusal)
        # Last, as it asks the file system at every call.
        if _refused_files and self._file and _identity(self._file) in _refused_files:
            raise ForkError(_open_at_fork(self._file))

    @property
    def half_initialised(self) -> bool:
        """Whether a first connection was begun and never came to its end."""
        return self._connecting and not self._connected

    # Events of the engine

    def _on_connecting(
        self, dialect: Any, record: Any, arguments: list[Any], keywords: dict[str, Any]
    ) -> Any:
        with gate.inside():
            self._note_file(arguments, keywords)
            self.check()
            self._connecting = True
            self._opening[threading.get_ident()] = weakref.ref(record)
            try:
                connect = self._connect or dialect.connect
                return connect(*arguments, **keywords)
            except BaseException:
                self._connecting = False
                del self._opening[threading.get_ident()]
                raise

    def _note_file(self, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        if self.is_sqlite and not self._in_memory and not keywords.get("uri"):
            self._file = str(arguments[0])

    def _on_connect(self, connection: Any, record: Any) -> None:
        self._connected = True
        self._opening.pop(threading.get_ident(), None)
        self._live[id(connection)] = (connection, weakref.ref(record))

    def _on_close(self, connection: Any, record: Any = None) -> None:
        with gate.inside():
            self._live.pop(id(connection), None)
            if self.is_sqlite:
                # SQLAlchemy does so after this event, outside of the gate: a child
                # forked in the middle of it would inherit SQLite's locks, for ever.
                connection.close()

    def _on_checkout(self, connection: Any, record: Any, fairy: Any) -> None:
        with gate.inside():
            self.check()
            if id(connection) not in self._live:
                # A fork closed this idle connection while this thread waited at the
                # gate; SQLAlchemy connects again after this error.
                raise DisconnectionError
            gate.hold(id(connection))

    def _on_checkin(self, connection: Any, record: Any) -> None:
        # Not always in the thread that checked it out: the garbage collector
        # returns a dropped connection from wherever it happens to run.
        gate.release(id(connection))

    # The steps of a fork

    def before_fork(self) -> None:
        """Close idle SQLite connections; hold on to all others."""
        if self.is_sqlite and not self._in_memory:
            if self._close_idle is not None:
                self._close_idle()
            self._close_idle_of_pool()
        # In the child, other threads' thread-locals are freed before any hook runs, and
        # the connections in them would be rolled back on the parent's socket.
        for _, reference in list(self._live.values()):
            record = reference()
            if record is not None and record.fairy_ref is not None:
                self._pinned.append(record.fairy_ref())

    def _close_idle_of_pool(self) -> None:
        # Not by engine.dispose(): a busy connection would come back to a pool that
        # nobody uses, and stay open there.
        for key, (connection, reference) in list(self._live.items()):
            record = reference()
            if not self._is_busy(key, record):
                if record is not None and record.dbapi_connection is connection:
                    record.invalidate()
                else:
                    connection.close()
                self._live.pop(key, None)

    def _is_busy(self, key: int, record: Any) -> bool:
        if self._close_idle is None:
            return gate.is_held(key)
        # What its owner did not close is in a call, or its owner is gone, and a thread
        # that is about to close it may wait for this fork to be over.
        return record is not None and bool(record.fairy_ref and record.fairy_ref())

    def after_in_parent(self) -> None:
        """Let go of what only the fork needed."""
        self._pinned.clear()

    def after_in_child(self) -> None:
        """Disown the parent's connections."""
        engine = self.engine()
        if engine is None:
            return
        opening = [record for ref in self._opening.values() if (record := ref())]
        self._opening.clear()
        for record in opening:
            if record.dbapi_connection is not None:
                self._live[id(record)] = record.dbapi_connection, weakref.ref(record)
        if self.is_sqlite and (self._live or opening):
            self._refuse_sqlite()
        for connection, reference in list(self._live.values()):
            disown(connection, reference(), silence=not self.is_sqlite)
        self._live.clear()
        self._pinned.clear()
        if self._reset is not None:
            self._reset()
        elif self.half_initialised:
            self.refusal = (
                "another thread was opening the first connection of this engine when "
                "the process forked; create a new engine in the child"
            )
        # Not a pool that keeps no connections: making a new one takes 1 ms.
        if not isinstance(engine.pool, NullPool):
            engine.dispose(close=False)

    def _refuse_sqlite(self) -> None:
        if self._in_memory:
            self.refusal = (
                "an in-memory SQLite database belongs to the process that opened "
                "it; use a file, or open another database in the child"
            )
            return
        self.refusal = _open_at_fork(self._file or "this SQLite database")
        if self._file is not None:
            _refused_files.add(_identity(self._file))


def is_guarded(engine: Engine) -> bool:
    """Say whether an engine has a guard."""
    return any(
        isinstance(watcher, Guard) and watcher.engine() is engine
        for watcher in list(watchers)
    )


def is_in_memory(dialect: Any, url: URL) -> bool:
    """Say whether a database is a SQLite one in this process's memory."""
    # Whatever the form of the URL, the pool that SQLAlchemy chooses shows it.
    return bool(
        dialect.name == "sqlite"
        and issubclass(dialect.get_pool_class(url), SingletonThreadPool)
    )


def refuse_inherited(
    connection: Connection, cursor: object, statement: str, parameters: Any, *_: object
) -> tuple[str, Any]:
    """Raise ForkError for a statement on a connection that is the parent's.

    After a fork from C, nothing else would notice.  A listener of each guarded engine.
    """
    gate.notice_fork()
    if _is_parents(connection):
        raise ForkError(PARENTS)
    return statement, parameters


def _before_end(connection: Connection) -> None:
    gate.notice_fork()


def _before_savepoint_ends(connection: Connection, *_: object) -> None:
    gate.notice_fork()
    # A savepoint ends by a statement, which would be refused; but an exception that
    # unwinds an inherited block must pass through.
    if not connection.invalidated and _is_parents(connection):
        connection.invalidate()


def _before_reset(connection: object, record: object, state: object) -> None:
    gate.notice_fork()
    # SQLAlchemy has read the connection before this event, and would roll it back.
    if is_disowned(connection):
        raise ForkError(PARENTS)


def _is_parents(connection: Connection) -> bool:
    return isinstance(connection.connection.dbapi_connection, ParentsConnection)


def _show_fork_error(context: Any) -> BaseException | None:
    # SQLAlchemy wraps whatever a statement raises; users are promised a ForkError.
    original = context.original_exception
    return original if isinstance(original, ForkError) else None


def _open_at_fork(name: str) -> str:
    return (
        f"{name} was in use when this process was forked, and SQLite cannot recover "
        "from that in the child; fork when no transaction or connection is open"
    )


def _identity(path: str) -> object:
    try:
        status = os.stat(path)
    except OSError:
        return path
    return status.st_dev, status.st_ino
