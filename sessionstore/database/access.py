"""One database: reads and writes, each on the connection that its thread keeps.

Nothing else in the package begins or ends transactions.  A write begins in the way its
database wants: on SQLite with BEGIN IMMEDIATE, as a transaction that reads first and
writes later is refused if somebody else wrote in between.  A write of one statement
needs neither BEGIN nor COMMIT, as it is a transaction by itself.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from sqlalchemy.engine import URL

from sessionstore.database import dialects
from sessionstore.database.connections import Connections
from sessionstore.database.failures import (
    ConnectionLostError,
    TransactionAbortedError,
    translated,
    unanswered,
)
from sessionstore.database.kept import KeptConnection
from sessionstore.database.scopes import Scope, Scopes, Transaction
from sessionstore.errors import SessionStoreError, StoreError, StoreUnavailableError
from sessionstore.fork import hooks

__all__ = ["Database"]

T = TypeVar("T")
Work = Callable[[KeptConnection], T]

#: How often a write is tried that a deadlock ends.
ATTEMPTS = 6


class Database:
    """One database, reached by any number of threads and forked processes."""

    def __init__(
        self,
        url: URL,
        *,
        options: dialects.Options,
        engine_options: Mapping[str, Any] | None = None,
    ) -> None:
        #: The open transactions of all threads.
        self.scopes = Scopes()
        self.connections = Connections(
            url,
            options=options,
            engine_options=engine_options,
            on_end=self.scopes.refuse_to_end,
            on_abort=self.scopes.doom,
            reset=self._reset_in_child,
        )
        self.url = self.connections.url
        self.settings = self.connections.settings
        #: Differs from all others' names; in-memory databases have the same URL.
        self.name = repr(self.url)
        if self.connections.is_in_memory:
            self.name += f" {uuid.uuid4()}"
        #: Called in a forked child, to drop what must not cross the fork.
        self.on_reset: list[Callable[[], None]] = []
        self._setup_lock = threading.RLock()

    def _reset_in_child(self) -> None:
        for reset in self.on_reset:
            reset()
        self.scopes.reset_in_child()
        self._setup_lock = threading.RLock()

    @property
    def scope(self) -> Scope | None:
        """This thread's open transaction, if there is one.

        Raises ForkError inside a block that began before this process was forked.
        """
        return self.scopes.current

    @contextmanager
    def transaction(self) -> Iterator[Scope]:
        """Commit all that this thread does in the block at once, or nothing."""
        hooks.gate.notice_fork()
        transaction = Transaction(self.connections, self.scopes)
        try:
            with transaction as scope:
                yield scope
        finally:
            # A signal's handler may have raised at the very beginning of __exit__.
            transaction.leave()

    def read(self, work: Work[T]) -> T:
        """Run ``work``, which only reads, again if its connection was lost."""
        hooks.gate.notice_fork()
        scope = self.scope
        if scope is not None:
            scope.kept.refuse_interruption()
            return work(scope.kept)
        return self._again(self._without_begin, work)

    def write(
        self,
        work: Work[T],
        *,
        is_one_statement: bool = False,
        is_repeatable: bool = False,
    ) -> T:
        """Run ``work`` in a transaction, again after a deadlock.

        ``is_repeatable`` says that it may be done twice: it is done again if nobody
        knows whether it was committed.

        Inside a caller's own transaction nothing is tried again.
        """
        hooks.gate.notice_fork()
        if self.scope is not None:
            return self._write_once(work)
        if is_one_statement and self.settings.begin is not None:
            return self._again(self._write_one_statement, work)
        return self._again(self._write_once, work, is_repeatable)

    def _without_begin(self, work: Work[T]) -> T:
        connections = self.connections
        connections.enter()
        pid, kept = hooks.gate.pid, None
        try:
            kept = connections.of_thread()
            kept.is_busy = True
            return work(kept)
        finally:
            # A child that ``work`` forked has entered nothing.
            if pid == hooks.gate.pid:
                try:
                    if kept is not None:
                        kept.rest()
                        kept.end_logical_transaction()
                    connections.leave()
                except BaseException:  # a signal's handler has raised
                    connections.leave()
                    raise

    def _write_once(self, work: Work[T]) -> T:
        with self.transaction() as scope:
            return work(scope.kept)

    def _write_one_statement(self, work: Work[T]) -> T:
        # A connection that the server has closed while it was idle must be noticed
        # before anything is sent on it: only BEGIN can safely be sent twice.
        if self.settings.concurrent_writers and self.connections.may_be_dead():
            return self._write_once(work)
        is_connected = False

        def send(kept: KeptConnection) -> T:
            nonlocal is_connected
            is_connected = True
            return work(kept)

        try:
            return self._without_begin(send)
        except ConnectionLostError as error:
            # Some drivers call it that too if a login is cut off.
            if not is_connected:
                raise
            raise unanswered(error) from error.__cause__

    def _again(
        self, run: Callable[[Work[T]], T], work: Work[T], is_repeatable: bool = False
    ) -> T:
        lost = aborted = 0
        in_doubt = False
        while True:
            try:
                return run(work)
            except StoreUnavailableError as error:
                is_unknown = error.outcome_unknown
                in_doubt = in_doubt or is_unknown
                if isinstance(error, ConnectionLostError):
                    lost += 1
                    if lost < 2 and (is_repeatable or not is_unknown):
                        continue
                elif isinstance(error, TransactionAbortedError):
                    aborted += 1
                    if aborted < ATTEMPTS:
                        # Two that collided must not collide again in step.
                        time.sleep(random.uniform(0, 0.01 * 2**aborted))
                        continue
                if in_doubt and not is_unknown:
                    # This try was in vain, but an earlier one's commit was sent.
                    raise unanswered(error) from error.__cause__
                raise

    def translated(self) -> AbstractContextManager[None]:
        """Turn what SQLAlchemy raises in the block into this package's errors."""
        return translated(self.url, self.settings)

    @contextmanager
    def aside(self) -> Iterator[KeptConnection]:
        """Yield a new connection, whose writes are committed at once."""
        with hooks.gate.inside():
            kept = self.connections.open()
            kept.is_busy = True
            try:
                yield kept
                if self.settings.begin is None:
                    kept.commit()
            finally:
                kept.close()

    @contextmanager
    def snapshot(self) -> Iterator[KeptConnection]:
        """Yield a new connection, which sees one state of the database.

        An in-memory database has one connection for all, and no such state.
        """
        statements = () if self.connections.is_in_memory else self.settings.snapshot
        with self.aside() as kept:
            for statement in statements:
                kept.command(statement)
            yield kept
            if statements:
                kept.command("ROLLBACK")

    def packet_limit(self) -> int | None:
        """Return how many bytes the server takes in one statement; None if unknown."""
        if self.settings.packet_limit is None:
            return None
        try:
            with self.aside() as kept, self.translated():
                answer = kept.connection.exec_driver_sql(self.settings.packet_limit)
                return int(answer.scalar_one())
        except SessionStoreError:
            return None

    def explained(self, error: StoreError, largest: int) -> StoreError:
        """Return what to raise for an error in sending payloads up to this size.

        MySQL ends the connection when a statement is too long, and does not say why.
        """
        limit = self.packet_limit() if largest >= 2**20 else None
        if limit is None or largest < limit // 2:
            return error
        return StoreError(
            f"an object of {largest} bytes exceeds what {self.url!r} accepts: its "
            f"max_allowed_packet is {limit} bytes; raise it on the server to twice "
            "the size of the largest object"
        )

    @contextmanager
    def setup_lock(self, name: str) -> Iterator[None]:
        """Let one process at a time make or migrate the tables of ``name``."""
        lock, unlock = self.settings.lock, self.settings.unlock
        with self._setup_lock:
            if lock is None or unlock is None:
                # SQLite's BEGIN IMMEDIATE is that lock.
                yield
                return
            with self.aside() as kept:
                # If this process dies, the server releases it with the connection.
                kept.command(lock.replace("%s", name))
                yield
                kept.command(unlock.replace("%s", name))
