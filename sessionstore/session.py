"""A session: which objects of a store are its jobs, and what became of each."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL, Connection

from sessionstore import reading, saving, transitions
from sessionstore.errors import (
    ConfigurationError,
    ConflictError,
    DecodeError,
    NotFoundError,
    SessionStoreError,
)
from sessionstore.history import Transition, clean, instant, state_from
from sessionstore.index import Index
from sessionstore.kept import KeptConnection
from sessionstore.objects import key_of
from sessionstore.persistable import Persistable
from sessionstore.schema import MAX_NAME
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
        if (
            not isinstance(name, str)
            or not 1 <= len(name) <= MAX_NAME
            or clean(name, MAX_NAME) != name
            # To MySQL's utf8mb4_bin a name is the same with spaces after it.
            or name.endswith(" ")
        ):
            raise ConfigurationError(
                f"the session name {name!r} must have 1 to {MAX_NAME} characters, "
                "neither NUL nor lone surrogates, and no space at its end"
            )
        #: The session's name.
        self.name = name
        #: The plain store.  What is written past the session is outside G3.
        self.store = _sql_store(store_or_url, create, store_options)
        self._identities = self.store._objects.identities
        self._index = Index(self.store._objects, name, create=create)

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
        return saving.save_graph(self._index, list(tasks), listed=True)[0]

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
            if self._identities.known_id(saving.check_persistable(task)) is None:
                raise NotFoundError(
                    f"{task!r} is not in the session {self.name!r}; add it first"
                )
        return saving.save_graph(self._index, objects, listed=False)[0]

    def forget(self, id_: object) -> None:
        """Take an object out of the session; it stays in the store."""
        key, index = key_of(id_), self._index

        def work(kept: KeptConnection) -> None:
            job = index.job(kept, key)
            revision = index.jobs.change(kept, job, session_id=None, position=None)
            self._identities.follow(key, job.revision, revision)

        index.database.write(work)

    def remove(self, id_: object) -> None:
        """Remove an object and, recursively, those in its ``tasks``, for good."""
        key = key_of(id_)
        ids = [key]
        try:
            task = self.load(key)
        except DecodeError:
            log.warning("removing object %s, which cannot be read", key)
        else:
            # What is in another store, or in none, has no row here.
            known = map(self._identities.known_id, reading.workflow([task]))
            ids = [id_ for id_ in known if id_ is not None]
        self._index.remove(ids)

    @contextmanager
    def update(self, id_: object) -> Iterator[Any]:
        """Read an object under a lock, and save at the block's end what it changed.

        An exception in the block leaves the row and the object itself as they were.

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
        live = self._identities.live(key)
        if live is not None and live.changed:
            raise ConflictError(
                f"the live object {key} has changes that are not saved; save or "
                "refresh it first",
                id=key,
            )
        pid = os.getpid()
        task: Any = live
        try:
            with self._index.database.transaction() as scope:
                self._index.job(scope.kept, key)
                if task is None:
                    task = self.load(key)
                else:
                    self.refresh(task)
                yield task
                self.save(task)
        except BaseException:
            # A change inside a container leaves no mark, so that it is always read.
            if task is not None and pid == os.getpid():
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
        keys = [*dict.fromkeys(map(key_of, ids))]
        loaded, errors = reading.load(self._index, keys)
        for key in keys:
            if key in errors:
                raise errors[key]
        return loaded

    def refresh(self, task: Persistable) -> None:
        """Read an object and its revision again, in place; unsaved changes are lost."""
        reading.refresh(self._index, task)

    def __len__(self) -> int:
        return sum(self._index.jobs.counts(self._index.id).values())

    def __contains__(self, task_or_id: object) -> bool:
        if isinstance(task_or_id, Persistable):
            task_or_id = self._identities.known_id(task_or_id)
        try:
            key = key_of(task_or_id)
        except NotFoundError:
            return False
        job = self._index.mine([key]).get(key)
        return job is not None and job.position is not None

    def ids(self, *, state: State | str | None = None) -> Iterator[int]:
        """Go through the jobs' IDs in the order added, of one state if it is given."""
        return self._index.ids(None if state is None else str(state_from(state)))

    def __iter__(self) -> Iterator[Any]:
        for key, obj, error in reading.each(self._index):
            if error is None:
                yield obj
            elif isinstance(error, DecodeError):
                log.warning("skipping object %s: %s", key, error)

    def unreadable(self) -> list[DecodeError]:
        """Return why objects of the session cannot be read, each with its ``id``."""
        errors = (error for _, _, error in reading.each(self._index))
        return [error for error in errors if isinstance(error, DecodeError)]

    def iter_workflow(self) -> Iterator[Any]:
        """Go through the tasks and the ``tasks`` inside them, breadth first."""
        return reading.workflow(self)

    def counts(self) -> dict[State, int]:
        """Return the number of jobs in each state that has any."""
        counts = self._index.jobs.counts(self._index.id)
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
            return transitions.move_task(
                self._index,
                task_or_id,
                new,
                expect=wanted,
                info=info,
                returncode=returncode,
            )
        return transitions.move_job(
            self._index,
            key_of(task_or_id),
            new,
            expect=wanted,
            info=info,
            returncode=returncode,
        )

    def history(self, id_: object) -> list[Transition]:
        """Return a job's transitions, in order.

        Raises NotFoundError if the job is not in this session.
        """
        key = key_of(id_)
        entries = self._index.history.of(key)
        if not entries or key not in self._index.mine([key]):
            raise self._index.not_here(key)
        return entries

    def redo(self, id_: object) -> Transition:
        """Make a TERMINATED job NEW again; its history stays.

        Raises TransitionError if it is in another state.
        """
        return transitions.redo(self._index, key_of(id_))

    # The session's own life

    def transaction(self) -> AbstractContextManager[Connection]:
        """Commit all that this thread does in the block at once; the store's own."""
        return self.store.transaction()

    @property
    def created_at(self) -> datetime:
        """When the session was created, by the database's clock."""
        return instant(self._index.row().created_at)

    @property
    def finished_at(self) -> datetime | None:
        """When ``finish`` was called, or None."""
        at = self._index.row().finished_at
        return None if at is None else instant(at)

    def finish(self) -> None:
        """Note that the session's work is done."""
        self._index.finish()

    def destroy(self) -> None:
        """Remove the session, its objects and their history."""
        self._index.destroy()

    def close(self) -> None:
        """Close the store's connections."""
        self.store.close()

    def __enter__(self) -> SessionStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _states(
    expect: State | str | Collection[State | str] | None,
) -> Collection[State] | None:
    if expect is None:
        return None
    if isinstance(expect, str):
        return frozenset({state_from(expect)})
    return frozenset(state_from(state) for state in expect)


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
