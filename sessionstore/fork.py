"""Fork safety for SQLAlchemy engines: one gate and one set of hooks for the process.

What a forked child inherits of a database connection is worse than useless.
Freeing a SQLAlchemy connection there sends ROLLBACK on the parent's socket;
freeing a ``sqlite3`` handle drops the parent's file locks; and a second handle on
the same SQLite file shares the dead one's lock table.  Much of that cannot be
mended in the child, so the work is done on both sides of the fork:

before
    The gate closes and the other threads' database calls are waited for, for
    ``WAIT`` seconds at most.  Then idle SQLite connections are closed, so that
    the child inherits none.
in the parent
    The gate opens.
in the child
    Locks are made anew.  Connections that came along are taken out of
    SQLAlchemy's hands, kept alive for ever (their destructors talk to the server),
    and their descriptors are laid over with /dev/null.  A SQLite file that was
    open at the fork is refused from then on.

``os.register_at_fork`` does not see a ``fork()`` made by C code, so each entry
through the gate compares the PID too and does the child's part late.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import SingletonThreadPool

from sessionstore.errors import ForkError
from sessionstore.inherited import disown

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Engine

__all__ = ["protect"]

log = logging.getLogger(__name__)

#: Seconds a fork waits for the database calls of other threads.
WAIT = 2.0


class Gate:
    """Let database calls through, but none while the process forks.

    A thread that is inside already passes, else two stores used together, or a
    call inside a transaction, would stall a fork that waits for them.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.renew()

    def renew(self) -> None:
        """Make the locks anew: a thread that is not here may hold an inherited one."""
        self._condition = threading.Condition()
        #: How deep each thread is inside.
        self._inside: dict[int, int] = {}
        #: What threads hold from call to call, such as a checked-out connection.
        self._held: dict[object, int] = {}
        self._forking: set[int] = set()

    def enter(self) -> None:
        """Pass, or wait until the forks under way are done."""
        self.notice_fork()
        thread = threading.get_ident()
        inside = self._inside
        depth = inside.get(thread, 0)
        # Who passes says so first and looks for forks afterwards; who forks does the
        # two the other way round.  So one of them sees the other, without a lock.
        inside[thread] = depth + 1
        if self._forking and not depth:
            self._wait(thread)

    def _wait(self, thread: int) -> None:
        with self._condition:
            del self._inside[thread]
            self._condition.notify_all()
            if thread not in self._held.values():
                self._condition.wait_for(lambda: not (self._forking - {thread}))
            self._inside[thread] = 1

    def notice_fork(self) -> None:
        """Do the child's part now if no hook did it at the fork."""
        pid = os.getpid()
        if pid == self.pid:
            return
        # One thread does it and the others wait, on a lock that was not there at
        # the fork (setdefault is atomic).
        with _late.setdefault(pid, threading.RLock()):
            if pid != self.pid:
                after_in_child()

    def leave(self) -> None:
        """Undo one ``enter``."""
        thread = threading.get_ident()
        depth = self._inside.get(thread, 0)
        if depth > 1:
            self._inside[thread] = depth - 1
        elif depth:
            del self._inside[thread]
            if self._forking:
                self._tell_forks()

    def hold(self, key: object) -> None:
        """Be inside until ``release``, which may come from another thread."""
        self._held[key] = threading.get_ident()

    def release(self, key: object) -> None:
        """Undo ``hold``."""
        if self._held.pop(key, None) is not None and self._forking:
            self._tell_forks()

    def is_held(self, key: object) -> bool:
        """Say whether some thread holds this."""
        return key in self._held

    def _tell_forks(self) -> None:
        with self._condition:
            self._condition.notify_all()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Be inside for the block; a child that inherits the block is not."""
        self.enter()
        pid = self.pid
        try:
            yield
        finally:
            if pid == os.getpid():
                self.leave()

    def close(self, timeout: float) -> bool:
        """Keep other threads out; say whether all had left before the timeout."""
        thread = threading.get_ident()
        with self._condition:
            self._forking.add(thread)
            return self._condition.wait_for(
                lambda: {*self._inside, *self._held.values()} <= {thread}, timeout
            )

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Keep other threads out for the block, but for who does not leave in time."""
        self.close(WAIT)
        try:
            yield
        finally:
            self.open()

    def open(self) -> None:
        """Let threads in again, unless another thread is forking too."""
        with self._condition:
            self._forking.discard(threading.get_ident())
            self._condition.notify_all()


