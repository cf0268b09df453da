"""G4: uWSGI's workers serve on a session that its master opened.

uWSGI forks in C.  It calls Python's hooks for a fork only if it is asked to: those
of the child with ``py-call-osafterfork``, all with ``py-call-uwsgi-fork-hooks``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sessionstore import SessionStore
from tests.frameworks.records import check_alive, check_records
from tests.frameworks.service import answered_by, drive, drive_past_a_kill

WORKERS = 2
COMMAND = (
    *(Path(sys.executable).with_name("pyuwsgi"), "--master", "--need-app"),
    *("--processes", WORKERS, "--enable-threads", "--threads", 2),
    *("--die-on-term", "--no-orphans", "--http-socket", "socket"),
    *("--module", "tests.frameworks.wsgi"),
)
pytestmark = pytest.mark.skipif(
    sys.version_info >= (3, 15), reason="uWSGI has no wheel for it yet"
)
NO_HOOKS = pytest.param((), id="no-hooks")
CHILDS_HOOK = pytest.param(
    ("--py-call-osafterfork",),
    id="childs-hook",
    marks=pytest.mark.skipif(
        sys.version_info >= (3, 13),
        reason="kills every worker there: github.com/unbit/uwsgi/issues/2710",
    ),
)
ALL_HOOKS = pytest.param(("--py-call-uwsgi-fork-hooks",), id="all-hooks")


@pytest.mark.parametrize("hooks", [NO_HOOKS, CHILDS_HOOK, ALL_HOOKS])
def test_workers_serve_on_what_the_master_opened(serve, database_url, hooks) -> None:
    """G1, G4, G5: with every choice of hooks; SQLite needs all, or pre_fork()."""
    python_is_told = "--py-call-uwsgi-fork-hooks" in hooks
    pre_fork = database_url.startswith("sqlite") and not python_is_told
    service = serve(*COMMAND, *hooks, APPLICATION_PRE_FORK="1" if pre_fork else "")
    service.wait_for_socket()
    before, after = drive_past_a_kill(service, WORKERS)
    check_alive(database_url, after)

    service.stop()
    check_records(database_url, before + after, service.pid)


@pytest.mark.parametrize("hooks", [NO_HOOKS, CHILDS_HOOK])
@pytest.mark.backends("sqlite")
def test_sqlite_open_at_the_fork_is_refused(serve, database_url, hooks) -> None:
    """G4: each request in each worker is answered by ForkError, and writes nothing."""
    service = serve(*COMMAND, *hooks)
    service.wait_for_socket()
    answers = drive(
        service.ask, lambda answers: len(answered_by(answers, 5)) == WORKERS
    )
    for answer in answers:
        assert answer["status"] == 503
        assert "was in use when this process was forked" in answer["error"]
    service.stop()
    with SessionStore(database_url, "application", create=False) as session:
        (opened,) = session
        assert (opened.jobname, opened.requests) == ("opened", 0)
