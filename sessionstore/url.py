"""URLs that do not show their password by accident."""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from sessionstore.errors import ConfigurationError
from sessionstore.refusal import refuse_in_payload

__all__ = ["Url"]

#: What urlsplit drops silently.
_STRIPPED = re.compile(r"[\x00-\x1f]|^ | $")
#: What would mean something else in a URL than it does in a path.
_SPECIAL = re.compile(r"[\x00-\x1f%#?]|^ | $")
_IN_QUERY = re.compile(r"(?i)([?&](?:password|passwd|pwd|passfile)=)[^&#]*")
_UNPARSED = re.compile(r"(?s)(//[^:/@]*):.*@")


class Url:
    """An immutable URL; a plain path is a ``file`` URL.

    Neither ``repr`` nor ``str`` shows the password; ``geturl()`` gives the whole.  One
    with a password does not get into a stored object: that is an EncodeError.

    Raises ConfigurationError for what is no URL.

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

    def __init__(self, value: str | os.PathLike[str] | Url) -> None:
        text = value.geturl() if isinstance(value, Url) else os.fspath(value)
        if not text:
            raise ConfigurationError("the URL is an empty string")
        if isinstance(value, os.PathLike) or ":" not in text.partition("/")[0]:
            text = f"file://{_quote(os.path.abspath(text))}"
        try:
            parts = urlsplit(text)
            port = parts.port
            if not parts.scheme or _STRIPPED.search(text):
                raise ValueError
        except ValueError:
            # The library's message quotes what it took for the port: a piece of the
            # password, if that has a slash in it.
            raise ConfigurationError(
                f"{_hide(text, None)!r} is not a URL: write it like "
                "scheme://user:password@host:port/name#fragment, with a number for "
                "the port, and with /, ?, #, @ and % percent-encoded in the user name "
                "and password"
            ) from None
        object.__setattr__(self, "_text", text)
        object.__setattr__(self, "_parts", parts)
        object.__setattr__(self, "_port", port)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Url cannot be changed; tried to set {name!r}")

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
        if self.password is not None:
            refuse_in_payload(
                f"{self!r} is inside an object to be stored, and everybody who can "
                "read the table would see its password; store the URL without it"
            )
        return Url, (self._text,)


def _quote(path: str) -> str:
    return _SPECIAL.sub(lambda match: f"%{ord(match[0]):02X}", path)


def _hide(text: str, parts: SplitResult | None) -> str:
    text = _IN_QUERY.sub(r"\1***", text)
    if parts is not None and parts.password is not None:
        credentials = parts.netloc.rpartition("@")[0]
        user = credentials.partition(":")[0]
        return text.replace(f"//{credentials}@", f"//{user}:***@", 1)
    if parts is not None and parts.scheme == "file":
        return text
    # An "@" further on may end a password with an unencoded slash in it.
    return _UNPARSED.sub(r"\1:***@", text)
