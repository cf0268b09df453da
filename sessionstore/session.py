"""A session: which objects of a store are its jobs, and what became of each."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.engine import URL, Connection

from sessionstore.decoding import decode, fill
from sessionstore.errors import (
    ConfigurationError,
    ConflictError,
    DecodeError,
    EncodeError,
    LoadError,
    NotFoundError,
    SchemaError,
    SessionStoreError,
    TransitionError,
)
from sessionstore.failures import DuplicateKeyError
from sessionstore.history import (
    History,
    Transition,
    check_transition,
    clean,
    instant,
    state_from,
)
from sessionstore.jobs import Job, JobTable, changed_meanwhile
from sessionstore.objects import PAGE, key_of, only
from sessionstore.persistable import Persistable
from sessionstore.schema import MAX_NAME, Now
from sessionstore.serialization import Record, Row
from sessionstore.sql import SqlStore
from sessionstore.task import State
from sessionstore.url import Url

__all__ = ["SessionStore", "Transition"]

log = logging.getLogger(__name__)


class SessionStore:
    """One session's jobs: an index, states, history and the objects themselves.

    What belongs together is written together: an object, its state, its place in
    the session and its history entry are one transaction (G2).  Who saves an object
    that somebody else changed since it was read gets ConflictError (G3).

    ``store_or_url`` is an ``SqlStore``, or a URL for one, with ``store_options``.
    Calls may come from any thread and, after a fork, from any process; the live
    objects that they return are shared, and not locked.

    Raises ConfigurationError with ``create=False`` if there is no such session, and
    for a store that is no SQL store.

    >>> from sessionstore import SessionStore, State, Task
    >>> session = SessionStore("sqlite:///tasks.db", "example")
    >>> id_ = session.add(Task("count"))
    >>> change = session.transition(id_, State.SUBMITTED, info="queued")
    >>> [str(entry.to_state) for entry in session.history(id_)]
    ['NEW', 'SUBMITTED']
    """

    def __init__(
        self,
        store_or_url: SqlStore | str | Url | URL,
        name: str = "default",
        *,
        create: bool = True,
        **store_options: Any,
    ) -> None:
        if not name or len(name) > MAX_NAME or clean(name, MAX_NAME) != name:
            raise ConfigurationError(
                f"the session name {name!r} must have 1 to {MAX_NAME} characters, "
                "and neither NUL nor lone surrogates"
            )
        #: The session's name.
        self.name = name
        #: The plain store.  What is written past the session is outside G3.
        self.store = _sql_store(store_or_url, create, store_options)
        self._create = create
        self._objects = self.store._objects
        self._database = self._objects.database
        schema = self._objects.schema
        self._sessions = schema.sessions
        self._jobs = JobTable(self._database, schema)
        self._history = History(self._database, schema)
        self._id = self._open()

    def _open(self) -> int:
        self._objects.prepare()
        if not self._objects.has_sessions:
            raise SchemaError(
                f"{self.store.url!r} has no tables for sessions beside "
                f"{self._objects.schema.name!r}, and create=False was given"
            )
        found = self._find()
        if found is None and not self._create:
            raise ConfigurationError(
                f"there is no session {self.name!r} in {self.store.url!r}, and "
                "create=False was given"
            )
        if found is None:
            try:
                self._database.write(
                    lambda connection: self._database.execute(
                        connection,
                        insert(self._sessions).values(name=self.name, created_at=Now()),
                    )
                )
            except DuplicateKeyError:
                log.debug("another process created the session %r", self.name)
            found = self._find()
        assert found is not None
        return int(found.id)

    def _find(self) -> Any:
        table = self._sessions
        return self._database.read(
            lambda connection: self._database.execute(
                connection, select(table).where(table.c.name == self.name)
            ).one_or_none()
        )

    def __reduce__(self) -> tuple[Any, ...]:
        self.store._refuse_to_be_stored()
        return _reopen, (self.store, self.name)

    def __repr__(self) -> str:
        return f"<SessionStore {self.name!r} in {self.store!r}>"

    def __bool__(self) -> bool:
        return True

    # Writing

    def add(self, task: Persistable) -> int:
        """Save an object, put it into the session, and return its ID.

        Adding it twice makes one entry.

        Raises ConflictError if it is in another session, or if somebody else
        changed it since it was read; EncodeError if it cannot be stored.
        """
        return self.add_many([task])[0]

    def add_many(self, tasks: Iterable[Persistable]) -> Sequence[int]:
        """Add many objects in one transaction, and return their IDs in order."""
        return self._store(list(tasks), listed=True)

    def save(self, task: Persistable) -> int:
        """Write an object's changes back, and return its ID.

        A changed ``execution.state`` is a transition, checked and recorded as one.

        Raises ConflictError if somebody else changed the object since it was read,
        and NotFoundError if it is not in this session.
        """
        return self.save_many([task])[0]

    def save_many(self, tasks: Iterable[Persistable]) -> Sequence[int]:
        """Save many objects in one transaction."""
        objects = list(tasks)
        for task in objects:
            if self._objects.identities.known_id(_persistable(task)) is None:
                raise NotFoundError(
                    f"{task!r} is not in the session {self.name!r}; add it first"
                )
        return self._store(objects, listed=False)

    def _store(
        self,
        tasks: Sequence[Persistable],
        *,
        listed: bool,
        expect: Collection[State] | None = None,
        info: str = "",
        results: list[Transition] | None = None,
    ) -> Sequence[int]:
        if not tasks:
            return []
        roots = {id(_persistable(task)) for task in tasks}

        def first(connection: Connection, records: Sequence[Record]) -> None:
            writing = _Writing(self, connection, records)
            for record in records:
                is_root = id(record.obj) in roots
                writing.record(
                    record,
                    is_root,
                    listed=listed and is_root,
                    expect=expect if is_root else None,
                    info=info if is_root else "",
                )
            writing.finish()
            if results is not None:
                results[:] = [self._history.read(row) for row in writing.entries()]

        return self._objects.store(tasks, first)

    def forget(self, id_: object) -> None:
        """Take an object out of the session; it stays in the store."""
        key = key_of(id_)

        def work(connection: Connection) -> None:
            job = self._job(connection, key)
            revision = self._jobs.change(
                connection, job, session_id=None, position=None
            )
            self._objects.identities.follow(job.job_id, job.revision, revision)

        self._database.write(work)

    def remove(self, id_: object) -> None:
        """Remove an object and, recursively, those in its ``tasks``, for good."""
        key = key_of(id_)
        ids = [key]
        try:
            task = self.load(key)
        except DecodeError:
            log.warning("removing object %s, which cannot be read", key)
        else:
            ids = [
                part.persistent_id for part in _workflow([task]) if part.persistent_id
            ]

        def work(connection: Connection) -> None:
            jobs = self._jobs.read(connection, ids, lock=True)
            for job in jobs.values():
                if job.session_id == self._id:
                    self._objects.delete(connection, job.job_id)
            gone = [j.job_id for j in jobs.values() if j.session_id == self._id]
            self._jobs.remove(connection, gone)
            self._history.remove(connection, gone)

        self._database.write(work)

    @contextmanager
    def update(self, id_: object) -> Iterator[Any]:
        """Read an object under a lock, and save at the block's end what it changed.

        An exception in the block leaves row and object as they were read.

        Raises ConflictError at once if the live object has unsaved changes.

        >>> from sessionstore import SessionStore, Task
        >>> session = SessionStore("sqlite:///tasks.db")
        >>> id_ = session.add(Task("count", n=1))
        >>> with session.update(id_) as task:
        ...     task.n += 1
        >>> session.load(id_).n
        2
        """
        key = key_of(id_)
        live = self._objects.identities.live(key)
        if live is not None and live.changed:
            raise ConflictError(
                f"the live object {key} has changes that are not saved; save or "
                "refresh it first",
                id=key,
            )
        pid = os.getpid()
        task: Any = live
        try:
            with self._database.transaction() as connection:
                self._job(connection, key)
                if task is None:
                    task = self.load(key)
                else:
                    self.refresh(task)
                yield task
                self.save(task)
        except BaseException:
            if task is not None and pid == os.getpid() and task.changed:
                self._put_back(task)
            raise

    def _put_back(self, task: Persistable) -> None:
        try:
            self.refresh(task)
        except SessionStoreError:
            log.warning("%r could not be read again; refresh it", task, exc_info=True)

    # Reading

    def load(self, id_: object) -> Any:
        """Return the object with this ID, the live one if there is one.

        Raises NotFoundError if the session has none, and DecodeError if it has one
        that cannot be read.
        """
        key = key_of(id_)
        return self.load_many([key])[key]

    def load_many(self, ids: Iterable[object]) -> dict[int, Any]:
        """Return the objects with these IDs, by ID; as ``load``, in few statements."""
        keys = [key_of(id_) for id_ in ids]
        loaded, errors = self._load(keys)
        for key in keys:
            if key in errors:
                raise errors[key]
        return loaded

    def _load(self, keys: Sequence[int]) -> tuple[dict[int, Any], dict[int, LoadError]]:
        # A live object that was read past the session has no revision; one of
        # another session is none of this one's.
        decoded = self._objects.load_many(keys, fetch=self._fetch, adopt=self._adopt)
        unknown = [
            key for key, obj in decoded.objects.items() if key not in decoded.rows
        ]
        if unknown:
            rows = self._database.read(
                lambda connection: self._jobs.read(connection, unknown)
            )
            for key in unknown:
                job = rows.get(key)
                obj: Any = decoded.objects[key]
                if job is None or job.session_id != self._id:
                    del decoded.objects[key]
                    decoded.errors[key] = self._not_here(key)
                elif getattr(obj, "_revision", None) is None and not obj.changed:
                    self.refresh(obj)
        return decoded.objects, decoded.errors

    def _fetch(self, connection: Connection, ids: Sequence[int]) -> dict[int, Row]:
        return self._jobs.fetch(connection, self._id, ids)

    def _adopt(self, object_id: int, obj: Any, row: Row) -> None:
        obj._revision = row.revision
        execution = getattr(obj, "execution", None)
        if execution is not None and hasattr(execution, "returncode"):
            execution.returncode = row.returncode
        obj.changed = False

    def refresh(self, task: Persistable) -> None:
        """Read an object and its revision again, in place; unsaved changes are lost."""
        key = self._objects.identities.known_id(task)
        if key is None:
            raise NotFoundError(f"{task!r} is not in the session {self.name!r}")

        def work(connection: Connection) -> None:
            decoded = decode(
                [key],
                fetch=lambda ids: self._fetch(connection, ids),
                live=lambda i: task if i == key else self._objects.identities.live(i),
                serializer=self._objects.serializer,
            )
            if key not in decoded.rows:
                raise self._not_here(key)
            fill(task, only(decoded, key))
            self._adopt(key, task, decoded.rows[key])
            for object_id, obj in decoded.objects.items():
                if object_id != key:
                    self._objects.identities.adopt(object_id, obj)
                    self._adopt(object_id, obj, decoded.rows[object_id])

        self._database.read(work)

    def __len__(self) -> int:
        return sum(self._jobs.counts(self._id).values())

    def __contains__(self, task_or_id: object) -> bool:
        if isinstance(task_or_id, Persistable):
            task_or_id = self._objects.identities.known_id(task_or_id)
        try:
            key = key_of(task_or_id)
        except NotFoundError:
            return False
        jobs = self._database.read(
            lambda connection: self._jobs.read(connection, [key])
        )
        job = jobs.get(key)
        return (
            job is not None and job.session_id == self._id and job.position is not None
        )

    def ids(self, *, state: State | str | None = None) -> Iterator[int]:
        """Go through the jobs' IDs in the order added, of one state if it is given."""
        wanted = None if state is None else str(state_from(state))
        after = (-1, -1)
        while True:
            page = self._jobs.page(self._id, wanted, after)
            for _, job_id in page:
                yield job_id
            if len(page) < PAGE:
                return
            after = tuple(page[-1])

    def __iter__(self) -> Iterator[Any]:
        for key, obj, error in self._each():
            if error is None:
                yield obj
            elif isinstance(error, DecodeError):
                log.warning("skipping object %s: %s", key, error)

    def _each(self) -> Iterator[tuple[int, Any, LoadError | None]]:
        batch: list[int] = []
        for id_ in self.ids():
            batch.append(id_)
            if len(batch) == 50:
                yield from self._batch(batch)
                batch = []
        yield from self._batch(batch)

    def _batch(self, ids: Sequence[int]) -> Iterator[tuple[int, Any, LoadError | None]]:
        objects, errors = self._load(ids)
        for id_ in ids:
            yield id_, objects.get(id_), errors.get(id_)

    def unreadable(self) -> list[DecodeError]:
        """Return why objects of the session cannot be read, each with its ``id``."""
        return [e for _, _, e in self._each() if isinstance(e, DecodeError)]

    def iter_workflow(self) -> Iterator[Any]:
        """Go through the tasks and the ``tasks`` inside them, breadth first."""
        return _workflow(self)

    def counts(self) -> dict[State, int]:
        """Return the number of jobs in each state that has any."""
        counts = self._jobs.counts(self._id)
        return {State(state): n for state, n in counts.items()}

    # States

    def transition(
        self,
        task_or_id: Persistable | int,
        to: State | str,
        *,
        expect: State | str | Collection[State | str] | None = None,
        info: str = "",
        returncode: int | None = None,
    ) -> Transition:
        """Move a job to another state, if it is in one that was expected.

        Of an ID, only the state is written, so that it works for any object,
        however large or unreadable.  Of a task, its changes are saved with it.

        Raises ConflictError if the state is none of ``expect``, or if the task
        given was changed by somebody else; TransitionError if there is no such
        transition; NotFoundError if the job is not in this session.
        """
        new = state_from(to)
        wanted = _states(expect)
        if isinstance(task_or_id, Persistable):
            return self._transition_task(task_or_id, new, wanted, info, returncode)
        key = key_of(task_or_id)

        def work(connection: Connection) -> Transition:
            job = self._job(connection, key)
            return self._change_state(
                connection, job, new, wanted, info=info, returncode=returncode
            )

        return self._database.write(work)

    def _change_state(
        self,
        connection: Connection,
        job: Job,
        new: State,
        expect: Collection[State] | None,
        *,
        info: str,
        returncode: int | None,
        legal: bool = True,
        **values: Any,
    ) -> Transition:
        _check(job, new, expect, legal=legal)
        if returncode is not None or new is State.NEW:
            values["returncode"] = returncode
        revision = self._jobs.change(connection, job, state=str(new), **values)
        self._database.execute(
            connection,
            self._objects.schema.set_state,
            {"object_id": job.job_id, "new_state": str(new)},
        )
        entry = self._history.entry(
            job.job_id, revision, job.state, new, job.now, info, returncode
        )
        row = self._history.append(connection, [entry])[0]
        live = self._objects.identities.follow(job.job_id, job.revision, revision)
        execution = getattr(live, "execution", None)
        if execution is not None:
            self._objects.identities.set_until_rollback(execution, "state", new)
            if "returncode" in values:
                self._objects.identities.set_until_rollback(
                    execution, "returncode", returncode
                )
        return self._history.read(row)

    def _transition_task(
        self,
        task: Persistable,
        new: State,
        expect: Collection[State] | None,
        info: str,
        returncode: int | None,
    ) -> Transition:
        execution: Any = getattr(task, "execution", None)
        if not hasattr(execution, "state"):
            raise TransitionError(
                f"{task!r} has no execution.state to change", id=task.persistent_id
            )
        if self._objects.identities.known_id(task) is None:
            raise NotFoundError(
                f"{task!r} is not in the session {self.name!r}; add it first"
            )
        before = execution.state, getattr(execution, "returncode", None)
        results: list[Transition] = []
        execution.state = new
        if returncode is not None:
            execution.returncode = returncode
        try:
            self._store(
                [task], listed=False, expect=expect or (), info=info, results=results
            )
        except BaseException:
            execution.state, execution.returncode = before
            raise
        return next(entry for entry in results if entry.job_id == task.persistent_id)

    def history(self, id_: object) -> list[Transition]:
        """Return a job's transitions, in order.

        Raises NotFoundError if the job is not in this session.
        """
        key = key_of(id_)
        entries = self._history.of(key)
        if not entries or key not in self._database.read(
            lambda connection: self._mine(self._jobs.read(connection, [key]))
        ):
            raise self._not_here(key)
        return entries

    def redo(self, id_: object) -> Transition:
        """Make a TERMINATED job NEW again; its history stays.

        Raises TransitionError if it is in another state.
        """
        key = key_of(id_)

        def work(connection: Connection) -> Transition:
            job = self._job(connection, key)
            if job.state != State.TERMINATED:
                raise TransitionError(
                    f"only a TERMINATED task can be done again, and task {key} is "
                    f"{job.state}",
                    id=key,
                )
            return self._change_state(
                connection,
                job,
                State.NEW,
                None,
                info="redo",
                returncode=None,
                legal=False,
                attempts=0,
            )

        return self._database.write(work)

    # The session's own life

    def transaction(self) -> AbstractContextManager[Connection]:
        """Commit all that this thread does in the block at once; the store's own."""
        return self.store.transaction()

    @property
    def created_at(self) -> datetime:
        """When the session was created, by the database's clock."""
        return instant(self._row().created_at)

    @property
    def finished_at(self) -> datetime | None:
        """When ``finish`` was called, or None."""
        at = self._row().finished_at
        return None if at is None else instant(at)

    def _row(self) -> Any:
        row = self._find()
        if row is None:
            raise ConfigurationError(f"the session {self.name!r} was destroyed")
        return row

    def finish(self) -> None:
        """Note that the session's work is done."""
        table = self._sessions
        self._database.write(
            lambda connection: self._database.execute(
                connection,
                update(table).where(table.c.id == self._id).values(finished_at=Now()),
            )
        )

    def destroy(self) -> None:
        """Remove the session, its objects and their history."""

        def work(connection: Connection) -> None:
            ids = self._jobs.all_ids(connection, self._id)
            objects = self._objects.schema.objects
            statement = delete(objects).where(
                objects.c.id.in_(bindparam("ids", expanding=True))
            )
            for start in range(0, len(ids), PAGE):
                some = ids[start : start + PAGE]
                self._database.execute(connection, statement, {"ids": some})
                self._jobs.remove(connection, some)
                self._history.remove(connection, some)
                for key in some:
                    self._objects.identities.note_removed(key)
            self._database.execute(
                connection,
                delete(self._sessions).where(self._sessions.c.id == self._id),
            )

        self._database.write(work)

    def close(self) -> None:
        """Close the store's connections."""
        self.store.close()

    def __enter__(self) -> SessionStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # Helpers

    def _job(self, connection: Connection, key: int) -> Job:
        job = self._mine(self._jobs.read(connection, [key], lock=True)).get(key)
        if job is None:
            raise self._not_here(key)
        return job

    def _mine(self, jobs: dict[int, Job]) -> dict[int, Job]:
        return {i: job for i, job in jobs.items() if job.session_id == self._id}

    def _not_here(self, key: int) -> NotFoundError:
        return NotFoundError(
            f"there is no object with ID {key} in the session {self.name!r}", id=key
        )


