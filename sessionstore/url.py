"""URLs that do not tell their password by accident."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from sessionstore.errors import ConfigurationError

__all__ = ["Url"]


class Url:
    """An immutable URL; a plain path is a ``file`` URL.

    Neither ``repr`` nor ``str`` shows the password; ``geturl()`` gives the whole.

    >>> from sessionstore import Url
    >>> url = Url("postgresql://ann:s3cret@db.example:5432/jobs#table=t")
    >>> url
    Url('postgresql://ann:***@db.example:5432/jobs#table=t')
    >>> url.hostname, url.port, url.path, url.fragment
    ('db.example', 5432, '/jobs', 'table=t')
    >>> url.password
    's3cret'
    >>> Url("/tmp/tasks").scheme
    'file'
    """

    __slots__ = ("_parts", "_port", "_text")

    _text: str
    _parts: SplitResult
    _port: int | None

    def __init__(self, value: str | Path | Url) -> None:
        text = value.geturl() if isinstance(value, Url) else str(value)
        if not text:
            raise ConfigurationError("an empty string is no URL")
        if ":" not in text.partition("/")[0]:
            text = f"file://{os.path.abspath(text)}"
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise ConfigurationError(
                f"{_hide(text, None)!r} is no URL: {str(error).split(':')[0]}"
            ) from None
        object.__setattr__(self, "_text", text)
        object.__setattr__(self, "_parts", parts)
        object.__setattr__(self, "_port", port)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Url cannot be changed; {name!r} was assigned to")

    def geturl(self) -> str:
        """Return the whole URL, its password included."""
        return self._text

    @property
    def scheme(self) -> str:
        """What stands before the first colon, in lower case."""
        return self._parts.scheme

    @property
    def netloc(self) -> str:
        """The authority as it was written, credentials included."""
        return self._parts.netloc

    @property
    def path(self) -> str:
        """The path, with its leading slash."""
        return self._parts.path

    @property
    def query(self) -> str:
        """What stands after the question mark."""
        return self._parts.query

    @property
    def fragment(self) -> str:
        """What stands after the hash sign."""
        return self._parts.fragment

    @property
    def hostname(self) -> str | None:
        """The host, in lower case."""
        return self._parts.hostname

    @property
    def port(self) -> int | None:
        """The port, or None."""
        return self._port

    @property
    def username(self) -> str | None:
        """The user's name, percent-decoded."""
        name = self._parts.username
        return None if name is None else unquote(name)

    @property
    def password(self) -> str | None:
        """The password, percent-decoded."""
        password = self._parts.password
        return None if password is None else unquote(password)

    def __str__(self) -> str:
        return _hide(self._text, self._parts)

    def __repr__(self) -> str:
        return f"Url({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, Url) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> tuple[Any, ...]:
        return Url, (self._text,)


def _hide(text: str, parts: SplitResult | None) -> str:
    if parts is None:
        head, at, tail = text.rpartition("@")
        return f"***@{tail}" if at else text
    if parts.password is None:
        return text
    credentials, _, host = parts.netloc.rpartition("@")
    user = credentials.partition(":")[0]
    return text.replace(f"{credentials}@{host}", f"{user}:***@{host}", 1)
