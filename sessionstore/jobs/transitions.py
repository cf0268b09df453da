"""Moving jobs from state to state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from sessionstore.database.kept import KeptConnection
from sessionstore.errors import NotFoundError, TransitionError
from sessionstore.jobs.history import Transition
from sessionstore.jobs.index import Index
from sessionstore.jobs.rows import Job, check_holder
from sessionstore.jobs.saving import Move, check_expected, save_graph
from sessionstore.jobs.states import check_transition
from sessionstore.objects.identity_map import set_unmarked
from sessionstore.persistable import Persistable
from sessionstore.row_ids import fits
from sessionstore.task import State

__all__ = ["move_job", "move_task", "record", "redo"]


def move_job(
    index: Index, key: int, move: Move, token: int | None = None
) -> Transition:
    """Change a job's state, and leave its payload alone.

    ``token`` is that of the claim that holds the job, if one does; as in ``move_task``.
    """
    returncode = move.returncode
    if returncode is not None and not fits(returncode):
        raise TransitionError(
            f"the returncode {returncode} does not fit in 64 bits", id=key
        )

    def work(kept: KeptConnection) -> Transition:
        job = index.job(kept, key)
        check_holder(job, token)
        check_expected(job, move.expect)
        check_transition(key, job.state, move.to)
        values = {} if returncode is None else {"returncode": int(returncode)}
        return record(index, kept, job, move.to, move.info, token, values)

    return index.database.write(work)


def redo(index: Index, key: int) -> Transition:
    """Make a TERMINATED job NEW."""

    def work(kept: KeptConnection) -> Transition:
        job = index.job(kept, key)
        if job.state != State.TERMINATED:
            raise TransitionError(
                f"task {key} is {job.state}; only a TERMINATED task can be redone",
                id=key,
            )
        values = {"returncode": None, "attempts": 0, "request": None}
        return record(index, kept, job, State.NEW, "redo", None, values)

    return index.database.write(work)


def record(
    index: Index,
    kept: KeptConnection,
    job: Job,
    new: State,
    info: str,
    token: int | None = None,
    values: Mapping[str, Any] = MappingProxyType({}),
) -> Transition:
    """Write a job's new state, other ``values`` of its row, and the history entry."""
    revision = index.jobs.change(kept, job, token, state=str(new), **values)
    kept.change(
        index.objects.schema.set_state,
        {"object_id": job.job_id, "new_state": str(new)},
    )
    entry = index.history.entry(
        job.job_id,
        revision,
        job.state,
        new,
        job.now,
        info,
        values.get("returncode"),
    )
    [row] = index.history.append(kept, [entry])
    identities = index.objects.identities
    live = identities.follow(job.job_id, job.revision, revision)
    execution = getattr(live, "execution", None)
    if execution is not None:
        identities.set_until_rollback(execution, "state", new)
        if "returncode" in values:
            identities.set_until_rollback(execution, "returncode", values["returncode"])
    return index.history.read(row)


def move_task(
    index: Index, task: Persistable, move: Move, token: int | None = None
) -> Transition:
    """Save a task in another state; if that fails, the task stays as it was."""
    execution: Any = getattr(task, "execution", None)
    if not hasattr(execution, "state"):
        raise TransitionError(
            f"{task!r} has no execution.state to change", id=task.persistent_id
        )
    if index.objects.identities.known_id(task) is None:
        raise NotFoundError(
            f"{task!r} is not in the session {index.name!r}; add it first"
        )
    restore = _assign(execution, move)
    try:
        _, recorded = save_graph(index, [task], listed=False, move=move, token=token)
    except BaseException:
        restore()
        raise
    scope = index.database.scope
    if scope is not None:
        scope.undo.append(restore)
    [row] = (row for row in recorded if row["job_id"] == task.persistent_id)
    return index.history.read(row)


def _assign(execution: Any, move: Move) -> Callable[[], None]:
    # Not marked as changes: the task is written anyway, and if that fails, the mark
    # must not stay.
    before = {"state": execution.state}
    after: dict[str, object] = {"state": move.to}
    if move.returncode is not None:
        before["returncode"] = getattr(execution, "returncode", None)
        after["returncode"] = move.returncode
    for name, value in after.items():
        set_unmarked(execution, name, value)

    def restore() -> None:
        for name, value in before.items():
            set_unmarked(execution, name, value)

    return restore
