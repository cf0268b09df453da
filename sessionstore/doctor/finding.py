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
    #: Worth knowing, and may be meant so.
    NOTE = "note"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result: what is so, why it matters, and what mends it."""

    check: str
    level: Level
    what: str
    why: str = ""
    #: A command, or words where no command can do it.
    remedy: str = ""
    #: Mends it, where that is safe: nothing that anybody can still read is lost.
    mend: Callable[[], object] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Patient:
    """A store that is examined, and a connection that changes nothing by itself."""

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


#: IDs that a line names.
SHOWN = 5


def some(ids: Sequence[object], number: int) -> str:
    """Return the first IDs for a line, of which there are so many in all."""
    shown = ids[:SHOWN]
    more = f" and {number - len(shown)} more" if number > len(shown) else ""
    return ", ".join(map(str, shown)) + more
