"""The table: which cells there are, which cannot exist, and what each must show.

A cell is a way to fork, what the child does, what the parent was doing, a database,
and the subject that is used.  Everything else about the matrix (its tests, its page)
follows from the rules here.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

__all__ = ["Cell", "Child", "Database", "Parent", "Way", "cells"]


class Way(enum.StrEnum):
    """How the child comes to be."""

    BARE = "bare fork"
    NESTED = "nested fork"
    TRANSACTION = "fork inside a transaction"
    ITERATION = "fork during iteration"
    WRITERS = "fork while other threads write"
    CONNECTING = "fork while another thread connects"
    THREAD = "fork from a non-main thread"
    MP_FORK = "multiprocessing fork"
    MP_FORKSERVER = "multiprocessing forkserver"
    MP_SPAWN = "multiprocessing spawn"
    POOL = "process pool"
    DAEMON = "python-daemon, detached"
    DAEMON_ATTACHED = "python-daemon, not detached"
    C = "fork from C"
    PREEXEC = "preexec_fn"
    GUNICORN = "gunicorn preload"


class Child(enum.StrEnum):
    """What the child does."""

    WORKS = "works on"
    COLLECTS = "garbage-collects"
    EXITS = "leaves by sys.exit"
    USES = "uses the inherited transaction"
    UNWINDS = "unwinds the inherited transaction"
    OUTLIVES = "outlives a killed parent"


class Parent(enum.StrEnum):
    """What the parent was doing when it forked."""

    IDLE = "idle"
    IN_TRANSACTION = "in a transaction"


class Database(enum.StrEnum):
    """Which database, by which driver."""

    FILE = "SQLite file"
    MEMORY = "SQLite memory"
    PSYCOPG = "psycopg"
    PSYCOPG_TLS = "psycopg TLS"
    PSYCOPG2 = "psycopg2"
    PYMYSQL = "PyMySQL"
    MYSQLCLIENT = "mysqlclient"

    @property
    def is_sqlite(self) -> bool:
        """Whether it has no server."""
        return self in (Database.FILE, Database.MEMORY)


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination."""

    way: Way
    child: Child
    parent: Parent
    database: Database
    subject: str

    def __str__(self) -> str:
        return "-".join((self.way, self.child, self.parent, self.database))

    @property
    def is_store(self) -> bool:
        """Whether the subject is a store, else it is an engine."""
        return self.subject == "SqlStore"

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction of the parent's was open at the fork."""
        return self.parent is Parent.IN_TRANSACTION

    @property
    def by_chance(self) -> bool:
        """Whether what becomes of those not protected depends on who comes first."""
        return self.way in (Way.WRITERS, Way.GUNICORN)

    @property
    def impossible(self) -> str | None:
        """Why this cell cannot exist; None if it does."""
        return next((why for why, holds in IMPOSSIBLE.items() if holds(self)), None)

    @property
    def expected(self) -> str:
        """What the child must come to: works, leaves or ForkError."""
        return next(outcome for outcome, _, holds in EXPECTED if holds(self))

    @property
    def because(self) -> str:
        """The reason of what is expected."""
        return next(why for _, why, holds in EXPECTED if holds(self))


_INHERITS_NOTHING = (Way.MP_FORKSERVER, Way.MP_SPAWN)
#: The child begins on a stack of its own, not below the parent's block.
_STACK_OF_ITS_OWN = (Way.THREAD, Way.MP_FORK, Way.POOL, Way.PREEXEC)

