"""The command that removes tasks that ended long ago."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Annotated

import typer

from sessionstore.cli.cells import cells_of
from sessionstore.cli.changing import DryRun, Yes, agreed
from sessionstore.cli.common import Common
from sessionstore.cli.options import moment
from sessionstore.errors import NotFoundError
from sessionstore.jobs.listing import Listing
from sessionstore.jobs.pages import Filter, JobRow
from sessionstore.session import SessionStore
from sessionstore.task import State

__all__ = ["prune"]

#: Tasks that are removed in one transaction.
BATCH = 100


def prune(
    common: Common,
    older_than: Annotated[
        str,
        typer.Option(
            "--older-than",
            metavar="TIME",
            show_default=False,
            help="Last changed before this time: 30d or 12h ago, or a time in UTC.",
        ),
    ],
    yes: Yes = False,
    dry_run: DryRun = False,
) -> int:
    """Delete TERMINATED tasks and their history, in batches.

    The tasks inside them are deleted too; they are unpickled to find those.
    """
    output = common.output
    with common.opened() as (session, listing, session_id):
        until = moment(listing, older_than, "--older-than")
        wanted = Filter([State.TERMINATED], until=until)
        rows = listing.jobs(session_id, wanted)
        if dry_run:
            output.rows(("id", "changed", "name"), map(cells_of, rows))
            return 0
        with output.progress("counting"):
            number = listing.count(session_id, wanted)
        if not number:
            output.say("there is no task to remove")
            return 0
        tasks = f"{number} TERMINATED task{'s' if number > 1 else ''}"
        if not agreed(f"remove {tasks} of {session.name!r}?", yes):
            return 1
        removed = 0
        with output.progress("remove", number) as step:
            while batch := [*islice(rows, BATCH)]:
                removed += _remove(session, listing, batch)
                step(len(batch))
        if output.as_json:
            output.rows(["removed"], [{"removed": removed}])
        else:
            output.line(f"removed: {removed}")
    return 0


def _remove(session: SessionStore, listing: Listing, rows: Sequence[JobRow]) -> int:
    """Remove those that are still as they were, and return their number."""
    try:
        with session.transaction():
            unchanged = listing.lock(rows)
            for row in unchanged:
                session.remove(row.id)
            return len(unchanged)
    except NotFoundError:
        if len(rows) == 1:
            return 0
        # One was inside another, and was removed with it: then one by one.
        return sum(_remove(session, listing, [row]) for row in rows)
