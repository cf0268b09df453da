"""Where the works run: databases of their own, two alike for each comparison."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from sessionstore import SessionStore, State, Task
from tests.benchmarks.raw import SESSION, Raw, open_raw


def sample(number: int, size: int = 1024) -> Task:
    """Return a task whose payload has about this many bytes."""
    return Task(
        f"job-{number}",
        command=["/usr/bin/sha256sum", "--binary", f"/srv/data/{number:08}.bin"],
        environment={"LANG": "C.UTF-8", "TMPDIR": "/var/tmp"},
        log="x" * max(0, size - 424),
        number=number,
    )


@dataclass(frozen=True)
class Scale:
    """How much is done; ratios do not depend on it, their spread does."""

    rounds: int
    #: Calls in one batch.
    calls: int
    #: Objects in one bulk write.
    bulk: int
    #: Objects in a large store.
    many: int
    #: Bytes of a large object.
    large: int
    #: Stores open at a fork.
    stores: int
    #: Seconds for which a daemon has nothing to do, and tasks that it then gets.
    idle: float
    tasks: int


FULL = Scale(
    rounds=80,
    calls=20,
    bulk=20_000,
    many=100_000,
    large=16 * 2**20,
    stores=20,
    idle=10,
    tasks=10_000,
)
QUICK = Scale(
    rounds=6,
    calls=20,
    bulk=500,
    many=2_000,
    large=2**20,
    stores=20,
    idle=5,
    tasks=300,
)


@dataclass(frozen=True)
class Pair:
    """Two databases with the same empty session, one for each side."""

    ours: SessionStore
    raw: Raw
    ours_url: str
    raw_url: str


class Bench:
    """One backend's databases, and what is open on them."""

    def __init__(self, backend: str, new_url: Callable[[], str], scale: Scale) -> None:
        self.backend = backend
        self.scale = scale
        #: Makes an empty database, and returns its URL.
        self.new_url = new_url
        self._large_store: str | None = None
        self._open = ExitStack()
        #: For the test that compares what both sides wrote.
        self.pairs: list[Pair] = []

    def session(self, url: str, name: str = SESSION) -> SessionStore:
        """Open a session until the work is done."""
        return self._open.enter_context(SessionStore(url, name))

    def raw(self, url: str) -> Raw:
        """Open the tables by the driver until the work is done."""
        raw = open_raw(url)
        self._open.callback(raw.close)
        return raw

    def pair(self) -> Pair:
        """Make the databases for a comparison of writes."""
        ours_url, raw_url = self.new_url(), self.new_url()
        # The package makes the tables of both, so that indexes and types are equal.
        SessionStore(raw_url, SESSION).close()
        pair = Pair(self.session(ours_url), self.raw(raw_url), ours_url, raw_url)
        self.pairs.append(pair)
        return pair

    def large_store(self) -> str:
        """Return the URL of a store with many objects; made once, and only added to."""
        if self._large_store is None:
            self._large_store = self.new_url()
            with SessionStore(self._large_store, SESSION) as session:
                for start in range(0, self.scale.many, 5_000):
                    end = min(start + 5_000, self.scale.many)
                    tasks = [sample(number, 512) for number in range(start, end)]
                    for task in tasks[::4]:
                        task.execution.state = State.TERMINATED
                    session.add_many(tasks)
        return self._large_store

    def done(self) -> None:
        """Close what a work has opened."""
        self._open.close()
        gc.collect()
