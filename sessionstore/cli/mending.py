"""Commands that say what is wrong with a store, and mend it.

What does the work is imported in the commands, or all other commands would have to wait
for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from sessionstore.cli.common import Common
from sessionstore.cli.output import Row, visible

if TYPE_CHECKING:
    from sessionstore.doctor import Finding

__all__ = ["doctor", "migrate", "repickle", "unreadable"]

_COLUMNS = ("level", "check", "what", "why", "remedy")
_STYLES = {"ok": "green", "note": "yellow", "wrong": "bold red"}


def doctor(
    common: Common,
    fix: Annotated[
        bool, typer.Option("--fix", help="Fix what can be fixed safely.")
    ] = False,
) -> int:
    """Examine a store: what is wrong, why it matters, how to fix it.

    Payloads are read, which runs what unpickling them runs. Status 1: something is
    wrong, and was not mended.
    """
    from sessionstore import doctor as doctors

    wrong = 0
    with common.store() as store:
        for finding in doctors.examine(store):
            _show(common, finding)
            if finding.level is not doctors.Level.WRONG:
                continue
            if fix and finding.mend is not None:
                finding.mend()
                common.output.say(f"fixed: {finding.check}")
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


def unreadable(common: Common) -> int:
    """List the objects that cannot be read, and why. Exit status 1 if there are any.

    With --rename, those that cannot be read even then.
    """
    from sessionstore import doctor as doctors

    found = 0

    def rows() -> Iterator[Row]:
        nonlocal found
        for error in doctors.unreadable(store):
            found += 1
            yield {"id": error.id, "reason": str(error)}

    with common.store() as store:
        common.output.rows(("id", "reason"), rows())
    return 1 if found else 0


def repickle(
    common: Common,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only list the objects that would be rewritten."
        ),
    ] = False,
) -> int:
    """Rewrite objects as --rename and --serializer say, in batches.

    Claimed tasks are left for later. Exit status 1 if some could not be written.
    """
    from sessionstore import doctor as doctors

    problems = 0

    def rows() -> Iterator[Row]:
        nonlocal problems
        for one in doctors.repickle(store, dry_run=dry_run):
            problems += bool(one.problem)
            yield {
                "id": one.id,
                "bytes": one.new_size,
                "before": one.old_size,
                "reason": one.problem or None,
            }

    with common.store() as store:
        common.output.rows(("id", "bytes", "before", "reason"), rows())
    return 1 if problems else 0


def migrate(common: Common) -> None:
    """Bring a store's tables up to date, or create those that sessions need."""
    from sessionstore import doctor as doctors

    with common.store() as store:
        doctors.migrate(store)
