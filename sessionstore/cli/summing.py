"""The command that sums a session up: counts, times, throughput and failures."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Annotated

import typer
from rich.text import Text

from sessionstore.cli.common import Common
from sessionstore.cli.options import moment
from sessionstore.cli.output import Output, Row, duration
from sessionstore.jobs.figures import Figures, Span
from sessionstore.jobs.listing import Listing
from sessionstore.task import State

__all__ = ["bars", "stats"]

#: Columns of the plot.
PARTS = 48
#: Reasons for failures that are shown.
MOST = 10
#: Lines of the plot.
HEIGHT = 4
_EIGHTHS = " ▁▂▃▄▅▆▇█"


def stats(
    common: Common,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="TIME",
            help="Only what happened at or after this time: 90m, 12h or 7d ago, or a "
            "time in UTC. By default, everything.",
        ),
    ] = None,
) -> None:
    """Count tasks and failures, and say how long each state lasted (to 1 %).

    In a pipe, a line begins with its section: states (tasks now, stays, their median
    and 95th percentile in seconds), throughput (begin, seconds, tasks ended), failures
    (number, reason). With --json, throughput is split into intervals.
    """
    output = common.output
    with common.listing() as listing:
        session_id = listing.session_id(common.session)
        begin = moment(listing, since, "--since")
        counts = listing.counts(session_id)
        figures = _figures(listing, output, session_id, begin, sum(counts.values()))
    sections = (
        ("states", _states(counts, figures)),
        ("throughput", _throughput(figures, in_parts=output.as_json)),
        ("failures", _failures(figures)),
    )
    for name, rows in sections:
        if not output.is_terminal:
            for row in rows:
                output.rows(["section", *row], [{"section": name, **row}])
        elif name == "throughput":
            _plot(output, figures)
        elif rows:
            output.rows([*rows[0]], rows)


def _figures(
    listing: Listing,
    output: Output,
    session_id: int,
    begin: datetime | None,
    total: int,
) -> Figures:
    until = listing.now()
    since = begin or listing.created_at(session_id)
    figures = Figures(Span(min(since, until), until, PARTS))
    with output.progress("reading histories", total) as step:
        for entries in listing.histories(session_id, begin):
            figures.add(entries)
            step()
    return figures


def _states(counts: dict[str, int], figures: Figures) -> Sequence[Row]:
    rows = []
    for state in State:
        stays = figures.stays.get(state)
        if state in counts or stays is not None:
            rows.append(
                {
                    "state": str(state),
                    "tasks": counts.get(state, 0),
                    "stays": stays.number if stays else 0,
                    "median": stays.quantile(0.5) if stays else None,
                    "p95": stays.quantile(0.95) if stays else None,
                }
            )
    return rows


def _throughput(figures: Figures, *, in_parts: bool) -> Sequence[Row]:
    span = figures.span
    if not in_parts:
        # Most parts may be empty, and nobody plots what is read as text.
        lasting, ended = span.until - span.since, sum(figures.ended)
        return [{"begin": span.since, "lasting": lasting, "ended": ended}]
    return [
        {"begin": span.since + i * span.part, "lasting": span.part, "ended": number}
        for i, number in enumerate(figures.ended)
    ]


def _failures(figures: Figures) -> Sequence[Row]:
    return [
        {"failures": number, "reason": reason}
        for reason, number in figures.failures.most_common(MOST)
    ]


def _plot(output: Output, figures: Figures) -> None:
    span, ended = figures.span, sum(figures.ended)
    seconds = max((span.until - span.since).total_seconds(), 1e-6)
    unit, size = next(
        (
            (unit, size)
            for unit, size in (("second", 1), ("minute", 60), ("hour", 3600))
            if ended / seconds * size >= 1
        ),
        ("day", 86400),
    )
    output.console.print(
        Text(
            f" tasks that ended in {duration(seconds)}: {ended}, "
            f"{ended / seconds * size:.3g} per {unit}; "
            f"each column is {duration(span.part / timedelta(seconds=1))}"
        )
    )
    encoding = sys.stdout.encoding or "ascii"
    for line in bars(figures.ended, HEIGHT, plain=not encoding.lower().startswith("u")):
        output.console.print(Text(f" │{line}" if line else "", "green"), crop=True)
    output.console.print()


def bars(numbers: Sequence[int], height: int, *, plain: bool = False) -> Iterator[str]:
    """Yield the lines of a bar chart, each number a column."""
    most = max(numbers, default=0) or 1
    # Rounded up: what happened once is to be seen.
    eighths = [-(-number * height * 8 // most) for number in numbers]
    for line in reversed(range(height)):
        levels = [min(max(n - line * 8, 0), 8) for n in eighths]
        if plain:
            yield "".join("#" if level > 0 else " " for level in levels)
        else:
            yield "".join(_EIGHTHS[level] for level in levels)
