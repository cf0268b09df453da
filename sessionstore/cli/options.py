"""The options by which several commands are told which tasks are meant."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from sessionstore.cli.common import UsageError
from sessionstore.jobs.listing import Listing, nearest
from sessionstore.jobs.pages import Filter
from sessionstore.task import State

__all__ = [
    "Holder",
    "Name",
    "Since",
    "States",
    "Until",
    "filter_of",
    "moment",
    "states_of",
    "words_among",
]

_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhdw])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}

States = Annotated[
    list[str] | None,
    typer.Option(
        "--state",
        metavar="STATE",
        help="In this state; for several, separate them with commas or repeat the "
        "option.",
        autocompletion=lambda incomplete: [
            str(state) for state in State if state.startswith(incomplete)
        ],
    ),
]
Name = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="PATTERN",
        help="With a name that matches this pattern; * and ? as in the shell.",
    ),
]
Since = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="TIME",
        help="Last changed at or after this time: 90m, 12h or 7d ago, or "
        "2026-01-31T12:00 (UTC).",
    ),
]
Until = Annotated[
    str | None,
    typer.Option("--until", metavar="TIME", help="Last changed before this time."),
]
Holder = Annotated[
    str | None,
    typer.Option(
        "--holder",
        metavar="PATTERN",
        help="Claimed by this HOST or HOST/PID; '*' matches any holder.",
    ),
]


def filter_of(
    listing: Listing,
    state: Sequence[str] | None,
    name: str | None,
    since: str | None,
    until: str | None,
    holder: str | None,
) -> Filter:
    """Return what the options say; times are by the database's clock."""
    return Filter(
        states_of(state or ()),
        name,
        moment(listing, since, "--since"),
        moment(listing, until, "--until"),
        holder,
    )


def states_of(given: Sequence[str]) -> Sequence[str]:
    """Return states, or raise a usage error that names the nearest one."""
    words = [word.strip().upper() for text in given for word in text.split(",")]
    return words_among("state", words, [str(state) for state in State])


def words_among(kind: str, words: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    """Return the words, or raise a usage error for one that is not known."""
    for word in words:
        if word not in known:
            raise UsageError(
                f"there is no {kind} {word[:100]!r}; {nearest(word, known)}"
            )
    return [*dict.fromkeys(words)]


def moment(listing: Listing, text: str | None, option: str) -> datetime | None:
    """Return an instant, given as such or by how long ago it was."""
    if text is None:
        return None
    ago = _AGO.fullmatch(text.strip())
    try:
        if ago:
            seconds = float(ago[1]) * _SECONDS[ago[2]]
            return listing.now() - timedelta(seconds=seconds)
        at = datetime.fromisoformat(text.strip())
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(
            f"{option} {text[:100]!r} is not a time: write 90m, 12h or 7d for that "
            "long ago, or a date like 2026-01-31 or 2026-01-31T12:00"
        ) from None
