"""A connection for looking into a database, which changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import create_engine
from sqlalchemy.engine import URL, Connection
from sqlalchemy.pool import NullPool

from sessionstore.errors import ConfigurationError
from sessionstore.fork import protect
from sessionstore.sql import SqlStore

__all__ = ["looking", "reopened", "sqlite_file", "writing"]


@contextmanager
def looking(store: SqlStore) -> Iterator[Connection]:
    """Yield a connection to a store's database that is not the store's own.

    The store's own would put a SQLite file into WAL mode.
    """
    database = store._objects.database
    if database.connections.is_in_memory:
        raise ConfigurationError(
            "an in-memory database can be examined only by the process that opened "
            "it; give the URL of a file or a server"
        )
    engine = protect(
        create_engine(
            _as_it_is(store), poolclass=NullPool, isolation_level="AUTOCOMMIT"
        )
    )
    with database.translated(), engine.connect() as connection:
        yield connection


@contextmanager
def writing(store: SqlStore) -> Iterator[Connection]:
    """Yield a connection in a transaction, whose errors are the package's."""
    with store._objects.database.translated(), store.transaction() as connection:
        yield connection


def reopened(store: SqlStore, *, create: bool) -> SqlStore:
    """Return another store of the same table, with no objects in memory."""
    recipe: dict[str, Any] = {**store._recipe, "create": create}
    return SqlStore(**recipe)


def sqlite_file(store: SqlStore) -> Path | None:
    """Return the file of a SQLite store, None for another one."""
    url = store.url
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    return Path(url.database.removeprefix("file:").partition("?")[0])


def _as_it_is(store: SqlStore) -> URL:
    path = sqlite_file(store)
    if path is None:
        return store.url
    # A file that is not there must not be made.
    return store.url.set(
        database=f"file:{quote(str(path))}", query={"mode": "rw", "uri": "true"}
    )