class _Writing:
    """The job rows and history entries that one save of a graph takes."""

    def __init__(
        self, session: SessionStore, connection: Connection, records: Sequence[Record]
    ) -> None:
        self._session = session
        self._connection = connection
        known = [record.id for record in records if not record.is_new]
        self._there = session._jobs.read(connection, known, lock=True) if known else {}
        self._last, self._now = session._jobs.end(connection, session._id)
        self._new: list[dict[str, Any]] = []
        self._entries: list[dict[str, Any]] = []
        self._rows: list[dict[str, Any]] = []

    def record(
        self,
        record: Record,
        is_root: bool,
        *,
        listed: bool,
        expect: Collection[State] | None,
        info: str,
    ) -> None:
        obj: Any = record.obj
        job = self._there.get(record.id)
        if job is None:
            if is_root and not listed:
                raise self._session._not_here(record.id)
            self._insert(record, listed)
            return
        if job.session_id not in {self._session._id, None}:
            raise ConflictError(
                f"object {record.id} is in another session, and an object is in one "
                "at most; forget it there first",
                id=record.id,
            )
        if is_root and not listed and job.session_id is None:
            raise self._session._not_here(record.id)
        if expect is not None:
            _check(job, State(record.state), expect or None)
        if obj._revision != job.revision:
            raise changed_meanwhile(record.id)
        if expect is None and job.state != record.state:
            check_transition(record.id, job.state, state_from(record.state))
        values: dict[str, Any] = {
            "name": _name_of(obj),
            "state": record.state,
            "returncode": _returncode_of(obj),
        }
        if job.session_id is None:
            values["session_id"] = self._session._id
        if listed and job.position is None:
            self._last += 1
            values["position"] = self._last
        revision = self._session._jobs.change(self._connection, job, **values)
        if job.state != record.state:
            self._enter(record, revision, job.state, info)
        self._note(obj, revision)

    def _insert(self, record: Record, listed: bool) -> None:
        obj: Any = record.obj
        state_from(record.state, record.id)
        if listed:
            self._last += 1
        self._new.append(
            {
                "job_id": int(record.id),
                "session_id": self._session._id,
                "position": self._last if listed else None,
                "name": _name_of(obj),
                "state": record.state,
                "returncode": _returncode_of(obj),
                "created_at": self._now,
                "updated_at": self._now,
            }
        )
        self._enter(record, 1, None, "")
        self._note(obj, 1)

    def _enter(self, record: Record, revision: int, old: str | None, info: str) -> None:
        returncode = _returncode_of(record.obj)
        self._entries.append(
            self._session._history.entry(
                record.id, revision, old, record.state, self._now, info, returncode
            )
        )

    def _note(self, obj: Any, revision: int) -> None:
        self._session._objects.identities.undo_later(obj, "_revision")
        obj._revision = revision

    def finish(self) -> None:
        """Send what was gathered."""
        self._session._jobs.insert(self._connection, self._new)
        self._rows = self._session._history.append(self._connection, self._entries)

    def entries(self) -> list[dict[str, Any]]:
        """Return the history entries as they were written."""
        return self._rows


