"""A progress bar for those who wait longer than a second."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["Bar"]

#: Seconds after which the bar is shown.
PATIENCE = 1.0


class Bar:
    """A block in which something is done, step by step or, without a total, at once.

    The bar goes to standard error, and is gone at the block's end.
    """

    def __init__(self, label: str, total: int | None) -> None:
        self._label = label
        self._total = total
        self._steps = 0
        self._begun_at = time.monotonic()
        self._lock = threading.Lock()
        self._bar: Progress | None = None
        self._is_over = False
        # A query may take long without a step.
        self._timer = threading.Timer(PATIENCE, self._show)
        self._timer.daemon = True

    def __enter__(self) -> Bar:
        self._timer.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._timer.cancel()
        with self._lock:
            self._is_over = True
        if self._bar is not None:
            self._bar.stop()

    def step(self, number: int = 1) -> None:
        """Note that this many more are done."""
        self._steps += number
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], number)
        elif time.monotonic() - self._begun_at > PATIENCE:
            self._show()

    def _show(self) -> None:
        with self._lock:
            if self._is_over or self._bar is not None:
                return
            # Imported here, as most commands are done before they need it.
            from rich.console import Console
            from rich.progress import Progress

            bar = Progress(
                console=Console(stderr=True, markup=False),
                transient=True,
                redirect_stdout=False,  # which is no terminal perhaps
            )
            bar.add_task(self._label, total=self._total, completed=self._steps)
            bar.start()
            self._bar = bar
