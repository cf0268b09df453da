"""The other side of each comparison: the same rows, written by the driver alone.

It is what a careful user would write by hand: statements made once, one kept cursor,
``pickle.dumps`` of the very same objects, the database's clock for every time, and a
single statement in autocommit mode where one statement is the whole transaction.
A test compares the tables that both sides leave behind.

Two things it leaves out.  It does not write the table of ID blocks: one process counts
for itself.  That table is what the package pays for IDs that are unique for ever.  And
it does not NOTIFY anybody on PostgreSQL.
"""

from __future__ import annotations

import itertools
import os
import pickle
import socket
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from secrets import token_hex
from typing import Any

import psycopg
from sqlalchemy import URL, make_url

from sessionstore import Task
from sessionstore.jobs.holder import Holder

SESSION = "bench"

_OBJECT = ("id", "data", "state")
_JOB = (
    *("job_id", "session_id", "position", "name", "state", "returncode"),
    *("revision", "attempts", "token", "write_id", "created_at", "updated_at"),
)
_TRANSITION = (
    *("job_id", "revision", "from_state", "to_state", "at", "info"),
    *("returncode", "host", "pid"),
)


def _insert(table: str, columns: Iterable[str], **expressions: str) -> str:
    names = list(columns)
    values = (expressions.get(name, "?") for name in names)
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join(values)})"


