"""Queries for pages of jobs: which ones, in which order, beginning where.

Each page begins, by its key, where the one before ended.  One index has the jobs in the
order added.  The claims' index has, for each state, the jobs that nobody holds in that
order, and after them the few that somebody holds.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any

from sqlalchemy import Select, func, literal, or_, select, union_all

from sessionstore.database.clock import maybe_instant, microseconds
from sessionstore.jobs.history import History, Transition
from sessionstore.jobs.holder import Holder
from sessionstore.objects.schema import Schema
from sessionstore.task import State

__all__ = ["SORTS", "Filter", "JobRow", "Pages", "entry_of", "row_of"]

#: A value of the column that is sorted by, and the job's ID.
Key = tuple[Any, int]
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
    #: A pattern for the whole name, as in a shell.
    name: str | None = None
    #: Last changed then or later, by the database's clock.
    since: datetime | None = None
    #: Last changed before.
    until: datetime | None = None
    #: A pattern of ``host/pid``, or of the host alone.
    holder: str | None = None

    def fits(self, row: JobRow) -> bool:
        """Say whether a row fits, of which the state and the times are known to."""
        if self.name is not None and not fnmatchcase(row.name, self.name):
            return False
        return self.holder is None or _is_held_by(row.holder, self.holder)

    @property
    def is_exact(self) -> bool:
        """Whether the database alone can tell which rows fit."""
        return self.name is None and self.holder is None


class Pages:
    """The queries about one store's jobs."""

    def __init__(self, schema: Schema, *, names_index: bool) -> None:
        self._schema = schema
        self._table = schema.jobs
        self._names_index = names_index
        #: What is to be read for a ``JobRow``.
        self.columns = [self._table.c[name] for name in _COLUMNS]

    def one(self, id_: int) -> Select[Any]:
        """Return the query for one job, of whatever session."""
        return select(*self.columns).where(self._table.c.job_id == id_)

    def locked(self, ids: Sequence[int]) -> Select[Any]:
        """Return the query that locks jobs, and reads their revisions."""
        table = self._table
        query = select(table.c.job_id, table.c.revision, table.c.session_id)
        among = table.c.job_id.in_([literal(id_) for id_ in ids])
        # By ID, as everybody does who locks several, or two could end in a deadlock.
        return query.where(among).order_by(table.c.job_id).with_for_update()

    def count(self, session_id: int, wanted: Filter) -> Select[Any]:
        """Return the query that counts jobs, as far as the database alone can."""
        table = self._table
        # Where states are given, an expression, or SQLite would use the index by
        # position.
        position = table.c.position + 0 if wanted.states else table.c.position
        query = select(func.count()).select_from(table)
        return query.where(
            *self._of(session_id, wanted), *self._among(wanted), position > 0
        )

    def histories(
        self, session_id: int, since: datetime | None, after: Key | None, limit: int
    ) -> Select[Any]:
        """Return the query for the transitions of a page of jobs, in the order added.

        With ``since``, only of jobs that were changed since then.
        """
        table, entries = self._table, self._schema.transitions
        position = table.c.position
        jobs = select(position, table.c.job_id).where(
            *self._of(session_id, Filter(since=since)),
            *_bounds(table, position, False, after),
        )
        ordered = jobs.order_by(*_order(table, position, False)).limit(limit)
        page = self._by(self._schema.order_index, ordered).subquery()
        # A job without any has a row too, as the next page may begin after it.
        joined = select(page.c.position, page.c.job_id, *_entry(entries)).outerjoin(
            entries, entries.c.job_id == page.c.job_id
        )
        return joined.order_by(page.c.position, page.c.job_id, entries.c.revision)

    def transitions(self, session_id: int, since: datetime) -> Select[Any]:
        """Return the query for the transitions since then, in their order."""
        table, entries = self._table, self._schema.transitions
        at = microseconds(since)
        joined = select(table.c.name, *_entry(entries)).join(
            entries, entries.c.job_id == table.c.job_id
        )
        return joined.where(
            table.c.session_id == session_id,
            table.c.updated_at >= at,
            entries.c.at >= at,
        ).order_by(entries.c.at, entries.c.job_id, entries.c.revision)

    def page(
        self,
        session_id: int,
        wanted: Filter,
        *,
        sort: str,
        descending: bool,
        after: JobRow | None,
        limit: int,
    ) -> Select[Any]:
        """Return the query for one page, of the jobs that follow ``after``."""
        table = self._table
        of_session = self._of(session_id, wanted)
        if sort == "added" and (wanted.states or wanted.holder is not None):
            return self._by_state(of_session, wanted, descending, after, limit)
        column = table.c[SORTS[sort]]
        of_session += self._among(wanted)
        # Objects inside others have no position.
        if sort != "added":
            of_session.append(table.c.position > 0)
        query = select(*self.columns).where(
            *of_session, *_bounds(table, column, descending, _key(column, after))
        )
        if sort == "added":
            query = self._by(self._schema.order_index, query)
        return query.order_by(*_order(table, column, descending)).limit(limit)

    def _by(self, index: str, query: Select[Any]) -> Select[Any]:
        """Make MariaDB and MySQL use an index, which they often would not."""
        if self._names_index:
            for name in ("mysql", "mariadb"):
                query = query.with_hint(self._table, self._schema.hint(index), name)
        return query

    def _by_state(
        self,
        of_session: Sequence[Any],
        wanted: Filter,
        descending: bool,
        after: JobRow | None,
        limit: int,
    ) -> Select[Any]:
        """Return the query for a page in the order added, by the claims' index."""
        table = self._table
        claimable_at = table.c.claimable_at
        states = [literal(str(state)) for state in wanted.states or State]
        # An expression, or SQLite would go through the whole session by position.
        position = (table.c.position + 0).label("position")
        key = _key(position, after)
        held = [position if c.name == "position" else c for c in self.columns]
        parts = [
            select(*held).where(
                *of_session,
                table.c.state.in_(states),
                claimable_at > 0,
                *_bounds(table, position, descending, key),
            )
        ]
        for state in () if wanted.holder is not None else states:
            free = select(*self.columns).where(
                *of_session,
                table.c.state == state,
                claimable_at.is_(None),
                *_bounds(table, table.c.position, descending, key),
            )
            order = list(_order(table, table.c.position, descending))
            if not self._names_index:
                # PostgreSQL does not see that it is NULL for all, and would sort.
                order.insert(0, claimable_at.desc() if descending else claimable_at)
            parts.append(free.order_by(*order).limit(limit))
        parts = [self._by(self._schema.claim_index, part) for part in parts]
        # SQLite takes LIMIT in a part of a union only where it is a table.
        union = union_all(*(select(part.subquery()) for part in parts)).subquery()
        return (
            select(union)
            .order_by(*_order(union, union.c.position, descending))
            .limit(limit)
        )

    def _among(self, wanted: Filter) -> list[Any]:
        # Each a parameter of its own, as a Statement is fixed text.
        states = [literal(str(state)) for state in wanted.states]
        return [self._table.c.state.in_(states)] if states else []

    def _of(self, session_id: int, wanted: Filter) -> list[Any]:
        table = self._table
        conditions: list[Any] = [table.c.session_id == session_id]
        if wanted.name is not None:
            conditions.append(table.c.name.like(_like(wanted.name), escape="!"))
        if wanted.since is not None:
            conditions.append(table.c.updated_at >= microseconds(wanted.since))
        if wanted.until is not None:
            conditions.append(table.c.updated_at < microseconds(wanted.until))
        if wanted.holder is not None:
            conditions.append(table.c.holder.is_not(None))
        return conditions


