"""The one place where drivers' errors become this package's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.engine import URL
from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
)

from sessionstore.dialects import Settings, error_code, matches
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
    "translated",
]


class TransactionAbortedError(StoreUnavailableError):
    """The database chose this transaction to end a deadlock; nothing was written."""


class ConnectionLostError(StoreUnavailableError):
    """The connection ended under the call."""


class DuplicateKeyError(ConflictError):
    """A row with this key is there already."""


@contextmanager
def translated(
    url: URL, settings: Settings, *, committing: bool = False
) -> Iterator[None]:
    """Turn what SQLAlchemy raises in the block into this package's errors."""
    try:
        yield
    except DBAPIError as error:
        raise _translate(error, url, settings, committing=committing) from error
    except PendingRollbackError as error:
        raise ConnectionLostError(
            f"the connection to {url!r} was lost in this transaction, which was "
            "rolled back"
        ) from error


def _translate(
    error: DBAPIError, url: URL, settings: Settings, *, committing: bool = False
) -> SessionStoreError:
    """Return this package's error for a driver's."""
    code = error_code(error.orig)
    said = " ".join(str(error.orig).split()) or type(error.orig).__name__
    where = f"{url.database or url!r}" if url.host is None else f"{url!r}"

    if matches(code, settings.duplicate_codes):
        return DuplicateKeyError(f"{where}: the row is there already: {said}")
    if matches(code, settings.deadlock_codes):
        return TransactionAbortedError(f"{where}: the transaction was aborted: {said}")
    if matches(code, settings.busy_codes):
        return StoreUnavailableError(
            f"{where} is busy: {said}; wait, or give a longer busy_timeout"
        )
    if matches(code, settings.full_codes):
        return StoreUnavailableError(
            f"{where} could not be written: {said}; free some space, then retry"
        )
    if matches(code, settings.unusable_codes):
        return ConfigurationError(
            f"{where} cannot be used: {said}; check the path or the database's name, "
            "its permissions and the credentials"
        )
    if matches(code, settings.missing_codes) or said.startswith("no such "):
        return SchemaError(f"{where}: the tables do not fit: {said}")
    if matches(code, settings.too_large_codes):
        return StoreError(f"{where}: more than the server takes at once: {said}")
    if error.connection_invalidated:
        return ConnectionLostError(
            f"the connection to {where} was lost: {said}"
            + ("; the commit may have happened" if committing else ""),
            outcome_unknown=committing,
        )
    if error.statement is None and isinstance(
        error, (OperationalError, InterfaceError)
    ):
        return StoreUnavailableError(
            f"{where} cannot be reached: {said}; check that the server runs there"
        )
    return StoreError(f"{where}: {said}")
