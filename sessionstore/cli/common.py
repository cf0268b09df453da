"""What every command is given: the store and session named, and the output."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import typer

from sessionstore.cli.output import Output
from sessionstore.errors import ConfigurationError
from sessionstore.jobs.listing import Listing
from sessionstore.jobs.opening import sql_store
from sessionstore.renaming import Renaming
from sessionstore.serializers import (
    PickleSerializer,
    Serializer,
    SignedSerializer,
    read_keys,
)
from sessionstore.session import SessionStore
from sessionstore.sql import SqlStore

__all__ = ["Common", "UsageError"]


class UsageError(typer.TyperException):
    """The command line is wrong."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Common:
    """The options that commands have in common.

    What it opens creates and migrates nothing.
    """

    output: Output
    #: As given, with its password.
    url: str | None = field(default=None, repr=False)
    session: str = "default"
    #: The file of the keys with which payloads are signed.
    keys: str | None = None
    #: Where the serializer is, as ``module:name``.
    serializer: str | None = None
    #: Old and new names of classes, as ``old=new``.
    rename: Sequence[str] = ()

    def named_url(self) -> str:
        """Return the URL, or raise a usage error if none was given."""
        if not self.url:
            raise UsageError("no store is given: pass --url, or set SESSIONSTORE_URL")
        return self.url

    @contextmanager
    def store(self) -> Iterator[SqlStore]:
        """Give the store that was named."""
        url = self.named_url()
        options = {
            "serializer": self._serializer(),
            "rename": dict(map(_names, self.rename)),
        }
        with sql_store(url, False, options) as store:
            yield store

    def _serializer(self) -> Serializer | None:
        if self.keys and self.serializer:
            raise UsageError(
                "give --keys or --serializer, not both; the variables "
                "SESSIONSTORE_KEYS and SESSIONSTORE_SERIALIZER count as well"
            )
        if self.keys:
            return SignedSerializer(PickleSerializer(), read_keys(self.keys))
        return _serializer(self.serializer) if self.serializer else None

    @contextmanager
    def listing(self) -> Iterator[Listing]:
        """Give the store's sessions and tasks, to be looked at."""
        with self.store() as store:
            yield Listing(store)

    @contextmanager
    def opened(self) -> Iterator[tuple[SessionStore, Listing, int]]:
        """Give the session that was named, to be changed, and its listing and ID."""
        with self.store() as store:
            listing = Listing(store)
            # First, as its error names the sessions with nearly the same name.
            session_id = listing.session_id(self.session)
            yield SessionStore(store, self.session, create=False), listing, session_id


def _serializer(place: str) -> Serializer:
    """Return the serializer that a module has under a name."""
    module, colon, name = place.partition(":")
    if not (module and colon and name):
        raise UsageError(f"--serializer {place!r}: write module:name")
    try:
        found: Serializer = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"--serializer {place!r}: {error}; check the name, and that PYTHONPATH "
            "has its directory"
        ) from error
    if not (hasattr(found, "dumps") and hasattr(found, "loads")):
        raise UsageError(f"--serializer {place!r}: it must have dumps and loads")
    return found


def _names(pair: str) -> tuple[str, str]:
    """Return an old and a new name."""
    old, _, new = pair.partition("=")
    try:
        Renaming({old: new})
    except ConfigurationError as error:
        raise UsageError(
            f"--rename {pair!r}: write old.module:Old=new.module:New"
        ) from error
    return old, new
