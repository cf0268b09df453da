"""The engine, its one connection for each thread, and transactions.

Nothing else in the package emits BEGIN, COMMIT or ROLLBACK.  A thread keeps one
connection in the driver's autocommit mode, which makes a read one round trip and
lets a write begin in the way its database wants (BEGIN IMMEDIATE on SQLite: a
transaction that reads first and writes later is refused there when somebody else
wrote in between).  The connection belongs to one process and one thread: a forked
child opens another, and it is closed when its thread ends.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, CursorResult, Dialect, create_engine
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    NoSuchModuleError,
    SQLAlchemyError,
)
from sqlalchemy.pool import NullPool, StaticPool
from sqlalchemy.sql import Executable

from sessionstore import dialects, fork
from sessionstore.errors import (
    ConfigurationError,
    ForkError,
    SessionStoreError,
    StoreError,
    StoreUnavailableError,
)
from sessionstore.failures import (
    ConnectionLostError,
    TransactionAbortedError,
    translate,
)

__all__ = ["Database", "Scope"]

log = logging.getLogger(__name__)
T = TypeVar("T")

#: How often a deadlock or a lost idle connection is answered by trying again.
ATTEMPTS = 6


class Scope:
    """One thread's open transaction, however deeply its blocks are nested."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.pid = os.getpid()
        self.depth = 1
        self.doomed_by: BaseException | None = None
        self.undo: list[Callable[[], None]] = []
        self.after_commit: list[Callable[[], None]] = []
        #: What a store remembers of objects written in this transaction.
        self.pending: dict[tuple[object, object], Any] = {}


