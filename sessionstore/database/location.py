"""Where a store's objects are: which database, and which table if the URL says it."""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import parse_qs

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from sessionstore.errors import ConfigurationError
from sessionstore.url import Url

__all__ = ["database_and_table"]

#: Options by which drivers take a password.
_PASSWORD_OPTIONS = frozenset({"password", "passwd"})


def database_and_table(url: object) -> tuple[URL, str | None]:
    """Return a database's URL, and the name of the table that its ``#table=`` gives.

    Raises ConfigurationError for what is no such URL.
    """
    if isinstance(url, URL):
        return _password_apart(url), None
    text = url.geturl() if isinstance(url, Url) else str(url)
    text, _, fragment = text.partition("#")
    parsed = None
    # An "@" further on ends a password that has a character which should be encoded;
    # what looks like host and port is then a part of the password.
    if "@" not in fragment or "table=" in fragment:
        with suppress(ArgumentError, ValueError):
            text.encode()  # or SQLAlchemy fails later, at a lone surrogate
            parsed = make_url(text)
    if parsed is None or "@" in (parsed.host or ""):
        raise ConfigurationError(
            f"{_without_password(text)!r} is not a database URL; write it like "
            "sqlite:////var/lib/app/tasks.db or postgresql+psycopg://user@host/name, "
            "with '@', '#', ':' and '/' in the password percent-encoded"
        )
    # The last one counts, however several are put together.
    named = parse_qs(fragment.replace("#", "&")).get("table", [None])
    return _password_apart(parsed), named[-1]


def _password_apart(url: URL) -> URL:
    """Return a URL that has its password where its ``repr`` hides it."""
    # Drivers also take it as an option.
    for name in _PASSWORD_OPTIONS & url.query.keys():
        given = url.query[name]
        password = given if isinstance(given, str) else given[-1]
        url = url.difference_update_query([name]).set(password=password)
    return url


def _without_password(text: str) -> str:
    scheme, separator, rest = text.rpartition("://")
    _, at, tail = rest.rpartition("@")
    if separator and not at and ":" in rest:
        # It was cut off at a "#", so this may be the password.
        at, tail = "@", "…"
    return f"{scheme}{separator}***@{tail}" if at else text
