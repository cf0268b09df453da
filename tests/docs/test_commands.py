"""The page of the commands says what the programs take and print."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import typer.main

from daemon_example import settings
from daemon_example.__main__ import LIBRARYS, parser
from sessionstore import SessionStore, State, Task
from sessionstore.cli.cells import COLUMNS
from sessionstore.cli.commands import app
from tests.docs.test_pages import PAGES

LIBRARY, DAEMON = (
    (PAGES / "reference" / "commands.md")
    .read_text(encoding="utf-8")
    .split("\n## daemon-example\n")
)
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def table(text: str, head: str) -> Iterator[list[str]]:
    """Give the rows of the table whose head begins so."""
    found = re.search(rf"^\| {head} \|.*\n\| ---.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert found is not None
    for line in found[1].splitlines():
        yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


GROUPS = {name.strip("*"): text for name, text in table(LIBRARY, "group")}


def options(text: str) -> set[str]:
    """Return the options that a cell names, also by groups."""
    found = set(re.findall(r"`(-[^`]*)`", text))
    for group in re.findall(r"\*(\w+)\*", text):
        found |= options(GROUPS[group])
    return found


def taken(parameters: list[object]) -> set[str]:
    """Return the options among a command's parameters, as the page writes them."""
    return {
        " ".join(filter(None, (name, name[:2] == "--" and option.metavar)))
        for option in parameters
        if option.param_type_name == "option"  # type: ignore[attr-defined]
        for name in option.opts  # type: ignore[attr-defined]
    }


def test_page_has_the_librarys_commands_and_options() -> None:
    """All of them, with their arguments, and none that is not there."""
    page = {what: options(cell) for what, _, cell in table(LIBRARY, "command")}
    assert page == {
        "`{}`".format(
            " ".join(
                [name]
                + [
                    parameter.metavar.replace("|", r"\|")
                    for parameter in command.params
                    if parameter.param_type_name == "argument"
                ]
            )
        ): taken(command.params)
        for name, command in COMMANDS.items()
    }
    for name in taken(typer.main.get_command(app).params):
        assert f"`{name}`" in LIBRARY


def test_page_has_the_librarys_variables_and_columns() -> None:
    """Those that options are taken from, and those that ``ls`` can show."""
    page = dict(table(LIBRARY, "variable"))
    assert page == {
        f"`{parameter.envvar}`": f"`{parameter.opts[0]}`"
        for command in COMMANDS.values()
        for parameter in command.params
        if parameter.envvar
    }
    [listed] = re.findall(r"chooses among ([^.]*)\.", LIBRARY)
    assert tuple(re.split(r",? and |,\s+|\s+and\s+", listed)) == COLUMNS


def test_page_has_the_columns_that_are_printed(tmp_path: Path) -> None:
    """In their order: in a pipe they have no names."""
    url = f"sqlite:///{tmp_path}/tasks.db"
    with SessionStore(url) as session:
        id_ = session.add(Task("a"))
        for state in (State.SUBMITTED, State.RUNNING):
            session.transition(id_, state)
        session.transition(id_, State.TERMINATED, returncode=0)
        broken = session.store.save(Task("b"))
        table_ = session.store._tables
        with session.store.transaction() as connection:
            where = table_.c.id == broken
            connection.execute(table_.update().where(where).values(data=b"?"))
    more = {
        "history": [str(id_)],
        "tail": ["--since", "1h", "--until-ended"],
        "redo --dry-run": [str(id_)],
        "prune --dry-run": ["--older-than", "0s"],
        "repickle": ["--dry-run"],
    }
    for name, columns in _columns():
        words = [*name.split(), *more.get(name, [])]
        line = _first_line([*words, "--json"], url)
        assert list(json.loads(line)) == columns, name
        assert _first_line(words, url).count("\t") == len(columns) - 1, name


def _columns() -> Iterator[tuple[str, list[str]]]:
    # The table of options has the same head, and comes first.
    printed = LIBRARY.partition("\n### What is printed\n")[2]
    for name, columns in table(printed, "command"):
        yield name.strip("`"), columns.split(", ")


def _first_line(words: list[str], url: str) -> str:
    with subprocess.Popen(
        [sys.executable, "-m", "sessionstore", *words],
        env={**os.environ, "SESSIONSTORE_URL": url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)  # as watch does not end by itself
        process.stdout.read()
    return line


def test_page_has_the_daemons_commands_and_options() -> None:
    """All of them, and for those that are the library's what is asked of it."""
    rows = [*table(DAEMON, "command")]
    page = {what.strip("`").split()[0]: options(cell) for what, _, cell in rows}
    [choices] = (
        action.choices
        for action in parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    shared = {f"--{name}" for name in asdict(settings.Settings())}
    shared |= {"--config", "--help", "-h"}
    assert page == {
        name: {
            option for action in command._actions for option in action.option_strings
        }
        - shared
        for name, command in choices.items()
    }
    for what, about, _ in rows:
        name = what.strip("`").split()[0]
        if name in LIBRARYS:
            assert about == f"`sessionstore {LIBRARYS[name][0]}`"


def test_page_has_the_daemons_settings() -> None:
    """With their variables and defaults."""
    page = [row[:3] for row in table(DAEMON, "setting")]
    assert page == [
        [f"`--{name}`", f"`DAEMON_EXAMPLE_{name.upper()}`", str(default)]
        for name, default in asdict(settings.Settings()).items()
    ]
