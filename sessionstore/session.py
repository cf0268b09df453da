"""A session: which objects of a store are its jobs, and what became of each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from typing import Any, Self

from sqlalchemy.engine import URL, Connection

from sessionstore.database.clock import instant, maybe_instant
from sessionstore.database.kept import KeptConnection
from sessionstore.errors import DecodeError, NotFoundError
from sessionstore.jobs import claims, reading, recovery, saving, transitions, updating
from sessionstore.jobs.claims import Claim, Request
from sessionstore.jobs.history import Transition
from sessionstore.jobs.opening import check_name, open_index, sql_store
from sessionstore.jobs.states import state_from
from sessionstore.jobs.waiting import Waiting
from sessionstore.persistable import Persistable
from sessionstore.row_ids import key_of
from sessionstore.sql import SqlStore
from sessionstore.task import State
from sessionstore.url import Url

__all__ = ["Claim", "SessionStore", "Transition"]

log = logging.getLogger(__name__)


class SessionStore:
    """One session's jobs: an index, states, history and the objects themselves.

    What belongs together is written together: an object, its state, its place in the
    session and its history entry are one transaction (G2).  Saving an object that
    somebody else changed since it was read is a ConflictError (G3), and so is writing a
    claimed task in any way but by its claim (G6).

    ``store_or_url`` is an ``SqlStore``, or a URL for one with its ``store_options``.
    Calls may come from any thread and, after a fork, from any process; the live
    objects that they return are shared, and not locked.

    Iterating over a session yields its objects in the order added; one that cannot be
    read is skipped, with a warning in the log.  ``len(session)`` is their number, and
    ``in`` takes an object or an ID.

    Raises ConfigurationError with ``create=False`` if there is no such session, and for
    a store on another database than SQLite, PostgreSQL, MariaDB or MySQL.  Any call
    raises StoreUnavailableError while the database is busy for too long or cannot be
    reached, and ForkError where a fork has left nothing to go on with.

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
        #: The session's name.
        self.name = check_name(name)
        #: The plain store.  What is written past the session is outside G3.
        self.store = sql_store(store_or_url, create, store_options)
        self._identities = self.store._objects.identities
        is_ours = self.store is not store_or_url
        self._index = open_index(self.store, name, create=create, is_ours=is_ours)
        self._seen = recovery.Seen()
        self._waiting = Waiting(self._index)

    def __reduce__(self) -> tuple[Any, ...]:
        self.store._refuse_to_be_stored()
        # create=False: if it is destroyed meanwhile, it must not come back empty.
        return partial(SessionStore, create=False), (self.store, self.name)

    def __repr__(self) -> str:
        return f"<SessionStore {self.name!r} in {self.store!r}>"

    def __bool__(self) -> bool:
        return True

    # Writing

    def add(self, task: Persistable) -> int:
        """Save an object, put it into the session, and return its ID.

        Adding it twice makes one entry.

        Raises ConflictError if it is in another session, if somebody else changed it
        since it was read, or if it is claimed; EncodeError if it cannot be stored.
        """
        return self.add_many([task])[0]

    def add_many(self, tasks: Iterable[Persistable]) -> Sequence[int]:
        """``add`` objects in one transaction, and return their IDs in order."""
        return saving.save_graph(self._index, list(tasks), listed=True)[0]

    def save(self, task: Persistable) -> int:
        """Write an object's changes back, and return its ID.

        A changed ``execution.state`` is a transition, checked and recorded as one.

        Raises ConflictError if somebody else changed the object since it was read,
        or has claimed it; NotFoundError if it is not in this session; TransitionError
        if there is no such transition; EncodeError if it cannot be stored.
        """
        return self.save_many([task])[0]

    def save_many(self, tasks: Iterable[Persistable]) -> Sequence[int]:
        """``save`` objects in one transaction, and return their IDs in order."""
        objects = list(tasks)
        for task in objects:
            if self._identities.known_id(saving.check_persistable(task)) is None:
                raise NotFoundError(
                    f"{task!r} is not in the session {self.name!r}; add it first"
                )
        return saving.save_graph(self._index, objects, listed=False)[0]

    def forget(self, id_: object) -> None:
        """Take an object out of the session; it stays in the store.

        The objects inside it that were not added themselves leave with it, and come
        back with it.

        Raises ConflictError if it is claimed, NotFoundError if it is not there.
        """
        key, index = key_of(id_), self._index

        def work(kept: KeptConnection) -> None:
            job = index.job(kept, key)  # locked, so that its parts stay what they are
            index.forget(kept, job, reading.stored_parts(index, kept, key))

        index.database.write(work)

    def remove(self, id_: object) -> None:
        """Remove an object and, recursively, those in its stored ``tasks``, for good.

        If it cannot be read, the objects inside it stay.

        Raises ConflictError if any of them is claimed; nothing is removed then.
        NotFoundError if it is not in this session.
        """
        key, index = key_of(id_), self._index

        def work(kept: KeptConnection) -> None:
            index.job(kept, key)  # locked, so that nothing is put into it meanwhile
            index.remove(kept, reading.stored_workflow(index, kept, key))

        index.database.write(work)

    def update(self, id_: object) -> AbstractContextManager[Any]:
        """Read an object under a lock, and save at the block's end what it changed.

        An exception leaves the row and the object as they were.  A rollback around the
        block does too, once ``load`` or ``update`` has read again what it had changed.

        Raises ConflictError at once if the live object has unsaved changes, or if the
        task is claimed; what ``load`` raises; and at the end what ``save`` raises.

        >>> from sessionstore import SessionStore, Task
        >>> session = SessionStore("sqlite:///tasks.db")
        >>> id_ = session.add(Task("count", n=1))
        >>> with session.update(id_) as task:
        ...     task.n += 1
        >>> session.load(id_).n
        2
        """
        return updating.update(self, key_of(id_))

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
        """Read an object again, in place, as by ``load``; unsaved changes are lost."""
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
        """Go through the IDs, all or of one state, in the order added, page by page."""
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

        Given an ID, only the state is written, which works for any object, however
        large, and for an unreadable one.  Given a task, its changes are saved too.
        ``info``, up to 4,000 characters, is for the history, and ``returncode`` is as
        in ``Run``.

        Raises ConflictError if the state is none of ``expect``, if the task given was
        changed by somebody else, or if it is claimed (``request`` asks its holder);
        TransitionError if there is no such state or transition (see ``State``);
        NotFoundError if the job is not in this session.
        """
        move = saving.Move.asked(to, expect, info, returncode)
        if isinstance(task_or_id, Persistable):
            return transitions.move_task(self._index, task_or_id, move)
        return transitions.move_job(self._index, key_of(task_or_id), move)

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

        Raises TransitionError if it is in another state, which each claimed task is;
        NotFoundError if it is not in this session.
        """
        return transitions.redo(self._index, key_of(id_))

    # Holding tasks

    def claim(
        self,
        n: int = 1,
        *,
        states: Collection[State | str] = (State.NEW, State.UNKNOWN),
        lease: float = 60.0,
        max_attempts: int | None = None,
    ) -> list[Claim]:
        """Take up to ``n`` tasks in one of ``states``, the oldest first, and hold them.

        Nobody else can claim or write them until the claim ends, or until ``lease``
        seconds (by the database's clock) have gone by without a renewal and somebody
        calls ``recover``.  A claim leaves the task's state alone, and adds one to its
        ``attempts``; a task that has had ``max_attempts`` becomes TERMINATED instead.
        Where there is nothing to claim the list is empty.

        Raises ConfigurationError for a number that makes no sense, and TransitionError
        if TERMINATED is among ``states``.

        >>> from sessionstore import SessionStore, Task
        >>> session = SessionStore("sqlite:///tasks.db")
        >>> ids = session.add_many([Task("a"), Task("b"), Task("c")])
        >>> [claim.task.jobname for claim in session.claim(2)]
        ['a', 'b']
        """
        return claims.claim(
            self, n, states=states, lease=lease, max_attempts=max_attempts
        )

    def recover(
        self,
        *,
        max_attempts: int | None = None,
        reap: Callable[[Any], object] | None = None,
    ) -> list[int]:
        """Free the tasks that their holders have lost, and return their IDs.

        Those are the tasks whose lease ran out, and at once those whose holder was a
        process of this host that is gone.  They become UNKNOWN; but those that are
        STOPPED stay so, and those that have had ``max_attempts`` become TERMINATED.

        ``reap`` is called with each task before it is free, to end what its holder has
        left running.  If it raises, that task stays as it is until the next call, and
        the exception is raised when the other tasks are done.  A task that cannot be
        read (G7) cannot be reaped either, and becomes STOPPED.  A lease seen at an
        earlier call is not cut short if the database's clock is set forward.
        """
        return recovery.recover(self, max_attempts=max_attempts, reap=reap)

    def request(self, id_: object, what: Request) -> bool:
        """Ask a task's holder to "cancel", "hold" or "resume" it.

        Returns whether the task has a holder, which is told when it renews its claim.
        If it has none, the next one is told.

        Raises TransitionError for a task that is TERMINATED, or for another request;
        NotFoundError if the task is not in this session.
        """
        return claims.request(self._index, key_of(id_), what)

    def wait(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for a change in the session; say if it came.

        The first call begins to watch, and each later one in the same thread reports
        what came since the one before.  A call may report what is no change to this
        session (on SQLite any change to the file is one), but misses none.  A renewal
        or a claim is no change.  In the main thread a signal ends the wait early; so
        does one that is still unread in the descriptor of ``signal.set_wakeup_fd``.

        Raises StoreUnavailableError if the database cannot be asked, StoreError in a
        transaction.
        """
        return self._waiting.wait(timeout)

    # The session's own life

    def transaction(self) -> AbstractContextManager[Connection]:
        """Commit all that this thread does in the block at once; the store's own."""
        return self.store.transaction()

    @property
    def created_at(self) -> datetime:
        """When the session was created, by the database's clock, in UTC."""
        return instant(self._index.row().created_at)

    @property
    def finished_at(self) -> datetime | None:
        """When ``finish`` was called, or None."""
        return maybe_instant(self._index.row().finished_at)

    def finish(self) -> None:
        """Note when the session's work was done; it can be used as before."""
        self._index.finish()

    def destroy(self) -> None:
        """Remove the session, its objects and their history, claimed or not.

        Holders of its tasks get LeaseLostError.
        """
        self._index.destroy()

    def close(self) -> None:
        """Close the store's connections."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
