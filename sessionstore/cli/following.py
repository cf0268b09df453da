"""Commands that go on until Ctrl-C, and show what changes meanwhile."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Annotated

import typer
from rich.console import Group
from rich.text import Text

from sessionstore.cli.cells import cells_of
from sessionstore.cli.common import Common
from sessionstore.cli.options import Name, States, moment, states_of
from sessionstore.cli.output import STYLES, Output, Row, visible
from sessionstore.jobs.history import Transition
from sessionstore.jobs.listing import Listing
from sessionstore.jobs.pages import Filter
from sessionstore.session import SessionStore
from sessionstore.task import State

__all__ = ["Tail", "tail", "watch"]

#: The most seconds between two looks.
LONGEST = 2.0
#: The least seconds between two looks.
SHORTEST = 0.2
#: The longest transaction whose transitions ``tail`` still sees.
LATEST = timedelta(seconds=60)
_AT_WORK = [str(state) for state in State if state not in {State.NEW, State.TERMINATED}]


def watch(common: Common, state: States = None, name: Name = None) -> None:
    """Show the session's counts and the tasks at work, live, until Ctrl-C.

    In a pipe, or with --json, prints a line of counts each time they change.
    """
    from rich.live import Live  # which no other command needs

    wanted = Filter(states_of(state or ()) or _AT_WORK, name)
    with common.opened() as (session, listing, session_id):
        try:
            if not common.output.is_terminal:
                _follow_counts(common.output, session, listing, session_id)
                return
            with Live(console=common.output.console, auto_refresh=False) as live:
                for now in _looks(session, listing):
                    picture = _picture(
                        common.output, now, listing, session_id, session.name, wanted
                    )
                    live.update(picture, refresh=True)
        except KeyboardInterrupt:
            return  # which is how it is meant to end


def _follow_counts(
    output: Output, session: SessionStore, listing: Listing, session_id: int
) -> None:
    before: dict[str, int] | None = None
    for now in _looks(session, listing):
        counts = listing.counts(session_id)
        if counts != before:
            row = {"at": now, **{str(s): counts.get(s, 0) for s in State}}
            output.rows([*row], [row])
            sys.stdout.flush()
        before = counts


def _looks(session: SessionStore, listing: Listing) -> Iterator[datetime]:
    """Yield the database's time whenever there may be something new."""
    session.wait(0)  # from now on
    while True:
        begun = time.monotonic()
        yield listing.now()
        # The longer a look takes, as in a large session, the fewer there are.
        time.sleep(max(SHORTEST, 3 * (time.monotonic() - begun)))
        session.wait(LONGEST)


def _picture(
    output: Output,
    now: datetime,
    listing: Listing,
    session_id: int,
    name: str,
    wanted: Filter,
) -> Group:
    counts = listing.counts(session_id)
    # Four lines stand around the table's own.
    room = max(output.console.height - 6, 1)
    rows = [
        {**cells_of(job), "for": now - job.changed_at}
        for job in islice(listing.jobs(session_id, wanted, page=room), room)
    ]
    head = Text(f"{visible(name)}  {now:%Y-%m-%d %H:%M:%S} UTC  ", "bold")
    for state in State:
        if counts.get(state):
            head.append(f"{state} {counts[state]}  ", STYLES[state])
    columns = ("id", "state", "name", "for", "attempts", "holder", "request")
    return Group(head, output.table(columns, rows))


def tail(
    common: Common,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="TIME",
            help="Start with transitions from this time on: 90m, 12h or 7d ago, or a "
            "time in UTC.",
        ),
    ] = None,
    until_ended: Annotated[
        bool, typer.Option("--until-ended", help="Exit when all tasks are TERMINATED.")
    ] = False,
) -> None:
    """Follow the transitions of all tasks, one per line, until Ctrl-C."""
    with common.opened() as (session, listing, session_id):
        try:
            begin = moment(listing, since, "--since") or listing.now()
            new = Tail(listing, session_id, begin)
            for now in _looks(session, listing):
                # Counted first: when all have ended, the look after it prints all that
                # is left.
                is_last = until_ended and (
                    listing.counts(session_id).keys() <= {State.TERMINATED}
                )
                _print(common.output, new.look(now))
                if is_last:
                    return
        except KeyboardInterrupt:
            return  # which is how it is meant to end


class Tail:
    """Finds the transitions that are new since the last look, each of them once.

    A transition has the time at which it was written, and can be seen when it is
    committed, so that a new one may have a time before the last look.
    """

    def __init__(self, listing: Listing, session_id: int, since: datetime) -> None:
        self._listing = listing
        self._session_id = session_id
        self._since = self._begin = since
        self._seen: dict[int, tuple[int, datetime]] = {}

    def look(self, now: datetime) -> Sequence[tuple[str, Transition]]:
        """Return what is new, with the names of the tasks."""
        new = []
        for name, revision, entry in self._listing.transitions(
            self._session_id, self._since
        ):
            seen = self._seen.get(entry.job_id)
            if seen is None or revision > seen[0]:
                self._seen[entry.job_id] = revision, entry.at
                new.append((name, entry))
        self._since = max(self._begin, now - LATEST)
        self._seen = {
            job_id: seen
            for job_id, seen in self._seen.items()
            if seen[1] >= self._since
        }
        return new


def _print(output: Output, entries: Sequence[tuple[str, Transition]]) -> None:
    columns = ("at", "id", "name", "from", "to", "returncode", "info")
    for name, entry in entries:
        row: Row = {
            "at": entry.at,
            "id": entry.job_id,
            "name": name,
            "from": entry.from_state,
            "to": entry.to_state,
            "returncode": entry.returncode,
            "info": entry.info,
        }
        if output.is_terminal:
            output.console.print(_line(name, entry), no_wrap=True, overflow="ellipsis")
        else:
            output.rows(columns, [row])
    sys.stdout.flush()


def _line(name: str, entry: Transition) -> Text:
    line = Text(f"{entry.at:%H:%M:%S} {entry.job_id:>6} ")
    line.append(f"{entry.from_state or '':>11}", STYLES.get(entry.from_state or "", ""))
    line.append(" → ")
    line.append(f"{entry.to_state:11}", STYLES[entry.to_state])
    line.append(f" {visible(name)}")
    if entry.returncode is not None:
        line.append(f" [{entry.returncode}]")
    line.append(f" {visible(entry.info)}", "dim")
    return line