class _Kept:
    """A thread's own connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.fresh = True
        self.users = 0


class _ThreadState(threading.local):
    scope: Scope | None = None
    kept: _Kept | None = None
    life: object = None


class _ThreadLife:
    """Dies with its thread."""


class Database:
    """One database, reached by any number of threads and forked processes."""

    def __init__(
        self,
        url: URL,
        *,
        options: dialects.Options,
        engine_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.url = dialects.absolute(url)
        self.options = options
        self._engine_options = dict(engine_options or {})
        #: Called in a forked child, to drop what must not cross the fork.
        self.on_reset: list[Callable[[], None]] = []
        self._open_engine()

    def _open_engine(self) -> None:
        dialect = load_dialect(self.url)
        self.settings = dialects.settings_of(dialect)
        in_memory = fork.is_in_memory(dialect, self.url)
        # All threads share an in-memory database's only connection, so one of
        # them at a time uses it.
        self._turn: Any = threading.RLock() if in_memory else nullcontext()
        self._in_memory = in_memory
        keywords: dict[str, Any] = {
            "poolclass": StaticPool if in_memory else NullPool,
            # Payloads and passwords must not show in the text of an exception.
            "hide_parameters": True,
        }
        if self.settings.begin is not None:
            keywords["isolation_level"] = "AUTOCOMMIT"
            keywords["skip_autocommit_rollback"] = True
        if dialect.name == "sqlite":
            keywords["connect_args"] = {"check_same_thread": False}
        keywords.update(self._engine_options)
        try:
            self.engine = create_engine(self.url, **keywords)
        except (ArgumentError, TypeError, ImportError) as error:
            raise ConfigurationError(
                f"cannot use the database URL {self.url!r}: {error}"
            ) from error
        self._kept: dict[int, _Kept] = {}
        #: The open transactions of all threads.
        self.scopes: set[Scope] = set()
        self._threads = _ThreadState()
        self._setup_lock = threading.RLock()
        event.listen(self.engine, "connect", self._configure)
        event.listen(self.engine, "do_connect", self._before_connect)
        self._guard = fork.Guard(
            self.engine, close_idle=self._close_idle, reset=self._reset_in_child
        )

    @property
    def dialect(self) -> Dialect:
        """SQLAlchemy's dialect of the database."""
        return self.engine.dialect

    # Connections

    def _before_connect(
        self, dialect: Any, record: Any, arguments: list[Any], keywords: dict[str, Any]
    ) -> None:
        if dialect.name == "sqlite" and not self._in_memory and not keywords.get("uri"):
            dialects.prepare_sqlite_file(str(arguments[0]), create=self.options.create)

    def _configure(self, connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        try:
            self.settings.on_connect(cursor, self.options)
        finally:
            cursor.close()

    def _thread_connection(self) -> _Kept:
        self._guard.check()
        kept = self._threads.kept
        if kept is not None:
            if not (kept.connection.closed or kept.connection.invalidated):
                return kept
            self._discard(kept)
        with self.translated():
            kept = _Kept(self.engine.connect())
        thread = threading.get_ident()
        self._threads.kept = self._kept[thread] = kept
        if self._threads.life is None:
            # The thread's own storage must not hold the connection itself: a forked
            # child frees the other threads' storage before any hook runs there.
            self._threads.life = _ThreadLife()
            ending = weakref.finalize(
                self._threads.life,
                _thread_ended,
                weakref.ref(self),
                thread,
                os.getpid(),
            )
            ending.atexit = False
        return kept

    def _discard(self, kept: _Kept) -> None:
        for thread, other in list(self._kept.items()):
            if other is kept:
                del self._kept[thread]
        if self._threads.kept is kept:
            self._threads.kept = None
        try:
            kept.connection.close()
        except SQLAlchemyError:
            log.debug("a lost connection could not be closed", exc_info=True)

    def _close_idle(self) -> None:
        for kept in list(self._kept.values()):
            if not kept.users:
                self._discard(kept)

    def _reset_in_child(self) -> None:
        inherited = self._threads.scope
        half_initialised = self._guard.half_initialised
        self._kept = {}
        self._setup_lock = threading.RLock()
        if self._in_memory:
            self._turn = threading.RLock()
        for reset in self.on_reset:
            reset()
        for scope in self.scopes:
            for restore in reversed(scope.undo):
                restore()
        self.scopes = set()
        self._threads = _ThreadState()
        # An inherited block is still on this thread's stack, so what the child
        # calls inside it must be refused rather than start a transaction anew.
        self._threads.scope = inherited
        if half_initialised and self._guard.refusal is None:
            self._open_engine()
            self._threads.scope = inherited

    def dispose(self) -> None:
        """Close all connections of all threads; the next call opens one."""
        with fork.gate.inside():
            for kept in list(self._kept.values()):
                self._discard(kept)
            self.engine.dispose()

    # Transactions

    @property
    def scope(self) -> Scope | None:
        """This thread's open transaction, if there is one.

        Raises ForkError inside a block that began before this process was forked.
        """
        scope = self._threads.scope
        if scope is not None and scope.pid != os.getpid():
            raise ForkError(
                "this transaction was begun by the parent process; leave its block "
                "before using the store in a forked child"
            )
        return scope

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Commit all that this thread does in the block at once, or nothing."""
        fork.gate.notice_fork()
        scope = self.scope
        if scope is None:
            with self._turn, fork.gate.inside():
                yield from self._outermost()
            return
        scope.depth += 1
        try:
            yield scope.connection
        except BaseException as error:
            scope.doomed_by = scope.doomed_by or error
            raise
        finally:
            scope.depth -= 1

    def _outermost(self) -> Iterator[Connection]:
        kept = self._begin()
        scope = self._threads.scope = Scope(kept.connection)
        self.scopes.add(scope)
        try:
            try:
                yield scope.connection
            except BaseException:
                if scope.pid == os.getpid():
                    self._roll_back(scope)
                raise
            if scope.pid != os.getpid():
                raise ForkError(
                    "this transaction was begun by the parent process, which alone "
                    "can commit it; leave the block in a forked child by os._exit"
                )
            if scope.doomed_by is not None:
                self._roll_back(scope)
                raise StoreError(
                    "the transaction was rolled back, because an exception left a "
                    f"block inside it: {scope.doomed_by!r}"
                ) from scope.doomed_by
            self._commit(scope)
        finally:
            self.scopes.discard(scope)
            if self._threads.scope is scope:
                self._threads.scope = None
            kept.users = 0
        for callback in scope.after_commit:
            callback()

    def _begin(self) -> _Kept:
        # An idle connection may have died with its server; nothing was sent on it
        # yet, so that opening another one is always safe.
        for attempt in (1, 2):
            kept = self._thread_connection()
            was_idle, kept.fresh = not kept.fresh, False
            kept.users = 1
            try:
                with self.translated():
                    if self.settings.begin is None:
                        kept.connection.begin()
                    else:
                        kept.connection.exec_driver_sql(self.settings.begin)
                return kept
            except StoreUnavailableError:
                kept.users = 0
                lost = kept.connection.invalidated
                self._discard(kept)
                if attempt == 2 or not (lost and was_idle):
                    raise
            except BaseException:
                kept.users = 0
                self._discard(kept)
                raise
        raise AssertionError("unreachable")

    def _commit(self, scope: Scope) -> None:
        connection = scope.connection
        try:
            with self.translated(committing=True):
                if self._failed_on_server(connection):
                    raise StoreError(
                        "the transaction was rolled back, because a statement in it "
                        "failed and its error was not let through"
                    )
                if self.settings.begin is None:
                    connection.commit()
                else:
                    connection.exec_driver_sql("COMMIT")
                    connection.rollback()
        except BaseException:
            self._roll_back(scope)
            raise

    def _failed_on_server(self, connection: Connection) -> bool:
        # PostgreSQL answers COMMIT of a failed transaction with ROLLBACK, and
        # no driver takes that for an error.
        driver: Any = connection.connection.dbapi_connection
        if self.dialect.driver == "psycopg":
            return bool(driver.info.transaction_status.name == "INERROR")
        if self.dialect.driver == "psycopg2":
            return bool(driver.get_transaction_status() == 3)
        return False

    def _roll_back(self, scope: Scope) -> None:
        connection = scope.connection
        try:
            if not (connection.closed or connection.invalidated):
                if self.settings.begin is not None:
                    driver: Any = connection.connection.dbapi_connection
                    # SQLite has rolled back by itself after some errors.
                    if getattr(driver, "in_transaction", True):
                        connection.exec_driver_sql("ROLLBACK")
                connection.rollback()
        except Exception:
            log.debug("rolling back failed; the connection goes", exc_info=True)
            self._discard_connection(connection)
        finally:
            for restore in reversed(scope.undo):
                restore()

    def _discard_connection(self, connection: Connection) -> None:
        for kept in list(self._kept.values()):
            if kept.connection is connection:
                try:
                    connection.invalidate()
                except SQLAlchemyError:
                    log.debug("could not invalidate a connection", exc_info=True)
                self._discard(kept)

    # Running statements

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give the connection for one read: the open transaction's, or its own."""
        fork.gate.notice_fork()
        scope = self.scope
        if scope is not None:
            yield scope.connection
            return
        with self._turn, fork.gate.inside():
            kept = self._thread_connection()
            kept.fresh = False
            kept.users = 1
            pid = os.getpid()
            try:
                yield kept.connection
            finally:
                if pid == os.getpid():
                    kept.users = 0
                    if not (kept.connection.closed or kept.connection.invalidated):
                        kept.connection.rollback()

    def execute(
        self,
        connection: Connection,
        statement: Executable,
        parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> CursorResult[*tuple[Any, ...]]:
        """Run one statement, and translate what the driver raises."""
        with self.translated():
            return connection.execute(statement, parameters)

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` on a connection for reading, again if that was lost."""
        return self._again(self.reading, work)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in a transaction, again after a deadlock.

        Inside a caller's own transaction nothing is tried again.
        """
        return self._again(self.transaction, work)

    def _again(self, block: Any, work: Callable[[Connection], T]) -> T:
        inside = self.scope is not None
        lost = aborted = 0
        while True:
            try:
                with block() as connection:
                    return work(connection)
            except ConnectionLostError as error:
                lost += 1
                if inside or error.outcome_unknown or lost == 2:
                    raise
            except TransactionAbortedError:
                aborted += 1
                if inside or aborted == ATTEMPTS:
                    raise
                # Two that collided must not collide again in step.
                time.sleep(random.uniform(0, 0.01 * 2**aborted))

    @contextmanager
    def translated(self, *, committing: bool = False) -> Iterator[None]:
        """Turn what the driver raises in the block into this package's errors."""
        try:
            yield
        except DBAPIError as error:
            raise translate(
                error, self.url, self.settings, committing=committing
            ) from error

    @contextmanager
    def aside(self) -> Iterator[Connection]:
        """Give another connection, whose writes commit at once, for a moment."""
        with fork.gate.inside(), self.translated():
            with self.engine.connect() as connection:
                yield connection
                if self.settings.begin is None:
                    connection.commit()

    def packet_limit(self) -> int | None:
        """Return how many bytes the server takes in one statement, if it tells."""
        if self.settings.packet_limit is None:
            return None
        try:
            with self.aside() as connection:
                return int(
                    connection.exec_driver_sql(self.settings.packet_limit).scalar_one()
                )
        except SessionStoreError:
            return None

    # Setting up

    @contextmanager
    def setup_lock(self, name: str) -> Iterator[None]:
        """Let one process at a time make or migrate the tables of ``name``."""
        with self._setup_lock:
            if self.settings.lock is None:
                # SQLite's BEGIN IMMEDIATE is that lock.
                yield
                return
            with self.reading() as connection:
                self._one(connection, self.settings.lock, name)
                try:
                    yield
                finally:
                    if not connection.invalidated:
                        self._one(connection, self.settings.unlock or "", name)

    def _one(self, connection: Connection, statement: str, name: str) -> None:
        with self.translated():
            connection.exec_driver_sql(statement.replace("%s", name)).close()


def load_dialect(url: URL) -> type[Dialect]:
    """Return the dialect class of a URL, or raise ConfigurationError."""
    try:
        dialect = url.get_dialect()
        if dialect.is_async:
            raise ConfigurationError(
                f"{url.drivername} is an asynchronous driver; use a synchronous one, "
                f"as in {url.get_backend_name()}://"
            )
        dialect.import_dbapi()
    except NoSuchModuleError as error:
        raise ConfigurationError(
            f"SQLAlchemy knows no database {url.drivername!r} (in {url!r})"
        ) from error
    except ImportError as error:
        extra = dialects.settings_of(dialect).extra
        hint = (
            f"pip install 'sessionstore[{extra}]'"
            if extra
            else "install the package that provides it"
        )
        raise ConfigurationError(
            f"the driver for {url.drivername} is not installed ({error}); {hint}"
        ) from error
    return dialect


def _thread_ended(reference: weakref.ref[Database], thread: int, pid: int) -> None:
    database = reference()
    if database is not None and pid == os.getpid():
        kept = database._kept.get(thread)
        if kept is not None:
            with fork.gate.inside():
                database._discard(kept)
