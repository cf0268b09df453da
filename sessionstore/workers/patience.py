"""Waiting for a database that is away, in a worker."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from sessionstore.errors import ConfigurationError, StoreUnavailableError
from sessionstore.workers import assignment

__all__ = ["growing_pauses", "patiently"]

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Seconds from one try to the next, at first and at most.
PAUSE, LONGEST_PAUSE = 0.1, 5.0


def growing_pauses() -> Iterator[float]:
    """Yield how many seconds to wait before each next try."""
    pause = PAUSE
    while True:
        yield pause
        pause = min(2 * pause, LONGEST_PAUSE)


def patiently(call: Callable[[], T]) -> T:
    """Return what a call returns, and repeat it while the database is away.

    For what a worker writes with its claim: ``patiently(claim.save)``.  As it may take
    longer than the lease, the call must do nothing else; if the task is another's by
    then, it raises LeaseLostError.  A database that was right at the start, and now
    refuses us, is being repaired or moved, and is waited for as well.

    In a transaction nothing is repeated, as the whole transaction is lost: open it
    inside the call.
    """
    pauses = growing_pauses()
    with assignment.deadline_lifted():
        while True:
            try:
                return call()
            except (StoreUnavailableError, ConfigurationError) as error:
                if assignment.is_in_transaction():
                    raise
                log.warning("waiting for the database: %s", error)
                time.sleep(next(pauses))
