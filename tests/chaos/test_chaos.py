"""Four daemons work on one session, while they, their workers and servers are killed.

SESSIONSTORE_CHAOS_TASKS and SESSIONSTORE_CHAOS_SECONDS say how many tasks there are,
and for how long at least it goes on; SESSIONSTORE_SEED draws the same misfortunes.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sessionstore import SessionStore, Task
from tests import servers
from tests.chaos.checker import check
from tests.chaos.evidence import read_records, read_runs, still_running
from tests.chaos.fleet import ATTEMPTS, Daemon, Fleet, command, end_processes, processes
from tests.crash.crew import SEED
from tests.daemon.conftest import Cli, all_ended, until
from tests.daemon.test_outage import opened

TASKS = int(os.environ.get("SESSIONSTORE_CHAOS_TASKS", "150"))
SECONDS = float(os.environ.get("SESSIONSTORE_CHAOS_SECONDS", "10"))
#: The share of the tasks that has to be begun before nothing more befalls anybody.
CALM_AT = 0.5
#: How long the commands take, and how they end: most are over at once, some outlive
#: their daemon.
LENGTHS, CODES = (0, 0, 0.02, 0.1, 0.3, 1.5), (0, 0, 0, 1, 3)
#: Seconds in which all has to end, on a machine that does much else.
BOUND = 120 + SECONDS + TASKS


@pytest.mark.timeout(3 * BOUND)
def test_daemons_lose_nothing_whatever_is_killed(
    backend: str,
    server: servers.Server | None,
    tmp_path: Path,
    make_cli: Callable[[Path, str], Cli],
) -> None:
    """G1, G2, G6: each task ends, is one's at a time, and its history is true."""
    print(f"SESSIONSTORE_SEED={SEED}")
    began_at = time.monotonic()
    url = server.make_database() if server else f"sqlite:///{tmp_path}/tasks.db"
    journals = tmp_path / "journals"
    journals.mkdir()
    moments = random.Random(SEED)
    names = [f"task-{number}" for number in range(TASKS)]
    lines = {
        name: command(journals, name, moments.choice(LENGTHS), moments.choice(CODES))
        for name in names
    }
    daemons = [Daemon(make_cli(tmp_path / f"spool-{n}", url)) for n in range(4)]
    # One half is there from the beginning, the other comes in by the spool folders.
    with SessionStore(url) as session:
        session.add_many(Task(name, command=lines[name]) for name in names[::2])
    waiting = names[1::2]
    with Fleet(daemons, server, journals, SEED) as fleet:
        while True:
            seconds = time.monotonic() - began_at
            due = TASKS // 2 * (1 - seconds / SECONDS)
            while len(waiting) > max(due, 0):
                submit(moments.choice(daemons), waiting.pop(), lines)
            if seconds >= SECONDS and fleet.begun() >= CALM_AT * TASKS:
                break
            assert seconds < BOUND, f"{fleet.begun()} tasks were begun"
            fleet.strike()
        fleet.restore(until=float("inf"))
        with opened(url) as session:
            until(lambda: fleet.calm() and len(session) == TASKS, BOUND)
            until(lambda: fleet.calm() and all_ended(session), BOUND)
        fleet.stop()
        until(lambda: not processes(tmp_path))
    assert still_running(journals) == []
    records, runs = read_records(url), read_runs(journals)
    all_records = [record for found in records.values() for record in found]
    attempts = sum(record.attempts for record in all_records)
    given_up = sum(r.history[-1].info == "attempts exhausted" for r in all_records)
    all_runs = sum(map(len, runs.values()))
    print(
        f"{backend}: {TASKS} tasks, {attempts} attempts, {all_runs} runs, {given_up}"
        f" exhausted; befell {dict(fleet.befell)}; {seconds:.0f} s, then"
        f" {time.monotonic() - began_at - seconds:.0f} s to the end"
    )
    assert check(names, records, runs, ATTEMPTS) == []
    for daemon in daemons:
        for folder in ("new", "taken", "bad"):
            assert list((daemon.cli.spool / folder).iterdir()) == []


def submit(daemon: Daemon, name: str, lines: dict[str, list[str]]) -> None:
    """Hand in a task as a file."""
    folder = daemon.cli.spool / "new"
    file = folder / f".{name}"
    file.write_text(f"name = {name!r}\ncommand = {lines[name]!r}\n")
    file.rename(folder / f"{name}.toml")


#: A daemon that frees what another one left, and lets its commands run on.
CARELESS = (
    "import sys; from daemon_example import __main__; from sessionstore.workers import"
    " pool; pool.end_group = lambda task: None; sys.exit(__main__.main())"
)


@pytest.mark.backends("sqlite")
def test_daemon_that_ends_no_commands_is_found_out(
    database_url: str, tmp_path: Path, make_cli: Callable[[Path, str], Cli]
) -> None:
    """G6: the checker, where the command of a killed daemon's task is not ended."""
    journals = tmp_path / "journals"
    journals.mkdir()
    first, second = (Daemon(make_cli(tmp_path / n, database_url)) for n in "ab")
    second.cli.program = ("-c", CARELESS)
    with SessionStore(database_url) as session:
        session.add(Task("a", command=command(journals, "a", 300, 0)))
    first.lease = second.lease = 3600
    try:
        first.start()
        until(lambda: read_runs(journals).get("a"))
        first.kill()
        second.start()
        until(lambda: len(read_runs(journals)["a"]) == 2)
        problems = check(["a"], read_records(database_url), read_runs(journals), 4)
        assert [problem for problem in problems if "two at once" in problem]
    finally:
        second.kill()
        end_processes(tmp_path)
