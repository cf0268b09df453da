"""Signals, noted by their handlers and acted on by the loop."""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress


class Signals:
    """Notes signals from now on, and wakes whoever waits for one."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self._noted: list[int] = []
        # Python itself writes to the pipe, so that a signal that comes just before a
        # wait, ours or the session's, still ends it.
        self._reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda number, _: self._noted.append(number))

    def wait(self, timeout: float) -> None:
        """Return when a signal has come, or after ``timeout`` seconds."""
        select.select([self._reader], [], [], timeout)

    def take(self) -> list[int]:
        """Return the signals noted since the last call."""
        with suppress(BlockingIOError):
            os.read(self._reader, 4096)
        count = len(self._noted)
        taken, self._noted[:count] = self._noted[:count], []
        return taken
