"""The application, and how a function becomes one of its commands."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

import typer

from sessionstore.cli.common import Common
from sessionstore.cli.output import Output, end_quietly
from sessionstore.jobs.listing import Listing
from sessionstore.jobs.opening import sql_store

__all__ = ["READS", "READS_STORE", "SHARED", "add", "app"]

#: The options of most commands.
SHARED = ("url", "session", "json")
#: The shared options of commands that unpickle, of one session and of a whole store.
READS = ("url", "session", "json", "keys", "serializer", "rename")
READS_STORE = ("url", "json", "keys", "serializer", "rename")

app = typer.Typer(
    help="Inspect session stores, and change what is in them.",
    epilog="Exit status: 0 success; 1 something went wrong, or a question was answered "
    "with no; 2 the command line is wrong; 130 interrupted by Ctrl-C (0 for watch "
    "and tail, which normally end that way). Times are UTC. In a pipe, columns "
    "are separated by tabs.",
    pretty_exceptions_enable=False,  # they would show the URL's password
)

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="SESSIONSTORE_URL",
        metavar="URL",
        help="The store's URL, like sqlite:////var/lib/app/tasks.db. Put one with a "
        "password into the environment: other users can see command lines.",
    ),
]


def _session_names(context: typer.Context, incomplete: str) -> list[str]:
    url = context.params.get("url") or os.environ.get("SESSIONSTORE_URL")
    # Whoever presses the tab key does not want to see an error, or to wait.
    with suppress(Exception), sql_store(url, False, {"busy_timeout": 1}) as store:
        return [
            name
            for name in Listing(store).session_names()
            if name.startswith(incomplete) and name.isprintable()
        ]
    return []


SessionName = Annotated[
    str,
    typer.Option(
        "--session",
        metavar="NAME",
        help="The session's name.",
        autocompletion=_session_names,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]

Keys = Annotated[
    str | None,
    typer.Option(
        "--keys",
        envvar="SESSIONSTORE_KEYS",
        metavar="FILE",
        help="A file with the keys that payloads are signed with; unsigned payloads "
        "are not unpickled.",
    ),
]
SerializerName = Annotated[
    str | None,
    typer.Option(
        "--serializer",
        envvar="SESSIONSTORE_SERIALIZER",
        metavar="MODULE:NAME",
        help="The serializer that your program passes to its store, if any.",
    ),
]
Rename = Annotated[
    list[str] | None,
    typer.Option(
        "--rename",
        metavar="OLD=NEW",
        help="A class that has moved, as old.module:Old=new.module:New, or a module. "
        "Can be repeated.",
    ),
]

_SHARED: dict[str, tuple[Any, object]] = {
    "url": (Url, None),
    "session": (SessionName, "default"),
    "json": (Json, False),
    "keys": (Keys, None),
    "serializer": (SerializerName, None),
    "rename": (Rename, None),
}


def _show_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version  # which no command needs

        typer.echo(f"sessionstore {version('sessionstore')}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Show the version and exit.",
        ),
    ] = False,
) -> None:
    # Its presence makes typer take the first word for a command's name.
    return


def add(
    function: Callable[..., int | None],
    *,
    name: str | None = None,
    panel: str | None = None,
    shared: tuple[str, ...] = SHARED,
) -> None:
    """Make a function a command, with those of the shared options that it uses.

    Its first parameter is given a ``Common``; what it returns is the exit status.
    """
    signature = inspect.signature(function, eval_str=True)
    _, *own = signature.parameters.values()
    options = [
        inspect.Parameter(
            option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
        )
        for option, (kind, default) in _SHARED.items()
        if option in shared
    ]

    @functools.wraps(function)
    def command(**given: Any) -> int | None:
        common = Common(
            Output(as_json=given.pop("json", False)),
            given.pop("url", None),
            given.pop("session", "default"),
            given.pop("keys", None),
            given.pop("serializer", None),
            given.pop("rename", None) or (),
        )
        try:
            return function(common, **given)
        except BrokenPipeError:
            return end_quietly()

    # Typer would keep the line breaks, which are for the width of the source.
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    command.__doc__ = "\n\n".join(" ".join(part.split()) for part in paragraphs)
    parameters = [*own, *options]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    del command.__wrapped__  # it has another signature
    app.command(name, rich_help_panel=panel)(command)
