"""Figures about a session: how long jobs were in each state, when they ended, and why.

They are gathered from the jobs' histories, which are read page by page, and take the
same memory however many there are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sessionstore.jobs.history import Transition
from sessionstore.task import State

__all__ = ["Durations", "Figures", "Span"]

#: Durations are counted in classes, each of which ends 2 % above the one before.
_STEP = math.log(1.02)
#: How many reasons are counted apart, and what the others are counted as.
MOST_REASONS = 1000
OTHERS = "(others)"


class Durations:
    """How long something took, each time; the quantiles are right to 1 %."""

    def __init__(self) -> None:
        self._classes: Counter[int] = Counter()
        self.number = 0

    def add(self, duration: timedelta) -> None:
        """Count one."""
        microseconds = duration / timedelta(microseconds=1)
        # By clocks that were set back it may be negative.
        self._classes[round(math.log(max(microseconds, 1)) / _STEP)] += 1
        self.number += 1

    def quantile(self, share: float) -> timedelta | None:
        """Return what this share of them did not exceed; None if there are none."""
        wanted = math.ceil(self.number * share)
        passed = 0
        for number in sorted(self._classes):
            passed += self._classes[number]
            if passed >= wanted:
                return timedelta(microseconds=math.exp(number * _STEP))
        return None


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time, in parts of the same length."""

    since: datetime
    until: datetime
    parts: int

    @property
    def part(self) -> timedelta:
        """How long each part is."""
        return (self.until - self.since) / self.parts

    def index(self, at: datetime) -> int | None:
        """Return the part that an instant is in; None if it is outside."""
        if not self.since <= at <= self.until:
            return None
        length = self.part or timedelta(microseconds=1)
        return min(int((at - self.since) / length), self.parts - 1)


class Figures:
    """What can be said of many jobs' histories."""

    def __init__(self, span: Span) -> None:
        self.span = span
        #: The stays that ended in the span, by state.
        self.stays: dict[State, Durations] = {}
        #: How many jobs ended in each part of the span.
        self.ended = [0] * span.parts
        #: How many failures there were in the span, by reason.
        self.failures: Counter[str] = Counter()

    def add(self, entries: Sequence[Transition]) -> None:
        """Take in one job's transitions, all of them and in order."""
        for i, entry in enumerate(entries):
            part = self.span.index(entry.at)
            if part is None:
                continue
            if i > 0:
                stay = self.stays.setdefault(entries[i - 1].to_state, Durations())
                stay.add(entry.at - entries[i - 1].at)
            if entry.to_state is State.TERMINATED:
                self.ended[part] += 1
            if _is_failure(entry, entries[i + 1 :]):
                self._note(_reason(entry))

    def _note(self, reason: str) -> None:
        is_known = reason in self.failures or len(self.failures) < MOST_REASONS
        self.failures[reason if is_known else OTHERS] += 1


def _is_failure(entry: Transition, later: Sequence[Transition]) -> bool:
    """Say whether a job failed by this transition, for good or for a while.

    UNKNOWN is a failure, and so is an end from UNKNOWN without a returncode; where both
    come in a row, only the end counts, which has the reason.
    """
    if entry.to_state is State.UNKNOWN:
        return not later or later[0].to_state is not State.TERMINATED
    if entry.to_state is not State.TERMINATED:
        return False
    if entry.returncode is None:
        return entry.from_state is State.UNKNOWN
    return entry.returncode != 0


def _reason(entry: Transition) -> str:
    if entry.info:
        return entry.info
    if entry.returncode is not None:
        return f"returncode {entry.returncode}"
    return f"{entry.to_state} without a reason"