#: The columns of a ``JobRow``, in its order.
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
#: The columns of a transition.
_ENTRY = (
    "job_id",
    "revision",
    "from_state",
    "to_state",
    "at",
    "info",
    "returncode",
    "host",
    "pid",
)
_INSTANTS = frozenset({"lease_expires_at", "created_at", "updated_at"})


def row_of(values: Sequence[Any]) -> JobRow:
    """Return a row that a page's query gave."""
    read: list[Any] = [
        maybe_instant(value) if column in _INSTANTS else value
        for column, value in zip(_COLUMNS, values, strict=True)
    ]
    return JobRow(*read)


def entry_of(values: Sequence[Any]) -> tuple[int, Transition]:
    """Return a transition and its revision, from what ``_entry`` selects."""
    row = dict(zip(_ENTRY, values, strict=True))
    return row["revision"], History.read(row)


def _entry(entries: Any) -> Sequence[Any]:
    return [entries.c[name] for name in _ENTRY]


def _order(table: Any, column: Any, descending: bool) -> Sequence[Any]:
    columns = [column] if column.name == "job_id" else [column, table.c.job_id]
    return [c.desc() for c in columns] if descending else columns


def _key(column: Any, row: JobRow | None) -> Key | None:
    """Return where a row is in the order of a column."""
    if row is None:
        return None
    value: Any = {
        "position": row.position,
        "job_id": row.id,
        "name": row.name,
        "state": row.state,
        "created_at": microseconds(row.created_at),
        "updated_at": microseconds(row.changed_at),
    }[column.name]
    return value, row.id


def _bounds(table: Any, column: Any, descending: bool, after: Key | None) -> list[Any]:
    """Return the conditions for what follows in an order, and has a place there."""
    # Not both at once: of two lower bounds SQLite uses either one.
    listed = [column > 0] if column.name == "position" else []
    if after is None:
        return listed
    value, id_ = after
    job_id = table.c.job_id
    next_id = job_id < id_ if descending else job_id > id_
    if column.name == "job_id":
        return [next_id]
    # MariaDB uses no index for a comparison of pairs.
    if descending:
        return [*listed, column <= value, or_(column < value, next_id)]
    return [column >= value, or_(column > value, next_id)]


def _like(pattern: str) -> str:
    """Return a LIKE pattern that lets through at least what a shell's pattern does."""
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
    # As in fnmatch, a ``]`` that comes first is a member.
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
