"""Writers that get kill -9 at random moments."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from sessionstore import SessionStore
from tests.crash.checker import Holdings, check, observe
from tests.crash.crew import (
    SEED,
    Crew,
    Life,
    assert_a_session_reads,
    create,
    wait_until_alone,
)
from tests.crash.journal import Journal
from tests.crash.writer import Plan, Writer

KILLS = int(os.environ.get("SESSIONSTORE_KILLS", "48"))


@pytest.mark.timeout(120 + 3 * KILLS)
def test_killed_writers_lose_nothing_and_leave_no_halves(
    database_url: str, tmp_path: Path
) -> None:
    """G1, G2: what was acknowledged is there; what was in flight, wholly or not."""
    print(f"SESSIONSTORE_SEED={SEED}")
    create(database_url)
    held = Holdings()
    kills = operations = 0
    while kills < KILLS:
        seed = f"{SEED}.{kills}"
        with Crew(database_url, tmp_path / "journals", seed, held) as crew:
            crew.wait_for_progress()
            kills += len(crew.alive)
            crew.kill_at_random(random.Random(seed))
        wait_until_alone(database_url)
        after = observe(database_url)
        assert check(held, crew.journals(), after) == [], f"in the round of {seed}"
        operations += sum(map(len, crew.journals()))
        held = after
    print(f"{kills} writers killed, {operations} operations")
    assert_a_session_reads(database_url, held)


# What the checker says when a protection is taken out


def run_one(url: str, folder: Path, life: Life) -> list[str]:
    create(url)
    with Crew(url, folder, "one", Holdings(), life, size=1) as crew:
        crew.wait()
    wait_until_alone(url)
    return check(Holdings(), crew.journals(), observe(url))


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def die_in_a_block(
    session: SessionStore, journal: Journal, name: str, held: Holdings
) -> None:
    writer = Writer(session, journal, name, held)
    death = Plan("kill -9", {}, die)
    writer.do(writer.together([writer.add_graph(), death, writer.add()]))


@contextmanager
def commit_one_by_one(session: SessionStore) -> Iterator[Any]:
    """Stand in for a transaction block that is none."""

    class Connection:
        def execute(self, *arguments: Any) -> None:
            with session.store.transaction() as connection:
                connection.execute(*arguments)

    yield Connection()


def test_a_block_that_was_cut_off_leaves_nothing(
    database_url: str, tmp_path: Path
) -> None:
    """G2: kill -9 before the commit takes all of it back."""
    assert run_one(database_url, tmp_path, die_in_a_block) == []
    assert observe(database_url).contents == {}


def test_two_transactions_for_one_are_found_out(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G2: the same writer, and a store that commits each part by itself."""
    monkeypatch.setattr(SessionStore, "transaction", commit_one_by_one)
    problems = run_one(database_url, tmp_path, die_in_a_block)
    assert [problem for problem in problems if problem.startswith("half done")]


def test_an_acknowledgement_before_the_commit_is_found_out(
    database_url: str, tmp_path: Path
) -> None:
    """G1: a writer that says "done" too early, and dies before the commit."""

    def acknowledge_early(
        session: SessionStore, journal: Journal, name: str, held: Holdings
    ) -> None:
        writer = Writer(session, journal, name, held)
        with session.transaction():
            writer.do(writer.add())
            die()

    [problem] = run_one(database_url, tmp_path, acknowledge_early)
    assert problem.startswith("lost: ")
