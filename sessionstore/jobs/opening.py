"""Checks of what a session is opened on, and of its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL

from sessionstore.errors import ConfigurationError
from sessionstore.jobs.history import clean
from sessionstore.jobs.index import Index
from sessionstore.objects.schema import MAX_NAME
from sessionstore.sql import SqlStore
from sessionstore.url import Url

__all__ = ["check_name", "open_index", "sql_store"]


def check_name(name: object) -> str:
    """Return a session's name, or raise ConfigurationError."""
    if (
        not isinstance(name, str)
        or not 1 <= len(name) <= MAX_NAME
        or clean(name, MAX_NAME) != name
        # MySQL's utf8mb4_bin ignores spaces at the end.
        or name.endswith(" ")
    ):
        raise ConfigurationError(
            f"the session name {name!r} must have 1 to {MAX_NAME} characters, no NUL "
            "or lone surrogate, and no trailing space"
        )
    return name


def sql_store(
    store_or_url: object, create: bool, store_options: dict[str, Any]
) -> SqlStore:
    """Return the SQL store that was given, or whose URL was."""
    if isinstance(store_or_url, SqlStore):
        if store_options:
            raise ConfigurationError(
                "store options were given together with an existing store: "
                f"{', '.join(sorted(store_options))}"
            )
        return store_or_url
    if isinstance(store_or_url, Path) or (
        isinstance(store_or_url, str)
        and store_or_url
        and ":" not in store_or_url.partition("/")[0]
    ):
        path = Path(store_or_url).absolute()
        raise ConfigurationError(
            f"a session needs a SQL store, and {str(store_or_url)!r} is a plain path; "
            f"for a SQLite file write 'sqlite:///{path}'"
        )
    if not isinstance(store_or_url, (str, Url, URL)):
        raise ConfigurationError(
            f"a session needs an SqlStore or a URL, not {store_or_url!r}"
        )
    return SqlStore(store_or_url, create=create, **store_options)


def open_index(store: SqlStore, name: str, *, create: bool, is_ours: bool) -> Index:
    """Return a session's index; if that fails, and the store ``is_ours``, close it."""
    try:
        return Index(store._objects, name, create=create)
    except BaseException:
        if is_ours:  # nobody else has it
            store.close()
        raise