def _check(
    job: Job, new: State, expect: Collection[State] | None, *, legal: bool = True
) -> None:
    if expect and job.state not in expect:
        raise ConflictError(
            f"task {job.job_id} is {job.state}, and was expected to be "
            f"{' or '.join(sorted(expect))}",
            id=job.job_id,
        )
    if legal:
        check_transition(job.job_id, job.state, new)


def _states(
    expect: State | str | Collection[State | str] | None,
) -> Collection[State] | None:
    if expect is None:
        return None
    if isinstance(expect, str):
        return frozenset({state_from(expect)})
    return frozenset(state_from(state) for state in expect)


def _persistable(task: object) -> Persistable:
    if not isinstance(task, Persistable):
        raise EncodeError(
            f"a session keeps Persistable objects, and {task!r} is none; derive its "
            f"class {type(task).__qualname__} from sessionstore.Persistable"
        )
    return task


def _name_of(obj: object) -> str:
    return clean(str(getattr(obj, "jobname", "") or ""), MAX_NAME)


def _returncode_of(obj: object) -> int | None:
    returncode = getattr(getattr(obj, "execution", None), "returncode", None)
    return returncode if isinstance(returncode, int) else None


def _workflow(tasks: Iterable[Any]) -> Iterator[Any]:
    todo = deque(tasks)
    seen: set[int] = set()
    while todo:
        task = todo.popleft()
        if id(task) not in seen:
            seen.add(id(task))
            yield task
            todo.extend(getattr(task, "tasks", ()))


def _sql_store(
    store_or_url: object, create: bool, store_options: dict[str, Any]
) -> SqlStore:
    if isinstance(store_or_url, SqlStore):
        if store_options:
            raise ConfigurationError(
                "options of the store were given beside a store that is there "
                f"already: {', '.join(sorted(store_options))}"
            )
        return store_or_url
    if isinstance(store_or_url, Path) or (
        isinstance(store_or_url, str) and ":" not in store_or_url.partition("/")[0]
    ):
        path = Path(store_or_url).absolute()
        raise ConfigurationError(
            f"a session needs a SQL store, and {str(store_or_url)!r} is a plain "
            f"path; for a SQLite file write 'sqlite:///{path}'"
        )
    if not isinstance(store_or_url, (str, Url, URL)):
        raise ConfigurationError(
            f"a session needs an SqlStore or a URL, not {store_or_url!r}"
        )
    return SqlStore(store_or_url, create=create, **store_options)


def _reopen(store: SqlStore, name: str) -> SessionStore:
    return SessionStore(store, name)
