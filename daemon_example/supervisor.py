"""The supervisor: takes tasks, forks workers for them, and sees to their end."""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any

from daemon_example.instance import Instance
from daemon_example.notify import monotonic_usec, notify
from daemon_example.settings import Settings
from daemon_example.spool import Spool
from daemon_example.worker import end_group, work
from sessionstore import ConflictError, SessionStore, State, StoreUnavailableError

log = logging.getLogger(__name__)

UNDER_WAY = (State.SUBMITTED, State.RUNNING, State.TERMINATING)


class Supervisor:
    """One daemon's loop. Handlers only note a signal; ``step`` acts on it."""

    def __init__(
        self,
        session: SessionStore,
        settings: Settings,
        instance: Instance,
        reload: Callable[[], Settings],
    ) -> None:
        self._session = session
        self._settings = settings
        self._instance = instance
        self._reload = reload
        self._spool = Spool(settings.spool)
        #: Task ID by the PID of the worker that runs it.
        self.workers: dict[int, int] = {}
        #: Workers that ended and are not recorded yet: PID, task, wait status.
        self._ended: list[tuple[int, int, int]] = []
        self._noted: list[int] = []
        self._stop_at: float | None = None
        self._stopping = 0
        self._status = ""

    def run(self, ready: Callable[[], None]) -> None:
        """Work until a signal tells to stop."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda n, _: self._noted.append(n))
        self.recover()
        ready()
        notify(READY=1)
        pause = 0.2
        while not (self._stopping and not self.workers and not self._ended):
            try:
                self.step()
                pause = 0.2
            except StoreUnavailableError as error:
                log.warning("waiting for the database: %s", error)
                notify(STATUS=f"waiting for the database: {error}")
                if self._stopping > 1:
                    break
                pause = min(2 * pause, 10.0)
            select.select([reader], [], [], pause)
            while select.select([reader], [], [], 0)[0]:
                os.read(reader, 4096)
        notify(STATUS="stopped")

    def recover(self) -> None:
        """Pick up what a daemon that was killed has left."""
        self._spool.finish_interrupted(self._session)
        for state in UNDER_WAY:
            for id_ in list(self._session.ids(state=state)):
                task = self._session.load(id_)
                leader = getattr(task, "worker", None)
                if leader is not None:
                    end_group(*leader)
                self._set_unknown(id_, "its daemon died")

    def step(self) -> None:
        """Do what there is to do now, without waiting for anything."""
        self._act_on_signals()
        self._reap()
        self._record_ended()
        if not self._stopping:
            self._spool.take(self._session)
            self._start_workers()
        self._tell()

    def _act_on_signals(self) -> None:
        while self._noted:
            number = self._noted.pop(0)
            if number in (signal.SIGTERM, signal.SIGINT):
                self._stopping += 1
                self._stop_at = self._stop_at or (
                    time.monotonic() + self._settings.grace
                )
                notify(STOPPING=1)
                log.info("stopping; %d tasks run", len(self.workers))
            elif number == signal.SIGHUP:
                notify(RELOADING=1, MONOTONIC_USEC=monotonic_usec())
                try:
                    self._settings = self._reload()
                except Exception as error:
                    log.error("the old settings stay: %s", error)
                notify(READY=1)
        if self._stop_at is not None and self.workers:
            late = time.monotonic() - self._stop_at
            if late > 5 or self._stopping > 2:
                self._signal_groups(signal.SIGKILL)
            elif late > 0 or self._stopping > 1:
                self._signal_groups(signal.SIGTERM)

    def _signal_groups(self, number: signal.Signals) -> None:
        for pid in self.workers:
            try:
                os.killpg(pid, number)
            except ProcessLookupError:
                log.debug("worker %d leads no group yet, or none any more", pid)

    def _reap(self) -> None:
        for pid, id_ in list(self.workers.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self.workers[pid]
                self._ended.append((pid, id_, status))

    def _record_ended(self) -> None:
        while self._ended:
            pid, id_, status = self._ended[0]
            code = os.waitstatus_to_exitcode(status)
            if code != 0:
                try:
                    os.killpg(pid, signal.SIGKILL)
                except ProcessLookupError:
                    log.debug("worker %d left nothing behind", pid)
                how = (
                    f"was killed by {signal.Signals(-code).name}"
                    if code < 0
                    else f"failed with status {code}"
                )
                self._set_unknown(id_, f"worker {pid} {how}")
            del self._ended[0]

    def _set_unknown(self, id_: int, info: str) -> None:
        try:
            self._session.transition(id_, State.UNKNOWN, expect=UNDER_WAY, info=info)
        except ConflictError:
            log.info("task %d had ended when %s", id_, info)
            return
        log.warning("task %d is unknown: %s", id_, info)

    def _start_workers(self) -> None:
        for state in (State.UNKNOWN, State.NEW):
            for id_ in self._session.ids(state=state):
                if len(self.workers) >= self._settings.workers:
                    return
                self._start(id_, state)

    def _start(self, id_: int, state: State) -> None:
        if state is State.UNKNOWN and self._attempts(id_) >= self._settings.attempts:
            self._session.transition(
                id_, State.TERMINATED, expect=state, info="attempts exhausted"
            )
            return
        try:
            self._session.transition(id_, State.SUBMITTED, expect=state)
        except ConflictError:
            log.info("task %d was taken by somebody else", id_)
            return
        pid = os.fork()
        if pid:
            self.workers[pid] = id_
            return
        status = 1
        try:
            self._instance.leave_to_parent()
            signal.set_wakeup_fd(-1)
            work(self._session, id_, self._spool.output(id_))
            status = 0
        except BaseException:
            log.exception("the worker of task %d failed", id_)
        finally:
            os._exit(status)

    def _attempts(self, id_: int) -> int:
        attempts = 0
        for entry in self._session.history(id_):
            if entry.to_state is State.NEW:
                attempts = 0
            attempts += entry.to_state is State.SUBMITTED
        return attempts

    def _tell(self) -> None:
        # The count is also the database round trip that the watchdog stands for.
        counts: dict[Any, int] = self._session.counts()
        status = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
        notify(WATCHDOG=1, STATUS=status or "no tasks")
        if status != self._status:
            log.info("tasks: %s", status)
            self._status = status
