"""Looking at sessions and their jobs without loading an object.

The names, states and times are in the tables beside the objects' own, so that nothing
is unpickled.  Many jobs are read page by page; see ``pages``.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import func, select

from sessionstore.database.clock import Now, instant, maybe_instant
from sessionstore.database.statements import Statement
from sessionstore.errors import ConfigurationError, NotFoundError, SchemaError
from sessionstore.jobs.history import History, Transition
from sessionstore.jobs.pages import Filter, JobRow, Pages, entry_of, row_of
from sessionstore.row_ids import fits
from sessionstore.sql import SqlStore

__all__ = ["PAGE", "Listing", "SessionSummary", "nearest"]

#: Rows that are read in one query.
PAGE = 500


@dataclass(frozen=True, slots=True)
class SessionSummary:
    """One session, and how many jobs it has in each state."""

    id: int
    name: str
    created_at: datetime
    finished_at: datetime | None
    #: When any of its jobs was last written; None if it has none.
    changed_at: datetime | None
    counts: dict[str, int] = field(default_factory=dict)


class Listing:
    """The sessions and jobs of one store, to be looked at.

    Nothing is created: give it a store with ``create=False``.

    Raises SchemaError where the store has no sessions at all.
    """

    def __init__(self, store: SqlStore) -> None:
        objects = store._objects
        objects.prepare()
        if not objects.has_sessions:
            raise SchemaError(
                f"{store.url!r} has no sessions: the table {objects.schema.name!r} "
                "exists, but its session tables do not"
            )
        self._database = objects.database
        self._schema = objects.schema
        self._jobs = objects.schema.jobs
        self.pages = Pages(
            self._schema, names_index=self._database.settings.names_index
        )
        self._history = History(self._database, self._schema)

    def now(self) -> datetime:
        """Return the time by the database's clock."""
        [[now]] = self._rows(select(Now()))
        return instant(now)

    # Sessions

    def sessions(self) -> list[SessionSummary]:
        """Return all sessions, by name."""
        table, jobs = self._schema.sessions, self._jobs
        rows = self._rows(
            select(
                table.c.id, table.c.name, table.c.created_at, table.c.finished_at
            ).order_by(table.c.name)
        )
        counts: dict[int, dict[str, int]] = {}
        changed: dict[int, int] = {}
        for session_id, state, number, last in self._rows(
            select(
                jobs.c.session_id,
                jobs.c.state,
                func.count(),
                func.max(jobs.c.updated_at),
            )
            .where(jobs.c.position > 0, jobs.c.session_id.is_not(None))
            .group_by(jobs.c.session_id, jobs.c.state)
        ):
            counts.setdefault(session_id, {})[state] = number
            changed[session_id] = max(last, changed.get(session_id, last))
        return [
            SessionSummary(
                id_,
                name,
                instant(created),
                maybe_instant(finished),
                maybe_instant(changed.get(id_)),
                counts.get(id_, {}),
            )
            for id_, name, created, finished in rows
        ]

    def session_id(self, name: str) -> int:
        """Return a session's number, or raise ConfigurationError with near names."""
        table = self._schema.sessions
        found = self._rows(select(table.c.id).where(table.c.name == name))
        if found:
            return int(found[0][0])
        names = self.session_names()
        raise ConfigurationError(
            f"there is no session {name!r}; {nearest(name, names)}"
        )

    def session_names(self) -> list[str]:
        """Return the sessions' names alone."""
        return [name for (name,) in self._rows(select(self._schema.sessions.c.name))]

    def created_at(self, session_id: int) -> datetime:
        """Return when a session was created."""
        table = self._schema.sessions
        [[at]] = self._rows(select(table.c.created_at).where(table.c.id == session_id))
        return instant(at)

    def counts(self, session_id: int) -> dict[str, int]:
        """Return the number of jobs in each state that has any."""
        jobs = self._jobs
        query = (
            select(jobs.c.state, func.count())
            .where(jobs.c.session_id == session_id, jobs.c.position > 0)
            .group_by(jobs.c.state)
        )
        return dict(self._rows(query))

    # Jobs

    def job(self, session_id: int, id_: int) -> JobRow:
        """Return one job of a session, or raise NotFoundError, saying where it is."""
        rows = self._rows(self.pages.one(id_)) if fits(id_) else []
        if rows and rows[0][1] == session_id:
            return row_of(rows[0])
        raise NotFoundError(
            f"there is no task with ID {id_} in this session; "
            f"{self._elsewhere(session_id, id_, rows)}",
            id=id_,
        )

    def _elsewhere(
        self, session_id: int, id_: int, rows: Sequence[tuple[Any, ...]]
    ) -> str:
        if rows and rows[0][1] is None:
            return (
                "it was removed from its session with forget, and is in no session now"
            )
        if rows:
            table = self._schema.sessions
            found = self._rows(select(table.c.name).where(table.c.id == rows[0][1]))
            return f"it is in the session {found[0][0]!r}" if found else "try again"
        column = self._jobs.c.job_id
        id_ = max(-(2**63), min(id_, 2**63 - 1))
        listed = (self._jobs.c.session_id == session_id, self._jobs.c.position > 0)
        [[below, above]] = self._rows(
            select(
                select(func.max(column)).where(column < id_, *listed).scalar_subquery(),
                select(func.min(column)).where(column > id_, *listed).scalar_subquery(),
            )
        )
        near = [str(known) for known in (below, above) if known is not None]
        if not near:
            return "the session has no tasks"
        return f"the nearest {'is' if len(near) == 1 else 'are'} " + " and ".join(near)

    def history(self, id_: int) -> list[Transition]:
        """Return a job's transitions, in order."""
        return self._history.of(id_)

    def lock(self, rows: Sequence[JobRow]) -> list[JobRow]:
        """Lock jobs until the transaction ends; return those not changed since read."""
        found = self._rows(self.pages.locked([row.id for row in rows]))
        there = {id_: rest for id_, *rest in found}
        return [
            row for row in rows if there.get(row.id) == [row.revision, row.session_id]
        ]

    def payload(self, id_: int) -> tuple[int | None, bytes]:
        """Return how large an object's payload is, and its first bytes."""
        table = self._schema.objects
        begin = func.substr(table.c.data, 1, 32, type_=table.c.data.type)
        rows = self._rows(
            select(func.length(table.c.data), begin).where(table.c.id == id_)
        )
        size, first = rows[0] if rows else (None, None)
        return size, bytes(first or b"")

    def histories(
        self, session_id: int, since: datetime | None = None
    ) -> Iterator[list[Transition]]:
        """Yield the transitions of each job, in the order the jobs were added.

        With ``since``, only of jobs that were changed since then.
        """
        after: tuple[Any, int] | None = None
        while True:
            query = self.pages.histories(session_id, since, after, PAGE)
            number = 0
            for key, rows in groupby(self._rows(query), itemgetter(0, 1)):
                after, number = key, number + 1
                # The job itself is there without any transition.
                yield [entry_of(row[2:])[1] for row in rows if row[2] is not None]
            if number < PAGE:
                return

    def transitions(
        self, session_id: int, since: datetime
    ) -> list[tuple[str, int, Transition]]:
        """Return the transitions since then, each with its job's name and revision."""
        rows = self._rows(self.pages.transitions(session_id, since))
        return [(name, *entry_of(values)) for name, *values in rows]

    def jobs(
        self,
        session_id: int,
        wanted: Filter,
        *,
        sort: str = "added",
        descending: bool = False,
        after: JobRow | None = None,
        page: int = PAGE,
    ) -> Iterator[JobRow]:
        """Go through jobs, beginning with the one that follows ``after``.

        ``page`` of them are read at a time, and nothing is held open in between, so
        that the loop's body may write; it is no snapshot.
        """
        while True:
            query = self.pages.page(
                session_id,
                wanted,
                sort=sort,
                descending=descending,
                after=after,
                limit=page,
            )
            rows = [row_of(values) for values in self._rows(query)]
            for row in rows:
                if wanted.fits(row):
                    yield row
            if len(rows) < page:
                return
            after = rows[-1]

    def count(self, session_id: int, wanted: Filter) -> int:
        """Return how many jobs a filter lets through."""
        if not wanted.is_exact:
            return sum(1 for _ in self.jobs(session_id, wanted))
        [[number]] = self._rows(self.pages.count(session_id, wanted))
        return int(number)

    def _rows(self, query: Any) -> Sequence[tuple[Any, ...]]:
        statement = Statement(query)
        return self._database.read(lambda kept: kept.rows(statement))


def nearest(word: str, known: Collection[str]) -> str:
    """Return half a sentence that names the known words nearest to this one."""
    if not known:
        return "there are none yet"
    near = difflib.get_close_matches(word[:100], known, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    some = sorted(known)[:7]
    more = ", …" if len(known) > len(some) else ""
    return "choose from " + ", ".join(map(repr, some)) + more
