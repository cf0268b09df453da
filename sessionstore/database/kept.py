"""A connection that a thread keeps, and how statements run on it."""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from typing import Any, NoReturn, TypeVar

from sqlalchemy.engine import URL, Connection, Dialect
from sqlalchemy.exc import DBAPIError, PendingRollbackError, SQLAlchemyError

from sessionstore.database import dialects
from sessionstore.database.dialects import BusyTimeout
from sessionstore.database.failures import failure, of_sqlalchemy
from sessionstore.database.statements import Parameters, Statement
from sessionstore.errors import ForkError, SessionStoreError, StoreError
from sessionstore.fork.guard import refuse_inherited
from sessionstore.fork.hooks import gate
from sessionstore.fork.inherited import descriptor_of

__all__ = ["INTERRUPTING", "KeptConnection"]

log = logging.getLogger(__name__)
T = TypeVar("T")

_NONE: Parameters = {}
#: Seconds of waiting after which a lock is asked for more often.
LONG = 0.2
INTERRUPTING = (
    "this call has interrupted another one of the same thread, as a signal's handler "
    "or a destructor does; let it only take a note, and use the store afterwards"
)


class KeptConnection:
    """A thread's own connection, and how statements run on it.

    Statements go to the driver's cursor as text.  They go through SQLAlchemy where
    somebody watches them there (``echo``, or events about cursors), and on databases
    that this package has no settings for.
    """

    def __init__(
        self,
        connection: Connection,
        settings: dialects.Settings,
        url: URL,
        options: dialects.Options,
    ) -> None:
        self.connection = connection
        self.driver: Any = connection.connection.dbapi_connection
        self.pid = os.getpid()
        #: In a call or a transaction, so that a fork must not close it.
        self.is_busy = False
        #: In the middle of a statement, or between BEGIN and its note in ``scopes``.
        self.is_in_call = False
        self.is_beginning = False
        #: Neither closed nor lost.
        self.is_open = True
        #: To be closed instead of used again.
        self.is_outdated = False
        self._settings = settings
        self._url = url
        self._options = options
        self._dialect: Dialect = connection.dialect
        dbapi: Any = connection.dialect.dbapi
        self._errors = (dbapi.Error, DBAPIError, PendingRollbackError)
        self._is_direct = settings.begin is not None and not _is_watched(connection)

    def rest(self) -> None:
        """Note that no call is under way, even if one was left by an exception."""
        self.is_busy = self.is_in_call = self.is_beginning = False

    def refuse_interruption(self) -> None:
        """Raise StoreError if this call has interrupted another one of its thread.

        A signal's handler or a destructor runs anywhere.  What it sent in the middle
        of a statement would mix with that, or wait for the driver's lock for ever.
        """
        if self.is_in_call or self.is_beginning:
            raise StoreError(INTERRUPTING)

    def rows(
        self, statement: Statement, parameters: Parameters = _NONE
    ) -> Sequence[tuple[Any, ...]]:
        """Run a query and return its rows."""
        try:
            cursor = self._execute(statement, parameters)
            rows: Sequence[tuple[Any, ...]] = cursor.fetchall()
            cursor.close()
            self.is_in_call = False
            return rows
        except BaseException as error:
            self._give_up_call(error)

    def row(
        self, statement: Statement, parameters: Parameters = _NONE
    ) -> tuple[Any, ...] | None:
        """Run a query and return its first row, None if there is none."""
        try:
            cursor = self._execute(statement, parameters)
            row: tuple[Any, ...] | None = cursor.fetchone()
            cursor.close()
            self.is_in_call = False
            return row
        except BaseException as error:
            self._give_up_call(error)

    def change(self, statement: Statement, parameters: Parameters = _NONE) -> int:
        """Run a statement that writes, and return how many rows it wrote."""
        try:
            cursor = self._execute(statement, parameters)
            count: int = cursor.rowcount
            cursor.close()
            self.is_in_call = False
            return count
        except BaseException as error:
            self._give_up_call(error)

    def change_many(
        self, statement: Statement, parameters: Iterable[Parameters]
    ) -> None:
        """Run a statement that writes, once for each of ``parameters``.

        ``parameters`` is read while they are sent, and may be a generator.
        """
        rows = iter(parameters)
        first = [*islice(rows, 2)]
        if len(first) < 2:  # drivers take longer for it by executemany()
            for row in first:
                self.change(statement, row)
            return
        rows = chain(first, rows)
        try:
            if not self._is_direct:
                self.connection.execute(statement.construct, [*rows]).close()
                return
            cursor = self._cursor(statement)
            # On SQLite, what makes the rows may use the store.
            self.is_in_call = self._settings.concurrent_writers
            cursor.executemany(statement.text, map(statement.arranged, rows))
            cursor.close()
            self.is_in_call = False
        except BaseException as error:
            self._give_up_call(error)

    def until_unlocked(self, run: Callable[..., T], *arguments: object) -> T:
        """Run something, and again for as long as it does not get a lock.

        The longer it has waited, the more often it asks; see ``dialects.BusyTimeout``.
        """
        try:
            return run(*arguments)
        except Exception as error:
            if not self._may_wait(error):
                raise
        started_at = time.monotonic()
        timeout = BusyTimeout.SHORT
        try:
            while True:
                waited = time.monotonic() - started_at
                if waited > LONG and timeout is BusyTimeout.SHORT:
                    timeout = BusyTimeout.SHORTEST
                    timeout.set(self.driver, self._options)
                try:
                    return run(*arguments)
                except Exception as error:
                    if waited >= self._options.busy_timeout or not self._may_wait(
                        error
                    ):
                        raise
        finally:
            if timeout is not BusyTimeout.SHORT:
                BusyTimeout.SHORT.set(self.driver, self._options)

    def _may_wait(self, error: BaseException | None) -> bool:
        # The driver's error may be the cause of one or two others.
        codes = self._settings.turn_codes
        while codes and error is not None:
            if dialects.error_code(error) in codes:
                return True
            error = error.__cause__
        return False

    def command(self, text: str) -> None:
        """Run a statement such as BEGIN."""
        self._check_process()
        try:
            self.is_in_call = True
            cursor = self.driver.cursor()
            self.until_unlocked(cursor.execute, text)
            cursor.close()
            self.is_in_call = False
        except BaseException as error:
            self._give_up_call(error)

    def commit(self, then: Sequence[str] = ()) -> None:
        """Commit the transaction that ``access`` began, and run what comes ``then``.

        Where the driver can, COMMIT and what comes then are sent together.
        """
        if self._settings.begin is None:
            try:
                for text in then:
                    self.connection.exec_driver_sql(text)
                self.connection.commit()
            except self._errors as error:
                raise self._failure(error) from error
            return
        self.command("; ".join(["COMMIT", *then]))
        self.end_logical_transaction()

    def refuse_failed(self) -> None:
        """Raise StoreError if a statement in the transaction has failed."""
        if self._settings.begin is not None and dialects.has_failed(
            self._dialect, self.driver
        ):
            raise StoreError(
                "the transaction was rolled back, because a statement in it failed "
                "and the error was suppressed"
            )

    def notifications(self) -> Sequence[object]:
        """Return what PostgreSQL has told this connection since the last time."""
        self._check_process()
        try:
            return dialects.notifications(self.driver)
        except self._errors as error:
            raise self._failure(error) from error

    def roll_back(self) -> None:
        """Roll the transaction back."""
        # SQLite has rolled back by itself after some errors.
        if self._settings.begin is not None and getattr(
            self.driver, "in_transaction", True
        ):
            self.command("ROLLBACK")
        self.end_logical_transaction()

    def _execute(self, statement: Statement, parameters: Parameters) -> Any:
        if not self._is_direct:
            return self.until_unlocked(
                self.connection.execute, statement.construct, parameters
            )
        cursor = self._cursor(statement)
        arranged = statement.arranged(parameters)
        self.is_in_call = True
        self.until_unlocked(cursor.execute, statement.text, arranged)
        return cursor

    def _cursor(self, statement: Statement) -> Any:
        self._check_process()
        if not statement.text:
            statement.compile(self._dialect)
        return self.driver.cursor()

    def _check_process(self) -> None:
        # The process may have forked since the gate was passed, in some callback.
        if self.pid != gate.pid:
            raise ForkError(
                "this connection was opened by the parent process and cannot be used "
                "in a forked child"
            )

    def _failure(self, error: Any) -> SessionStoreError:
        if isinstance(error, SQLAlchemyError):
            self.is_open = self.is_open and not self.connection.invalidated
            return of_sqlalchemy(error, self._url, self._settings)  # type: ignore[arg-type]
        lost = self._dialect.is_disconnect(error, self.driver, None)
        if lost:
            self.invalidate()
        return failure(error, self._url, self._settings, lost=lost)

    def _give_up_call(self, error: BaseException) -> NoReturn:
        """Raise what ended a call, and for a driver's error this package's own."""
        self.is_in_call = False
        if isinstance(error, self._errors):
            raise self._failure(error) from error
        # A signal's handler has raised in the middle of a call, for instance.  The
        # server's answer to that call would be taken for the answer to the next one.
        if self._settings.concurrent_writers and self.pid == os.getpid():
            self.invalidate()
        raise error

    def may_be_dead(self) -> bool:
        """Say whether the server seems to have closed the connection while idle."""
        descriptor = descriptor_of(self.driver)
        if descriptor is None:
            return False
        # On an idle connection a server sends nothing, except that it closes it.
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))

    @property
    def is_usable(self) -> bool:
        """Whether it is open: a caller may have closed or lost it, too."""
        connection = self.connection
        return self.is_open and not connection.closed and not connection.invalidated

    def end_logical_transaction(self) -> None:
        """Tell SQLAlchemy that the transaction it began by itself is over."""
        was_active = self.connection.in_transaction()
        # Even if it is not active: after a commit() that was refused or failed,
        # SQLAlchemy begins no other before this one is rolled back.
        self.connection.rollback()
        if not was_active and self._settings.begin is None and self.is_usable:
            self.driver.rollback()

    def invalidate(self) -> None:
        """Give the connection up, and send nothing more to the server."""
        self.is_open = False
        try:
            self.connection.invalidate()
        except SQLAlchemyError:
            log.debug("could not invalidate a connection", exc_info=True)

    def close(self) -> None:
        """Close the connection."""
        self.is_open = False
        try:
            self.connection.close()
        except SQLAlchemyError:
            log.debug("a lost connection could not be closed", exc_info=True)


def _is_watched(connection: Connection) -> bool:
    engine: Any = connection.engine
    return engine.logger.isEnabledFor(logging.INFO) or any(
        watcher is not refuse_inherited
        for when in ("before", "after")
        for what in ("execute", "cursor_execute")
        for watcher in getattr(engine.dispatch, f"{when}_{what}")
    )