class Raw:
    """The tables of one store, by the driver; what the two drivers have in common."""

    begin: str
    now: str
    placeholder = "?"
    #: Has a query pass over what others are claiming just now.
    skip = ""

    def __init__(self, url: URL) -> None:
        self._url = url
        self._cursor = cursor = self._connect(url)
        self._run = cursor.execute
        self._new_id = itertools.count(1).__next__
        self._host, self._pid = socket.gethostname(), os.getpid()
        self._holder = str(Holder.current())
        sql, now = self._sql, self.now
        self._run(sql("SELECT id FROM store_session WHERE name = ?"), (SESSION,))
        (self.session,) = cursor.fetchone()
        self._insert_object = sql(_insert("store", _OBJECT))
        self._update_object = sql("UPDATE store SET data = ?, state = ? WHERE id = ?")
        self._insert_job = sql(
            _insert(
                "store_job",
                _JOB,
                position="(SELECT coalesce(max(position), 0) + 1 FROM store_job"
                " WHERE session_id = ?)",
                created_at=now,
                updated_at=now,
            )
        )
        self._insert_transition = sql(_insert("store_transition", _TRANSITION, at=now))
        self._move_job = sql(
            f"UPDATE store_job SET state = ?, revision = revision + 1, updated_at = "
            f"{now}, write_id = ? WHERE job_id = ? AND session_id = ? AND state = ? "
            "RETURNING revision"
        )
        self._free = sql(
            "SELECT job_id, session_id, position, state, returncode, revision, "
            f"attempts, holder, token, lease_expires_at, request, {now} FROM store_job "
            "WHERE session_id = ? AND state = ? AND claimable_at IS NULL "
            f"AND position > 0 ORDER BY claimable_at, position LIMIT 1 {self.skip}"
        )
        self._take = sql(
            "UPDATE store_job SET holder = ?, token = ?, attempts = ?, claimable_at = ?"
            ", lease_expires_at = ?, revision = revision + 1, updated_at = ?, "
            "write_id = ? WHERE job_id = ? AND revision = ?"
        )
        move_held = (
            f"UPDATE store_job SET state = ?, revision = revision + 1, updated_at = "
            f"{now}, write_id = ? WHERE job_id = ? AND session_id = ? AND state = ? "
            "AND token = ? AND holder IS NOT NULL RETURNING revision"
        )
        self._move_held = sql(move_held)
        self._end_held = sql(
            move_held.replace(
                "state = ?",
                "state = ?, holder = NULL, claimable_at = NULL, "
                "lease_expires_at = NULL, request = NULL",
                1,
            )
        )
        self._set_state = sql("UPDATE store SET state = ? WHERE id = ?")
        self._end = sql(
            f"SELECT coalesce(max(position), 0), {now} FROM store_job "
            "WHERE session_id = ?"
        )
        self._select = sql("SELECT data, state FROM store WHERE id = ?")
        self._counts = sql(
            "SELECT state, count(*) FROM store_job WHERE session_id = ? "
            "AND position IS NOT NULL GROUP BY state"
        )
        self._ids = sql(
            "SELECT job_id FROM store_job WHERE session_id = ? "
            "AND position IS NOT NULL ORDER BY position, job_id"
        )

    def _sql(self, text: str) -> str:
        return text.replace("?", self.placeholder)

    def _connect(self, url: URL) -> Any:
        raise NotImplementedError

    def continue_ids(self, other: Raw) -> None:
        """Count on from another one's last ID."""
        self._new_id = other._new_id

    def again(self) -> Raw:
        """Return another one, with a connection of its own."""
        return type(self)(self._url)

    def close(self) -> None:
        self._cursor.connection.close()

    def _object(self, id_: int, task: Task) -> tuple[int, bytes, str]:
        payload = pickle.dumps(task, pickle.HIGHEST_PROTOCOL)
        return id_, payload, str(task.execution.state)

    def save_new(self, task: Task) -> int:
        id_ = self._new_id()
        self._run(self._insert_object, self._object(id_, task))
        return id_

    def save_again(self, id_: int, task: Task) -> None:
        _, payload, state = self._object(id_, task)
        self._run(self._update_object, (payload, state, id_))
        assert self._cursor.rowcount == 1

    def add(self, task: Task) -> int:
        id_, session, run = self._new_id(), self.session, self._run
        row = self._object(id_, task)
        name, state, code = task.jobname, row[2], task.execution.returncode
        run(self.begin)
        try:
            run(self._insert_object, row)
            job = (id_, session, session, name, state, code, 1, 0, 0, token_hex(16))
            run(self._insert_job, job)
            entry = (id_, 1, None, state, "", code, self._host, self._pid)
            run(self._insert_transition, entry)
            run("COMMIT")
        except BaseException:
            run("ROLLBACK")
            raise
        return id_

    def transition(self, id_: int, old: str, new: str, info: str) -> None:
        run = self._run
        run(self.begin)
        try:
            run(self._move_job, (new, token_hex(16), id_, self.session, old))
            self._record(id_, old, new, info)
            run("COMMIT")
        except BaseException:
            run("ROLLBACK")
            raise

    def _record(self, id_: int, old: str, new: str, info: str) -> None:
        (revision,) = self._cursor.fetchone()
        self._run(self._set_state, (new, id_))
        entry = (id_, revision, old, new, info, None, self._host, self._pid)
        self._run(self._insert_transition, entry)

    def claim(self, lease: float) -> tuple[int, int]:
        """Claim the oldest job, and return its ID and token."""
        run, cursor = self._run, self._cursor
        run(self.begin)
        try:
            jobs = []
            for state in ("NEW", "UNKNOWN"):
                run(self._free, (self.session, state))
                jobs += cursor.fetchall()
            id_, _, _, _, _, revision, attempts, _, token, _, _, now = min(
                jobs, key=itemgetter(2)
            )
            end = now + round(lease * 1e6)
            take = (self._holder, token + 1, attempts + 1, end, end, now)
            run(self._take, (*take, token_hex(16), id_, revision))
            assert cursor.rowcount == 1
            run("COMMIT")
        except BaseException:
            run("ROLLBACK")
            raise
        return id_, token + 1

    def move_held(self, id_: int, token: int, old: str, new: str) -> None:
        run = self._run
        move = self._end_held if new == "TERMINATED" else self._move_held
        run(self.begin)
        try:
            run(move, (new, token_hex(16), id_, self.session, old, token))
            self._record(id_, old, new, "")
            run("COMMIT")
        except BaseException:
            run("ROLLBACK")
            raise

    def save_many(self, tasks: Sequence[Task]) -> list[int]:
        objects = [self._object(self._new_id(), task) for task in tasks]
        self._run(self.begin)
        self._bulk("store", _OBJECT, objects)
        self._run("COMMIT")
        return [row[0] for row in objects]

    def add_many(self, tasks: Sequence[Task]) -> list[int]:
        objects = [self._object(self._new_id(), task) for task in tasks]
        self._run(self.begin)
        self._run(self._end, (self.session,))
        last, now = self._cursor.fetchone()
        jobs, entries = [], []
        for position, (task, (id_, _, state)) in enumerate(
            zip(tasks, objects, strict=True), last + 1
        ):
            code = task.execution.returncode
            jobs.append(
                (id_, self.session, position, task.jobname, state, code, 1, 0, 0)
                + (token_hex(16), now, now)
            )
            entries.append((id_, 1, None, state, now, "", code, self._host, self._pid))
        self._bulk("store", _OBJECT, objects)
        self._bulk("store_job", _JOB, jobs)
        self._bulk("store_transition", _TRANSITION, entries)
        self._run("COMMIT")
        return [row[0] for row in objects]

    def _bulk(
        self, table: str, columns: Sequence[str], rows: list[tuple[Any, ...]]
    ) -> None:
        raise NotImplementedError

    def load(self, id_: int) -> Any:
        self._run(self._select, (id_,))
        payload, _ = self._cursor.fetchone()
        return pickle.loads(payload)

    def load_many(self, ids: Sequence[int]) -> dict[int, Any]:
        return {
            id_: pickle.loads(payload) for id_, payload, _ in self._rows_of_many(ids)
        }

    def _rows_of_many(self, ids: Sequence[int]) -> Iterable[tuple[int, bytes, str]]:
        raise NotImplementedError

    def counts(self) -> dict[str, int]:
        self._run(self._counts, (self.session,))
        return dict(self._cursor.fetchall())

    def ids(self) -> list[int]:
        self._run(self._ids, (self.session,))
        return [id_ for (id_,) in self._cursor.fetchall()]


