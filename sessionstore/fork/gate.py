"""Where database calls pass, and wait while the process forks."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Gate"]


class Gate:
    """Lets database calls through, but none while the process forks.

    A thread that is inside already passes.  Otherwise a call inside a transaction, or
    two stores used together, would wait for the fork, and the fork for them.
    """

    def __init__(self, after_in_child: Callable[[], None]) -> None:
        self.pid = os.getpid()
        self._after_in_child = after_in_child
        #: Locks under which a child makes up for hooks that did not run, by its PID.
        self._late: dict[int, threading.RLock] = {}
        self.renew()

    def renew(self) -> None:
        """Make new locks: a thread that the child has not may hold an inherited one."""
        self._renewed_in = os.getpid()
        self._condition = threading.Condition()
        #: How deep each thread is inside.
        self._inside: dict[int, int] = {}
        #: What threads hold from call to call, such as a checked-out connection.
        self._held: dict[object, int] = {}
        self._forking: set[int] = set()
        #: The one among them that closes connections and forks.
        self._turn: int | None = None

    def enter(self) -> None:
        """Pass, or wait until the forks under way are done."""
        if os.getpid() != self.pid:
            self.notice_fork()
        thread = threading.get_ident()
        inside = self._inside
        depth = inside.get(thread, 0)
        # Whoever passes first says so, then looks for forks; whoever forks first says
        # so, then looks who is inside.  So one of them sees the other, without a lock.
        inside[thread] = depth + 1
        if self._forking and not depth:
            self._wait(thread)

    def _wait(self, thread: int) -> None:
        with self._condition:
            del self._inside[thread]
            self._condition.notify_all()
            if thread not in {*self._forking, *self._held.values()}:
                self._condition.wait_for(lambda: not self._forking)
            self._inside[thread] = 1

    def notice_fork(self) -> None:
        """Do the child's part now if no hook did it at the fork."""
        pid = os.getpid()
        if pid == self.pid:
            return
        # One thread does it, and the others wait for a lock that was not there at the
        # fork (setdefault is atomic).
        with self._late.setdefault(pid, threading.RLock()):
            # What is freed on the way may call this again, in the same thread.
            if pid != self._renewed_in:
                self._after_in_child()

    def leave(self) -> None:
        """Undo one ``enter``."""
        thread = threading.get_ident()
        depth = self._inside.get(thread, 0)
        if depth > 1:
            self._inside[thread] = depth - 1
        elif depth:
            del self._inside[thread]
            if self._forking:
                self._tell_forks()

    def hold(self, key: object) -> None:
        """Be inside until ``release``, which another thread may call."""
        self._held[key] = threading.get_ident()

    def release(self, key: object) -> None:
        """Undo ``hold``."""
        if self._held.pop(key, None) is not None and self._forking:
            self._tell_forks()

    def is_held(self, key: object) -> bool:
        """Say whether some thread holds this."""
        return key in self._held

    def _tell_forks(self) -> None:
        with self._condition:
            self._condition.notify_all()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Be inside for the block; a child that is forked in the block is not."""
        self.enter()
        pid = self.pid
        try:
            yield
        finally:
            if pid == os.getpid():
                self.leave()

    def close(self, timeout: float) -> bool:
        """Keep other threads out; say whether all had left before the timeout."""
        thread = threading.get_ident()
        with self._condition:
            self._forking.add(thread)
            have_left = self._condition.wait_for(
                lambda: {*self._inside, *self._held.values()} <= {thread}, timeout
            )
            # Those that fork at once take turns: SQLite's own locks, which one holds
            # while it closes connections, would be held for ever in another's child.
            is_free = self._condition.wait_for(
                lambda: self._turn in (None, thread), timeout
            )
            if is_free:
                self._turn = thread
            return have_left and is_free

    @contextmanager
    def closed(self, timeout: float) -> Iterator[None]:
        """Keep other threads out for the block; some may not have left in time."""
        self.close(timeout)
        try:
            yield
        finally:
            self.open()

    def open(self) -> None:
        """Let threads in again, unless another thread is forking too."""
        thread = threading.get_ident()
        with self._condition:
            self._forking.discard(thread)
            if self._turn == thread:
                self._turn = None
            self._condition.notify_all()
