"""PostgreSQL and MariaDB servers that get kill -9 under load, and are started again.

Each test has a server of its own.  What the kernel has taken survives the kill, so
that this tests what is sent when, not the disk.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from tests import servers
from tests.crash.checker import Holdings, check, observe
from tests.crash.crew import (
    SEED,
    Crew,
    assert_a_session_reads,
    create,
    wait_until_alone,
    write_through_outages,
)

KILLS = int(os.environ.get("SESSIONSTORE_SERVER_KILLS", "12"))


@pytest.mark.backends("postgresql", "mariadb")
@pytest.mark.timeout(120 + 20 * KILLS)
def test_killed_servers_lose_nothing_and_writers_go_on(
    server: servers.Server, tmp_path: Path
) -> None:
    """G1, G2: no acknowledged change is gone, and the only error is "unavailable"."""
    print(f"SESSIONSTORE_SEED={SEED}")
    url = server.make_database()
    create(url)
    held = Holdings()
    outcomes: dict[str | None, int] = {}
    for number in range(KILLS):
        seed = f"{SEED}.{number}"
        moments = random.Random(seed)
        with Crew(url, tmp_path, seed, held, write_through_outages) as crew:
            crew.wait_for_progress()
            time.sleep(moments.uniform(0, 0.3))
            server.kill()
            server.start_again()
            crew.wait_for_progress()
            crew.kill_at_random(moments)
        wait_until_alone(url)
        after = observe(url)
        assert check(held, crew.journals(), after) == [], f"in the round of {seed}"
        for operation in (o for journal in crew.journals() for o in journal):
            outcomes[operation.outcome] = outcomes.get(operation.outcome, 0) + 1
        held = after
    print(f"{KILLS} kills of the server; operations by outcome: {outcomes}")
    assert_a_session_reads(url, held)


#: A commit that is answered before it is written down.
CARELESS = {
    "postgresql": (
        "ALTER SYSTEM SET synchronous_commit = off",
        "ALTER SYSTEM SET wal_writer_delay = '10s'",
        # By default 1 MB is enough to wake that writer.
        "ALTER SYSTEM SET wal_writer_flush_after = '1GB'",
        "SELECT pg_reload_conf()",
    ),
    "mariadb": (
        "SET GLOBAL innodb_flush_log_at_trx_commit = 0",
        "SET GLOBAL innodb_flush_log_at_timeout = 10",
    ),
}


@pytest.mark.backends("postgresql", "mariadb")
def test_a_careless_server_is_found_out(
    server: servers.Server, backend: str, tmp_path: Path
) -> None:
    """G1: with commits that the server answers too early, changes are lost."""
    url = server.make_database()
    create(url)
    servers.execute(url, *CARELESS[backend])
    with Crew(url, tmp_path, "careless", Holdings(), write_through_outages) as crew:
        crew.wait_for_progress(5)
        server.kill()
        while crew.alive:
            crew.kill()
    server.start_again()
    problems = check(Holdings(), crew.journals(), observe(url))
    assert [problem for problem in problems if problem.startswith("lost: ")]
