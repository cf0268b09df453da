"""What a check found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from sqlalchemy.engine import Connection

from sessionstore.objects.schema import Schema
from sessionstore.sql import SqlStore

__all__ = ["SHOWN", "Finding", "Level", "Patient", "some"]


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    #: Worth knowing, and may be intended.
    NOTE = "note"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result: what was found, why it matters, and what mends it."""

    check: str
    level: Level
    what: str
    why: str = ""
    #: A command, or words where no command can do it.
    remedy: str = ""
    #: Mends it, if that is safe: if nothing that can still be read is lost.
    mend: Callable[[], object] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Patient:
    """A store that is examined, and a connection that leaves the database as it is."""

    store: SqlStore
    connection: Connection = field(repr=False)

    @property
    def schema(self) -> Schema:
        """The store's tables."""
        return self.store._objects.schema

    @property
    def has_sessions(self) -> bool:
        """Whether there are tables for sessions."""
        return self.schema.version_in(self.connection) is not None

    @property
    def backend(self) -> str:
        """The dialect's name: sqlite, postgresql, mysql, …"""
        return self.connection.dialect.name


#: How many IDs a line names.
SHOWN = 5


def some(ids: Sequence[object], number: int) -> str:
    """Return the first of ``number`` IDs in words, and how many more there are."""
    shown = ids[:SHOWN]
    more = f" and {number - len(shown)} more" if number > len(shown) else ""
    return ", ".join(map(str, shown)) + more
