"""Transaction blocks: what a thread does in one is committed together, or not at all.

Each transaction has an ``undo`` list, as a rollback has to put back what was noted on
Python objects too.

Where the connection ends before COMMIT is answered, the transaction's own ``write_id``
in a row that it wrote tells whether it was committed.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from sessionstore.database.connections import Connections
from sessionstore.database.failures import (
    ConnectionLostError,
    lost_in_transaction,
    of_sqlalchemy,
    unanswered,
)
from sessionstore.database.kept import INTERRUPTING, KeptConnection
from sessionstore.errors import ForkError, SessionStoreError, StoreError
from sessionstore.fork.hooks import gate

__all__ = ["Scope", "Scopes", "Transaction"]

log = logging.getLogger(__name__)

#: How often the statements that go along with COMMIT are tried again.
ATTEMPTS = 6


class Scope:
    """One thread's open transaction, however deeply its blocks are nested."""

    def __init__(self, kept: KeptConnection) -> None:
        self.kept = kept
        self.pid = kept.pid
        #: The asyncio task that began it, None in other code.
        self.coroutine = _coroutine()
        self.is_ending = False
        self.has_ended = False
        self.doomed_by: BaseException | None = None
        self.undo: list[Callable[[], None]] = []
        self.before_commit: list[Callable[[Scope], None]] = []
        #: Statements to be sent along with COMMIT, and run after it.
        self.with_commit: list[str] = []
        self.after_commit: list[Callable[[], None]] = []
        #: Says, on another connection, whether this transaction was committed.
        self.has_landed: Callable[[KeptConnection], bool | None] | None = None
        self._write_id: str | None = None
        #: Called if nobody can find out whether it was committed.
        self.if_in_doubt: list[Callable[[], None]] = []
        #: What others remember until this transaction ends, by who remembers it.
        self.notes: dict[object, Any] = {}

    @property
    def write_id(self) -> str:
        """Marks the rows that this transaction writes."""
        if self._write_id is None:
            self._write_id = os.urandom(16).hex()
        return self._write_id

    def restore(self) -> None:
        """Put back what was noted on objects."""
        for restore in reversed(self.undo):
            restore()


def _coroutine() -> object:
    """Return the asyncio task that this thread runs, None if it runs none."""
    # If nobody has imported asyncio, it runs nothing.
    asyncio = sys.modules.get("asyncio")
    try:
        return None if asyncio is None else asyncio.current_task()
    except RuntimeError:
        return None


class _ThreadState(threading.local):
    scope: Scope | None = None


class Scopes:
    """The open transactions of all threads of this process."""

    def __init__(self) -> None:
        self._open: set[Scope] = set()
        self._thread = _ThreadState()

    def __iter__(self) -> Iterator[Scope]:
        return iter(list(self._open))

    @property
    def current(self) -> Scope | None:
        """This thread's, if there is one.

        Raises ForkError inside a block that began before this process was forked, and
        StoreError in another coroutine than the one that is inside the block.
        """
        scope = self._thread.scope
        if scope is None:
            return None
        if scope.pid != gate.pid:
            raise ForkError(
                "this transaction was begun by the parent process; in a forked child, "
                "leave its block before using the store"
            )
        if scope.coroutine is not None and scope.coroutine is not _coroutine():
            # What it writes here would be rolled back with the other's block.
            raise StoreError(
                "another coroutine in this thread is awaiting inside a transaction; "
                "move that block into a function and run it with asyncio.to_thread"
            )
        return scope

    def add(self, scope: Scope) -> None:
        """Make a transaction this thread's."""
        self._open.add(scope)
        self._thread.scope = scope

    def remove(self, scope: Scope) -> None:
        """Forget a transaction that has ended."""
        self._open.discard(scope)
        if self._thread.scope is scope:
            self._thread.scope = None

    def reset_in_child(self) -> None:
        """Take back what the parent's transactions noted on objects, and drop them."""
        for scope in self._open:
            scope.restore()
        self._open = set()
        # This thread keeps an inherited scope: its block is still on the stack, and
        # what the child calls inside it must be refused, not begin a new transaction.

    def doom(self, connection: Connection, error: BaseException, begin: str) -> None:
        """Keep a transaction from being committed that the server itself has ended."""
        # MySQL does that at a deadlock.  If the caller catches the error, each
        # statement that follows in the block would be committed at once; in a new
        # transaction all are rolled back.
        scope = self._thread.scope
        if scope and scope.kept.connection is connection:
            scope.doomed_by = scope.doomed_by or error
            scope.kept.command("ROLLBACK")
            scope.kept.command(begin)

    def refuse_to_end(self, connection: Connection) -> None:
        """Raise StoreError if a caller is about to end our transaction halfway."""
        # A caller's own commit() would do that in autocommit mode, and what the block
        # does afterwards could not be rolled back.
        scope = self._thread.scope
        if scope and scope.kept.connection is connection and not scope.is_ending:
            raise StoreError(
                "the transaction ends with its block: leave the block to commit, or "
                "raise an exception in it to roll back"
            )


