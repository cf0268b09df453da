"""The supervisor: claims tasks, forks workers for them, and sees to their end."""

from __future__ import annotations

import logging
import mmap
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import psutil

from daemon_example.notify import notify
from daemon_example.settings import Settings, UserError
from daemon_example.signals import Signals
from daemon_example.spool import Spool
from daemon_example.worker import end_commands, ending, has_ended, work
from sessionstore import (
    Claim,
    ConfigurationError,
    ConflictError,
    LeaseLostError,
    Persistable,
    SessionStore,
    State,
    StoreUnavailableError,
)

log = logging.getLogger(__name__)

#: What is waited for.  A database that was right at the start, and now refuses us, is
#: being repaired or moved.
AWAY = (StoreUnavailableError, ConfigurationError, ConflictError, OSError)
#: Seconds between two looks at what nobody tells of, such as the spool folder.
IDLE = 0.5
#: Seconds from one renewal to the next, at least, if it may bring a request.
SOON = 1.0


@dataclass(slots=True)
class Worker:
    """A forked worker, and the claim that it works by."""

    pid: int
    claim: Claim
    #: When its command has to be ended, by the monotonic clock; in memory that it has
    #: too, as it ends the command itself.
    deadline: memoryview[float]
    renewed_at: float
    renew_at: float = 0.0
    is_held: bool = False
    is_cancelled: bool = False
    #: What is to be recorded, as it could not do so itself.
    ending: str = ""

    def renewed(self, at: float) -> None:
        """Note that the lease was renewed at or after an instant."""
        self.renewed_at = at
        self.renew_at = at + self.claim.lease / 3
        self.deadline[0] = at + self.claim.lease * 0.9

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its command."""
        # None is left, or they became another user's, as sudo's do.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """End it and its command."""
        self.signal(signal.SIGKILL)
        os.kill(self.pid, signal.SIGKILL)


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
        self._lock = lock
        self._signals = signals
        self._spool = Spool(settings.spool)
        self._workers: list[Worker] = []
        #: Those that ended, and left something to be recorded.
        self._ended: list[Worker] = []
        self._is_stopping = False
        #: When the workers get which signal.
        self._ends: list[tuple[float, signal.Signals]] = []
        self._look_at = 0.0
        self._status = ""

    def run(self, ready: Callable[[], None], reload: Callable[[], Settings]) -> None:
        """Work until a signal tells to stop."""
        self._recover()
        # A database that can only be read has to show before anybody relies on us.
        try_to_write(self._session)
        self._session.wait(0)  # from here on it misses nothing
        ready()
        notify(READY=1)
        pause = IDLE
        while self._workers or self._ended or not self._is_stopping:
            try:
                self._act_on_signals(reload)
                self._reap()
                self._work()
                if self._session.wait(IDLE):
                    self._renew_soon()
                pause = IDLE
            except AWAY as error:
                log.warning("waiting: %s", error)
                # Who waits for a database does not hang: a restart would not bring it
                # back, but end the workers, with the results that they keep for it.
                notify(WATCHDOG=1, STATUS=f"waiting: {error}")
                if self._is_stopping and not self._workers:
                    break  # what is left is for the next daemon to record
                self._signals.wait(pause)
                self._look_at, pause = 0.0, min(2 * pause, 5.0)

    def _recover(self) -> None:
        # What cannot be recovered now was logged, and is tried again.
        with suppress(PermissionError, TimeoutError, psutil.Error):
            self._session.recover(
                max_attempts=self._settings.attempts, reap=end_commands
            )

    def _act_on_signals(self, reload: Callable[[], Settings]) -> None:
        for number in self._signals.take():
            if number == signal.SIGHUP:
                notify(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)
                try:
                    # The spool and the session stay those that are open.
                    old = self._settings
                    self._settings = replace(
                        reload(), spool=old.spool, store=old.store, session=old.session
                    )
                    log.info("the settings are now %s", self._settings)
                except UserError as error:
                    log.error("the old settings stay: %s", error)
                notify(READY=1)
            elif number != signal.SIGCHLD and not self._is_stopping:
                grace = self._settings.grace
                notify(STOPPING=1, EXTEND_TIMEOUT_USEC=int((grace + 30) * 1e6))
                log.info("stopping; %d tasks run", len(self._workers))
                self._is_stopping = True
                end = time.monotonic() + grace
                self._ends = [(end, signal.SIGTERM), (end + 5, signal.SIGKILL)]
        while self._ends and self._ends[0][0] <= time.monotonic():
            _, number = self._ends.pop(0)
            for worker in self._workers:
                if number == signal.SIGKILL:
                    worker.kill()
                else:
                    worker.signal(number)
                    worker.signal(signal.SIGCONT)  # a stopped one would not hear it

    def _reap(self) -> None:
        for worker in list(self._workers):
            pid = worker.pid
            end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if end is None:
                continue
            # Until it is reaped, nobody else can have its number.
            worker.signal(signal.SIGKILL)
            is_over = end.si_status == 0 or has_ended(pid)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            self._workers.remove(worker)
            if code != 0:
                is_late = worker.deadline[0] <= time.monotonic()
                lost = "its lease could not be renewed; " if is_late else ""
                worker.ending = f"{lost}its worker {pid} {ending(code)}"
                if is_over:
                    self._ended.append(worker)
                else:  # for who recovers it, when it is over or the lease is
                    log.error("task %d: its command does not end", worker.claim.id)

    def _work(self) -> None:
        while self._ended:
            self._record(self._ended[0])
            del self._ended[0]
        for worker in self._workers:
            if worker.renew_at <= time.monotonic():
                self._renew(worker)
        if not self._is_stopping:
            self._spool.take(self._session)
            while len(self._workers) < self._settings.workers and self._start():
                pass
        if time.monotonic() >= self._look_at:
            self._look()
            self._look_at = time.monotonic() + 1

    def _look(self) -> None:
        self._recover()
        self._spool.finish(self._session)
        # The count is also the database round trip that the watchdog stands for.
        counts = sorted(self._session.counts().items())
        status = ", ".join(f"{n} {state}" for state, n in counts) or "no tasks"
        notify(WATCHDOG=1, STATUS=status)
        if status != self._status:
            log.info("tasks: %s", status)
            self._status = status

    def _record(self, worker: Worker) -> None:
        claim = worker.claim
        try:
            if worker.is_cancelled:
                with suppress(ConflictError):
                    claim.transition(State.UNKNOWN, expect=State.NEW, info="cancelled")
                claim.transition(
                    State.TERMINATED, info="cancelled", returncode=signal.SIGKILL
                )
            else:
                claim.release(worker.ending)
            log.warning("task %d: %s", claim.id, worker.ending)
        except LeaseLostError as error:
            log.info("%s; %s", worker.ending, error)

    def _renew_soon(self) -> None:
        # What has changed may be a request, which a renewal brings.
        for worker in self._workers:
            worker.renew_at = min(worker.renew_at, worker.renewed_at + SOON)

    def _renew(self, worker: Worker) -> None:
        now = time.monotonic()
        try:
            request = worker.claim.renew()
            worker.renewed(now)
            if request == "cancel":
                worker.is_cancelled = True
                worker.kill()
            elif request == "hold" and not worker.is_held:
                # The state first: once RUNNING is committed the worker writes nothing
                # until its command ends, and to stop it could hit no transaction.
                worker.claim.transition(
                    State.STOPPED, expect=State.RUNNING, info="held"
                )
                worker.signal(signal.SIGSTOP)
                worker.is_held = True
            elif request == "resume" and worker.is_held:
                worker.claim.transition(
                    State.RUNNING, expect=State.STOPPED, info="resumed"
                )
                worker.signal(signal.SIGCONT)
                worker.is_held = False
        except ConflictError as error:
            log.info("later: %s", error)  # its command is about to begin, or has ended
            worker.renew_at = now + SOON
        except LeaseLostError as error:
            log.info("%s", error)
            worker.kill()

    def _start(self) -> bool:
        now = time.monotonic()
        claims = self._session.claim(
            lease=self._settings.lease, max_attempts=self._settings.attempts
        )
        for claim in claims:
            worker = Worker(0, claim, memoryview(mmap.mmap(-1, 8)).cast("d"), now)
            worker.renewed(now)
            worker.pid = os.fork()
            if worker.pid == 0:
                self._be(worker)
            self._workers.append(worker)
        return bool(claims)

    def _be(self, worker: Worker) -> None:
        status = 1
        try:
            os.close(self._lock)
            signal.set_wakeup_fd(-1)
            output = self._spool.output(worker.claim.id)
            work(self._session, worker.claim, output, worker.deadline)
            status = 0
        except LeaseLostError as error:
            log.info("%s", error)
            status = 0  # what becomes of the task is for its new holder to record
        except BaseException:
            log.exception("the worker of task %d failed", worker.claim.id)
        finally:
            os._exit(status)
