"""What every store can do, and how ``make_store`` finds the right one."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy.engine import URL

from sessionstore.errors import ConfigurationError
from sessionstore.refusal import refuse_in_payload
from sessionstore.url import Url

__all__ = ["Store", "make_store", "register", "register_fallback"]


class Store(ABC):
    """Keeps objects under IDs.

    For a store of your own, ``sessionstore.testing.contract`` tests what is promised.
    """

    @abstractmethod
    def save(self, obj: object) -> int:
        """Write an object, new or again, and return its ID.

        Raises EncodeError if it cannot be stored.
        """

    @abstractmethod
    def load(self, id_: object) -> Any:
        """Return the object with this ID.

        Raises NotFoundError if there is none, and DecodeError if there is one that
        cannot be read.
        """

    @abstractmethod
    def replace(self, id_: object, obj: object) -> None:
        """Make the object with this ID a copy of ``obj``.

        Raises NotFoundError if there is none, and EncodeError as ``save`` does.
        """

    @abstractmethod
    def remove(self, id_: object) -> None:
        """Remove the object with this ID.  Raises NotFoundError if there is none."""

    def list(self) -> Sequence[int]:
        """Return the IDs of all objects.

        Raises NotImplementedError in a store that cannot.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot list its objects")

    def invalidate_cache(self) -> None:  # noqa: B027
        """Forget the live objects, so that ``load`` reads each anew."""

    def pre_fork(self) -> None:  # noqa: B027
        """Get ready for a fork, or for what closes descriptors."""

    def post_fork(self) -> None:  # noqa: B027
        """Go on after a fork."""

    def __bool__(self) -> bool:
        # An empty store is a store: ``if store:`` must not depend on its length.
        return True

    def _refuse_to_be_stored(self) -> None:
        """Raise EncodeError if this is called to make part of a payload."""
        refuse_in_payload(
            f"{self!r} is inside an object to be stored; a store cannot be part of "
            "what it stores: leave it out in that object's __getstate__"
        )


_constructors: dict[str, Callable[..., Any]] = {}
_fallbacks: list[tuple[Callable[[str], bool], Callable[..., Any], Sequence[str]]] = []


def register(scheme: str, constructor: Callable[..., Any]) -> None:
    """Let ``make_store`` call ``constructor`` for URLs of this scheme.

    It is given what ``make_store`` is given, and takes the place of any other for the
    same scheme, the package's own too.

    Raises ConfigurationError for what cannot be a scheme.

    >>> from sessionstore import make_store, register
    >>> register("memory", lambda uri, *args, **kw: dict())
    >>> make_store("memory://")
    {}
    """
    # By the very library that takes URLs apart, whose rules these are.
    if (
        not scheme
        or urlsplit(f"{scheme}://").scheme != scheme.lower().partition("+")[0]
    ):
        raise ConfigurationError(
            f"{scheme!r} cannot be registered: the scheme is the part of a URL before "
            "its first '+' or ':', a letter followed by letters, digits, '-' or '.'"
        )
    _constructors[scheme.lower()] = constructor


def register_fallback(
    accepts: Callable[[str], bool],
    constructor: Callable[..., Any],
    examples: Sequence[str],
) -> None:
    """Let ``constructor`` make the stores of unregistered schemes that it accepts."""
    _fallbacks.append((accepts, constructor, examples))


def make_store(uri: str | os.PathLike[str] | Url | URL, *args: Any, **kw: Any) -> Any:
    """Return the store that a URL or a plain path names.

    The scheme up to its ``+`` decides: what was given to ``register``; ``file``, or
    no scheme at all, for a ``FilesystemStore``; what SQLAlchemy can load for an
    ``SqlStore``.

    What comes after the URL is the constructor's.

    Raises ConfigurationError, naming the schemes known, for any other.

    >>> from sessionstore import make_store
    >>> make_store("sqlite:///tasks.db").__class__.__name__
    'SqlStore'
    """
    drivername = uri.drivername if isinstance(uri, URL) else Url(uri).scheme
    scheme = drivername.partition("+")[0].lower()
    if scheme in _constructors:
        return _constructors[scheme](uri, *args, **kw)
    for accepts, constructor, _ in _fallbacks:
        if accepts(drivername):
            return constructor(uri, *args, **kw)
    known = sorted({*_constructors, *(name for f in _fallbacks for name in f[2])})
    raise ConfigurationError(
        f"there is no store for the scheme {drivername!r}; known schemes are "
        f"{', '.join(known)}, and any that SQLAlchemy can load"
    )
