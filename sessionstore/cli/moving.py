"""Commands that move stores: to another database, to a file, and from either.

What does the work is imported in the commands, or all other commands would have to wait
for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sessionstore.cli.common import Common, UsageError
from sessionstore.cli.output import Output

if TYPE_CHECKING:
    from sessionstore.transfer import Progress, Transfer

__all__ = ["copy", "export", "import_"]

# Not named ``session`` and ``rename``, which are options that commands share.
Session = Annotated[
    str | None,
    typer.Option(
        "--session",
        metavar="NAME",
        help="Only this session; without it, the whole store.",
    ),
]
As = Annotated[
    str | None,
    typer.Option("--as", metavar="NAME", help="The session's name in the target."),
]
Verify = Annotated[
    bool, typer.Option("--verify", help="Read everything back and compare it.")
]


def copy(
    common: Common,
    source: Annotated[str, typer.Argument(metavar="SRC", show_default=False)],
    target: Annotated[str, typer.Argument(metavar="DST", show_default=False)],
    only: Session = None,
    called: As = None,
    verify: Verify = False,
) -> None:
    """Copy a store, or a session of it, to another database or table.

    If interrupted, run it again to continue. Other users can see command lines: keep
    passwords in the drivers' own files, or use export and import.
    """
    from sessionstore import transfer

    with bars(common.output) as progress:
        done = transfer.copy(
            source,
            target,
            session=only,
            rename=called,
            verify=verify,
            progress=progress,
        )
    _report(common.output, done)


def export(
    common: Common,
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False)],
    only: Session = None,
    verify: Verify = False,
) -> None:
    """Write a store, or a session of it, to a new archive file.

    Workers can keep running: the archive has the state of one moment.
    """
    from sessionstore import transfer

    with bars(common.output) as progress, common.store() as store:
        done = transfer.export(
            store, file, session=only, verify=verify, progress=progress
        )
    _report(common.output, done)


def import_(
    common: Common,
    file: Annotated[Path, typer.Argument(metavar="FILE|DIRECTORY", show_default=False)],
    called: As = None,
    verify: Verify = False,
    objects: Annotated[
        str | None,
        typer.Option(
            "--objects",
            metavar="URL",
            help="Where the directory's objects are now, if they have moved.",
        ),
    ] = None,
) -> int:
    """Read an archive, or a GC3Pie session directory, into a store.

    If interrupted, run it again: it continues, or starts over.
    """
    from sessionstore import transfer

    url = common.named_url()
    if file.is_dir():
        if verify:
            raise UsageError("--verify works with archives only")
        return _import_directory(common, url, file, called, objects)
    if objects is not None:
        raise UsageError("--objects works with GC3Pie session directories only")
    with bars(common.output) as progress:
        done = transfer.import_archive(
            file, url, rename=called, verify=verify, progress=progress
        )
    _report(common.output, done)
    return 0


def _import_directory(
    common: Common, url: str, path: Path, name: str | None, objects: str | None
) -> int:
    from sessionstore import transfer

    output = common.output
    with bars(output) as progress:
        done = transfer.import_gc3pie(
            path, url, name=name, store_url=objects, progress=progress
        )
    remarks = [
        *(
            {"object": was, "remark": f"is {now} here"}
            for was, now in done.mapped.items()
        ),
        *({"object": was, "remark": "is missing"} for was in done.missing),
        *({"object": was, "remark": "cannot be read"} for was in done.unreadable),
    ]
    summary = {"session": done.session, "objects": done.objects}
    if output.as_json:
        output.record({**summary, "remarks": remarks})
    else:
        output.record(summary)
        if remarks:
            output.rows(("object", "remark"), remarks)
    return 1 if done.missing else 0


def _report(output: Output, done: Transfer) -> None:
    row: dict[str, object] = {
        "objects": done.objects,
        "written": done.written,
        "sessions": done.sessions if output.as_json else ", ".join(done.sessions),
    }
    if done.digest is not None:
        row["sha256"] = done.digest
    output.record(row)


@contextmanager
def bars(output: Output) -> Iterator[Progress]:
    """Yield a function that shows a bar for each part of a transfer."""
    with ExitStack() as stack:
        yield _Bars(output, stack)


class _Bars:
    def __init__(self, output: Output, stack: ExitStack) -> None:
        self._output = output
        self._stack = stack
        self._what = ""
        self._done = 0

    def __call__(self, what: str, done: int, total: int | None) -> None:
        if what != self._what:
            self._stack.close()
            self._step = self._stack.enter_context(self._output.progress(what, total))
            self._what, self._done = what, 0
        self._step(done - self._done)
        self._done = done
