"""Transfers that are killed and run again, among others at work, and large ones."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sessionstore import ConflictError, SessionStore, SqlStore, State, Task
from sessionstore.testing import Child
from sessionstore.transfer import copy, export, import_archive, items, store_reader
from tests.transfer import scene

OBJECTS = 400
KILLS = 8


@pytest.fixture
def source(source_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A session of some hundred tasks, of which 20 come in one batch."""
    monkeypatch.setattr(store_reader, "BATCH_OBJECTS", 20)
    monkeypatch.setattr(items, "BATCH_OBJECTS", 20)
    session = SessionStore(source_url, "one")
    for id_ in session.add_many([Task(f"{n}") for n in range(OBJECTS)]):
        if id_ % 3 == 0:
            session.transition(id_, State.SUBMITTED)
    session.close()
    return source_url


def killed(after: int, delay: float, transfer: Callable[..., object]) -> bool:
    """Kill a transfer, run in a child, after a step; say if it was under way."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            signal.alarm(60)
            transfer(progress=lambda what, done, total: os.write(writer, b"."))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb", buffering=0) as steps:
        steps.read(1)
        for _ in range(after):
            steps.read(1)  # at once if the child has ended
        select.select([steps], [], [], delay)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def objects_in(url: str) -> dict[str, Any]:
    """Return the rows of the tables, where they are there already."""
    try:
        return scene.everything(url)
    except Exception:
        return {"objects": [], "jobs": [], "history": []}


def go_on_until_done(url: str, to_url: str, transfer: Callable[..., Any]) -> None:
    """Kill a transfer again and again, look at what it left, and let it end."""
    choice = random.Random(to_url.partition(":")[0])
    whole = scene.everything(url)
    were = 0
    for _ in range(KILLS):
        were += killed(choice.randrange(4), choice.uniform(0, 0.01), transfer)
        there = objects_in(to_url)
        ids = {row[0] for row in there["objects"]}
        for table in ("objects", "jobs", "history"):
            assert there[table] == [row for row in whole[table] if row[0] in ids]
    assert were > KILLS / 2
    done = transfer(verify=True)
    assert done.objects == OBJECTS
    assert scene.everything(to_url) == whole


def test_killed_copy_is_run_again_and_goes_on(source: str, database_url: str) -> None:
    """Each object is there whole or not at all, and in the end all are (G1, G2)."""
    to_url = database_url
    if to_url.startswith("sqlite"):
        to_url += "-target"
    go_on_until_done(source, to_url, lambda **given: copy(source, to_url, **given))


def test_killed_import_is_run_again_and_goes_on(
    source: str, target_url: str, tmp_path: Path
) -> None:
    """As a copy does (G1, G2)."""
    path = tmp_path / "archive"
    export(source, path)
    go_on_until_done(
        source, target_url, lambda **given: import_archive(path, target_url, **given)
    )


def test_task_that_was_changed_after_it_came_is_a_conflict(
    source: str, target_url: str
) -> None:
    """A transfer that is run again writes over nobody's work (G3)."""
    copy(source, target_url)
    there = SessionStore(target_url, "one", create=False)
    changed = next(there.ids(state=State.SUBMITTED))
    there.transition(changed, State.RUNNING)
    with pytest.raises(ConflictError, match="or was changed since it came") as caught:
        copy(source, target_url)
    assert caught.value.id == changed
    assert there.counts()[State.RUNNING] == 1


def test_ids_stay_unique_among_writers_at_that_moment(
    source: str, database_url: str, start_forked: Callable[..., Child]
) -> None:
    """Whoever has a block with IDs that came at hand uses none of them (G5)."""
    to_url = database_url
    if to_url.startswith("sqlite"):
        to_url += "-target"
    came = range(100, 251)
    for table, column in (("", "id"), ("_job", "job_id"), ("_transition", "job_id")):
        scene.write(
            source, f"DELETE FROM store{table} WHERE NOT {column} BETWEEN 100 AND 250"
        )
    told, done = os.pipe()
    SqlStore(to_url).save(Task("first"))
    ids, writer = os.pipe()

    def save() -> None:
        # The first who comes has the IDs of what is copied in the block that it takes.
        store = SqlStore(to_url)
        for count in range(150):
            if count == 30:
                assert os.read(told, 1) == b"."
            os.write(writer, store.save(Task("writer")).to_bytes(8))

    children = [start_forked(save) for _ in range(2)]
    os.close(writer)
    saved = [int.from_bytes(os.read(ids, 8))]  # so that one is at it
    assert copy(source, to_url, verify=True).written == len(came)
    os.write(done, b"..")
    with os.fdopen(ids, "rb") as pipe:
        while some := pipe.read(8):
            saved.append(int.from_bytes(some))
    for child in children:
        child.wait()
    assert len(saved) == len({*saved}) == 300
    assert not {*came} & {*saved}
    store = SqlStore(to_url)
    assert len(store) == len(came) + 301
    assert {store.load(id_).jobname for id_ in saved} == {"writer"}


_GROWTH = """
import sys
from pathlib import Path
from sessionstore.transfer import copy, export, import_archive

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])

def run(url, name):
    folder = sys.argv[1]
    copy(url, f"sqlite:///{folder}/{name}-copy.db", verify=True)
    copy(url, f"sqlite:///{folder}/{name}-copy.db")
    export(url, f"{folder}/{name}.archive", verify=True)
    import_archive(f"{folder}/{name}.archive", f"sqlite:///{folder}/{name}-back.db")

small, large = sys.argv[2:]
run(small, "small")
before = peak()
run(large, "large")
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_store(tmp_path: Path) -> None:
    """Ten times as many objects, 25 MB of them, take no more than 2,000 do."""
    urls = []
    for number in (2_000, 20_000):
        urls.append(f"sqlite:///{tmp_path}/{number}.db")
        with SessionStore(urls[-1]) as session:
            for start in range(0, number, 2_000):
                tasks = [Task(f"{start + n}", log="x" * 1200) for n in range(2_000)]
                session.add_many(tasks)
    done = subprocess.run(
        [sys.executable, "-c", _GROWTH, str(tmp_path), *urls],
        check=True,
        capture_output=True,
        timeout=100,
    )
    assert int(done.stdout) < 8_000  # KiB
