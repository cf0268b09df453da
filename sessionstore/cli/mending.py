"""Commands that say what is wrong with a store, and mend it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from sessionstore.cli.common import Common
from sessionstore.cli.output import visible
from sessionstore.doctor import Finding, Level, examine
from sessionstore.doctor.tables import migrate as migrate_tables

__all__ = ["doctor", "migrate"]

_COLUMNS = ("level", "check", "what", "why", "remedy")
_STYLES = {Level.OK: "green", Level.NOTE: "yellow", Level.WRONG: "bold red"}


def doctor(
    common: Common,
    fix: Annotated[
        bool, typer.Option("--fix", help="Mend what can be mended safely.")
    ] = False,
) -> int:
    """Examine a store: what is wrong, why it matters, what mends it.

    Payloads are read, which runs what unpickling them runs. Status 1: something is
    wrong, and was not mended.
    """
    wrong = 0
    with common.store() as store:
        for finding in examine(store):
            _show(common, finding)
            if finding.level is not Level.WRONG:
                continue
            if fix and finding.mend is not None:
                finding.mend()
                common.output.say(f"mended: {finding.check}")
            else:
                wrong += 1
    return 1 if wrong else 0


def _show(common: Common, finding: Finding) -> None:
    output = common.output
    if not output.is_terminal:
        row = {name: getattr(finding, name) or None for name in _COLUMNS}
        output.rows(_COLUMNS, [row])
        return
    reason = f": {finding.why}" if finding.why else ""
    line = Text()
    line.append(f"{finding.level:5} ", _STYLES[finding.level])
    line.append(f"{finding.check}: ", "bold")
    line.append(visible(f"{finding.what}{reason}"))
    if finding.remedy:
        line.append(visible(f"; {finding.remedy}"), "cyan")
    output.console.print(line, soft_wrap=True)


def migrate(common: Common) -> None:
    """Bring a store's tables up to date, or make those that sessions need."""
    with common.store() as store:
        migrate_tables(store)