class Transaction:
    """One block.  A thread's outermost one begins and ends the transaction."""

    def __init__(self, connections: Connections, scopes: Scopes) -> None:
        self._connections = connections
        self._scopes = scopes
        self._is_outermost = False

    def __enter__(self) -> Scope:
        scope = self._scopes.current
        if scope is None:
            self._connections.enter()
            kept = None
            try:
                kept = self._begin()
                scope = Scope(kept)
                self._scopes.add(scope)
                self._is_outermost = True
                kept.is_beginning = False
            except BaseException:
                if kept is not None:  # a signal's handler has raised after BEGIN
                    kept.rest()
                    self._abandon(kept)
                self._connections.leave()
                raise
        else:
            scope.kept.refuse_interruption()
            if scope.is_ending:
                # What is written now would be no part of it, or be rolled back.
                raise StoreError(INTERRUPTING)
        self._scope = scope
        return scope

    def __exit__(
        self, kind: object, error: BaseException | None, traceback: object
    ) -> None:
        scope = self._scope
        if not self._is_outermost:
            if error is not None:
                scope.doomed_by = scope.doomed_by or error
            elif scope.is_ending:
                # A generator that held the outer block was closed meanwhile.
                raise StoreError(
                    "the enclosing transaction ended before this block did; what the "
                    "block did after that was not part of it"
                )
            return
        try:
            self._end(scope, error)
        finally:
            try:
                self.leave()
            except BaseException:  # a signal's handler has raised
                self.leave()
                raise
        if error is None:
            for callback in scope.after_commit:
                callback()

    def leave(self) -> None:
        """Leave nothing of the transaction open, if the block is its outermost.

        It may be called again, as a signal's handler may have raised in it.
        """
        if not self._is_outermost:
            return
        scope = self._scope
        if scope.pid == os.getpid():
            if not scope.has_ended:  # a signal's handler has raised before it did
                self._roll_back(scope)
            scope.kept.rest()
        self._scopes.remove(scope)
        if scope.pid == os.getpid():
            self._connections.leave()
        self._is_outermost = False

    def _begin(self) -> KeptConnection:
        # An idle connection may have died with its server.  As nothing was sent on it
        # yet, it is always safe to open another one.
        begin = self._connections.settings.begin
        while True:
            was_idle = self._connections.has_one()
            kept = self._connections.of_thread()
            kept.is_busy = kept.is_beginning = True
            try:
                if begin is None:
                    kept.connection.begin()
                else:
                    kept.command(begin)
                return kept
            except BaseException as error:
                kept.rest()
                self._connections.discard(kept)
                if not (was_idle and isinstance(error, ConnectionLostError)):
                    raise

    def _end(self, scope: Scope, error: BaseException | None) -> None:
        is_inherited = scope.pid != os.getpid()
        if error is not None:
            if not is_inherited:
                self._roll_back(scope)
                if isinstance(error, DBAPIError) and error.connection_invalidated:
                    # A statement of the caller's own was the first to notice.
                    raise of_sqlalchemy(
                        error, self._connections.url, self._connections.settings
                    ) from error
            return
        if is_inherited:
            raise ForkError(
                "this transaction was begun by the parent process, and only the "
                "parent can commit it; in a forked child, leave the block with "
                "os._exit()"
            )
        if scope.doomed_by is not None:
            self._roll_back(scope)
            raise StoreError(
                "the transaction was rolled back, because an exception left a block "
                f"inside it: {scope.doomed_by!r}"
            ) from scope.doomed_by
        try:
            self._commit(scope)
            scope.has_ended = True
        except BaseException:
            self._roll_back(scope)
            raise

    def _commit(self, scope: Scope) -> None:
        kept = scope.kept
        scope.is_ending = True
        if not kept.is_usable:
            raise lost_in_transaction(self._connections.url)
        for callback in scope.before_commit:
            callback(scope)
        kept.refuse_failed()
        try:
            kept.commit(scope.with_commit)
        except ConnectionLostError as error:
            self._find_out(scope, error)
        except StoreError as error:
            if not scope.with_commit:
                raise
            # Perhaps COMMIT succeeded, and what went along with it was refused.
            kept.roll_back()
            self._find_out(scope, error)
            self._run_again(kept, scope.with_commit)

    def _run_again(self, kept: KeptConnection, texts: Sequence[str]) -> None:
        """Run what goes along with COMMIT; what was committed stays so in any case."""
        for attempt in range(ATTEMPTS):
            try:
                kept.command("; ".join(texts))
                return
            except StoreError:
                log.info("a notification sent with COMMIT failed", exc_info=True)
                time.sleep(0.01 * 2**attempt)
        log.warning(
            "a notification was lost; waiting processes will only learn of the next "
            "change"
        )

    def _find_out(self, scope: Scope, error: StoreError) -> None:
        """Return if an unanswered commit happened, else raise.

        The error says that it may have happened only if nobody can find out.
        """
        # The server may be restarting.
        give_up_at = time.monotonic() + self._connections.busy_timeout
        pause = 0.05
        while scope.has_landed is not None:
            try:
                landed = self._ask(scope.has_landed)
            except SessionStoreError:
                if time.monotonic() > give_up_at:
                    break
                time.sleep(pause)
                pause = min(2 * pause, 1.0)
                continue
            if landed:
                return
            if landed is None:
                break
            if not isinstance(error, ConnectionLostError):
                raise error
            raise lost_in_transaction(self._connections.url) from error.__cause__
        for note in scope.if_in_doubt:
            note()
        raise unanswered(error) from error.__cause__

    def _ask(self, has_landed: Callable[[KeptConnection], bool | None]) -> bool | None:
        kept = self._connections.open()
        try:
            if self._connections.settings.begin is not None:
                kept.command(self._connections.settings.begin)
            landed = has_landed(kept)
            kept.roll_back()
            return landed
        finally:
            kept.close()

    def _roll_back(self, scope: Scope) -> None:
        scope.is_ending = True
        try:
            self._abandon(scope.kept)
        finally:
            scope.restore()
            scope.has_ended = True

    def _abandon(self, kept: KeptConnection) -> None:
        """Roll back what a connection has begun."""
        try:
            if kept.is_usable:
                kept.roll_back()
            else:
                self._connections.discard(kept)
        except Exception:
            log.debug("rollback failed; discarding the connection", exc_info=True)
            kept.invalidate()
            self._connections.discard(kept)
