"""The pool: it claims tasks, forks a worker for each, and sees to their end."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from sessionstore.checks import check_attempts, check_lease, check_whole
from sessionstore.errors import (
    ConfigurationError,
    ConflictError,
    ForkError,
    LeaseLostError,
    StoreError,
)
from sessionstore.jobs.claims import Claim
from sessionstore.session import SessionStore
from sessionstore.task import State
from sessionstore.workers import recording
from sessionstore.workers.command import how_it_ended
from sessionstore.workers.deadline import Deadline
from sessionstore.workers.groups import end_group, has_ended, signal_group
from sessionstore.workers.worker import flush, run_worker

__all__ = ["WorkerPool"]

log = logging.getLogger(__name__)

#: The least seconds between two renewals, if the next one may bring a request.
SOON = 1.0
#: Seconds between two looks for tasks whose holder is gone.
RECOVERY = 1.0
#: Seconds from SIGTERM to SIGKILL, when a pool is stopped.
FIRM = 5.0
#: The signals that must not interrupt a fork.
ALL = signal.valid_signals()
#: The part of a lease after which the work has to end if the lease is not renewed.
PART = 0.9


@dataclass(slots=True)
class Worker:
    """A forked worker, and the claim that it works by."""

    claim: Claim
    renewed_at: float
    renew_at: float = 0.0
    pid: int = 0
    deadline: Deadline = field(default_factory=Deadline)
    is_held: bool = False
    is_cancelled: bool = False

    def renewed(self, at: float) -> None:
        """Note that the lease was renewed at or after an instant."""
        self.renewed_at = at
        self.renew_at = at + self.claim.lease / 3
        self.deadline.at = at + self.claim.lease * PART

    def kill(self) -> None:
        """End it and its command."""
        # First the worker, or it might still record how its command ended.
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        signal_group(self.pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Ending:
    """What a worker could not record itself, and is still to be recorded."""

    claim: Claim
    why: str
    is_cancelled: bool = False
    #: Whether there was a worker; if not, it was no attempt.
    was_tried: bool = True


class WorkerPool:
    """Works on a session's tasks in forked workers, one for each task, up to ``size``.

    Call ``step`` again and again, and ``wait`` in between; any number of pools, on any
    hosts, can share a session.  ``work(claim)`` is called in the worker, which goes on
    with the same session as the pool, and has read ``claim.task``.  It may be
    ``run_command``, or any Python function:

    - When it returns, the task becomes TERMINATED, with the returncode 0 and what it
      changed in ``claim.task``, unless it has ended the task itself.  One that it made
      STOPPED, or gave back by ``claim.release()``, stays as it is.
    - When it raises, or its process dies, the task becomes UNKNOWN with the reason in
      its history, what it had not saved is dropped, and the task is tried again, up to
      ``max_attempts`` times in all.  First, all that it has started in its process
      group is ended.  Leaving a transaction open is a failure, too.
    - After LeaseLostError nothing is recorded: the task is another holder's.
    - A task that cannot be read (DecodeError) is not worked on.  It becomes TERMINATED
      with the reason; its object stays, and ``redo`` makes it NEW.
    - A process that it forks ends when it returns from the work, and records nothing.
    - When it has ended its task it has no lease any more, and what it still does is
      ended at the next renewal.

    The pool renews each lease, ``lease`` seconds long.  If a lease cannot be renewed,
    the work, with all that it has started in its process group, is ended before the
    lease ends (in the worker by SIGALRM, which the work must not use); and so it is
    when "cancel" is requested.  "hold" and "resume" are obeyed while a command runs; to
    stop other work would leave its transactions open.  What a killed pool has left
    running is ended before its task can be claimed again, if the task names the worker:
    the pool writes it into the attribute ``worker``, which is saved with the first
    transition.  So make that transition before the work begins.

    ``size`` is the number of workers; ``lease``, in seconds, and ``max_attempts`` are
    as for ``SessionStore.claim``.  All may be changed at any time, for the tasks to
    come.  ``initializer`` is called first in each worker, for instance to close a
    descriptor that only the parent should have.

    Raises ConfigurationError for any of the three that cannot be used, and for an
    in-memory database, as workers could not use it.

    >>> from sessionstore import SessionStore, Task
    >>> from sessionstore.workers import WorkerPool
    >>> session = SessionStore("sqlite:///tasks.db")
    >>> id_ = session.add(Task("square", n=7))
    >>> def square(claim):
    ...     claim.task.result = claim.task.n ** 2
    >>> pool = WorkerPool(session, square)
    >>> pool.step()
    >>> pool.stop()
    >>> while not pool.is_done:
    ...     changed = pool.wait(0.1)
    ...     pool.step()
    >>> session.load(id_).result
    49
    """

    def __init__(
        self,
        session: SessionStore,
        work: Callable[[Claim], object],
        *,
        size: int = 1,
        lease: float = 60.0,
        max_attempts: int | None = None,
        initializer: Callable[[], object] | None = None,
    ) -> None:
        check_whole("size", size, 0)
        check_lease(lease)
        check_attempts(max_attempts)
        if session._index.database.connections.is_in_memory:
            raise ConfigurationError(
                "the workers of a pool cannot use an in-memory database; use a file"
            )
        self.size = size
        self.lease = lease
        self.max_attempts = max_attempts
        #: Whether it takes no more tasks.
        self.is_stopping = False
        self._session = session
        self._work = work
        self._initializer = initializer
        self._pid = 0
        self._workers: list[Worker] = []
        self._endings: list[Ending] = []
        #: When to send which signal to the workers.
        self._ends: list[tuple[float, signal.Signals]] = []
        self._recover_at = 0.0

    @property
    def running(self) -> int:
        """The number of workers that have not ended."""
        return len(self._workers)

    @property
    def is_done(self) -> bool:
        """Whether it was stopped, has no worker left, and has recorded all."""
        return self.is_stopping and not self._workers and not self._endings

    def step(self) -> None:
        """Do what is due for workers, requests and lost tasks, and start new work.

        Workers that have ended are reaped, and the signals of a stop are sent, even if
        the database is away.  After an error the next call goes on where this one
        failed, and nothing is lost.  A signal handler must not call it, as it could
        interrupt a call.

        Raises StoreUnavailableError if the database is away, ConflictError if others
        were too quick for it, OSError if no worker can be forked: wait, and call it
        again.  Raises StoreError in a transaction, ForkError in another process than
        the workers' parent.
        """
        if (self._workers or self._endings) and self._pid != os.getpid():
            raise ForkError("the workers of this pool are another process's")
        if self._session._index.database.scope is not None:
            raise StoreError(
                "workers cannot be forked in a transaction; leave it first"
            )
        self._send_signals()
        self._reap()
        self._record_all()
        self._renew_all()
        if self._recover_at <= time.monotonic():
            self._recover()
            self._recover_at = time.monotonic() + RECOVERY
        while not self.is_stopping and len(self._workers) < self.size:
            if not self._start():
                break
            # With many to start, the first leases may be due before the last worker
            # runs.
            self._renew_all()

    def wait(self, timeout: float) -> bool:
        """Wait as ``SessionStore.wait`` does, ``timeout`` seconds at most.

        The next step then learns of new requests.  The wait ends at once when a worker
        ends, if the main thread calls it and the program has a handler for SIGCHLD.
        """
        has_changed = self._session.wait(timeout)
        if has_changed:
            # It may be a request, which a renewal brings.
            for worker in self._workers:
                worker.renew_at = min(worker.renew_at, worker.renewed_at + SOON)
        return has_changed

    def stop(self, grace: float = 10.0) -> None:
        """Take no more tasks, and end the running ones after ``grace`` seconds.

        Returns at once, and may be called in a signal's handler.  After that time
        ``step`` sends SIGTERM to the workers' process groups, and SIGKILL 5 seconds
        later.  Work that runs no command notices SIGTERM only if it has set a handler.
        """
        end = time.monotonic() + grace
        self._ends = [(end, signal.SIGTERM), (end + FIRM, signal.SIGKILL)]
        self.is_stopping = True

    def _send_signals(self) -> None:
        while self._ends and self._ends[0][0] <= time.monotonic():
            _, number = self._ends.pop(0)
            for worker in self._workers:
                if number == signal.SIGKILL:
                    worker.kill()
                else:
                    signal_group(worker.pid, number)
                    # A stopped process would not notice it.
                    signal_group(worker.pid, signal.SIGCONT)
        for worker in self._workers:
            # It ends itself, unless it is in a call that lets no signal handler run.
            if worker.deadline.has_passed:
                worker.kill()

    def _reap(self) -> None:
        for worker in list(self._workers):
            pid = worker.pid
            try:
                options = os.WEXITED | os.WNOHANG | os.WNOWAIT
                if os.waitid(os.P_PID, pid, options) is None:
                    continue
            except ChildProcessError:
                # The program waits for all its children, or ignores SIGCHLD.
                log.debug("somebody else has reaped worker %d", pid)
            is_late = worker.deadline.has_passed
            # Until it is reaped, nothing else can have its PID.
            signal_group(pid, signal.SIGKILL)
            is_over = worker.deadline.is_met or has_ended(pid)
            how = _waited_for(pid)
            self._workers.remove(worker)
            if worker.deadline.is_met:
                continue
            lost = "its lease could not be renewed; " if is_late else ""
            if is_over:
                why = f"{lost}its worker {pid} {how}"
                self._endings.append(Ending(worker.claim, why, worker.is_cancelled))
            else:  # left to whoever recovers it later
                log.error("task %d: its command does not end", worker.claim.id)

    def _record_all(self) -> None:
        while self._endings:
            self._record(self._endings[0])
            del self._endings[0]

    def _record(self, ending: Ending) -> None:
        claim = ending.claim
        try:
            if ending.is_cancelled:
                is_news = recording.cancel(self._session, claim)
            else:
                is_news = recording.give_back(
                    self._session, claim, ending.why, was_tried=ending.was_tried
                )
            if is_news:
                log.warning("task %d: %s", claim.id, ending.why)
        except LeaseLostError as error:
            log.info("%s; %s", ending.why, error)

    def _renew_all(self) -> None:
        for worker in self._workers:
            if worker.renew_at <= time.monotonic():
                self._renew(worker)

    def _renew(self, worker: Worker) -> None:
        now = time.monotonic()
        try:
            request = worker.claim.renew()
            worker.renewed(now)
            if request == "cancel":
                worker.is_cancelled = True
                worker.kill()
            elif request == "hold" and not worker.is_held:
                self._hold(worker)
            elif request == "resume" and worker.is_held:
                worker.claim.transition(
                    State.RUNNING, expect=State.STOPPED, info="resumed"
                )
                signal_group(worker.pid, signal.SIGCONT)
                worker.is_held = False
        except ConflictError as error:
            log.info("later: %s", error)  # its command is about to begin, or has ended
            worker.renew_at = now + SOON
        except LeaseLostError as error:
            log.info("%s", error)
            worker.kill()

    def _hold(self, worker: Worker) -> None:
        with suppress(ProcessLookupError):
            # While the worker is in the group too, stopping it could stop a
            # transaction, and all who wait for that.
            if os.getpgid(worker.pid) == worker.pid:
                worker.renew_at = worker.renewed_at + SOON
                return
        # The state first: in RUNNING, the worker writes nothing until its command ends.
        worker.claim.transition(State.STOPPED, expect=State.RUNNING, info="held")
        signal_group(worker.pid, signal.SIGSTOP)
        worker.is_held = True

    def _recover(self) -> None:
        # What could not be recovered was logged, and is tried again.
        with suppress(PermissionError, TimeoutError, psutil.Error):
            self._session.recover(max_attempts=self.max_attempts, reap=end_group)

    def _start(self) -> bool:
        now = time.monotonic()
        claims = self._session.claim(lease=self.lease, max_attempts=self.max_attempts)
        for claim in claims:
            self._pid = os.getpid()
            if claim._request == "cancel":
                self._endings.append(Ending(claim, "cancelled", is_cancelled=True))
                self._record_all()
                continue
            try:
                worker = Worker(claim, now)
                worker.renewed(now)
                flush()
                self._fork(worker)
            except OSError as error:
                why = f"no worker could be forked: {error}"
                self._endings.append(Ending(claim, why, was_tried=False))
                raise
        return bool(claims)

    def _fork(self, worker: Worker) -> None:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        try:
            # A signal's handler of the program's may raise: in the child before
            # ``run_worker`` is ready for it, here before the worker is noted.
            signal.pthread_sigmask(signal.SIG_BLOCK, ALL)
            worker.pid = os.fork()
            if worker.pid == 0:
                run_worker(
                    self._session,
                    worker.claim,
                    worker.deadline,
                    self._work,
                    self._initializer,
                )
            self._workers.append(worker)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _waited_for(pid: int) -> str:
    """Wait for a worker that has ended, and return in words how."""
    try:
        return how_it_ended(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    except ChildProcessError:
        return "ended, and somebody else was told how"
