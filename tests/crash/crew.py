"""Writers in processes of their own, and how they are watched and killed."""

from __future__ import annotations

import functools
import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from sessionstore import SessionStore
from tests.crash.checker import OWN_TABLE, Holdings
from tests.crash.journal import Journal, Operation, Snapshot, read
from tests.crash.writer import Writer

#: Seconds; a writer that does not get on for so long hangs.
BOUND = 60

#: Whence all that is random comes, as far as it does not come from the kernel.
SEED = os.environ.get("SESSIONSTORE_SEED") or str(random.SystemRandom().getrandbits(32))

Life = Callable[[SessionStore, Journal, str, Holdings], None]


def create(url: str) -> None:
    """Make the tables, so that the first writers find them."""
    SessionStore(url).close()
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text(OWN_TABLE))


def write_for_ever(
    session: SessionStore, journal: Journal, name: str, held: Holdings
) -> None:
    """Be a writer that nothing but its own process can stop."""
    writer = Writer(session, journal, name, held)
    while True:
        for _ in range(30):
            writer.step()
        # The last connection to be closed empties and removes SQLite's log.
        session.close()


def write_through_outages(
    session: SessionStore, journal: Journal, name: str, held: Holdings
) -> None:
    """Be one that goes on when the server is back."""
    writer = Writer(session, journal, name, held, outages=True)
    while True:
        writer.step()


class Crew:
    """Some writers at work; those still alive at the end of the block are killed."""

    def __init__(
        self,
        url: str,
        folder: Path,
        seed: str,
        held: Holdings,
        life: Life = write_for_ever,
        size: int = 4,
        **store_options: Any,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._journals = [folder / f"{seed}.{n}.journal" for n in range(size)]
        self.alive: list[int] = []
        for journal, share in zip(self._journals, _shares(held, size), strict=True):
            open_session = functools.partial(SessionStore, url, **store_options)
            self.alive.append(_fork(open_session, journal, share, life))

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exception: object) -> None:
        while self.alive:
            self.kill()

    def kill(self) -> None:
        """End the last of the writers at once."""
        pid = self.alive.pop()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def kill_at_random(self, moments: random.Random) -> None:
        """End all of them, one after another or together, at any moment."""
        longest = moments.choice((0, 0.02, 0.2))
        moments.shuffle(self.alive)
        time.sleep(moments.uniform(0, 0.2))
        while self.alive:
            self.kill()
            time.sleep(moments.uniform(0, longest))

    def wait_for_progress(self, number: int = 2) -> None:
        """Wait until each writer has done so many more operations."""
        goals = [done + number for done in self._done()]
        deadline = time.monotonic() + BOUND
        while any(done < goal for done, goal in zip(self._done(), goals, strict=True)):
            assert time.monotonic() < deadline, f"a writer hangs: {self._last()}"
            time.sleep(0.01)

    def wait(self) -> None:
        """Wait until all have ended by themselves."""
        while self.alive:
            os.waitpid(self.alive.pop(), 0)

    def journals(self) -> list[list[Operation]]:
        """Return what the writers have noted; raise the error that one has met."""
        return [
            read(path.read_bytes()) if path.exists() else [] for path in self._journals
        ]

    def _done(self) -> list[int]:
        return [
            sum(operation.outcome == "done" for operation in operations)
            for operations in self.journals()
        ]

    def _last(self) -> list[Sequence[Operation]]:
        return [operations[-2:] for operations in self.journals()]


def assert_a_session_reads(url: str, held: Holdings) -> None:
    """Check that the package itself reads what plain SQL has found."""
    listed = {
        name: content.value
        for name, content in held.contents.items()
        if isinstance(content, Snapshot) and content.place == "listed"
    }
    with SessionStore(url) as session:
        assert session.unreadable() == []
        assert {task.jobname: task.value for task in session} == listed


def _shares(held: Holdings, number: int) -> list[Holdings]:
    """Give each writer some of the objects, with those inside, as its own."""
    shares = [Holdings() for _ in range(number)]
    tasks = {n: c for n, c in sorted(held.contents.items()) if isinstance(c, Snapshot)}
    inside = {part for content in tasks.values() for part in content.tasks}
    roots = [(name, content) for name, content in tasks.items() if name not in inside]
    for turn, (root, content) in enumerate(roots[-10 * number :]):
        share = shares[turn % number]
        for name in (root, *content.tasks):
            share.contents[name] = held.contents[name]
            share.ids[name] = held.ids[name]
    return shares


def _fork(
    open_session: Callable[[], SessionStore], path: Path, held: Holdings, life: Life
) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.alarm(5 * BOUND)
        journal = Journal(path)
        try:
            life(open_session(), journal, path.stem, held)
        except BaseException:
            journal.error(traceback.format_exc())
    finally:
        os._exit(0)


def wait_until_alone(url: str) -> None:
    """Wait until the server has noticed that its clients are dead.

    What one of them had sent may still be on its way to being committed.
    """
    engine = create_engine(url, poolclass=NullPool)
    others = {
        "postgresql": "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
        "mysql": "SELECT count(*) FROM information_schema.processlist "
        "WHERE db = database() AND id <> connection_id()",
    }.get(engine.dialect.name)
    if others is None:
        return
    deadline = time.monotonic() + BOUND
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while connection.execute(text(others)).scalar_one():
            assert time.monotonic() < deadline, "connections of the dead stay open"
            time.sleep(0.01)
