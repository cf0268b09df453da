"""The daemon's loop: jobs come in, a pool of workers runs them, systemd is told."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace

from daemon_example.notify import notify
from daemon_example.settings import Settings, UserError
from daemon_example.signals import Signals
from daemon_example.spool import Spool
from sessionstore import (
    Claim,
    ConfigurationError,
    ConflictError,
    Persistable,
    SessionStore,
    StoreUnavailableError,
)
from sessionstore.workers import WorkerPool, run_command

log = logging.getLogger(__name__)

#: What is waited out.  A database that was right at the start, and now refuses us, is
#: being repaired or moved.
AWAY = (StoreUnavailableError, ConfigurationError, ConflictError, OSError)
#: Seconds between two looks at the spool folder, as nobody tells when it changes.
IDLE = 0.5
#: How the variables begin that no command may see: ours, with a password, and
#: systemd's.
SECRET = ("DAEMON_EXAMPLE_", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_")


def try_to_write(session: SessionStore) -> None:
    """Commit a write that leaves nothing behind, wherever we may be killed."""
    with session.transaction():
        session.store.remove(session.store.save(Persistable()))


class Supervisor:
    """One daemon's loop; any number of daemons, on any hosts, can share a session."""

    def __init__(
        self, session: SessionStore, settings: Settings, lock: int, signals: Signals
    ) -> None:
        self._session = session
        self._settings = settings
        self._signals = signals
        self._spool = Spool(settings.spool)
        # A worker that outlives us must not hold the lock.
        self._pool = WorkerPool(session, self._work, initializer=lambda: os.close(lock))
        self._set_up_pool()
        self._look_at = 0.0
        self._status = ""

    def _set_up_pool(self) -> None:
        self._pool.size = self._settings.workers
        self._pool.lease = self._settings.lease
        self._pool.max_attempts = self._settings.attempts

    def _work(self, claim: Claim) -> None:
        """Run a task's command, in a worker."""
        items = os.environ.items()
        run_command(
            claim,
            getattr(claim.task, "command", None),
            output=self._spool.output(claim.id),
            environment={k: v for k, v in items if not k.startswith(SECRET)},
        )

    def run(self, ready: Callable[[], None], reload: Callable[[], Settings]) -> None:
        """Work until a signal tells to stop."""
        # A database that can only be read must be noticed before anybody relies on us.
        try_to_write(self._session)
        self._pool.wait(0)  # from here on it misses nothing
        ready()
        notify(READY=1)
        pause = IDLE
        while not self._pool.is_done:
            try:
                self._act_on_signals(reload)
                self._pool.step()
                self._look()
                self._pool.wait(IDLE)
                pause = IDLE
            except AWAY as error:
                log.warning("waiting: %s", error)
                # Waiting for the database is no hang: a restart would not bring it
                # back, but would end the workers, with the results that they keep for
                # it.
                notify(WATCHDOG=1, STATUS=f"waiting: {error}")
                if self._pool.is_stopping and not self._pool.running:
                    break  # what is left is for the next daemon to record
                self._signals.wait(pause)
                self._look_at, pause = 0.0, min(2 * pause, 5.0)

    def _act_on_signals(self, reload: Callable[[], Settings]) -> None:
        for number in self._signals.take():
            if number == signal.SIGHUP:
                self._reload(reload)
            elif number != signal.SIGCHLD and not self._pool.is_stopping:
                grace = self._settings.grace
                notify(STOPPING=1, EXTEND_TIMEOUT_USEC=int((grace + 30) * 1e6))
                log.info("stopping; tasks that run: %d", self._pool.running)
                self._pool.stop(grace)

    def _reload(self, reload: Callable[[], Settings]) -> None:
        notify(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)
        try:
            # The spool and the session stay those that are open.
            old = self._settings
            self._settings = replace(
                reload(), spool=old.spool, store=old.store, session=old.session
            )
            self._set_up_pool()
            log.info("the settings are now %s", self._settings)
        except UserError as error:
            log.error("the old settings stay: %s", error)
        notify(READY=1)

    def _look(self) -> None:
        if not self._pool.is_stopping:
            self._spool.take(self._session)
        if time.monotonic() < self._look_at:
            return
        self._spool.finish(self._session)
        # The count is also the round trip to the database that feeds the watchdog.
        counts = sorted(self._session.counts().items())
        status = ", ".join(f"{n} {state}" for state, n in counts) or "no tasks"
        notify(WATCHDOG=1, STATUS=status)
        if status != self._status:
            log.info("tasks: %s", status)
            self._status = status
        self._look_at = time.monotonic() + 1
