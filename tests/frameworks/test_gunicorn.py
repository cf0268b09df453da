"""G4: gunicorn's workers serve on a session that its master opened (--preload)."""

from __future__ import annotations

import sys

from tests.frameworks.records import check_alive, check_records
from tests.frameworks.service import drive_past_a_kill

WORKERS = 3


def test_workers_serve_on_what_the_master_opened(serve, database_url, tmp_path) -> None:
    """G1, G4, G5: every acknowledged request is kept, a killed worker's as well."""
    service = serve(
        *(sys.executable, "-m", "gunicorn", "--preload"),
        *("--workers", WORKERS, "--bind", f"unix:{tmp_path}/socket"),
        *("--config", "python:tests.frameworks.gunicorn_hooks"),
        "tests.frameworks.wsgi:application",
        XDG_RUNTIME_DIR=str(tmp_path),  # for its control socket
    )
    service.wait_for_socket()
    before, after = drive_past_a_kill(service, WORKERS)
    check_alive(database_url, after)

    service.stop()
    check_records(
        database_url, before + after, service.pid, ["worker ended", "master ends"]
    )
