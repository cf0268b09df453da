"""Two sides taken in turns, and what their times say."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Side:
    """One way to do some work, a batch for each call.

    What ``prepare`` returns, outside the time taken, is given to ``run``.
    """

    run: Callable[[Any], object]
    prepare: Callable[[], Any] = _nothing

    def seconds(self) -> float:
        """Run one batch, and return how long it took."""
        argument = self.prepare()
        # Neither side pays for the other's garbage; each pays for its own.
        gc.collect()
        start = time.perf_counter()
        result = self.run(argument)
        end = time.perf_counter()
        del result
        return end - start


def interleaved(sides: Sequence[Side], rounds: int) -> list[list[float]]:
    """Run all sides in each round, and return what each took, in their order."""
    found = []
    places = list(range(len(sides)))
    gc.freeze()  # or each collection would go through all modules
    for number in range(-1, rounds):
        seconds = {place: sides[place].seconds() for place in places}
        if number >= 0:  # the first round warmed up
            found.append([seconds[place] for place in range(len(sides))])
        # Who comes first has the colder caches and the fuller disk queue.
        places = [*places[1:], places[0]]
    gc.unfreeze()
    return found


@dataclass(frozen=True)
class Duel:
    """The same work, by the package and by what it is measured against."""

    ours: Side
    raw: Side

    def ratios(self, rounds: int) -> list[float]:
        """Return raw's time by ours for each round: the throughput that is left."""
        times = interleaved([self.ours, self.raw], rounds)
        return [raw / ours for ours, raw in times]


@dataclass(frozen=True)
class Summary:
    """Median and quartiles of some samples."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Summary:
        """Summarise samples."""
        if len(samples) == 1:
            return cls(*samples * 3)
        return cls(*statistics.quantiles(samples, n=4, method="inclusive"))
