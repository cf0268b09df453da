"""What the database tells of each task, and what the tasks' commands told themselves.

The tables are read by plain SQL, as in ``tests.crash.checker``: a fault of the package
must not hide itself here.
"""

from __future__ import annotations

import fcntl
import json
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.checker import contradictions, snapshot, unpickled

_JOBS = (
    "SELECT job_id, name, state, returncode, revision, attempts, holder FROM store_job"
)
_OBJECTS = "SELECT id, data, state FROM store"
_HISTORY = (
    "SELECT job_id, revision, from_state, to_state, at, info, returncode, pid"
    " FROM store_transition ORDER BY job_id, revision"
)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a task's command, as it told itself."""

    worker: int
    #: By the clock that only goes on, and by that of the history.
    begun: float
    begun_at: float
    #: None if it was killed.
    ended: float | None = None
    ended_at: float | None = None
    code: int | None = None
    #: Whether no other run of its task was there when it began.
    alone: bool = True


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a task's history."""

    old: str | None
    new: str
    at: float
    pid: int
    info: str = ""
    returncode: int | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """All that the database tells of a task."""

    state: str
    attempts: int
    history: list[Entry]
    returncode: int | None = None
    holder: str | None = None
    #: How its rows and its payload contradict each other.
    problems: list[str] = field(default_factory=list)


def read_records(url: str) -> dict[str, list[Record]]:
    """Return what the database tells, by the tasks' names."""
    with snapshot(url) as rows:
        jobs, objects, history = rows(_JOBS), rows(_OBJECTS), rows(_HISTORY)
    by_id = {row.id: row for row in objects}
    chains: dict[int, list[object]] = {row.job_id: [] for row in jobs}
    for row in history:
        chains.setdefault(row.job_id, []).append(row)
    records: dict[str, list[Record]] = {}
    for job in jobs:
        chain = chains.pop(job.job_id)
        stored = by_id.pop(job.job_id, None)
        problems = ["it has no object"]
        if stored is not None:
            task = unpickled(stored.data)
            problems = list(contradictions(job, task, stored.state, chain))
        entries = [
            Entry(
                row.from_state,
                row.to_state,
                row.at / 1e6,
                row.pid,
                row.info,
                row.returncode,
            )
            for row in chain
        ]
        records.setdefault(job.name, []).append(
            Record(
                job.state, job.attempts, entries, job.returncode, job.holder, problems
            )
        )
    for id_ in chains.keys() | by_id.keys():
        problem = f"{id_} has a history or an object, and no row"
        records[f"#{id_}"] = [Record("", 0, [], problems=[problem])]
    return records


def read_runs(folder: Path) -> dict[str, list[Run]]:
    """Return what the commands told, by the tasks' names, as their files are called."""
    return {path.name: _runs(path) for path in folder.iterdir()}


def still_running(folder: Path) -> list[str]:
    """Return the names of the tasks with a command that is there."""
    running = []
    for path in folder.iterdir():
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                running.append(path.name)
    return running


def _runs(path: Path) -> list[Run]:
    begins, ends = {}, {}
    for line in map(json.loads, path.read_text().splitlines()):
        (begins if line["what"] == "begin" else ends)[line["pid"]] = line
    runs = []
    for pid, begin in begins.items():
        end = ends.get(pid, {})
        runs.append(
            Run(
                begin["worker"],
                begin["monotonic"],
                begin["at"],
                end.get("monotonic"),
                end.get("at"),
                end.get("code"),
                begin["alone"],
            )
        )
    return sorted(runs, key=lambda run: run.begun)
