"""Many processes and threads on one SQLite file."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from sessionstore import SessionStore, SqlStore, StoreUnavailableError, Task
from tests.crash.checker import Holdings, check, observe
from tests.crash.crew import SEED, Crew, create
from tests.crash.journal import Journal, read
from tests.crash.writer import Writer

SECONDS = float(os.environ.get("SESSIONSTORE_LOAD_SECONDS", "60"))


@pytest.mark.timeout(SECONDS + 120)
def test_sixteen_processes_and_eight_threads_write_without_starvation(
    tmp_path: Path,
) -> None:
    """G1, G2, G3: no call fails, none takes 5 s, and all histories are in order."""
    url = f"sqlite:///{tmp_path}/store.db"
    create(url)
    ends_at = time.monotonic() + SECONDS

    def write(
        session: SessionStore, journal: Journal, name: str, held: Holdings
    ) -> None:
        writer = Writer(session, journal, name, held)
        while time.monotonic() < ends_at:
            writer.step()

    print(f"SESSIONSTORE_SEED={SEED}")
    paths = [tmp_path / f"{SEED}.thread{n}.journal" for n in range(8)]
    errors: list[BaseException] = []
    with Crew(url, tmp_path, SEED, Holdings(), life=write, size=16) as crew:
        session = SessionStore(url)

        def thread(path: Path) -> None:
            try:
                write(session, Journal(path), path.stem, Holdings())
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=thread, args=(path,)) for path in paths]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        crew.wait()
        session.close()
    assert errors == []
    journals = crew.journals() + [read(path.read_bytes()) for path in paths]
    times = sorted(o.seconds for journal in journals for o in journal)
    marks = {p: times[int(p * (len(times) - 1))] for p in (0.5, 0.9, 0.99, 0.999, 1)}
    print(f"{len(times)} operations; took, in s, by quantile: {marks}")
    assert all(o.outcome == "done" for journal in journals for o in journal)
    assert check(Holdings(), journals, observe(url)) == []
    assert all(len(journal) > SECONDS for journal in journals), "one got no turn"
    assert times[-1] < 5


def test_a_write_waits_for_busy_timeout_and_no_longer(tmp_path: Path) -> None:
    """A database that stays locked is StoreUnavailableError, at the time asked for."""
    store = SqlStore(f"sqlite:///{tmp_path}/store.db", busy_timeout=0.5)
    store.save(Task())
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    started_at = time.monotonic()
    with pytest.raises(StoreUnavailableError, match="busy"):
        store.save(Task())
    assert 0.5 <= time.monotonic() - started_at < 5
    other.execute("ROLLBACK")
    other.close()
    store.save(Task())
    assert len(store) == 2
