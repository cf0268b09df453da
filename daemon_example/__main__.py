"""A small spooler: runs command lines, and keeps what becomes of them in a database."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from daemon_example import instance, settings
from daemon_example.notify import priority
from daemon_example.settings import SettingsError, UserError
from daemon_example.spool import new_task
from daemon_example.supervisor import try_to_write
from sessionstore import SessionStoreError
from sessionstore.cli import main as sessionstore

try:
    from daemon_example import demo, service
except ModuleNotFoundError as error:
    sys.exit(f"daemon-example: {error}; pip install 'sessionstore[daemon]'")

#: What the command sessionstore does for us: its name there, how many IDs it takes, and
#: its help.
LIBRARYS: dict[str, tuple[str, int | str, str]] = {
    "list": ("ls --all --columns id,state,name", 0, "List all tasks with their states"),
    "show": ("show", 1, "Show one task whole"),
    "history": ("history", 1, "Show what one task went through, and when"),
    "cancel": ("cancel --yes", "+", "Have tasks end, also while they run"),
    "hold": ("hold --yes", "+", "Have tasks stop until they are resumed"),
    "resume": ("resume --yes", "+", "Have tasks go on that were held"),
    "redo": ("redo --yes", "+", "Have tasks that have ended begin anew"),
}


class Parser(argparse.ArgumentParser):
    """A parser whose error messages are one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: {one_line(message)}; see {self.prog} --help\n")


def parser() -> Parser:
    """Return the command line's parser; ``command`` is the function to call."""
    common = Parser(add_help=False)
    for name, default in asdict(settings.Settings()).items():
        common.add_argument(f"--{name}", type=type(default), help=settings.HELP[name])
    common.add_argument("--config", type=Path, help="a TOML file of these settings")
    top = Parser(prog="daemon-example", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: Callable[..., int], about: str = "") -> Parser:
        about = about or (function.__doc__ or "").partition(".")[0]
        command = commands.add_parser(name, help=about, parents=[common])
        command.set_defaults(command=function, what=name)
        return command

    add("run", service.run)
    add("start", service.start)
    add("stop", service.stop)
    add("status", status)
    add("check", check)
    command = add("submit", submit)
    command.add_argument("--name", default="", help="the task's name")
    command.add_argument("words", nargs="+", metavar="COMMAND")
    for name, (_, number, about) in LIBRARYS.items():
        command = add(name, ask_library, about)
        if number:
            command.add_argument("ids", nargs=number, metavar="ID")
        if name == "show":
            command.add_argument("--raw", action="store_true", help="do not unpickle")
    add("demo", demo.main).add_argument("--folder", type=Path)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    open_what_is_closed()
    try:
        options = parser().parse_args(arguments)
        code: int = options.command(options)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1  # the reader has seen enough
    except (SessionStoreError, UserError, OSError) as error:
        said = f"{priority(3)}daemon-example: {one_line(str(error))}"
        print(said, file=sys.stderr)
        return os.EX_CONFIG if isinstance(error, SettingsError) else 1
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            # The interpreter would try it again, and complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def open_what_is_closed() -> None:
    """Open those of stdin, stdout and stderr that are closed, as by cron jobs."""
    # Otherwise the lock or the database would get their numbers, and Python has None.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def one_line(text: str) -> str:
    """Return text without what could disturb a terminal or a list."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def submit(options: argparse.Namespace) -> int:
    """Hand in a command line, and print its task's ID."""
    found = settings.load(options)
    if not found.store:
        found.spool.mkdir(mode=0o700, parents=True, exist_ok=True)
    with found.open_session(create=True) as session:
        print(session.add(new_task(options.words, options.name)))
    return 0


def ask_library(options: argparse.Namespace) -> int:
    """Have the command sessionstore do it."""
    found = settings.load(options)
    command, number, _ = LIBRARYS[options.what]
    words = [*command.split(), "--url", found.url, "--session", found.session]
    if options.what == "show" and options.raw:
        words.append("--raw")
    elif options.what == "show" and found.keys:
        words += ["--keys", found.keys]
    if number:
        words += ["--", *options.ids]
    # In this process, as others can see the arguments of a new one, with the password.
    return sessionstore(words)


def status(options: argparse.Namespace) -> int:
    """Tell whether the daemon runs, and the tasks by state."""
    found = settings.load(options)
    pid = instance.running(found.spool)
    print(f"running, PID {pid}" if pid else "not running")
    with found.open_session(create=False) as session:
        for state, number in sorted(session.counts().items()):
            print(f"{number:6} {state}")
    return 0 if pid else 1


def check(options: argparse.Namespace) -> int:
    """Tell by the exit status whether the daemon runs and its database can be written.

    An object is saved, and removed again.
    """
    found = settings.load(options)
    with found.open_session(create=False) as session:
        try_to_write(session)
    if instance.running(found.spool) is None:
        raise UserError(f"no daemon works on {found.spool}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
