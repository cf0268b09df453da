"""The results as a table: on the terminal as they come, in Markdown at the end."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.benchmarks.measure import Summary
from tests.benchmarks.works import Work

_HEADINGS = ("name", "work", "backend", "median", "quartiles", "target", "")


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


def show(rows: list[Row], console: Console) -> None:
    """Print the table."""
    table = Table(*_HEADINGS)
    for column in table.columns:
        column.no_wrap = column.header != "work"
    for row in rows:
        *cells, verdict = row.cells
        table.add_row(*cells, Text(verdict, "green" if row.is_met else "bold red"))
    console.print(table)


def markdown(rows: list[Row]) -> str:
    """Return the table as Markdown."""
    lines = [_HEADINGS, ("---",) * len(_HEADINGS), *(row.cells for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
