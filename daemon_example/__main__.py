"""A small spooler: runs command lines, and keeps what becomes of them in a database."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from daemon_example import instance, settings
from daemon_example.settings import SettingsError, UserError
from daemon_example.spool import new_task
from daemon_example.supervisor import try_to_write
from sessionstore import (
    ConflictError,
    SessionStore,
    SessionStoreError,
    State,
)

try:
    from daemon_example import demo, service
except ModuleNotFoundError as error:
    sys.exit(f"daemon-example: {error}; pip install 'sessionstore[daemon]'")

#: What becomes of a task that nobody holds, by what is asked for.
UNHELD = {
    "cancel": State.TERMINATED,
    "hold": State.STOPPED,
    "resume": State.UNKNOWN,
}


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: {one_line(message)}; see {self.prog} --help\n")


def parser() -> Parser:
    """Return the command line's parser; ``command`` is the function to call."""
    common = Parser(add_help=False)
    common.add_argument("--spool", help="the daemon's folder (default: ./spool)")
    common.add_argument(
        "--store",
        help="the database's URL (default: a file in the spool folder); one with a "
        "password is better in DAEMON_EXAMPLE_STORE, where nobody else can read it",
    )
    common.add_argument("--session", help="the session's name (default: default)")
    common.add_argument(
        "--keys", help="a file of keys to sign tasks with (default: none)"
    )
    common.add_argument("--config", type=lambda path: Path(path).absolute())
    working = Parser(add_help=False)
    working.add_argument("--workers", type=int, help="tasks at once (default: 2)")
    working.add_argument("--attempts", type=int, help="starts of a task (default: 3)")
    working.add_argument("--grace", type=float, help="seconds to stop in (default: 10)")
    working.add_argument(
        "--lease", type=float, help="seconds until others take our tasks (default: 60)"
    )
    top = Parser(prog="daemon-example", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(function: Callable[..., int], *parents: Parser, name: str = "") -> Parser:
        command = commands.add_parser(
            name or function.__name__,
            help=(function.__doc__ or "").partition(".")[0],
            parents=[common, *parents],
        )
        command.set_defaults(command=function)
        return command

    add(service.run, working)
    add(service.start, working)
    add(service.stop)
    add(status)
    command = add(submit)
    command.add_argument("--name", default="", help="the task's name")
    command.add_argument("words", nargs="+", metavar="COMMAND")
    add(list_, name="list")
    for function in (show, history, redo):
        add(function).add_argument("id", type=int)
    for what in UNHELD:
        command = add(ask, name=what)
        command.add_argument("id", type=int)
        command.set_defaults(what=what)
    add(check)
    add(demo.main, name="demo").add_argument("--folder", type=Path)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code: int = options.command(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Nobody reads any more; the interpreter would complain about it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except (SessionStoreError, UserError, OSError) as error:
        print(f"daemon-example: {one_line(str(error))}", file=sys.stderr)
        return os.EX_CONFIG if isinstance(error, SettingsError) else 1


def one_line(text: str) -> str:
    """Return text without what could disturb a terminal or a list."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def status(options: argparse.Namespace) -> int:
    """Tell whether the daemon runs, and the tasks by state."""
    pid = instance.running(settings.load(options).spool)
    print(f"running, PID {pid}" if pid else "not running")
    with open_session(options) as session:
        for state, number in sorted(session.counts().items()):
            print(f"{number:6} {state}")
    return 0 if pid else 1


def submit(options: argparse.Namespace) -> int:
    """Hand in a command line, and print its task's ID."""
    found = settings.load(options)
    if not found.store:
        found.spool.mkdir(mode=0o700, parents=True, exist_ok=True)
    with SessionStore(found.url, found.session, serializer=found.serializer) as session:
        print(session.add(new_task(options.words, options.name)))
    return 0


def open_session(options: argparse.Namespace) -> SessionStore:
    """Return the session, which must be there."""
    found = settings.load(options)
    return SessionStore(
        found.url, found.session, create=False, serializer=found.serializer
    )


def list_(options: argparse.Namespace) -> int:
    """List the tasks."""
    with open_session(options) as session:
        for task in session:
            state = getattr(getattr(task, "execution", None), "state", "-")
            name = one_line(str(getattr(task, "jobname", "")))
            print(f"{task.persistent_id:6} {state:12} {name}")
    return 0


def show(options: argparse.Namespace) -> int:
    """Show one task."""
    with open_session(options) as session:
        task = session.load(options.id)
        execution = getattr(task, "execution", None)
        for name, value in (
            ("id", options.id),
            ("name", getattr(task, "jobname", None)),
            ("state", getattr(execution, "state", None)),
            ("exitcode", getattr(execution, "exitcode", None)),
            ("signal", getattr(execution, "signal", None)),
            ("command", getattr(task, "command", None)),
            ("output", getattr(task, "output", None)),
        ):
            print(f"{name + ':':10}{'-' if value is None else one_line(str(value))}")
    return 0


def history(options: argparse.Namespace) -> int:
    """Show what one task went through."""
    with open_session(options) as session:
        for entry in session.history(options.id):
            print(
                f"{entry.at:%Y-%m-%d %H:%M:%S.%f} {entry.from_state or '-':12} "
                f"{entry.to_state:12} {entry.host}/{entry.pid} {one_line(entry.info)}"
            )
    return 0


def ask(options: argparse.Namespace) -> int:
    """Have a task cancelled, held, or resumed."""
    with open_session(options) as session:
        if session.request(options.id, options.what):
            return 0
        # Nobody is at work on it; who claims it just now hears of the request.
        with suppress(ConflictError), session.transaction():
            expect = State.STOPPED if options.what == "resume" else None
            # From UNKNOWN there is a way to all others.
            for state in dict.fromkeys((State.UNKNOWN, UNHELD[options.what])):
                session.transition(options.id, state, expect=expect, info=options.what)
    return 0


def redo(options: argparse.Namespace) -> int:
    """Run a task again that has ended."""
    with open_session(options) as session:
        session.redo(options.id)
    return 0


def check(options: argparse.Namespace) -> int:
    """Tell by the exit status whether the daemon runs and its database can be written.

    An object is saved, and removed again.
    """
    found = settings.load(options)
    with open_session(options) as session:
        try_to_write(session)
    if instance.running(found.spool) is None:
        raise UserError(f"no daemon works on {found.spool}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
