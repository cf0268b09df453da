"""The one place where drivers' errors become this package's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, PendingRollbackError

from sessionstore.database.dialects import Settings, error_code, matches
from sessionstore.errors import (
    ConfigurationError,
    ConflictError,
    SchemaError,
    SessionStoreError,
    StoreError,
    StoreUnavailableError,
)

__all__ = [
    "ConnectionLostError",
    "DuplicateKeyError",
    "TransactionAbortedError",
    "ahead_of_write",
    "failure",
    "lost_in_transaction",
    "of_sqlalchemy",
    "translated",
    "unanswered",
]


class TransactionAbortedError(StoreUnavailableError):
    """The database chose this transaction to end a deadlock; nothing was written."""


class ConnectionLostError(StoreUnavailableError):
    """The connection ended under the call."""


class DuplicateKeyError(ConflictError):
    """A row with this key is there already."""


@contextmanager
def translated(url: URL, settings: Settings) -> Iterator[None]:
    """Turn what SQLAlchemy raises in the block into this package's errors."""
    try:
        yield
    except (DBAPIError, PendingRollbackError) as error:
        raise of_sqlalchemy(error, url, settings) from error


def of_sqlalchemy(
    error: DBAPIError | PendingRollbackError, url: URL, settings: Settings
) -> SessionStoreError:
    """Return this package's error for one that SQLAlchemy raised."""
    if isinstance(error, PendingRollbackError):
        return lost_in_transaction(url)
    return failure(
        error.orig or error,
        url,
        settings,
        lost=error.connection_invalidated,
        connecting=error.statement is None,
    )


def lost_in_transaction(url: URL) -> ConnectionLostError:
    """Return the error for a connection that ended between two statements."""
    return ConnectionLostError(
        f"the connection to {url!r} was lost during this transaction, which was "
        "rolled back"
    )


_MAY_HAVE_HAPPENED = "; the transaction may have been committed"


def unanswered(error: StoreError) -> ConnectionLostError:
    """Return the error for a commit that may or may not have happened."""
    return ConnectionLostError(f"{error}{_MAY_HAVE_HAPPENED}", outcome_unknown=True)


@contextmanager
def ahead_of_write() -> Iterator[None]:
    """Commit in the block what a caller's write needs, and nothing of that write.

    Whether that commit happened is not what ``outcome_unknown`` tells the caller.
    """
    try:
        yield
    except StoreUnavailableError as error:
        if not error.outcome_unknown:
            raise
        said = str(error).removesuffix(_MAY_HAVE_HAPPENED)
        raise ConnectionLostError(said) from error.__cause__


def failure(
    error: BaseException,
    url: URL,
    settings: Settings,
    *,
    lost: bool,
    connecting: bool = False,
) -> SessionStoreError:
    """Return this package's error for a driver's.

    ``lost`` says that the connection ended with it, ``connecting`` that there was none
    yet.
    """
    code = error_code(error)
    said = " ".join(str(error).split()) or type(error).__name__
    # PostgreSQL quotes the whole row, with the beginning of the payload.
    said = said.partition(" DETAIL: Failing row contains")[0]
    where = f"{url.database or url!r}" if url.host is None else f"{url!r}"

    if matches(code, settings.duplicate_codes):
        return DuplicateKeyError(f"{where}: the row already exists: {said}")
    if matches(code, settings.deadlock_codes):
        return TransactionAbortedError(f"{where}: the transaction was aborted: {said}")
    if matches(code, settings.busy_codes):
        return StoreUnavailableError(
            f"{where} is busy: {said}; retry later, or raise busy_timeout"
        )
    if matches(code, settings.stopped_codes):
        return StoreUnavailableError(
            f"{where} has ended a statement: {said}; retry, or raise the server's limit"
        )
    if matches(code, settings.full_codes):
        return StoreUnavailableError(
            f"{where} could not be written: {said}; free some disk space, then retry"
        )
    # PEP 249 gives every driver these names.
    names = {cls.__name__ for cls in type(error).__mro__}
    if matches(code, settings.unusable_codes) or (
        connecting
        and (
            "ProgrammingError" in names
            or (settings.refusals is not None and settings.refusals.search(said))
        )
    ):
        return ConfigurationError(
            f"{where} cannot be used: {said}; check the path or the database name, "
            "the permissions and the credentials"
        )
    if matches(code, settings.missing_codes) or said.startswith("no such "):
        return SchemaError(f"{where}: a table or column is missing: {said}")
    if matches(code, settings.too_large_codes):
        return StoreError(f"{where}: larger than the server accepts: {said}")
    if lost:
        return ConnectionLostError(f"the connection to {where} was lost: {said}")
    if connecting and names & {"OperationalError", "InterfaceError"}:
        return StoreUnavailableError(
            f"{where} cannot be reached: {said}; check that the database server is "
            "running there"
        )
    return StoreError(f"{where}: {said}")
