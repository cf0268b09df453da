"""Commands that change tasks: those named, or those that a filter lets through.

Each asks first, naming the number of tasks, and changes them one by one, each in a
transaction of its own, so that one that cannot be changed does not stop the others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import typer

from sessionstore.cli.cells import cells_of
from sessionstore.cli.common import Common, UsageError
from sessionstore.cli.options import Holder, Name, Since, States, Until, filter_of
from sessionstore.cli.output import Output, complain, visible
from sessionstore.database.failures import TransactionAbortedError
from sessionstore.errors import ConflictError, NotFoundError, TransitionError
from sessionstore.jobs.listing import Listing
from sessionstore.jobs.pages import Filter, JobRow
from sessionstore.jobs.rows import Request
from sessionstore.session import SessionStore
from sessionstore.task import State

__all__ = ["CHANGES", "Change", "DryRun", "Yes", "agreed", "changing"]

Ids = Annotated[list[int] | None, typer.Argument(metavar="[ID]...", show_default=False)]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only list the tasks that would be changed.")
]
_ALL = frozenset(State)
_NOT_ENDED = _ALL - {State.TERMINATED}
#: How often a transaction is tried that the database ends because of a deadlock.
ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Change:
    """What a command does with each task, in a transaction."""

    name: str
    help: str
    #: As in "redone: 3".
    done: str
    make: Callable[[SessionStore, int], object]
    #: The states in which it can be done.
    states: Collection[State] = _ALL


def _ask(what: Request, state: State) -> Callable[[SessionStore, int], object]:
    """Return what asks a task's holder, or does it itself if there is none."""

    def make(session: SessionStore, id_: int) -> None:
        if not session.request(id_, what):
            # By way of UNKNOWN, as not every state may become the other.
            for to in dict.fromkeys((State.UNKNOWN, state)):
                session.transition(id_, to, info=what)

    return make


CHANGES = (
    Change(
        "redo",
        "Make TERMINATED tasks NEW again; their history is kept.",
        "redone",
        lambda session, id_: session.redo(id_),
        {State.TERMINATED},
    ),
    Change(
        "cancel",
        "End tasks. A claimed task is ended by its holder, any other at once.",
        "cancelled, or asked to end",
        _ask("cancel", State.TERMINATED),
        _NOT_ENDED,
    ),
    Change(
        "hold",
        "Stop tasks until they are resumed. A claimed task is stopped by its holder, "
        "any other at once.",
        "held, or asked to hold",
        _ask("hold", State.STOPPED),
        _NOT_ENDED - {State.STOPPED},
    ),
    Change(
        "resume",
        "Let STOPPED tasks go on. A claimed task goes on with its holder, any other "
        "when it is claimed.",
        "resumed, or asked to resume",
        _ask("resume", State.UNKNOWN),
        {State.STOPPED},
    ),
    Change(
        "forget",
        "Remove tasks from the session; they stay in the store.",
        "forgotten",
        lambda session, id_: session.forget(id_),
    ),
    Change(
        "remove",
        "Delete tasks and the tasks inside them, which are unpickled for that.",
        "removed",
        lambda session, id_: session.remove(id_),
    ),
)


def changing(what: Change) -> Callable[..., int]:
    """Return the command that makes a change."""

    def command(
        common: Common,
        ids: Ids = None,
        state: States = None,
        name: Name = None,
        since: Since = None,
        until: Until = None,
        holder: Holder = None,
        yes: Yes = False,
        dry_run: DryRun = False,
    ) -> int:
        filters = (state, name, since, until, holder)
        if bool(ids) == any(filters):
            raise UsageError(
                f"say which tasks to {what.name}: either by ID, or by --state, "
                "--name, --since, --until and --holder; --name '*' selects all"
            )
        with common.opened() as (session, listing, session_id):
            rows: Iterable[JobRow]
            missing = 0
            if ids:
                rows = _named(listing, session_id, ids)
                number = len(rows)
                missing = len(set(ids)) - number
            else:
                wanted = _possible(filter_of(listing, *filters), what)
                number = 0
                if wanted.states:
                    with common.output.progress("counting"):
                        number = listing.count(session_id, wanted)
                rows = listing.jobs(session_id, wanted) if number else []
            if dry_run:
                common.output.rows(("id", "state", "name"), map(cells_of, rows))
                return 1 if missing else 0
            if not number:
                common.output.say(f"there is no task to {what.name}")
                return 1 if missing else 0
            tasks = f"{number} task{'s' if number > 1 else ''} of {session.name!r}"
            if not agreed(f"{what.name} {tasks}?", yes):
                return 1
            return _make_all(
                common.output, what, session, listing, rows, number, missing
            )

    command.__doc__ = what.help
    return command


def _named(listing: Listing, session_id: int, ids: Collection[int]) -> Sequence[JobRow]:
    """Return the tasks with these IDs, and complain about those that are not there."""
    rows = []
    for id_ in dict.fromkeys(ids):
        try:
            rows.append(listing.job(session_id, id_))
        except NotFoundError as error:
            complain(str(error))
    return rows


def _possible(wanted: Filter, what: Change) -> Filter:
    """Leave out of a filter the states in which the change cannot be made."""
    given = wanted.states or [str(state) for state in State]
    return replace(wanted, states=[state for state in given if state in what.states])


def agreed(question: str, yes: bool) -> bool:
    """Ask a question, unless the answer was given; say whether it was yes."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError(
            f"{question} There is no terminal to ask on; pass --yes to confirm"
        )
    # To standard error, as the question is no part of what the command prints.
    return typer.confirm(visible(question), err=True)


def _make_all(
    output: Output,
    what: Change,
    session: SessionStore,
    listing: Listing,
    rows: Iterable[JobRow],
    number: int,
    failed: int,
) -> int:
    done = 0
    with output.progress(what.name, number) as step:
        for row in rows:
            try:
                _make(what, session, listing, row)
                done += 1
            except (ConflictError, NotFoundError, TransitionError) as error:
                failed += 1
                complain(str(error))
            step()
    if output.as_json:
        output.rows(
            ("command", "done", "failed"),
            [{"command": what.name, "done": done, "failed": failed}],
        )
    else:
        output.line(f"{what.done}: {done}")
    return 1 if failed else 0


def _make(what: Change, session: SessionStore, listing: Listing, row: JobRow) -> None:
    if row.state not in what.states:
        raise TransitionError(
            f"task {row.id} is {row.state}; there is nothing to {what.name}",
            id=row.id,
        )
    for attempt in range(ATTEMPTS):
        try:
            with session.transaction():
                if not listing.lock([row]):
                    raise ConflictError(
                        f"task {row.id} was changed or removed since it was listed, "
                        "so it was left alone",
                        id=row.id,
                    )
                what.make(session, row.id)
            return
        except TransactionAbortedError:
            if attempt == ATTEMPTS - 1:
                raise
