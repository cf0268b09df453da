"""The record of what state each job was in, and when."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, insert, select

from sessionstore.database.access import Database
from sessionstore.database.clock import instant
from sessionstore.database.kept import KeptConnection
from sessionstore.database.statements import ByIds, Statement, among
from sessionstore.objects.schema import MAX_INFO, MAX_NAME, Schema
from sessionstore.task import State

__all__ = ["History", "Transition", "clean"]

_REFUSED = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of a job's state, as it was committed."""

    job_id: int
    #: None for the first one, into the state that the job was added in.
    from_state: State | None
    to_state: State
    #: By the database's clock, in UTC.
    at: datetime
    #: Why, as whoever made it says; "" if nothing was said.
    info: str
    #: As in ``Run``; None if none was given.
    returncode: int | None
    #: Which process made it.
    host: str
    pid: int


def clean(text: str, limit: int) -> str:
    """Return text that every database takes, cut with a mark if it is too long."""
    # PostgreSQL refuses NUL and lone surrogates, and what a dying command has printed
    # must never keep its end from being recorded.
    if _REFUSED.search(text):
        text = _REFUSED.sub(
            lambda match: match[0].encode("unicode_escape").decode("ascii"), text
        )
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _here() -> dict[str, Any]:
    return {"host": clean(socket.gethostname(), MAX_NAME), "pid": os.getpid()}


class History:
    """The append-only table of transitions."""

    def __init__(self, database: Database, schema: Schema) -> None:
        self._database = database
        table = schema.transitions
        self._columns = [column.name for column in table.columns]
        #: Adds a row.
        self.insert = Statement(insert(table))
        added_at = (
            select(schema.jobs.c.created_at)
            .where(schema.jobs.c.job_id == bindparam("job_id"))
            .scalar_subquery()
        )
        self._begin = Statement(
            insert(table).values(
                {name: bindparam(name) for name in self._columns} | {"at": added_at}
            )
        )
        self._of_job = Statement(
            select(table)
            .where(table.c.job_id == bindparam("job"))
            .order_by(table.c.revision)
        )
        self._delete = ByIds(
            lambda names: delete(table).where(among(table.c.job_id, names))
        )

    def begin(self, kept: KeptConnection, row: dict[str, Any]) -> None:
        """Add a job's first row, as of when the job was added."""
        kept.change(self._begin, {**row, **_here()})

    def begin_many(self, kept: KeptConnection, rows: Iterable[dict[str, Any]]) -> None:
        """Add jobs' first rows; ``rows`` is read while they are sent."""
        here = _here()
        kept.change_many(self.insert, ({**row, **here} for row in rows))

    def append(
        self, kept: KeptConnection, rows: Sequence[dict[str, Any]]
    ) -> Sequence[dict[str, Any]]:
        """Add rows, of this host and process, and return them whole."""
        here = _here()
        for row in rows:
            row.update(here)
        kept.change_many(self.insert, rows)
        return rows

    def of(self, job_id: int) -> list[Transition]:
        """Return one job's transitions, in order."""
        rows = self._database.read(
            lambda kept: kept.rows(self._of_job, {"job": job_id})
        )
        return [self.read(dict(zip(self._columns, row, strict=True))) for row in rows]

    def remove(self, kept: KeptConnection, job_ids: Sequence[int]) -> None:
        """Drop the history of jobs that are no more."""
        for statement, parameters in self._delete.parts(job_ids):
            kept.change(statement, parameters)

    @staticmethod
    def read(row: Mapping[str, Any]) -> Transition:
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
        at: int | None,
        info: str,
        returncode: int | None,
    ) -> dict[str, Any]:
        """Return a new row for ``append``; for ``begin``, without ``at``."""
        return {
            "job_id": int(job_id),
            "revision": revision,
            "from_state": old,
            "to_state": str(new),
            "at": at,
            # str(), as it may be an exception, for instance: no info is refused.
            "info": clean(str(info), MAX_INFO),
            "returncode": returncode,
        }
