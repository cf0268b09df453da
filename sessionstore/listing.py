"""Looking at sessions and their jobs without loading an object.

All of it comes from the tables beside the objects' own: names, states and times stand
there, so that nothing is unpickled.  Jobs are read page by page, each page by its key,
and the order in which they were added is an index's, as are a state's jobs and those
that somebody holds.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any

from sqlalchemy import Select, func, literal, or_, select, union_all

from sessionstore.clock import Now
from sessionstore.errors import ConfigurationError, NotFoundError, SchemaError
from sessionstore.history import History, Transition, instant
from sessionstore.holder import Holder
from sessionstore.sql import SqlStore
from sessionstore.statements import Statement
from sessionstore.task import State

__all__ = ["SORTS", "Filter", "JobRow", "Listing", "SessionSummary", "nearest"]

#: Rows that are read at once where many are wanted.
PAGE = 500
#: The columns that jobs can be sorted by, by what they are called.
SORTS = {
    "added": "position",
    "id": "job_id",
    "name": "name",
    "state": "state",
    "created": "created_at",
    "changed": "updated_at",
}


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


@dataclass(frozen=True, slots=True)
class JobRow:
    """What is known of a job without reading its object."""

    id: int
    #: None once the session has forgotten it.
    session_id: int | None
    #: Its place in the session; None for an object inside another one.
    position: int | None
    name: str
    state: str
    returncode: int | None
    attempts: int
    holder: str | None
    lease_expires_at: datetime | None
    request: str | None
    revision: int
    created_at: datetime
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class Filter:
    """Which jobs are meant; what is not given does not matter."""

    states: Collection[str] = ()
    #: A pattern as the shell's, of the whole name.
    name: str | None = None
    #: Last changed then or later, by the database's clock.
    since: datetime | None = None
    #: Last changed before.
    until: datetime | None = None
    #: A pattern of ``host/pid``, or of the host alone.
    holder: str | None = None

    def fits(self, row: JobRow) -> bool:
        """Say whether a row is meant whose state and times are known to be."""
        if self.name is not None and not fnmatchcase(row.name, self.name):
            return False
        return self.holder is None or _is_held_by(row.holder, self.holder)

    @property
    def is_exact(self) -> bool:
        """Whether the database alone can tell which rows are meant."""
        return self.name is None and self.holder is None


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
                f"{store.url!r} has no sessions: there is the table "
                f"{objects.schema.name!r}, and none for sessions beside it"
            )
        self._database = objects.database
        self._schema = objects.schema
        self._jobs = objects.schema.jobs
        self._history = History(self._database, self._schema)
        self._columns = [self._jobs.c[name] for name in _COLUMNS]

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
            .where(jobs.c.position.is_not(None), jobs.c.session_id.is_not(None))
            .group_by(jobs.c.session_id, jobs.c.state)
        ):
            counts.setdefault(session_id, {})[state] = number
            changed[session_id] = max(last, changed.get(session_id, last))
        return [
            SessionSummary(
                id_,
                name,
                instant(created),
                _maybe(finished),
                _maybe(changed.get(id_)),
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
        names = [known for (known,) in self._rows(select(table.c.name))]
        raise ConfigurationError(
            f"there is no session {name!r}; {nearest(name, names)}"
        )

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
        """Return one job of a session, or raise NotFoundError that tells more."""
        jobs = self._jobs
        rows = self._rows(select(*self._columns).where(jobs.c.job_id == id_))
        if rows and rows[0][1] == session_id:
            return _row(rows[0])
        raise NotFoundError(
            f"there is no task with ID {id_} in this session; "
            f"{self._elsewhere(session_id, id_, rows)}",
            id=id_,
        )

    def _elsewhere(
        self, session_id: int, id_: int, rows: Sequence[tuple[Any, ...]]
    ) -> str:
        if rows and rows[0][1] is None:
            return "it was forgotten, and is in no session"
        if rows:
            table = self._schema.sessions
            found = self._rows(select(table.c.name).where(table.c.id == rows[0][1]))
            return f"it is in the session {found[0][0]!r}" if found else "try again"
        column = self._jobs.c.job_id
        listed = (self._jobs.c.session_id == session_id, self._jobs.c.position > 0)
        [[below, above]] = self._rows(
            select(
                select(func.max(column)).where(column < id_, *listed).scalar_subquery(),
                select(func.min(column)).where(column > id_, *listed).scalar_subquery(),
            )
        )
        near = [str(known) for known in (below, above) if known is not None]
        if not near:
            return "it has no tasks"
        return f"the nearest there {'is' if len(near) == 1 else 'are'} " + " and ".join(
            near
        )

    def history(self, id_: int) -> list[Transition]:
        """Return a job's transitions, in order."""
        return self._history.of(id_)

    def jobs(
        self,
        session_id: int,
        wanted: Filter = Filter(),
        *,
        sort: str = "added",
        descending: bool = False,
        after: JobRow | None = None,
        page: int = PAGE,
    ) -> Iterator[JobRow]:
        """Go through jobs, from the one that follows ``after`` on.

        ``page`` of them are read at a time; between pages nothing is held, so that
        the loop's body may write.  It is no snapshot.
        """
        while True:
            statement = self.page(session_id, wanted, sort, descending, after, page)
            rows = [_row(values) for values in self._rows(statement)]
            for row in rows:
                if wanted.fits(row):
                    yield row
            if len(rows) < page:
                return
            after = rows[-1]

    def count(self, session_id: int, wanted: Filter) -> int:
        """Return how many jobs are meant."""
        if not wanted.is_exact:
            return sum(1 for _ in self.jobs(session_id, wanted))
        [[number]] = self._rows(
            select(func.count())
            .select_from(self._jobs)
            .where(self._jobs.c.session_id == session_id, *self._conditions(wanted))
        )
        return int(number)

    def page(
        self,
        session_id: int,
        wanted: Filter,
        sort: str,
        descending: bool,
        after: JobRow | None,
        limit: int,
    ) -> Select[Any]:
        """Return the query for one page of jobs."""
        table = self._jobs
        conditions = [table.c.session_id == session_id, *self._conditions(wanted)]
        column = table.c[SORTS[sort]]
        if after is not None:
            conditions += _beyond(table, column, after, descending)
        if sort == "added" and (wanted.states or wanted.holder is not None):
            return self._by_state(wanted, conditions, descending, limit)
        query = select(*self._columns).where(*conditions)
        return query.order_by(*_order(table, column, descending)).limit(limit)

    def _by_state(
        self, wanted: Filter, conditions: list[Any], descending: bool, limit: int
    ) -> Select[Any]:
        # In the claims' index the free jobs of one state stand by position, and those
        # that are held, of which there are few, after them.  So each is a query of
        # its own, and the first of them all are the first of the page.
        table = self._jobs
        order = _order(table, table.c.position, descending)
        parts = []
        for state in wanted.states or [*State]:
            of_state = select(*self._columns).where(
                *conditions, table.c.state == str(state)
            )
            held = of_state.where(table.c.claimable_at > 0).order_by(*order)
            parts.append(held.limit(limit))
            if wanted.holder is None:
                # PostgreSQL does not see that it is NULL for all, and would sort.
                by = table.c.claimable_at
                free = of_state.where(by.is_(None)).order_by(
                    by.desc() if descending else by, *order
                )
                parts.append(free.limit(limit))
        if self._database.settings.names_index:
            # MariaDB would rather go through the session by position.
            hint = self._schema.claim_hint
            for name in ("mysql", "mariadb"):
                parts = [part.with_hint(table, hint, name) for part in parts]
        # SQLite takes LIMIT in a part of a union only where it is a table.
        union = union_all(*(select(part.subquery()) for part in parts)).subquery()
        return (
            select(union)
            .order_by(*_order(union, union.c.position, descending))
            .limit(limit)
        )

    def _conditions(self, wanted: Filter) -> list[Any]:
        table = self._jobs
        # Objects inside others have none.
        conditions: list[Any] = [table.c.position > 0]
        if wanted.states:
            # As parameters of their own: a Statement is text.
            states = [literal(str(state)) for state in wanted.states]
            conditions.append(table.c.state.in_(states))
        if wanted.name is not None:
            conditions.append(table.c.name.like(_like(wanted.name), escape="!"))
        if wanted.since is not None:
            conditions.append(table.c.updated_at >= _microseconds(wanted.since))
        if wanted.until is not None:
            conditions.append(table.c.updated_at < _microseconds(wanted.until))
        if wanted.holder is not None:
            conditions.append(table.c.holder.is_not(None))
        return conditions

    def _rows(
        self, query: Any, parameters: dict[str, Any] | None = None
    ) -> Sequence[tuple[Any, ...]]:
        statement = Statement(query)
        return self._database.read(lambda kept: kept.rows(statement, parameters or {}))


