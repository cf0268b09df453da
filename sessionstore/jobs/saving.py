"""Saving through a session: a graph's rows, jobs and history in one transaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from sessionstore.database.kept import KeptConnection
from sessionstore.errors import ConflictError, EncodeError
from sessionstore.jobs.history import History, clean
from sessionstore.jobs.index import Index
from sessionstore.jobs.rows import Job, changed_meanwhile, check_holder
from sessionstore.jobs.states import check_transition, state_from, states_from
from sessionstore.objects.encoding import Encoded
from sessionstore.objects.records import Record
from sessionstore.objects.schema import MAX_NAME
from sessionstore.persistable import Persistable, note
from sessionstore.row_ids import fits
from sessionstore.task import State

__all__ = ["Move", "check_expected", "check_persistable", "save_graph"]


class Move(NamedTuple):
    """A transition that somebody asks for."""

    to: State
    #: The states it may start from; None: any that is legal.
    expect: Collection[State] | None
    info: str
    #: None: it stays as it is.
    returncode: int | None

    @classmethod
    def asked(
        cls,
        to: State | str,
        expect: State | str | Collection[State | str] | None,
        info: str,
        returncode: int | None,
    ) -> Move:
        """Return what a caller asks for; raise TransitionError for no such state."""
        return cls(state_from(to), states_from(expect), info, returncode)


def save_graph(
    index: Index,
    tasks: Sequence[Persistable],
    *,
    listed: bool,
    move: Move | None = None,
    token: int | None = None,
) -> tuple[Sequence[int], Sequence[Mapping[str, Any]]]:
    """Write objects with all they refer to; return their IDs and the transitions' rows.

    With ``listed`` they become jobs of the session, else they must be in it already.
    With a ``move`` their present states are recorded as that transition.  A ``token``
    is that of the claim that holds them.
    """
    if not tasks:
        return [], []
    roots = {id(check_persistable(task)) for task in tasks}
    recorded: list[Mapping[str, Any]] = []

    def first(kept: KeptConnection, encoded: Encoded) -> None:
        records = encoded.records
        if listed and encoded.unchanged:
            _take_in(index, kept, encoded.unchanged)
        if listed and len(records) == 1 and records[0].is_new:
            _add_one(index, kept, records[0])
            return
        writer = _GraphWriter(index, kept, records, listed, move, token)
        for record in records:
            writer.write(record, id(record.obj) in roots)
        recorded[:] = writer.finish()

    return index.objects.store(tasks, first), recorded


def _add_one(index: Index, kept: KeptConnection, record: Record) -> None:
    """Write the job of one new object, in two statements instead of three."""
    row = _new_row(record)
    index.append(kept, row, _first_entry(row, None))
    note(record.obj, _revision=1)  # type: ignore[arg-type]


def _new_row(record: Record) -> dict[str, Any]:
    state_from(record.state, record.id)
    return {
        "job_id": int(record.id),
        "name": _name_of(record.obj),
        "state": record.state,
        "returncode": _returncode_of(record),
    }


def _first_entry(row: Mapping[str, Any], at: int | None) -> dict[str, Any]:
    """Return what the history of a new job begins with."""
    return History.entry(
        row["job_id"], 1, None, row["state"], at, "", row["returncode"]
    )


def _take_in(index: Index, kept: KeptConnection, parts: Mapping[int, object]) -> None:
    """Take in the parts that left their session together with a workflow."""
    unread = [
        id_ for id_, obj in parts.items() if getattr(obj, "_revision", None) is None
    ]
    for id_, job in index.jobs.read(kept, unread, lock=True).items():
        obj: Any = parts[id_]
        if job.session_id is None:
            _recall(index, obj, job)
            index.objects.identities.read_at(obj, job.revision)
    index.jobs.move_parts(kept, [*parts], None, index.id)


def _recall(index: Index, obj: object, job: Job) -> None:
    # Of what is in no session, the plain store has read the object alone: a returncode
    # that only the job's row has would get lost.
    execution = getattr(obj, "execution", None)
    if hasattr(execution, "returncode"):
        index.objects.identities.set_until_rollback(
            execution, "returncode", job.returncode
        )


class _GraphWriter:
    """Gathers the job rows and history entries that saving one graph takes."""

    def __init__(
        self,
        index: Index,
        kept: KeptConnection,
        records: Sequence[Record],
        listed: bool,
        move: Move | None,
        token: int | None,
    ) -> None:
        self._token = token
        self._index = index
        self._kept = kept
        self._listed = listed
        self._move = move
        known = [record.id for record in records if not record.is_new]
        self._there = index.jobs.read(kept, known, lock=True) if known else {}
        self._last = self._now = 0
        self._new: list[dict[str, Any]] = []
        self._entries: list[dict[str, Any]] = []

    def write(self, record: Record, is_root: bool) -> None:
        """Write one object's job, unless somebody else was first."""
        job = self._there.get(record.id)
        if is_root and not self._listed:
            if job is None or job.session_id != self._index.id:
                raise self._index.not_here(record.id)
        elif job is not None:
            self._check_session(record, job)
        if job is None:
            self._insert(record, self._listed and is_root)
        else:
            self._update(record, job, is_root)

    def _check_session(self, record: Record, job: Job) -> None:
        if job.session_id not in {self._index.id, None}:
            raise ConflictError(
                f"object {record.id} is in another session, and an object can be in "
                "only one; forget it there first",
                id=record.id,
            )

    def _begin_to_add(self) -> None:
        """Read the session's last position, and lock the session for what is added."""
        if not self._now:
            self._last, self._now = self._index.last_position_and_time(self._kept)

    def _insert(self, record: Record, listed: bool) -> None:
        self._begin_to_add()
        if listed:
            self._last += 1
        row = _new_row(record)
        row["position"] = self._last if listed else None
        self._new.append(row)
        note(record.obj, _revision=1)  # type: ignore[arg-type]

    def _update(self, record: Record, job: Job, is_root: bool) -> None:
        move = self._move if is_root else None
        token = self._token if is_root else None
        check_holder(job, token)
        if move is not None:
            check_expected(job, move.expect)
        obj: Any = record.obj
        if obj._revision is None and job.session_id is None:
            _recall(self._index, obj, job)
        elif obj._revision != job.revision:
            raise changed_meanwhile(record.id)
        is_moved = move is not None or job.state != record.state
        if is_moved:
            check_transition(record.id, job.state, state_from(record.state, record.id))
        values: dict[str, Any] = {
            "name": _name_of(obj),
            "state": record.state,
            "returncode": _returncode_of(record),
        }
        if job.session_id is None:
            self._begin_to_add()
            values["session_id"] = self._index.id
        if self._listed and is_root and job.position is None:
            self._begin_to_add()
            self._last += 1
            values["position"] = self._last
        revision = self._index.jobs.change(self._kept, job, token, **values)
        if is_moved:
            self._entries.append(
                History.entry(
                    record.id,
                    revision,
                    job.state,
                    record.state,
                    job.now,
                    move.info if move else "",
                    values["returncode"],
                )
            )
        note(obj, _revision=revision)

    def finish(self) -> Sequence[Mapping[str, Any]]:
        """Send what was gathered, and return the transitions' rows among it."""
        index, kept, now = self._index, self._kept, self._now
        if self._new:
            index.jobs.insert(kept, index.id, now, self._new)
            # Made only as they are sent, as the jobs' rows are.
            entries = (_first_entry(row, now) for row in self._new)
            index.history.begin_many(kept, entries)
        return index.history.append(kept, self._entries)


def check_expected(job: Job, expect: Collection[State] | None) -> None:
    """Raise ConflictError for a state that was not expected."""
    if expect is not None and job.state not in expect:
        raise ConflictError(
            f"task {job.job_id} is {job.state}, but was expected to be "
            f"{' or '.join(sorted(expect)) or 'in no state at all'}",
            id=job.job_id,
        )


def check_persistable(task: object) -> Persistable:
    """Return the object, or raise EncodeError if no session can keep it."""
    if not isinstance(task, Persistable):
        raise EncodeError(
            f"a session stores Persistable objects, and {task!r} is not one; derive "
            f"its class {type(task).__qualname__} from sessionstore.Persistable"
        )
    return task


def _name_of(obj: object) -> str:
    return clean(str(getattr(obj, "jobname", "") or ""), MAX_NAME)


def _returncode_of(record: Record) -> int | None:
    returncode = getattr(getattr(record.obj, "execution", None), "returncode", None)
    if not isinstance(returncode, int):
        return None
    if not fits(returncode):
        raise EncodeError(
            f"the returncode {returncode} does not fit in 64 bits", id=record.id
        )
    # PostgreSQL takes no True for a number.
    return int(returncode)
