"""The page MATRIX.md, from the table and from what was measured.

``naive.json`` holds, for each subject that does without protection, a letter for each
cell.  ``pytest tests/fork --write-matrix`` measures them and writes both files; a cell
that comes out differently from one run to the next is marked as varying, and no test
relies on it.  To forget what was measured, delete ``naive.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.fork.matrix import Cell, Database, Way, cells
from tests.fork.subjects import NAIVE, PROTECTED
from tests.fork.ways import WAYS

__all__ = ["PASSES", "VARIES", "VERDICTS", "merge", "read", "render", "write"]

PAGE = Path(__file__).with_name("MATRIX.md")
MEASURED = Path(__file__).with_name("naive.json")

PASSES, VARIES = "ok", "?"
VERDICTS = {
    PASSES: "passes",
    "L": "left: something of the parent's stays open in the child, or at the server",
    "R": "rows: one that was written is lost, or one is there that nobody committed",
    "P": "parent: its transaction or connection fails, or the process dies",
    "C": "child: it does not come to what it should, or uses the parent's transaction",
    "H": "hang: a process had to be killed",
    VARIES: "varies from run to run, and is not asserted",
}

Measured = dict[str, dict[str, str]]


def degree(letter: str) -> int:
    """Return how bad it is: which of the failures comes first is often chance."""
    return [PASSES, "L"].index(letter) if letter in (PASSES, "L") else 2


def read() -> Measured:
    """Return what was measured, by subject and cell."""
    if not MEASURED.exists():
        return {name: {} for name in NAIVE}
    measured: Measured = json.loads(MEASURED.read_text())
    return measured


def merge(measured: Measured, new: Mapping[str, Mapping[str, str]]) -> None:
    """Add what one more run has measured."""
    for subject, letters in new.items():
        known = measured.setdefault(subject, {})
        for cell, letter in letters.items():
            before = known.setdefault(cell, letter)
            if VARIES in (before, letter) or degree(before) != degree(letter):
                known[cell] = VARIES


def write(measured: Measured) -> None:
    """Write the measurements and the page."""
    MEASURED.write_text(json.dumps(measured, indent=0, sort_keys=True) + "\n")
    PAGE.write_text(render(measured))


def render(measured: Measured) -> str:
    """Return the page."""
    return "\n".join(_page(measured)) + "\n"


def _page(measured: Measured) -> Iterator[str]:
    yield """# Fork safety, cell by cell

This page is written by `pytest tests/fork --write-matrix` from the table in
`matrix.py`, and a test compares the two.  A row is a way to fork, what the child does,
and what the parent was doing; a column is a database.  Every cell is a test, which
demands of it:

- The child comes to what the cell says: it **works**, it **leaves** as it means to, or
  it gets **ForkError**, at once.
- The parent goes on with its transaction and its connection.  Every row whose write
  returned is there, and no other.
- Nothing hangs: each child has a bound of its own.
- Nothing is left: no descriptor of the parent's connections in the child, none in the
  parent after it has closed, no transaction of a dead parent's at the server, and no
  process.

The ways to fork:
"""
    for way in Way:
        yield f"- **{way}**: {WAYS[way].__doc__}"
    yield ""
    subjects = list(PROTECTED)
    yield from _expected(subjects[:1], "`SqlStore`")
    yield from _expected(
        subjects[1:], "`protect(engine)`, used by Core and by an ORM `Session`"
    )
    yield from _without_protection(measured)


def _expected(subjects: list[str], title: str) -> Iterator[str]:
    notes: dict[str, int] = {}
    rows = []
    for row in _rows(subjects[0]):
        entries = []
        for cell in row:
            reason = cell.impossible or cell.because
            outcome = "–" if cell.impossible else cell.expected
            note = notes.setdefault(reason, len(notes) + 1)
            entries.append(f"{outcome} [{note}]")
        rows.append(_row(row[0], entries))
    yield f"## {title}\n"
    yield from _head()
    yield from rows
    yield ""
    for reason, note in notes.items():
        yield f"{note}. {reason}"
    yield ""


def _without_protection(measured: Measured) -> Iterator[str]:
    names = list(NAIVE)
    yield "## Without protection\n"
    yield "The same cells for a plain engine: what was measured for, in this order,"
    yield "; ".join(f"**{name}**" for name in names) + ".\n"
    for letter, meaning in VERDICTS.items():
        yield f"- {letter}: {meaning}"
    yield ""
    for name in names:
        letters = list(measured[name].values())
        passed, varied = letters.count(PASSES), letters.count(VARIES)
        yield (
            f"- {name}: of {len(letters)} cells {len(letters) - passed - varied} fail, "
            f"{varied} vary, {passed} pass"
        )
    yield ""
    yield from _head()
    for row in _rows(names[0]):
        if all(cell.impossible for cell in row):
            continue
        entries = [
            "–"
            if cell.impossible
            else " ".join(
                VARIES if cell.by_chance else measured[name].get(str(cell), "")
                for name in names
            )
            for cell in row
        ]
        yield _row(row[0], entries)


def _rows(subject: str) -> Iterator[list[Cell]]:
    row: list[Cell] = []
    for cell in cells([subject]):
        row.append(cell)
        if len(row) == len(Database):
            yield row
            row = []


def _head() -> Iterator[str]:
    columns = ["way", "child", "parent", *Database]
    yield f"| {' | '.join(columns)} |"
    yield "| --- " * len(columns) + "|"


def _row(cell: Cell, entries: list[str]) -> str:
    return f"| {' | '.join([cell.way, cell.child, cell.parent, *entries])} |"