class Guard:
    """Watches one engine's driver connections, so that a fork can sort them out.

    ``close_idle`` closes the connections that its owner keeps outside the pool;
    ``reset`` drops what else of the owner's must not cross a fork.  Without them
    the engine is a user's own, and a connection is busy from checkout to checkin.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        close_idle: Callable[[], None] | None = None,
        reset: Callable[[], None] | None = None,
    ) -> None:
        self.engine = weakref.ref(engine)
        self.is_sqlite = engine.dialect.name == "sqlite"
        self.refusal: str | None = None
        self._in_memory = is_in_memory(engine.dialect, engine.url)
        self._close_idle = close_idle
        self._reset = reset
        self._live: dict[int, tuple[Any, weakref.ref[Any]]] = {}
        self._file: str | None = None
        self._pinned: list[object] = []
        self._connecting = self._connected = False
        event.listen(engine, "do_connect", self._on_connecting)
        event.listen(engine, "connect", self._on_connect)
        event.listen(engine, "close", self._on_close)
        event.listen(engine, "close_detached", self._on_close)
        if close_idle is None:
            event.listen(engine, "checkout", self._on_checkout)
            event.listen(engine, "checkin", self._on_checkin)
            event.listen(engine, "handle_error", _show_fork_error)
        _guards.add(self)

    def check(self) -> None:
        """Raise ForkError if this process must not use the engine any more."""
        if self.refusal is not None:
            raise ForkError(self.refusal)
        # Looked at last, as it asks the file system at every call.
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
            if self.is_sqlite and not self._in_memory and not keywords.get("uri"):
                self._file = str(arguments[0])
            self.check()
            self._connecting = True
            try:
                return dialect.connect(*arguments, **keywords)
            except BaseException:
                self._connecting = False
                raise

    def _on_connect(self, connection: Any, record: Any) -> None:
        self._connected = True
        self._live[id(connection)] = (connection, weakref.ref(record))

    def _on_close(self, connection: Any, record: Any = None) -> None:
        self._live.pop(id(connection), None)

    def _on_checkout(self, connection: Any, record: Any, fairy: Any) -> None:
        with gate.inside():
            self.check()
            if id(connection) not in self._live:
                # A fork closed this idle connection while this thread stood at the
                # gate with it; SQLAlchemy answers this error by connecting again.
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
            else:
                self._close_idle_of_pool()
        # Thread-locals of the other threads are freed in the child before any hook
        # runs, and what they hold would be rolled back on the parent's socket.
        for _, reference in list(self._live.values()):
            record = reference()
            if record is not None and record.fairy_ref is not None:
                self._pinned.append(record.fairy_ref())

    def _close_idle_of_pool(self) -> None:
        engine = self.engine()
        if engine is None:
            return
        engine.dispose()
        for key, (connection, _) in list(self._live.items()):
            if not gate.is_held(key):
                del self._live[key]
                connection.close()

    def after_in_parent(self) -> None:
        """Let go of what only the fork needed."""
        self._pinned.clear()

    def after_in_child(self) -> None:
        """Disown the parent's connections."""
        engine = self.engine()
        if engine is None:
            return
        if self._live and self.is_sqlite:
            self._refuse_sqlite()
        for connection, reference in list(self._live.values()):
            disown(connection, reference(), silence=not self.is_sqlite)
        self._live.clear()
        self._pinned.clear()
        if self._reset is not None:
            self._reset()
        elif self.half_initialised:
            self.refusal = (
                "this engine was making its first connection in another thread "
                "when the process forked; create a new engine in the child"
            )
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


def protect(engine: Engine) -> Engine:
    """Make ``engine`` fork-safe, and return it.

    After any fork, parent and child both go on with the engine, each on
    connections of its own (G4).  A connection that was checked out at the fork
    stays the parent's: using it in the child raises ForkError.  For SQLite the
    child can go on only if no connection was checked out at the fork, else every
    use of that database in it raises ForkError; so it is for any in-memory one.
    Protecting an engine twice is the same as once.

    >>> from sqlalchemy import create_engine
    >>> from sessionstore import protect
    >>> engine = protect(create_engine("sqlite:///app.db"))
    """
    if not any(guard.engine() is engine for guard in list(_guards)):
        Guard(engine)  # its listeners keep it for as long as the engine lives
    return engine


def is_in_memory(dialect: Any, url: URL) -> bool:
    """Say whether a database is a SQLite one in this process's memory."""
    # The pool that SQLAlchemy would choose tells it for every form of the URL.
    return bool(
        dialect.name == "sqlite"
        and issubclass(dialect.get_pool_class(url), SingletonThreadPool)
    )


def _show_fork_error(context: Any) -> BaseException | None:
    # SQLAlchemy wraps whatever a statement raises; users are promised a ForkError.
    original = context.original_exception
    return original if isinstance(original, ForkError) else None


def _open_at_fork(name: str) -> str:
    return (
        f"{name} was in use when this process was forked, and SQLite cannot be "
        "mended in the child; fork outside transactions and open connections"
    )


def _identity(path: str) -> object:
    try:
        status = os.stat(path)
    except OSError:
        return path
    return status.st_dev, status.st_ino


gate = Gate()
#: By the PID of the process that makes up for hooks that did not run.
_late: dict[int, threading.RLock] = {}
_guards: weakref.WeakSet[Guard] = weakref.WeakSet()
_refused_files: set[object] = set()


def before() -> None:
    """Stop database calls, and close what a child must not inherit."""
    started = time.monotonic()
    if not gate.close(WAIT):
        log.error(
            "forking although other threads' database calls did not end in %.1f s; "
            "the child will not be able to use SQLite databases that are busy",
            time.monotonic() - started,
        )
    _for_each_guard(Guard.before_fork)


def after_in_parent() -> None:
    """Go on as before."""
    _for_each_guard(Guard.after_in_parent)
    gate.open()


def after_in_child() -> None:
    """Start anew: with fresh locks, and none of the parent's connections."""
    gate.renew()
    _for_each_guard(Guard.after_in_child)
    gate.pid = os.getpid()  # last, as other threads may use the stores from here on


def _for_each_guard(step: Callable[[Guard], None]) -> None:
    # An exception in a hook is printed and cannot stop the fork, so one engine's
    # failure must not keep the others from their turn.
    for guard in list(_guards):
        try:
            step(guard)
        except Exception:
            log.exception("a fork hook failed")


os.register_at_fork(
    before=before, after_in_parent=after_in_parent, after_in_child=after_in_child
)
