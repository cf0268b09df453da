"""Commands that list sessions and tasks, and change nothing."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from sessionstore.cli.cells import COLUMNS, cells_of
from sessionstore.cli.common import Common
from sessionstore.cli.options import (
    Holder,
    Name,
    Since,
    States,
    Until,
    filter_of,
    words_among,
)
from sessionstore.jobs.listing import PAGE, SessionSummary
from sessionstore.jobs.pages import SORTS
from sessionstore.task import State

__all__ = ["ls", "sessions"]

_USUAL = ("id", "state", "name", "changed", "holder", "returncode")


def sessions(common: Common) -> None:
    """List the sessions: tasks by state, when created and last changed."""
    output = common.output
    with common.listing() as listing, output.progress("counting"):
        found = listing.sessions()
    times = ["created", "changed", "finished"]
    columns = ["name", "tasks", *map(str, State), *times]
    if output.is_terminal:
        columns = ["name", "tasks", "states", *times]
    output.rows(columns, map(_session_row, found))


def _session_row(session: SessionSummary) -> dict[str, object]:
    counts = session.counts
    return {
        "name": session.name,
        "tasks": sum(counts.values()),
        "states": ", ".join(f"{state} {n}" for state, n in sorted(counts.items())),
        **{str(state): counts.get(state, 0) for state in State},
        "created": session.created_at,
        "changed": session.changed_at,
        "finished": session.finished_at,
    }


def ls(
    common: Common,
    state: States = None,
    name: Name = None,
    since: Since = None,
    until: Until = None,
    holder: Holder = None,
    sort: Annotated[
        str,
        typer.Option(
            "--sort",
            metavar="COLUMN",
            help="added, id, name, state, created or changed; only with added are no "
            "other tasks read than those shown.",
            autocompletion=lambda incomplete: [
                word for word in SORTS if word.startswith(incomplete)
            ],
        ),
    ] = "added",
    reverse: Annotated[
        bool, typer.Option("--reverse", "-r", help="Reverse the order.")
    ] = False,
    limit: Annotated[
        int,
        typer.Option(
            "--limit", "-n", min=1, max=10**9, help="Show at most this many tasks."
        ),
    ] = 50,
    everything: Annotated[bool, typer.Option("--all", help="Show all tasks.")] = False,
    after: Annotated[
        int | None,
        typer.Option(
            "--after",
            metavar="ID",
            help="Show the tasks after this one: the next page.",
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns",
            metavar="NAMES",
            help=f"Columns to show, separated by commas: {', '.join(COLUMNS)}.",
        ),
    ] = None,
) -> None:
    """List tasks, page by page, without reading their objects."""
    words_among("column to sort by", [sort], [*SORTS])
    given = _USUAL if columns is None else columns.replace(" ", "").split(",")
    shown = words_among("column", given, COLUMNS)
    with common.listing() as listing:
        session_id = listing.session_id(common.session)
        rows = listing.jobs(
            session_id,
            filter_of(listing, state, name, since, until, holder),
            sort=sort,
            descending=reverse,
            after=None if after is None else listing.job(session_id, after),
            page=PAGE if everything else min(limit + 1, PAGE),
        )
        if everything:
            common.output.rows(shown, map(cells_of, rows))
            return
        with common.output.progress("looking"):
            # One more than is shown tells whether there are more.
            page = [*islice(rows, limit + 1)]
        common.output.rows(shown, map(cells_of, page[:limit]))
        if len(page) > limit:
            common.output.say(
                f"there are more: use --after {page[limit - 1].id}, or --all"
            )