class RawSqlite(Raw):
    """By ``sqlite3``, as durable as the package is: WAL, ``synchronous=FULL``."""

    begin = "BEGIN IMMEDIATE"
    now = "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"

    def _connect(self, url: URL) -> Any:
        connection = sqlite3.connect(url.database or "", timeout=30)
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection.cursor()

    def _bulk(
        self, table: str, columns: Sequence[str], rows: list[tuple[Any, ...]]
    ) -> None:
        self._cursor.executemany(_insert(table, columns), rows)

    def _rows_of_many(self, ids: Sequence[int]) -> Iterator[tuple[int, bytes, str]]:
        for start in range(0, len(ids), 500):
            some = ids[start : start + 500]
            marks = ", ".join("?" * len(some))
            self._run(f"SELECT id, data, state FROM store WHERE id IN ({marks})", some)
            yield from self._cursor


class RawPostgresql(Raw):
    """By psycopg 3; many rows go by COPY, the fastest way there is."""

    begin = "BEGIN"
    now = "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)"
    placeholder = "%s"
    skip = "FOR UPDATE SKIP LOCKED"

    def _connect(self, url: URL) -> Any:
        connection = psycopg.connect(
            host=url.host,
            port=url.port,
            user=url.username,
            password=url.password,
            dbname=url.database,
            autocommit=True,
        )
        return connection.cursor()

    def _bulk(
        self, table: str, columns: Sequence[str], rows: list[tuple[Any, ...]]
    ) -> None:
        with self._cursor.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN") as to:
            for row in rows:
                to.write_row(row)

    def _rows_of_many(self, ids: Sequence[int]) -> Iterable[tuple[int, bytes, str]]:
        self._run("SELECT id, data, state FROM store WHERE id = ANY(%s)", (list(ids),))
        return self._cursor


def open_raw(url: str) -> Raw:
    """Open the tables of a store that is there already."""
    parsed = make_url(url)
    return {"sqlite": RawSqlite, "postgresql": RawPostgresql}[
        parsed.get_backend_name()
    ](parsed)