#: The first that holds is the reason.
IMPOSSIBLE: dict[str, Callable[[Cell], bool]] = {
    "the way itself is inside a transaction": lambda c: (
        c.way is Way.TRANSACTION and not c.in_transaction
    ),
    "the parent has no transaction to inherit": lambda c: (
        c.child in (Child.USES, Child.UNWINDS) and not c.in_transaction
    ),
    "an engine cannot be pickled, and the child inherits none": lambda c: (
        c.way in _INHERITS_NOTHING and not c.is_store
    ),
    "the child inherits nothing, so it has nothing to collect, use or unwind": (
        lambda c: (
            c.way in _INHERITS_NOTHING
            and c.child in (Child.COLLECTS, Child.USES, Child.UNWINDS)
        )
    ),
    "the child starts on a stack of its own, where no block is to unwind": lambda c: (
        c.way in _STACK_OF_ITS_OWN and c.child is Child.UNWINDS
    ),
    "a store's transaction belongs to the main thread, which is not in the child": (
        lambda c: c.way is Way.THREAD and c.child is Child.USES and c.is_store
    ),
    "it comes to no child: pickling the store is refused to the parent": lambda c: (
        c.way in _INHERITS_NOTHING
        and c.database is Database.MEMORY
        and c.child is Child.OUTLIVES
    ),
    "preexec_fn ends in exec or os._exit, the interpreter never exits": lambda c: (
        c.way is Way.PREEXEC and c.child is Child.EXITS
    ),
    "the pool catches SystemExit, and its worker lives on": lambda c: (
        c.way is Way.POOL and c.child is Child.EXITS
    ),
    "SQLite has one writer, so no thread writes in the parent's transaction": (
        lambda c: c.way is Way.WRITERS and c.in_transaction and c.database.is_sqlite
    ),
    "threads cannot share an engine's one connection to an in-memory database": (
        lambda c: (
            c.way is Way.WRITERS and c.database is Database.MEMORY and not c.is_store
        )
    ),
    "an in-memory database has one connection, so no other thread opens one": (
        lambda c: (
            c.way is Way.CONNECTING
            and c.in_transaction
            and c.database is Database.MEMORY
        )
    ),
}

#: Outcome, reason and condition; the first that holds counts.
EXPECTED: list[tuple[str, str, Callable[[Cell], bool]]] = [
    (
        "ForkError",
        "the parent cannot pickle a store whose database is in its own memory",
        lambda c: c.way in _INHERITS_NOTHING and c.database is Database.MEMORY,
    ),
    (
        "leaves",
        "the interpreter ends without a word to the parent's database",
        lambda c: c.child is Child.EXITS,
    ),
    (
        "works",
        "the recipe of the store opens connections of the child's own",
        lambda c: c.way in _INHERITS_NOTHING,
    ),
    (
        "ForkError",
        "an in-memory database is its process's own",
        lambda c: c.database is Database.MEMORY,
    ),
    (
        "ForkError",
        "the transaction is the parent's",
        lambda c: c.child is Child.USES,
    ),
    (
        "ForkError",
        "the file was open in a transaction at the fork",
        lambda c: c.database is Database.FILE and c.in_transaction,
    ),
    (
        "ForkError",
        "a result that is being read holds its connection, so the file was open",
        lambda c: (
            c.database is Database.FILE and c.way is Way.ITERATION and not c.is_store
        ),
    ),
    (
        "ForkError",
        "no hook ran before the fork, so the file was open",
        lambda c: c.database is Database.FILE and c.way is Way.C,
    ),
    (
        "ForkError",
        "the other thread had the file open, and was longer than a fork waits",
        lambda c: c.database is Database.FILE and c.way is Way.CONNECTING,
    ),
    (
        "ForkError",
        "the engine was half initialised at the fork; the child makes another",
        lambda c: c.way is Way.CONNECTING and not c.in_transaction and not c.is_store,
    ),
    (
        "ForkError",
        "the child stands in the parent's block",
        lambda c: (
            c.is_store
            and c.in_transaction
            and c.way is not Way.THREAD
            and c.child in (Child.WORKS, Child.OUTLIVES)
        ),
    ),
    ("works", "on a connection of its own", lambda c: True),
]


def cells(subjects: Iterable[str]) -> Iterator[Cell]:
    """Go through all combinations, those that cannot exist among them."""
    for subject in subjects:
        for way in Way:
            for child in Child:
                for parent in Parent:
                    for database in Database:
                        yield Cell(way, child, parent, database, subject)
