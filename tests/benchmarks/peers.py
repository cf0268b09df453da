"""Other ways to keep Python objects, on the works that make sense for all of them.

Each is used as its documentation says and with its own defaults, and says how durable
that is: a store that does not wait for the disk is no slower peer but another thing.
How often each asks the disk to have written is counted by strace where that is
installed.  GC3Pie itself cannot be had: its last release, 2.6.8 of 2021, neither
builds on CPython 3.11 nor runs with SQLAlchemy 2; its way of saving is rebuilt here.
sqlitedict (2022) and diskcache (2023) have had no release for long, yet work.
"""

from __future__ import annotations

import dbm
import itertools
import pickle
import shelve
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import diskcache
import persistent
import sqlalchemy
import sqlitedict
import transaction
import ZODB
import ZODB.FileStorage
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from BTrees.LOBTree import LOBTree
from huey.storage import SqliteStorage

from sessionstore import SessionStore, SqlStore, Task
from tests.benchmarks.measure import Side, Summary, interleaved
from tests.benchmarks.places import Scale, sample
from tests.benchmarks.raw import SESSION, open_raw
from tests.benchmarks.report import PEER_WORKS


class Peer:
    """A folder of tasks, kept in one way or another."""

    title: str
    #: What has happened to a save that has returned, when the power goes.
    durability: str

    def __init__(self, folder: Path) -> None:
        self._new_key = itertools.count(1).__next__

    def save_new(self, task: Task) -> Any:
        """Keep a task, and return the key to it."""
        key = self._new_key()
        self.save_again(key, task)
        return key

    def save_again(self, key: Any, task: Task) -> None:
        """Keep it again."""
        raise NotImplementedError

    def load(self, key: Any) -> Any:
        """Read a task from where it is kept, not from memory."""
        raise NotImplementedError

    def close(self) -> None:
        """Close what is open."""


class Driver(Peer):
    title = "raw sqlite3"
    durability = "kept: WAL, synchronous=FULL"

    def __init__(self, folder: Path) -> None:
        url = f"sqlite:///{folder}/raw.db"
        SessionStore(url, SESSION).close()
        self._raw = open_raw(url)
        self.save_new, self.save_again = self._raw.save_new, self._raw.save_again
        self.load, self.close = self._raw.load, self._raw.close


class Ours(Peer):
    title = "sessionstore.SqlStore"
    durability = "kept: WAL, synchronous=FULL"

    def __init__(self, folder: Path) -> None:
        self._store = SqlStore(f"sqlite:///{folder}/ours.db")
        self.save_new, self.load = self._store.save, self._store.load
        self.close = self._store.close

    def save_again(self, key: int, task: Task) -> None:
        self._store.save(task)


class SelectThenWrite(Peer):
    """What GC3Pie does, but for its IDs from a file, which take longer still."""

    title = "GC3Pie's way: select, then write"
    durability = "kept: rollback journal, synchronous=FULL"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._engine = sqlalchemy.create_engine(f"sqlite:///{folder}/gc3pie.db")
        self._table = sqlalchemy.Table(
            "store",
            sqlalchemy.MetaData(),
            sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True),
            sqlalchemy.Column("data", sqlalchemy.LargeBinary),
            sqlalchemy.Column("state", sqlalchemy.String(128), index=True),
        )
        self._table.metadata.create_all(self._engine)

    def save_again(self, key: int, task: Task) -> None:
        table = self._table
        fields = {
            "data": pickle.dumps(task, pickle.HIGHEST_PROTOCOL),
            "state": str(task.execution.state),
        }
        with self._engine.begin() as connection:
            known = sqlalchemy.select(table.c.id).where(table.c.id == key)
            if connection.execute(known).first() is None:
                connection.execute(table.insert().values(id=key, **fields))
            else:
                change = table.update().where(table.c.id == key).values(**fields)
                connection.execute(change)

    def load(self, key: int) -> Any:
        table = self._table
        with self._engine.begin() as connection:
            found = sqlalchemy.select(table.c.data).where(table.c.id == key)
            return pickle.loads(connection.execute(found).scalar_one())

    def close(self) -> None:
        self._engine.dispose()


class Sqlitedict(Peer):
    title = "sqlitedict, autocommit=True"
    durability = "may be lost, the file too: written later, synchronous=OFF"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._tasks = sqlitedict.SqliteDict(folder / "dict.db", autocommit=True)
        self.save_again = self._tasks.__setitem__
        self.load, self.close = self._tasks.__getitem__, self._tasks.close


class Diskcache(Peer):
    title = "diskcache.Cache"
    durability = "may be lost: WAL, synchronous=NORMAL"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._tasks = diskcache.Cache(folder / "cache")
        self.save_again = self._tasks.__setitem__
        self.load, self.close = self._tasks.__getitem__, self._tasks.close


class Shelve(Peer):
    title = "shelve, sync() after each save"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        path = str(folder / "shelf")
        self._tasks = shelve.open(path)  # noqa: SIM115  closed by close()
        self._tasks.sync()
        # Which one it is depends on how Python was built.
        self.durability = f"as {dbm.whichdb(path)} has it; see the syncs"
        self.close = self._tasks.close

    def save_again(self, key: int, task: Task) -> None:
        self._tasks[str(key)] = task
        self._tasks.sync()

    def load(self, key: int) -> Any:
        return self._tasks[str(key)]


class _Holder(persistent.Persistent):
    def __init__(self, task: Task) -> None:
        self.task = task


