"""SQLite when the power goes: what was not synced is gone, or some of it."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from sessionstore import SessionStore
from tests.crash.checker import Holdings, check, observe
from tests.crash.crew import SEED, Crew, create
from tests.crash.journal import Journal, read
from tests.crash.power import Call, Disk, data_of, read_trace, trace
from tests.crash.writer import Writer

CUTS = int(os.environ.get("SESSIONSTORE_CUTS", "100"))


def main(folder: str, seed: str, synchronous: str) -> None:
    """Be the program that is traced: two writers, and two more after them."""
    url = f"sqlite:///{folder}/store.db"
    create(url)
    for generation in range(3):
        with Crew(
            url,
            Path(folder),
            f"{seed}.{generation}",
            Holdings(),
            write_a_little,
            size=2,
            synchronous=synchronous,
        ) as crew:
            crew.wait()
        crew.journals()


def write_a_little(
    session: SessionStore, journal: Journal, name: str, held: Holdings
) -> None:
    writer = Writer(session, journal, name, held)
    for _ in range(25):
        writer.step()
    session.close()


@pytest.fixture
def strace() -> None:
    """Skip where processes cannot be traced, but not in CI."""
    problem = None
    try:
        subprocess.run(["strace", "-o", "/dev/null", "true"], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        problem = f"strace does not work here: {error}"
    if problem is not None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(problem)


def calls_of_a_run(tmp_path: Path, synchronous: str) -> tuple[Path, Sequence[Call]]:
    """Return the traced folder, and the calls that changed its files."""
    folder = tmp_path / "disk"
    folder.mkdir()
    code = f"from {__name__} import main; main(*__import__('sys').argv[1:])"
    arguments = [str(folder), SEED, synchronous]
    trace([sys.executable, "-c", code, *arguments], tmp_path / "trace")
    return folder, list(read_trace(tmp_path / "trace", folder))


def problems_after_cuts(
    disk: Disk, calls: Sequence[Call], number: int, cut: Path
) -> list[list[str]]:
    """Cut the power at so many moments, and check what the disk has each time."""
    luck = random.Random(SEED)
    acknowledged = [
        place for place, call in enumerate(calls) if is_acknowledgement(call)
    ]
    moments = luck.choices(acknowledged, k=number // 2)
    moments += luck.choices(range(acknowledged[0], len(calls)), k=number - len(moments))
    journals: dict[str, bytes] = {}
    found = []
    for place, call in enumerate(calls):
        if not call.path.endswith(".journal"):
            disk.take(call)
        elif call.name == "write" and call.result is None:
            journals[call.path] = journals.get(call.path, b"") + data_of(call)
        for _ in range(moments.count(place)):
            cut.mkdir()
            disk.cut(cut, luck if luck.random() < 0.5 else None)
            histories = [read(data) for data in journals.values()]
            after = observe(f"sqlite:///{cut}/store.db")
            found.append(check(Holdings(), histories, after))
            shutil.rmtree(cut)
    return found


def is_acknowledgement(call: Call) -> bool:
    return (
        call.name == "write"
        and call.result is None
        and call.path.endswith(".journal")
        and b'"done"' in data_of(call)
    )


@pytest.mark.usefixtures("strace")
@pytest.mark.timeout(120 + CUTS)
def test_a_power_cut_takes_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """G1, G2: with the default settings, at any moment, whatever the disk kept."""
    print(f"SESSIONSTORE_SEED={SEED}")
    folder, calls = calls_of_a_run(tmp_path, "FULL")
    disk = Disk(folder)
    found = problems_after_cuts(disk, calls, CUTS, tmp_path / "cut")
    print(f"{len(found)} power cuts in {len(calls)} calls")
    assert len(found) == CUTS
    assert [problems for problems in found if problems] == []
    files = {str(path): path.read_bytes() for path in folder.glob("store.db*")}
    assert disk.files() == files, "something that changed a file went unseen"


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("synchronous", ["NORMAL", "OFF"])
def test_commits_that_are_not_synced_are_found_lost(
    tmp_path: Path, synchronous: str
) -> None:
    """G1: the same run with less than ``synchronous=FULL`` does not pass."""
    folder, calls = calls_of_a_run(tmp_path, synchronous)
    found = problems_after_cuts(Disk(folder), calls, 20, tmp_path / "cut")
    lost = [p for problems in found for p in problems if p.startswith("lost: ")]
    assert lost != []


@pytest.mark.usefixtures("strace")
def test_new_folders_are_made_to_last(tmp_path: Path) -> None:
    """G1: a commit in a folder that a power cut takes away would be none."""
    top = tmp_path / "top"
    top.mkdir()
    code = (
        "from sessionstore import Task, make_sqlstore; "
        f"make_sqlstore('sqlite:///{top}/new/deep/store.db').save(Task())"
    )
    trace([sys.executable, "-c", code], tmp_path / "trace")
    synced = {
        call.path
        for call in read_trace(tmp_path / "trace", top)
        if call.name in {"fsync", "fdatasync"} and call.result == 0
    }
    assert {str(top), f"{top}/new", f"{top}/new/deep"} <= synced
