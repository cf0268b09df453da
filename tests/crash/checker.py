"""What a database holds, whether it agrees with itself and with what was acknowledged.

The tables are read by plain SQL and the payloads by plain pickle: a fault of the
package must not hide itself here.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from tests.crash.journal import Content, Operation, Snapshot

#: Made by the tests beside the store's: rows that commit together with the store's.
OWN_TABLE = "CREATE TABLE mine (name VARCHAR(64) PRIMARY KEY, value BIGINT NOT NULL)"

_QUERIES = {
    "objects": "SELECT id, data, state FROM store",
    "jobs": "SELECT job_id, session_id, position, name, state, returncode, revision"
    " FROM store_job",
    "history": "SELECT job_id, revision, from_state, to_state FROM store_transition"
    " ORDER BY job_id, revision",
    "mine": "SELECT name, value FROM mine",
}


@dataclass(slots=True)
class Holdings:
    """What a database holds."""

    contents: dict[str, Content] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)
    #: How index, objects, job rows and history contradict each other.
    problems: list[str] = field(default_factory=list)


def filler(value: int) -> bytes:
    """Return the part of a payload that makes it one page of the database or many."""
    return value.to_bytes(8, "big") * (value % 1500)


def observe(url: str) -> Holdings:
    """Read all of the database, in one transaction."""
    try:
        with snapshot(url) as rows:
            return _holdings(**{name: rows(query) for name, query in _QUERIES.items()})
    except DamagedError as error:
        return Holdings(problems=[str(error)])
    except DBAPIError as error:
        return Holdings(problems=[f"the database cannot be read: {error}"])


class DamagedError(Exception):
    """SQLite says that its file is not whole."""


@contextmanager
def snapshot(url: str) -> Iterator[Callable[[str], Sequence[Any]]]:
    """Give a function that runs queries, all on the same state of the database."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:

        def rows(query: str) -> Sequence[Any]:
            return connection.execute(text(query)).all()

        if engine.dialect.name == "postgresql":
            level = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"
            connection.execute(text(level))
        if engine.dialect.name == "sqlite":
            verdict = rows("PRAGMA integrity_check")
            if verdict != [("ok",)]:
                raise DamagedError(f"integrity_check: {verdict}")
        yield rows


def unpickled(data: bytes) -> Any:
    """Return an object as it was stored, with the IDs of those inside it."""
    return _Unpickler(io.BytesIO(data)).load()


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, reference: Any) -> int:
        # An object inside another is the tuple (id, module, class) there.
        return int(reference[0])


def _holdings(
    objects: Sequence[Any],
    jobs: Sequence[Any],
    history: Sequence[Any],
    mine: Sequence[Any],
) -> Holdings:
    holdings = Holdings(dict(tuple(row) for row in mine))
    complain = holdings.problems.append
    tasks: dict[int, Any] = {}
    for row in objects:
        try:
            task = tasks[row.id] = unpickled(row.data)
        except Exception as error:
            complain(f"object {row.id} cannot be read: {error!r}")
            continue
        if task.filler != filler(task.value):
            complain(f"the payload of object {row.id} is not the one of its value")
    states = {row.id: row.state for row in objects}
    chains: dict[int, list[Any]] = {}
    for row in history:
        chains.setdefault(row.job_id, []).append(row)
    by_id = {row.job_id: row for row in jobs}
    for id_ in states.keys() - by_id.keys():
        complain(f"object {id_} has no job row")
    for id_ in by_id.keys() - states.keys():
        complain(f"job {id_} has no object")
    for id_ in chains.keys() - by_id.keys():
        complain(f"job {id_} has a history and no row")
    for id_ in by_id.keys() & tasks.keys():
        job, task, chain = by_id[id_], tasks[id_], chains.get(id_, [])
        for problem in contradictions(job, task, states[id_], chain):
            complain(f"job {id_}: {problem}")
        inside = getattr(task, "tasks", ())
        for missing in set(inside) - tasks.keys():
            complain(f"job {id_}: object {missing} inside it is not there")
        holdings.ids[task.jobname] = id_
        holdings.contents[task.jobname] = Snapshot(
            value=task.value,
            place=_place(job),
            states=tuple(row.to_state for row in chain),
            returncode=job.returncode,
            revision=job.revision,
            tasks=tuple(tasks[part].jobname for part in inside if part in tasks),
        )
    return holdings


def _place(job: Any) -> str:
    if job.session_id is None:
        return "forgotten"
    return "nested" if job.position is None else "listed"


def contradictions(
    job: Any, task: Any, state: str, chain: Sequence[Any]
) -> Iterable[str]:
    """Say where a job's row, its payload, its object's state and history differ."""
    if job.name != task.jobname:
        yield f"its row names it {job.name!r}, its payload {task.jobname!r}"
    if job.state != state:
        yield f"its row says {job.state}, its object {state}"
    olds = [row.from_state for row in chain]
    news = [row.to_state for row in chain]
    if olds != [None, *news][: len(olds)]:
        yield f"its history does not chain: from {olds} to {news}"
    if news[-1:] != [job.state]:
        yield f"its row says {job.state}, its history ends with {news[-1:]}"
    if chain and chain[-1].revision > job.revision:
        yield f"its history goes to revision {chain[-1].revision}, past its row"


def check(
    before: Holdings, journals: Iterable[Sequence[Operation]], after: Holdings
) -> list[str]:
    """Say what of the acknowledged is not in the database, or what else is there.

    What is in flight may be there or not, but all of it.
    """
    problems = list(after.problems)
    expected = dict(before.contents)
    ids = dict(before.ids)
    undecided = []
    for operations in journals:
        for operation in operations:
            if operation.outcome == "done":
                expected.update(operation.writes)
                ids.update(operation.ids)
            elif operation.outcome != "failed":
                undecided.append(operation)
    for operation in undecided:
        names = operation.writes.keys()
        found = {name: after.contents.get(name) for name in names}
        if found == operation.writes:
            expected.update(operation.writes)
        elif found != {name: expected.get(name) for name in names}:
            problems.append(
                f"half done: {operation.kind} was to leave {operation.writes} "
                f"and left {found}"
            )
            expected.update(found)
    for name in sorted(expected.keys() | after.contents.keys()):
        wanted, found_there = expected.get(name), after.contents.get(name)
        if wanted != found_there:
            problems.append(
                f"{_fault(wanted, found_there)}: {name} should be {wanted} and is "
                f"{found_there}"
            )
        # Of what was in flight the ID is not known.
        known = found_there is not None and name in ids
        if known and after.ids.get(name) != ids[name]:
            problems.append(
                f"{name} was given ID {ids[name]} and has {after.ids.get(name)}"
            )
    if len(set(ids.values())) != len(ids):
        problems.append("an ID was given twice")
    return problems


def _fault(wanted: Content, found: Content) -> str:
    if found is None:
        return "lost"
    if wanted is None:
        return "never acknowledged, or removed"
    if isinstance(wanted, Snapshot) and isinstance(found, Snapshot):
        return "lost" if found.revision < wanted.revision else "changed"
    return "changed"