class Zodb(Peer):
    title = "ZODB.FileStorage"
    durability = "kept: append-only file, fsync"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        storage = ZODB.FileStorage.FileStorage(str(folder / "Data.fs"))
        self._database = ZODB.DB(storage)
        self._connection = self._database.open()
        self._tasks = self._connection.root.tasks = LOBTree()
        transaction.commit()

    def save_again(self, key: int, task: Task) -> None:
        # A record of its own for each task; in the tree's they would share one.
        holder = self._tasks.get(key)
        if holder is None:
            self._tasks[key] = _Holder(task)
        else:
            holder.task = task
        transaction.commit()

    def load(self, key: int) -> Any:
        holder = self._tasks[key]
        task = holder.task
        holder._p_deactivate()
        return task

    def close(self) -> None:
        transaction.abort()
        self._connection.close()
        self._database.close()


class Huey(Peer):
    title = "huey.storage.SqliteStorage, put_data"
    durability = "kept: WAL, SQLite's default synchronous=FULL"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._storage = SqliteStorage(filename=str(folder / "huey.db"))

    def save_again(self, key: int, task: Task) -> None:
        payload = pickle.dumps(task, pickle.HIGHEST_PROTOCOL)
        self._storage.put_data(str(key), payload)

    def load(self, key: int) -> Any:
        return pickle.loads(self._storage.peek_data(str(key)))

    def close(self) -> None:
        self._storage.close()


class Apscheduler(Peer):
    title = "APScheduler 3, SQLAlchemyJobStore"
    durability = "kept: rollback journal, synchronous=FULL"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        store = SQLAlchemyJobStore(url=f"sqlite:///{folder}/jobs.db")
        self._scheduler = BackgroundScheduler(
            jobstores={"default": store}, timezone=UTC
        )
        self._scheduler.start(paused=True)

    def save_new(self, task: Task) -> str:
        job = self._scheduler.add_job(
            sample, "date", run_date=datetime(2999, 1, 1, tzinfo=UTC), args=[task]
        )
        return str(job.id)

    def save_again(self, key: str, task: Task) -> None:
        self._scheduler.modify_job(key, args=[task])

    def load(self, key: str) -> Any:
        return self._scheduler.get_job(key).args[0]

    def close(self) -> None:
        self._scheduler.shutdown()


PEERS: Sequence[type[Peer]] = (
    Driver,
    Ours,
    SelectThenWrite,
    Sqlitedict,
    Diskcache,
    Shelve,
    Zodb,
    Huey,
    Apscheduler,
)


@dataclass(frozen=True)
class PeerRow:
    """One peer, measured."""

    title: str
    durability: str
    #: None where they could not be counted.
    syncs: float | None
    #: By work: its throughput by the raw driver's.
    ratios: dict[str, Summary]


def race(folder: Path, scale: Scale) -> list[PeerRow]:
    """Let all peers do each work in turns, and return what is left of the driver's."""
    peers = []
    for cls in PEERS:
        place = folder / cls.__name__
        place.mkdir()
        peers.append(cls(place))
    ratios: list[dict[str, Summary]] = [{} for _ in peers]
    for work in PEER_WORKS:
        sides = [_side(peer, work, scale.calls) for peer in peers]
        times = interleaved(sides, scale.rounds)
        for place, found in enumerate(ratios):
            # The driver is the first of them.
            found[work] = Summary.of([each[0] / each[place] for each in times])
    for peer in peers:
        peer.close()
    return [
        PeerRow(peer.title, peer.durability, syncs_per_save(type(peer)), found)
        for peer, found in zip(peers, ratios, strict=True)
    ]


def _side(peer: Peer, work: str, calls: int) -> Side:
    if work == "save-new":
        numbers = itertools.count()

        def save_new(tasks: list[Task]) -> None:
            for task in tasks:
                peer.save_new(task)

        return Side(save_new, lambda: [sample(next(numbers)) for _ in range(calls)])
    kept = {peer.save_new(task): task for task in map(sample, range(calls))}

    def save_again(_: None) -> None:
        for key, task in kept.items():
            task.number += 1
            peer.save_again(key, task)

    def load(_: None) -> None:
        for key in keys:
            peer.load(key)

    keys = list(kept)
    if work == "load":
        kept.clear()  # so that none of them is live
        return Side(load)
    return Side(save_again)


def syncs_per_save(peer: type[Peer]) -> float | None:
    """Count how often one save waits for the disk; None where that cannot be seen."""
    if shutil.which("strace") is None:
        return None
    few, many = 10, 30
    counts = [_syncs(peer, number) for number in (few, many)]
    return (counts[1] - counts[0]) / (many - few)


def _syncs(peer: type[Peer], saves: int) -> int:
    with tempfile.NamedTemporaryFile("r") as log:
        subprocess.run(
            ["strace", "-f", "--seccomp-bpf", "-qq", "-o", log.name]
            + ["-e", "trace=fsync,fdatasync,msync"]
            + [sys.executable, "-m", __name__, peer.__name__, str(saves)],
            check=True,
            capture_output=True,
        )
        return sum(1 for line in log if "sync(" in line)


def _save_some(name: str, saves: int) -> None:
    peer = next(peer for peer in PEERS if peer.__name__ == name)
    with tempfile.TemporaryDirectory() as folder:
        opened = peer(Path(folder))
        for number in range(saves):
            opened.save_new(sample(number))
        opened.close()


if __name__ == "__main__":
    _save_some(sys.argv[1], int(sys.argv[2]))
