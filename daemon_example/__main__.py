"""A small spooler: runs command lines, and keeps what becomes of them in a database."""

from __future__ import annotations

import argparse
import io
import logging
import logging.handlers
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import daemon
import psutil

from daemon_example import demo, instance, settings
from daemon_example.settings import Settings
from daemon_example.signals import Signals
from daemon_example.spool import Spool, new_task
from daemon_example.supervisor import Supervisor
from sessionstore import SessionStore, SessionStoreError

log = logging.getLogger("daemon_example")

STOP = (signal.SIGTERM, signal.SIGINT)


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
    common.add_argument("--config", type=lambda path: Path(path).absolute())
    working = Parser(add_help=False)
    working.add_argument("--workers", type=int, help="tasks at once (default: 2)")
    working.add_argument("--attempts", type=int, help="starts of a task (default: 3)")
    working.add_argument("--grace", type=float, help="seconds to stop in (default: 10)")
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

    add(run, working)
    add(start, working)
    add(stop)
    add(status)
    command = add(submit)
    command.add_argument("--name", default="", help="the task's name")
    command.add_argument("words", nargs="+", metavar="COMMAND")
    add(list_, name="list")
    for function in (show, history):
        add(function).add_argument("id", type=int)
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
    except (
        SessionStoreError,
        settings.SettingsError,
        instance.AlreadyRunningError,
        OSError,
    ) as error:
        return fail(str(error))


def fail(message: str) -> int:
    """Complain in one line, and return the exit status that goes with it."""
    print(f"daemon-example: {one_line(message)}", file=sys.stderr)
    return 1


def one_line(text: str) -> str:
    """Return text without what could disturb a terminal or a list."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def run(options: argparse.Namespace) -> int:
    """Work in the foreground until a signal comes."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    found = settings.load(options)
    os.umask(0o077)
    Spool(found.spool)
    return work(options, found, instance.lock(found.spool), lambda: None)


def work(
    options: argparse.Namespace, found: Settings, lock: int, ready: Callable[[], None]
) -> int:
    """Be the daemon."""
    signals = Signals(*STOP, signal.SIGHUP, signal.SIGCHLD)
    instance.write_pid(lock)
    with SessionStore(found.url, found.session) as session:
        supervisor = Supervisor(session, found, lock, signals)
        supervisor.run(ready, lambda: settings.load(options))
    return 0


def start(options: argparse.Namespace) -> int:
    """Work detached; return when the daemon is ready, or say why it is not."""
    found = settings.load(options)
    Spool(found.spool)
    lock = instance.lock(found.spool)
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            detach(options, found, lock, writer)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    if said == "ready":
        print(f"the daemon works on {found.spool}")
        return 0
    return fail(f"the daemon did not start: {said or f'see {found.spool}/daemon.log'}")


def detach(
    options: argparse.Namespace, found: Settings, lock: int, writer: int
) -> NoReturn:
    """Become a daemon and work; tell ``writer`` when it is ready, or why not."""
    # The context closes every descriptor that it is not told of: the log and the
    # database are opened after it.
    context = daemon.DaemonContext(
        detach_process=True,
        umask=0o077,
        working_directory=os.getcwd(),  # paths mean the same as in the foreground
        files_preserve=[lock, writer],
        signal_map={},  # the loop's own handlers are still to come
    )
    code = 1
    pipe = os.fdopen(writer, "w")

    def tell(text: str) -> None:
        with suppress(ValueError):  # it is closed: nobody waits for the start any more
            pipe.write(text)
            pipe.close()

    try:
        with context:
            handler = logging.handlers.WatchedFileHandler(found.spool / "daemon.log")
            format_ = "%(asctime)s %(levelname)s %(message)s"
            logging.basicConfig(level=logging.INFO, format=format_, handlers=[handler])
            code = work(options, found, lock, ready=lambda: tell("ready"))
    except BaseException as error:
        log.exception("the daemon failed")
        tell(one_line(str(error)))
    finally:
        os._exit(code)


def stop(options: argparse.Namespace) -> int:
    """Stop the daemon gracefully, and wait for its end."""
    spool = settings.load(options).spool
    pid = instance.running(spool)
    if pid is None:
        print(f"no daemon works on {spool}")
        return 0
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        try:
            process.terminate()
        except psutil.AccessDenied:
            return fail(f"the daemon, PID {pid}, belongs to {process.username()}")
        process.wait()
    return 0


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
    with SessionStore(found.url, found.session) as session:
        print(session.add(new_task(options.words, options.name)))
    return 0


def open_session(options: argparse.Namespace) -> SessionStore:
    """Return the session, which must be there."""
    found = settings.load(options)
    return SessionStore(found.url, found.session, create=False)


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


if __name__ == "__main__":
    sys.exit(main())
