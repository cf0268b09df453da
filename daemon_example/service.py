"""The daemon's own life: in the foreground, detached, and its end."""

from __future__ import annotations

import logging
import logging.handlers
import os
import signal
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from typing import IO, NoReturn

import daemon
import psutil

from daemon_example import instance
from daemon_example.notify import notify, priority
from daemon_example.settings import Settings, SettingsError, UserError, load
from daemon_example.signals import Signals
from daemon_example.spool import Spool
from daemon_example.supervisor import Supervisor
from sessionstore import (
    ConfigurationError,
    SchemaError,
    SessionStoreError,
    StoreUnavailableError,
)

log = logging.getLogger(__name__)


def run(options: Namespace) -> int:
    """Work in the foreground until a signal comes."""
    handler = logging.StreamHandler()
    handler.setFormatter(Lines("%(levelname)s %(message)s"))
    log_to(handler)
    found = load(options)
    os.umask(0o077)
    Spool(found.spool)
    work(options, found, instance.lock(found.spool), lambda: None, waits=True)
    return 0


def start(options: Namespace) -> int:
    """Work detached; return when the daemon is ready, or say why it is not."""
    found = load(options)
    Spool(found.spool)
    lock = instance.lock(found.spool)
    reader, writer = os.pipe()
    if os.fork() == 0:
        detach(options, found, lock, os.fdopen(writer, "w"))
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read() or f"see {found.spool}/daemon.log"
    if said != "ready":
        raise UserError(f"the daemon did not start: {said}")
    print(f"the daemon works on {found.spool}")
    return 0


def detach(options: Namespace, found: Settings, lock: int, pipe: IO[str]) -> NoReturn:
    """Become a daemon and work; say into the pipe "ready", or why it is not."""

    def say(text: str) -> None:
        # Closed, or without a reader: nobody waits for the start any more.
        with suppress(ValueError, OSError), pipe:
            pipe.write(text)

    code = 1
    try:
        # It closes all other descriptors, so the log and the database are opened later.
        with daemon.DaemonContext(
            detach_process=True,
            umask=0o077,
            working_directory=os.getcwd(),  # paths mean the same as in the foreground
            files_preserve=[lock, pipe],
            signal_map={},  # the loop's own handlers are still to come
        ):
            log_to(LogFile(found.spool / "daemon.log"))
            work(options, found, lock, lambda: say("ready"))
            code = 0
    except (SessionStoreError, UserError, OSError) as error:
        log.error("%s", error)
        say(str(error))
    except BaseException as error:
        log.exception("the daemon failed")
        say(str(error))
    finally:
        os._exit(code)


class LogFile(logging.handlers.WatchedFileHandler):
    """A file that is made anew when it was moved away; if that fails, work goes on."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        with suppress(OSError):
            super().emit(record)


class Lines(logging.Formatter):
    """Lines with their priorities for the journal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as text."""
        levels = {logging.ERROR: 3, logging.WARNING: 4}
        prefix = priority(levels.get(record.levelno, 6))
        return prefix + super().format(record).replace("\n", f"\n{prefix}")


def log_to(handler: logging.Handler) -> None:
    """Log what the daemon does, and not how Alembic makes the tables."""
    form = "%(asctime)s %(levelname)s %(message)s"  # if the handler has none
    logging.basicConfig(level=logging.INFO, format=form, handlers=[handler])
    logging.getLogger("alembic").setLevel(logging.WARNING)


def work(
    options: Namespace,
    found: Settings,
    lock: int,
    ready: Callable[[], None],
    waits: bool = False,
) -> None:
    """Be the daemon; ``waits`` says whether to wait for the database at the start."""
    signals = Signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
    instance.write_pid(lock)
    pause = 0.5
    while not {signal.SIGTERM, signal.SIGINT} & set(signals.take()):
        try:
            with found.open_session(create=True) as session:
                supervisor = Supervisor(session, found, lock, signals)
                supervisor.run(ready, lambda: load(options))
            return
        except StoreUnavailableError as error:
            if not waits:
                raise
            log.warning("waiting: %s", error)
            notify(STATUS=f"waiting: {error}")
            signals.wait(pause)
            pause = min(2 * pause, 5.0)
        except (ConfigurationError, SchemaError) as error:
            raise SettingsError(str(error)) from error


def stop(options: Namespace) -> int:
    """Stop the daemon gracefully, and wait for its end."""
    spool = load(options).spool
    pid = instance.running(spool)
    if pid is None:
        print(f"no daemon works on {spool}")
        return 0
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        try:
            process.terminate()
        except psutil.AccessDenied:
            owner = process.username()
            raise UserError(f"the daemon, PID {pid}, belongs to {owner}") from None
    while instance.running(spool) == pid:
        time.sleep(0.05)
    return 0