def nearest(word: str, known: Collection[str], *, most: int = 3) -> str:
    """Return a half sentence that names the known words nearest to one."""
    if not known:
        return "there are none yet"
    near = difflib.get_close_matches(word[:100], known, n=most, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    some = sorted(known)[:7]
    more = ", …" if len(known) > len(some) else ""
    return (
        f"there {'is' if len(known) == 1 else 'are'} "
        + ", ".join(map(repr, some))
        + more
    )


_COLUMNS = (
    "job_id",
    "session_id",
    "position",
    "name",
    "state",
    "returncode",
    "attempts",
    "holder",
    "lease_expires_at",
    "request",
    "revision",
    "created_at",
    "updated_at",
)
_INSTANTS = frozenset({"lease_expires_at", "created_at", "updated_at"})


def _row(values: Sequence[Any]) -> JobRow:
    read: list[Any] = [
        _maybe(value) if column in _INSTANTS else value
        for column, value in zip(_COLUMNS, values, strict=True)
    ]
    return JobRow(*read)


def _maybe(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else instant(microseconds)


def _microseconds(at: datetime) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _order(table: Any, column: Any, descending: bool) -> Sequence[Any]:
    columns = [column, table.c.job_id] if column.name != "job_id" else [column]
    return [c.desc() for c in columns] if descending else columns


def _beyond(table: Any, column: Any, after: JobRow, descending: bool) -> list[Any]:
    """Return conditions for what follows a row, of which the first is an index's."""
    job_id = table.c.job_id
    next_id = job_id < after.id if descending else job_id > after.id
    if column.name == "job_id":
        return [next_id]
    value: Any = {
        "position": after.position,
        "name": after.name,
        "state": after.state,
        "created_at": _microseconds(after.created_at),
        "updated_at": _microseconds(after.changed_at),
    }[column.name]
    # MariaDB uses no index for a comparison of pairs.
    if descending:
        return [column <= value, or_(column < value, next_id)]
    return [column >= value, or_(column > value, next_id)]


def _like(pattern: str) -> str:
    """Return a LIKE pattern that lets through all that a shell's pattern does."""
    like, i = [], 0
    while i < len(pattern):
        character = pattern[i]
        i += 1
        if character == "*":
            like.append("%")
        elif character == "?":
            like.append("_")
        elif character == "[" and (end := _end_of_class(pattern, i)):
            like.append("_")
            i = end + 1
        else:
            like.append(f"!{character}" if character in "%_!" else character)
    return "".join(like)


def _end_of_class(pattern: str, start: int) -> int:
    """Return where the ``]`` of a class of characters stands, 0 if it has none."""
    # As fnmatch has it: one that comes first is a member.
    first = start + (pattern[start : start + 1] == "!")
    return max(0, pattern.find("]", first + 1))


def _is_held_by(holder: str | None, pattern: str) -> bool:
    if holder is None:
        return False
    parsed = Holder.parse(holder)
    if parsed is None:
        return fnmatchcase(holder, pattern)
    return fnmatchcase(f"{parsed.host}/{parsed.pid}", pattern) or fnmatchcase(
        parsed.host, pattern
    )
