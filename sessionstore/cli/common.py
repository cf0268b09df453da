"""What every command is given: which store and session are meant, and the output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import typer

from sessionstore.cli.output import Output
from sessionstore.listing import Listing
from sessionstore.opening import sql_store
from sessionstore.session import SessionStore
from sessionstore.sql import SqlStore

__all__ = ["Common", "UsageError"]


class UsageError(typer.TyperException):
    """The command line is wrong."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Common:
    """The options that commands have in common.

    Nothing that is opened by it creates or migrates anything.
    """

    output: Output
    #: As given, with its password.
    url: str | None = field(default=None, repr=False)
    session: str = "default"

    @contextmanager
    def store(self) -> Iterator[SqlStore]:
        """Give the store that was named."""
        if not self.url:
            raise UsageError("no store is named: give --url, or set SESSIONSTORE_URL")
        with sql_store(self.url, False, {}) as store:
            yield store

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
            # First, as it tells of names that are nearly the same.
            session_id = listing.session_id(self.session)
            yield SessionStore(store, self.session, create=False), listing, session_id
