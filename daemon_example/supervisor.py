"""The supervisor: takes tasks, forks workers for them, and sees to their end."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import chain

from daemon_example.notify import notify
from daemon_example.settings import Settings, UserError
from daemon_example.signals import Signals
from daemon_example.spool import Spool
from daemon_example.worker import end_group, ending, work
from sessionstore import (
    ConflictError,
    DecodeError,
    NotFoundError,
    Persistable,
    SessionStore,
    State,
    StoreUnavailableError,
    Transition,
)

log = logging.getLogger(__name__)

#: Seconds between two looks at the database.
IDLE = 0.2
UNDER_WAY = (State.SUBMITTED, State.RUNNING, State.TERMINATING)


class Supervisor:
    """One daemon's loop.

    Daemons with spool folders of their own can share a session: each takes tasks by
    compare-and-set, and its mark in their history tells what is for it to pick up.
    """

    def __init__(
        self, session: SessionStore, settings: Settings, lock: int, signals: Signals
    ) -> None:
        self._session = session
        self._settings = settings
        self._lock = lock
        self._signals = signals
        self._spool = Spool(settings.spool)
        self._mark = f"for {socket.gethostname()}:{settings.spool}"
        #: Task ID by the PID of the worker that runs it.
        self.workers: dict[int, int] = {}
        #: What is yet to be recorded: why tasks have no worker any more.
        self._lost: dict[int, str] = {}
        self._is_stopping = False
        #: When the running commands get which signal.
        self._ends: list[tuple[float, signal.Signals]] = []
        self._status = ""

    def run(self, ready: Callable[[], None], reload: Callable[[], Settings]) -> None:
        """Work until a signal tells to stop."""
        self._recover("its daemon died")
        # A database that can only be read has to show before anybody relies on us.
        store = self._session.store
        store.remove(store.save(Persistable()))
        ready()
        notify(READY=1)
        was_away, pause = False, IDLE
        while self.workers or self._lost or not self._is_stopping:
            try:
                self._act_on_signals(reload)
                self._reap()
                if was_away:
                    self._recover("the database was away")
                self._work()
                was_away, pause = False, IDLE
            except (StoreUnavailableError, OSError) as error:
                log.warning("waiting: %s", error)
                notify(STATUS=f"waiting: {error}")
                if self._is_stopping and not self.workers:
                    break  # what is left is for the next daemon to record
                was_away, pause = True, min(2 * pause, 5.0)
            self._signals.wait(pause)

    def _recover(self, why: str) -> None:
        """Find the tasks that are under way for us and have no worker."""
        self._spool.finish(self._session)
        for state in UNDER_WAY:
            for id_ in self._session.ids(state=state):
                # The lock on the spool folder tells that no other daemon has our mark.
                if id_ not in self.workers.values() and self._is_ours(id_):
                    self._end_command(id_)
                    self._lost.setdefault(id_, why)

    def _is_ours(self, id_: int) -> bool:
        taken = [e for e in self._history(id_) if e.to_state == State.SUBMITTED]
        return bool(taken) and taken[-1].info == self._mark

    def _end_command(self, id_: int) -> None:
        try:
            worker = getattr(self._session.load(id_), "worker", None)
        except (DecodeError, NotFoundError) as error:
            log.warning("a command may still run: %s", error)
            return
        if worker is not None:
            end_group(*worker)

    def _history(self, id_: int) -> list[Transition]:
        try:
            return self._session.history(id_)
        except NotFoundError:
            return []  # somebody removed it meanwhile

    def _act_on_signals(self, reload: Callable[[], Settings]) -> None:
        for number in self._signals.take():
            if number == signal.SIGHUP:
                notify(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)
                try:
                    new = reload()
                    # The spool and the session stay those that are open.
                    self._settings = replace(
                        self._settings,
                        workers=new.workers,
                        attempts=new.attempts,
                        grace=new.grace,
                    )
                    log.info("the settings are now %s", self._settings)
                except UserError as error:
                    log.error("the old settings stay: %s", error)
                notify(READY=1)
            elif number != signal.SIGCHLD and not self._is_stopping:
                notify(STOPPING=1)
                log.info("stopping; %d tasks run", len(self.workers))
                self._is_stopping = True
                end = time.monotonic() + self._settings.grace
                self._ends = [(end, signal.SIGTERM), (end + 5, signal.SIGKILL)]
        while self._ends and self._ends[0][0] <= time.monotonic():
            _, number = self._ends.pop(0)
            for pid in self.workers:
                try:
                    os.killpg(pid, number)
                except ProcessLookupError:  # it leads no group yet
                    os.kill(pid, number)

    def _reap(self) -> None:
        for pid, id_ in list(self.workers.items()):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            # Until it is reaped, nobody else can have its number.
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            del self.workers[pid]
            if code != 0:
                self._lost[id_] = f"its worker {pid} {ending(code)}"

    def _work(self) -> None:
        while self._lost:
            id_, why = next(iter(self._lost.items()))
            self._record_lost(id_, why)
            del self._lost[id_]
        if not self._is_stopping:
            self._spool.take(self._session)
            waiting = (self._session.ids(state=s) for s in (State.UNKNOWN, State.NEW))
            for id_ in chain.from_iterable(waiting):
                if len(self.workers) >= self._settings.workers:
                    break
                self._start(id_)
        # The count is also the database round trip that the watchdog stands for.
        counts = sorted(self._session.counts().items())
        status = ", ".join(f"{n} {state}" for state, n in counts) or "no tasks"
        notify(WATCHDOG=1, STATUS=status)
        if status != self._status:
            log.info("tasks: %s", status)
            self._status = status

    def _record_lost(self, id_: int, why: str) -> None:
        try:
            last = self._session.history(id_)[-1]
            if last.to_state == State.TERMINATING:
                # The command ended, and how is known: it must not run again.
                to, info, returncode = State.TERMINATED, last.info, last.returncode
            else:
                to, info, returncode = State.UNKNOWN, why, None
            self._session.transition(
                id_, to, expect=UNDER_WAY, info=info, returncode=returncode
            )
            log.warning("task %d is %s: %s", id_, to, why)
        except (ConflictError, NotFoundError) as error:
            log.info("%s; %s", why, error)

    def _start(self, id_: int) -> None:
        try:
            if self._attempts(id_) >= self._settings.attempts:
                info = "attempts exhausted"
                self._session.transition(
                    id_, State.TERMINATED, expect=State.UNKNOWN, info=info
                )
                return
            self._session.transition(
                id_, State.SUBMITTED, expect=(State.NEW, State.UNKNOWN), info=self._mark
            )
        except (ConflictError, NotFoundError) as error:
            log.info("somebody else was first: %s", error)
            return
        pid = os.fork()
        if pid:
            self.workers[pid] = id_
            return
        status = 1
        try:
            os.close(self._lock)
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
            if entry.to_state == State.NEW:
                attempts = 0
            attempts += entry.to_state == State.SUBMITTED
        return attempts
