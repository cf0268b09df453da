"""States and how they may follow each other, and the record of how they did."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, delete, insert, select
from sqlalchemy.engine import Connection

from sessionstore.database import Database
from sessionstore.errors import TransitionError
from sessionstore.schema import MAX_INFO, MAX_NAME, Schema
from sessionstore.task import State

__all__ = ["History", "Transition", "check_transition", "clean", "instant"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ANY = frozenset(State)
_LEGAL: dict[State, frozenset[State]] = {
    State.NEW: frozenset({State.SUBMITTED, State.UNKNOWN}),
    State.SUBMITTED: frozenset(
        {State.RUNNING, State.STOPPED, State.TERMINATED, State.UNKNOWN}
    ),
    State.RUNNING: frozenset(
        {State.TERMINATING, State.TERMINATED, State.STOPPED, State.UNKNOWN}
    ),
    State.STOPPED: frozenset(
        {
            State.SUBMITTED,
            State.RUNNING,
            State.TERMINATING,
            State.TERMINATED,
            State.UNKNOWN,
        }
    ),
    State.TERMINATING: frozenset({State.TERMINATED, State.UNKNOWN}),
    State.TERMINATED: frozenset(),
    State.UNKNOWN: _ANY - {State.NEW, State.UNKNOWN},
}


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of a job's state, as it was committed."""

    job_id: int
    #: None for the first one, into the state that the job was added in.
    from_state: State | None
    to_state: State
    #: By the database's clock.
    at: datetime
    info: str
    returncode: int | None
    #: Which process made it.
    host: str
    pid: int


def check_transition(id_: int, old: str, new: State) -> None:
    """Raise TransitionError unless a job may go from ``old`` to ``new``."""
    legal = _LEGAL.get(State(old), frozenset()) if old in _LEGAL else _ANY
    if new not in legal:
        allowed = ", ".join(sorted(legal)) or "no other but by redo()"
        raise TransitionError(
            f"task {id_} cannot go from {old} to {new}; from {old} it may go to "
            f"{allowed}",
            id=id_,
        )


def state_from(value: State | str, id_: object = None) -> State:
    """Return a State, or raise TransitionError naming those that there are."""
    try:
        return State(value)
    except ValueError:
        raise TransitionError(
            f"there is no state {str(value)!r}; there are {', '.join(State)}", id=id_
        ) from None


def instant(microseconds: int) -> datetime:
    """Return an instant as the tables have it as an aware datetime."""
    return _EPOCH + timedelta(microseconds=microseconds)


def clean(text: str, limit: int) -> str:
    """Return text that every database takes, cut with a mark if it is too long."""
    # PostgreSQL refuses NUL and lone surrogates, and text that came out of a
    # dying command must never be what keeps its end from being recorded.
    text = re.sub(
        "[\0\ud800-\udfff]",
        lambda match: match[0].encode("unicode_escape").decode("ascii"),
        text,
    )
    return text if len(text) <= limit else text[: limit - 1] + "…"


class History:
    """The append-only table of transitions."""

    def __init__(self, database: Database, schema: Schema) -> None:
        self._database = database
        table = self._table = schema.transitions
        self._insert = insert(table)
        self._of_job = (
            select(table)
            .where(table.c.job_id == bindparam("id_"))
            .order_by(table.c.revision)
        )

    def append(
        self, connection: Connection, rows: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Add rows, of this host and process, and return them whole."""
        host, pid = clean(socket.gethostname(), MAX_NAME), os.getpid()
        whole = [{**row, "host": host, "pid": pid} for row in rows]
        if whole:
            self._database.execute(connection, self._insert, whole)
        return whole

    def of(self, job_id: int) -> list[Transition]:
        """Return one job's transitions, in order."""
        rows = self._database.read(
            lambda connection: self._database.execute(
                connection, self._of_job, {"id_": job_id}
            ).all()
        )
        return [self.read(row._mapping) for row in rows]

    def remove(self, connection: Connection, job_ids: Iterable[int]) -> None:
        """Drop the history of jobs that are no more."""
        table = self._table
        self._database.execute(
            connection, delete(table).where(table.c.job_id.in_(list(job_ids)))
        )

    @staticmethod
    def read(row: Any) -> Transition:
        """Return a row of the table, by column name, as a Transition."""
        old = row["from_state"]
        return Transition(
            job_id=row["job_id"],
            from_state=None if old is None else State(old),
            to_state=State(row["to_state"]),
            at=instant(row["at"]),
            info=row["info"],
            returncode=row["returncode"],
            host=row["host"],
            pid=row["pid"],
        )

    @staticmethod
    def entry(
        job_id: int,
        revision: int,
        old: str | None,
        new: str,
        at: int,
        info: str,
        returncode: int | None,
    ) -> dict[str, Any]:
        """Return a new row for ``append``."""
        return {
            "job_id": int(job_id),
            "revision": revision,
            "from_state": old,
            "to_state": str(new),
            "at": at,
            "info": clean(info, MAX_INFO),
            "returncode": returncode,
        }
