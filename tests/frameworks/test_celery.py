"""G4: Celery's pool works on a session that its master opened."""

from __future__ import annotations

import signal
import subprocess
import sys

from tests.frameworks.broker import celery
from tests.frameworks.records import check_alive, check_records
from tests.frameworks.service import Service, answered_by

TASKS = 40


def test_pool_works_on_what_the_master_opened(serve, database_url, tmp_path) -> None:
    """G1, G4, G5: every finished task is kept; the master forks on, with threads."""
    service = serve(
        *(sys.executable, "-m", "celery", "--app", "tests.frameworks.tasks"),
        *("worker", "--pool", "prefork", "--concurrency", 3),
        *("--loglevel", "INFO", "--without-gossip", "--without-mingle"),
        C_FORCE_ROOT="1",
        PYTHONFAULTHANDLER="1",
    )
    with celery(tmp_path) as client:
        sent = [client.send_task("handle", [f"task {n}"]) for n in range(TASKS)]
        answers = [result.get(timeout=60, interval=0.02) for result in sent]
    assert [answer["name"] for answer in answers] == [f"task {n}" for n in range(TASKS)]
    # Eight tasks each, so that the first three cannot have done them all.
    assert len(answered_by(answers, 1)) >= TASKS / 8
    check_alive(database_url, [])

    _stop(service)
    check_records(database_url, answers, service.pid, ["master ready", "master ends"])


def _stop(service: Service) -> None:
    try:
        service.stop()
    except subprocess.TimeoutExpired:
        # billiard 4.3.2 takes the lock of a queue when all is done, which a worker may
        # have ended with: one of 200 masters hangs there, of tasks without any store
        # too.  Wherever else one hangs, it is ours.
        service.process.send_signal(signal.SIGABRT)
        service.process.wait()
        assert "_help_stuff_finish" in service.log
        assert "Traceback" not in service.log
