"""The command line."""

from __future__ import annotations

import argparse
import logging
import logging.handlers
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import daemon
import psutil

from daemon_example import demo, settings
from daemon_example.instance import AlreadyRunningError, Instance
from daemon_example.settings import Settings, SettingsError
from daemon_example.spool import Spool, new_task
from daemon_example.supervisor import Supervisor
from sessionstore import SessionStore, SessionStoreError

log = logging.getLogger("daemon_example")


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.command(options)
        return status
    except (
        SessionStoreError,
        SettingsError,
        AlreadyRunningError,
        OSError,
        psutil.Error,
    ) as error:
        print(f"daemon-example: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="daemon-example", description=__doc__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--spool", help="the daemon's folder (default: ./spool)")
    common.add_argument("--store", help="database URL (default: a file in the spool)")
    common.add_argument("--session", help="the session's name (default: default)")
    common.add_argument("--config", type=Path, help="a TOML file with these settings")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, function: Callable[[Any], int], help_: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help_, parents=[common])
        command.set_defaults(command=function)
        return command

    for name, function, help_ in (
        ("run", run, "work in the foreground"),
        ("start", start, "work detached from the terminal"),
    ):
        command = add(name, function, help_)
        command.add_argument("--workers", type=int, help="tasks at once (default: 2)")
        command.add_argument("--attempts", type=int, help="starts of a task (3)")
        command.add_argument("--grace", type=float, help="seconds to stop in (10)")
    add("stop", stop, "stop the daemon, and wait for its end")
    add("status", status, "tell whether it runs, and the tasks by state")
    command = add("submit", submit, "hand in a command line, and print its ID")
    command.add_argument("--name", default="", help="the task's name")
    command.add_argument("words", nargs="+", metavar="COMMAND")
    add("list", list_, "list the tasks")
    for name, function in (("show", show), ("history", history)):
        command = add(name, function, f"{name} of one task")
        command.add_argument("id", type=int)
    command = add("demo", demo.main, "a daemon's whole life, in half a minute")
    command.add_argument("--folder", type=Path, help="where (default: a new folder)")
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    return settings.load(vars(options), options.config)


def _session(options: argparse.Namespace, *, create: bool = False) -> SessionStore:
    found = _settings(options)
    if create and not found.store:
        found.spool.mkdir(mode=0o700, parents=True, exist_ok=True)
    return SessionStore(found.url, found.session, create=create)


def run(options: argparse.Namespace) -> int:
    """Work in the foreground until a signal comes."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    found = _settings(options)
    Spool(found.spool)
    instance = Instance(found.spool)
    instance.acquire()
    return _work(options, found, instance, lambda: None)


def _work(
    options: argparse.Namespace,
    found: Settings,
    instance: Instance,
    ready: Callable[[], None],
) -> int:
    instance.write_pid()
    with SessionStore(found.url, found.session) as session:
        reload = lambda: _settings(options)  # noqa: E731
        Supervisor(session, found, instance, reload).run(ready)
    return 0


def start(options: argparse.Namespace) -> int:
    """Work detached; return when the daemon is ready, or say why it is not."""
    found = _settings(options)
    Spool(found.spool)
    instance = Instance(found.spool)
    lock = instance.acquire()
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        os._exit(_detached(options, found, instance, lock, writer))
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    if said == "ready":
        print(f"the daemon works on {found.spool}")
        return 0
    reason = said or f"see {found.spool}/daemon.log"
    print(f"daemon-example: the daemon did not start: {reason}", file=sys.stderr)
    return 1


def _detached(
    options: argparse.Namespace,
    found: Settings,
    instance: Instance,
    lock: int,
    writer: int,
) -> int:
    # The context closes every descriptor it is not told of, so that the log and
    # the database are opened after it.
    context = daemon.DaemonContext(
        detach_process=True,
        umask=0o077,
        working_directory=str(found.spool),
        files_preserve=[lock, writer],
        signal_map={signal.SIGTERM: None, signal.SIGTTIN: None, signal.SIGTTOU: None},
    )
    with context:
        handler = logging.handlers.WatchedFileHandler(found.spool / "daemon.log")
        logging.basicConfig(
            level=logging.INFO,
            format="%(asctime)s %(levelname)s %(message)s",
            handlers=[handler],
        )

        def tell(text: str) -> None:
            os.write(writer, text.encode())
            os.close(writer)

        try:
            return _work(options, found, instance, lambda: tell("ready"))
        except BaseException as error:
            log.exception("the daemon failed")
            try:
                tell(" ".join(str(error).split()))
            except OSError:
                log.debug("nobody waits for the start any more")
            return 1


def stop(options: argparse.Namespace) -> int:
    """Stop the daemon gracefully, and wait for it."""
    found = _settings(options)
    pid = Instance(found.spool).pid()
    if pid is None:
        print(f"no daemon works on {found.spool}")
        return 0
    try:
        process = psutil.Process(pid)
        process.terminate()
        process.wait(found.grace + 30)
    except psutil.NoSuchProcess:
        log.debug("it ended by itself")
    except psutil.TimeoutExpired:
        print(f"daemon-example: PID {pid} does not stop", file=sys.stderr)
        return 1
    return 0


def status(options: argparse.Namespace) -> int:
    """Tell whether the daemon runs, and the tasks by state."""
    found = _settings(options)
    pid = Instance(found.spool).pid()
    print(f"running, PID {pid}" if pid else "not running")
    with _session(options) as session:
        for state, number in sorted(session.counts().items()):
            print(f"{number:6} {state}")
    return 0 if pid else 1


def submit(options: argparse.Namespace) -> int:
    """Hand in a command line."""
    with _session(options, create=True) as session:
        print(session.add(new_task(options.words, name=options.name)))
    return 0


def list_(options: argparse.Namespace) -> int:
    """List the tasks."""
    with _session(options) as session:
        for task in session:
            print(f"{task.persistent_id:6} {task.execution.state:12} {task.jobname}")
    return 0


def show(options: argparse.Namespace) -> int:
    """Show one task."""
    with _session(options) as session:
        task = session.load(options.id)
        run = task.execution
        print(f"id:       {task.persistent_id}")
        print(f"name:     {task.jobname}")
        print(f"state:    {run.state}")
        print(f"exitcode: {run.exitcode}")
        print(f"signal:   {run.signal}")
        print(f"command:  {task.command}")
        print(f"output:   {Spool(_settings(options).spool).output(options.id)}")
    return 0


def history(options: argparse.Namespace) -> int:
    """Show what one task went through."""
    with _session(options) as session:
        for entry in session.history(options.id):
            print(
                f"{entry.at:%Y-%m-%d %H:%M:%S.%f} {entry.from_state or '-':12} "
                f"{entry.to_state:12} {entry.host}/{entry.pid} {entry.info}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
