"""Transactions, and what runs in them.

Nothing else in the package emits BEGIN, COMMIT or ROLLBACK.  A write begins in the
way its database wants: with BEGIN IMMEDIATE on SQLite, where a transaction that reads
first and writes later is refused when somebody else wrote in between.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from sqlalchemy.engine import URL, Connection, CursorResult
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.sql import Executable

from sessionstore import dialects, fork
from sessionstore.connections import Connections, KeptConnection
from sessionstore.errors import (
    ForkError,
    SessionStoreError,
    StoreError,
    StoreUnavailableError,
)
from sessionstore.failures import (
    ConnectionLostError,
    TransactionAbortedError,
    translated,
)

__all__ = ["Database", "Scope"]

log = logging.getLogger(__name__)
T = TypeVar("T")

#: How often a deadlock is answered by trying again.
ATTEMPTS = 6


class Scope:
    """One thread's open transaction, however deeply its blocks are nested."""

    def __init__(self, kept: KeptConnection) -> None:
        self.kept = kept
        self.pid = os.getpid()
        self.is_ending = False
        self.doomed_by: BaseException | None = None
        self.undo: list[Callable[[], None]] = []
        self.after_commit: list[Callable[[], None]] = []
        #: What others remember for as long as this transaction lasts, by owner.
        self.notes: dict[object, Any] = {}


class _ThreadState(threading.local):
    scope: Scope | None = None


class Database:
    """One database, reached by any number of threads and forked processes."""

    def __init__(
        self,
        url: URL,
        *,
        options: dialects.Options,
        engine_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.connections = Connections(
            url,
            options=options,
            engine_options=engine_options,
            on_end=self._refuse_to_end,
            reset=self._reset_in_child,
        )
        self.url = self.connections.url
        self.settings = self.connections.settings
        #: Tells it from all others; in-memory databases have the same URL.
        self.name = repr(self.url)
        if self.connections.is_in_memory:
            self.name += f" {uuid.uuid4()}"
        #: Called in a forked child, to drop what must not cross the fork.
        self.on_reset: list[Callable[[], None]] = []
        #: The open transactions of all threads.
        self.scopes: set[Scope] = set()
        self._thread = _ThreadState()
        self._setup_lock = threading.RLock()

    def _reset_in_child(self) -> None:
        for reset in self.on_reset:
            reset()
        for scope in self.scopes:
            for restore in reversed(scope.undo):
                restore()
        self.scopes = set()
        self._setup_lock = threading.RLock()
        # This thread keeps an inherited scope: its block is still on the stack, and
        # what the child calls inside it must be refused, not begin a new transaction.

    # Transactions

    @property
    def scope(self) -> Scope | None:
        """This thread's open transaction, if there is one.

        Raises ForkError inside a block that began before this process was forked.
        """
        scope = self._thread.scope
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
            with self.connections.turn, fork.gate.inside():
                yield from self._outermost()
            return
        try:
            yield scope.kept.connection
        except BaseException as error:
            scope.doomed_by = scope.doomed_by or error
            raise

    def _outermost(self) -> Iterator[Connection]:
        kept = self._begin()
        scope = self._thread.scope = Scope(kept)
        self.scopes.add(scope)
        try:
            try:
                yield scope.kept.connection
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
            if self._thread.scope is scope:
                self._thread.scope = None
            kept.is_busy = False
        for callback in scope.after_commit:
            callback()

    def _begin(self) -> KeptConnection:
        # An idle connection may have died with its server; nothing was sent on it
        # yet, so that opening another one is always safe.
        for attempt in (1, 2):
            kept = self.connections.of_thread()
            was_idle, kept.is_fresh = not kept.is_fresh, False
            kept.is_busy = True
            try:
                with self.translated():
                    if self.settings.begin is None:
                        kept.connection.begin()
                    else:
                        kept.connection.exec_driver_sql(self.settings.begin)
                return kept
            except BaseException as error:
                was_lost = kept.connection.invalidated
                kept.is_busy = False
                self.connections.discard(kept)
                idle_death = (
                    isinstance(error, StoreUnavailableError) and was_lost and was_idle
                )
                if attempt == 2 or not idle_death:
                    raise
        raise AssertionError("unreachable")

    def _commit(self, scope: Scope) -> None:
        connection = scope.kept.connection
        scope.is_ending = True
        try:
            if not scope.kept.is_usable:
                raise ConnectionLostError(
                    f"the connection to {self.url!r} was lost in this transaction, "
                    "which was rolled back"
                )
            with self.translated(committing=True):
                driver = connection.connection.dbapi_connection
                if dialects.has_failed(connection.dialect, driver):
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

    def _roll_back(self, scope: Scope) -> None:
        connection = scope.kept.connection
        scope.is_ending = True
        try:
            if scope.kept.is_usable:
                if self.settings.begin is not None:
                    driver: Any = connection.connection.dbapi_connection
                    # SQLite has rolled back by itself after some errors.
                    if getattr(driver, "in_transaction", True):
                        connection.exec_driver_sql("ROLLBACK")
                connection.rollback()
        except Exception:
            log.debug("rolling back failed; the connection goes", exc_info=True)
            self._invalidate(scope.kept)
        finally:
            for restore in reversed(scope.undo):
                restore()

    def _invalidate(self, kept: KeptConnection) -> None:
        try:
            kept.connection.invalidate()
        except SQLAlchemyError:
            log.debug("could not invalidate a connection", exc_info=True)
        self.connections.discard(kept)

    def _refuse_to_end(self, connection: Connection) -> None:
        # In autocommit mode a caller's own commit() would end the transaction
        # halfway, and what the block does after it would not be taken back.
        scope = self._thread.scope
        if scope and scope.kept.connection is connection and not scope.is_ending:
            raise StoreError(
                "the transaction ends with its block: leave the block to commit, or "
                "raise an exception in it to roll back"
            )

    # Running statements

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give the connection for one read: the open transaction's, or its own."""
        fork.gate.notice_fork()
        scope = self.scope
        if scope is not None:
            yield scope.kept.connection
            return
        with self.connections.turn, fork.gate.inside():
            kept = self.connections.of_thread()
            kept.is_fresh = False
            kept.is_busy = True
            pid = os.getpid()
            try:
                yield kept.connection
            finally:
                if pid == os.getpid():
                    kept.is_busy = False
                    if kept.is_usable:
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
                with block() as connection, self.translated():
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

    def translated(self, *, committing: bool = False) -> AbstractContextManager[None]:
        """Turn what SQLAlchemy raises in the block into this package's errors."""
        return translated(self.url, self.settings, committing=committing)

    @contextmanager
    def aside(self) -> Iterator[Connection]:
        """Give another connection, whose writes commit at once, for a moment."""
        with fork.gate.inside(), self.translated():
            with self.connections.engine.connect() as connection:
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
