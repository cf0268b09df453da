"""The results as a table: on the terminal as they come, in Markdown at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.benchmarks.measure import Summary
from tests.benchmarks.works import Work

if TYPE_CHECKING:  # the peers are there with the extra "bench" only
    from tests.benchmarks.peers import PeerRow

_HEADINGS = ("name", "work", "backend", "median", "quartiles", "target", "")
#: The works that all peers do.
PEER_WORKS = ("save-new", "save-again", "load")
_PEER_HEADINGS = ("store", *PEER_WORKS, "syncs per save", "a save after a power cut")


@dataclass(frozen=True)
class Row:
    """One work on one backend, measured."""

    work: Work
    backend: str
    summary: Summary

    @property
    def is_met(self) -> bool:
        """Whether the median is as good as the target."""
        return self.work.is_met(self.backend, self.summary.median)

    @property
    def cells(self) -> tuple[str, ...]:
        """The row in words."""
        work, found = self.work, self.summary
        than = "≥" if work.unit == "x" else "<"
        unit = "" if work.unit == "x" else f" {work.unit}"
        return (
            work.name,
            work.title,
            self.backend,
            f"{found.median:.2f}{unit}",
            f"{found.low:.2f}-{found.high:.2f}",
            f"{than} {work.targets[self.backend]:g}{unit}",
            "ok" if self.is_met else "below" if work.unit == "x" else "above",
        )


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the table of works."""
    table = Table(*_HEADINGS)
    for column in table.columns:
        column.no_wrap = column.header != "work"
    for row in rows:
        *cells, verdict = row.cells
        table.add_row(*cells, Text(verdict, "green" if row.is_met else "bold red"))
    console.print(table)


def show_peers(rows: Sequence[PeerRow], console: Console) -> None:
    """Print the table of peers."""
    table = Table(*_PEER_HEADINGS, title="throughput, x raw sqlite3")
    for row in rows:
        table.add_row(*_peer_cells(row))
    console.print(table)


def markdown(rows: Sequence[Row], peers: Sequence[PeerRow]) -> str:
    """Return both tables as Markdown."""
    tables = []
    if rows:
        tables.append(_markdown(_HEADINGS, [row.cells for row in rows]))
    if peers:
        tables.append(_markdown(_PEER_HEADINGS, [_peer_cells(row) for row in peers]))
    return "\n".join(tables)


def _peer_cells(row: PeerRow) -> tuple[str, ...]:
    return (
        row.title,
        *(f"{row.ratios[work].median:.2f}" for work in PEER_WORKS),
        "?" if row.syncs is None else f"{row.syncs:.1f}",
        row.durability,
    )


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
