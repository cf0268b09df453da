"""What commands print: tables on a terminal, plain columns in a pipe, or JSON.

What comes out of the database may be anything.  What could move a terminal's cursor,
change the direction of writing or be taken for markup is shown escaped.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sessionstore.cli.progress import Bar

__all__ = [
    "STYLES",
    "Output",
    "Row",
    "complain",
    "duration",
    "end_quietly",
    "open_what_is_closed",
    "visible",
]

#: Rows of one table; more rows make another one, with the same heads.
CHUNK = 500
#: The colours of the states.
STYLES = {
    "NEW": "cyan",
    "SUBMITTED": "blue",
    "RUNNING": "green",
    "STOPPED": "yellow",
    "TERMINATING": "green",
    "TERMINATED": "dim",
    "UNKNOWN": "red",
}
#: Columns that give way where the terminal is too narrow.
_WIDE = frozenset({"name", "info", "reason", "states"})
#: Columns that are left out where they are empty throughout.
_OPTIONAL = frozenset({"finished", "holder", "returncode"})
#: Columns that take several lines rather than being cut.
_FOLDED = frozenset({"states"})
_PASSWORD = re.compile(r"(//[^:/@\s]*):\S*@")

Row = Mapping[str, object]


def visible(text: str) -> str:
    """Return text in which all that cannot be seen is escaped."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def complain(message: str) -> None:
    """Print one line to standard error."""
    # Something typed in the wrong place may be a URL with a password.
    message = _PASSWORD.sub(r"\1:***@", " ".join(message.split()))
    print(f"sessionstore: {visible(message)}", file=sys.stderr)


def duration(seconds: float) -> str:
    """Return a length of time as people say it, in its two largest units."""
    if abs(seconds) < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    said: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if whole >= size or said:
            said.append(f"{whole // size}{unit}")
            whole %= size
        if len(said) == 2:
            break
    return "".join(said)


class Output:
    """Where and how a command prints what it found."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        #: Whether somebody reads it on a terminal, for whom things are laid out.
        self.is_terminal = sys.stdout.isatty() and not as_json
        self.console = Console(markup=False, highlight=False, emoji=False)

    def rows(self, columns: Sequence[str], rows: Iterable[Row]) -> None:
        """Print rows as they come, one a line."""
        if self.is_terminal:
            self._tables(columns, iter(rows))
            return
        for row in rows:
            if self.as_json:
                self.line(_json({name: row[name] for name in columns}))
            else:
                self.line("\t".join(_plain(row[name]) for name in columns))

    def record(self, row: Row) -> None:
        """Print all of one thing, each of its values on a line."""
        if self.as_json:
            self.line(_json(row))
        elif self.is_terminal:
            table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
            table.add_column(no_wrap=True, style="bold")
            table.add_column(overflow="fold")
            for name, value in row.items():
                table.add_row(Text(name), Text(_human(value), _style(name, value)))
            self.console.print(table)
        else:
            for name, value in row.items():
                self.line(f"{name}\t{_plain(value)}")

    def line(self, text: str) -> None:
        """Print a line as it is: ``visible`` must have seen what is in it."""
        sys.stdout.write(text + "\n")

    def say(self, text: str) -> None:
        """Tell the user something that is no part of the result."""
        if not self.as_json and sys.stderr.isatty():
            print(visible(text), file=sys.stderr)

    def table(self, columns: Sequence[str], rows: Iterable[Row]) -> Table:
        """Return a table for a terminal."""
        rows = list(rows)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        columns = [
            name
            for name in columns
            if name not in _OPTIONAL or any(row[name] is not None for row in rows)
        ]
        for name in columns:
            is_number = bool(rows) and all(
                isinstance(row[name], (int, float, timedelta, type(None)))
                for row in rows
            )
            table.add_column(
                Text(name),
                justify="right" if is_number else "left",
                no_wrap=name not in _WIDE,
                # No wider than its content, or others would be cut for blanks.
                min_width=min(12, _widest(name, rows)) if name in _WIDE else None,
            )
        for row in rows:
            table.add_row(
                *(
                    Text(
                        _human(row[name]),
                        _style(name, row[name]),
                        no_wrap=name not in _FOLDED,
                        overflow="ellipsis",
                    )
                    for name in columns
                )
            )
        return table

    def _tables(self, columns: Sequence[str], rows: Iterator[Row]) -> None:
        chunk = list(islice(rows, CHUNK))
        while chunk:
            self.console.print(self.table(columns, chunk))
            chunk = list(islice(rows, CHUNK))

    @contextmanager
    def progress(
        self, label: str, total: int | None = None
    ) -> Iterator[Callable[..., None]]:
        """Give a function to call at each step, or with a number of steps.

        A bar is shown if it takes long, and on a terminal.  Without a total it is
        something without steps, such as one query.
        """
        if self.as_json or not sys.stderr.isatty():
            yield lambda number=1: None
            return
        with Bar(label, total) as bar:
            yield bar.step


def open_what_is_closed() -> None:
    """Open those of stdin, stdout and stderr that are closed, as by cron jobs."""
    # Otherwise a database would get their numbers, and Python has None for them.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def end_quietly() -> int:
    """Print nothing more, as nobody reads it; return the exit status."""
    # The interpreter would complain at its end that it cannot flush.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _widest(name: str, rows: Sequence[Row]) -> int:
    return max(len(text) for text in (name, *(_human(row[name]) for row in rows)))


def _style(name: str, value: object) -> str:
    return STYLES.get(str(value), "") if name in {"state", "from", "to"} else ""


def _human(value: object) -> str:
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
    if isinstance(value, timedelta):
        return duration(value.total_seconds())
    return "-" if value is None else visible(str(value))


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return _iso(value)
    if isinstance(value, timedelta):
        return f"{value.total_seconds():.6f}"
    return "-" if value is None else visible(str(value)) or "-"


def _iso(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


def _json(row: Row) -> str:
    # In ASCII, in which nothing needs to be escaped for a terminal.
    known = {name: None if value == "" else value for name, value in row.items()}
    return json.dumps(known, default=_json_value)


def _json_value(value: object) -> object:
    if isinstance(value, datetime):
        return _iso(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value)
