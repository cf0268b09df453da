"""Fixtures: a database of its own for each test, and children with bounds."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from sessionstore import SessionStore
from tests import servers

BACKENDS = ("sqlite", "postgresql", "mariadb")


def _missing() -> list[str]:
    missing = []
    if servers.postgresql_binary("initdb") is None:
        missing.append("postgresql")
    if servers.mariadb_binary("mariadbd") is None:
        missing.append("mariadb")
    if find_spec("MySQLdb") is None:
        missing.append("mysqlclient")
    return missing


def pytest_xdist_auto_num_workers() -> int | None:
    # Half of the tests' time is waiting: for leases, timeouts and servers to start.
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    return 2 * len(os.sched_getaffinity(0))


def pytest_configure(config: pytest.Config) -> None:
    # A shell's background job ignores Ctrl-C, with all that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "backends(*names): run on these only")
    if hasattr(config, "workerinput"):
        return
    missing = _missing()
    if missing and os.environ.get("CI"):
        raise pytest.UsageError(f"not installed: {', '.join(missing)}")
    # The controller starts the servers, and its workers are told where they are.
    config.stash[_running] = started = {}
    if not config.option.collectonly:
        if "postgresql" not in missing:
            started["postgresql"] = servers.start_postgresql()
        if "mariadb" not in missing:
            started["mariadb"] = servers.start_mariadb()
    for name, server in started.items():
        os.environ[f"SESSIONSTORE_TEST_{name.upper()}"] = server.url


_running: pytest.StashKey[dict[str, servers.Server]] = pytest.StashKey()


def pytest_unconfigure(config: pytest.Config) -> None:
    for server in config.stash.get(_running, {}).values():
        server.stop()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("backends")
        metafunc.parametrize("backend", marker.args if marker else BACKENDS)


@contextmanager
def databases(worker_id: str) -> Iterator[Callable[[str], str]]:
    """Give a function that makes empty databases on a server and returns their URLs.

    They are dropped at the block's end.
    """
    with ExitStack() as made:

        def make(backend: str) -> str:
            server = os.environ.get(f"SESSIONSTORE_TEST_{backend.upper()}")
            if server is None:
                pytest.skip(f"there is no {backend} server on this machine")
            name = f"test_{worker_id}_{os.getpid()}_{time.monotonic_ns()}"
            engine = create_engine(server, isolation_level="AUTOCOMMIT")
            force = " WITH (FORCE)" if backend == "postgresql" else ""

            def run(statement: str) -> None:
                with engine.connect() as connection:
                    connection.execute(text(statement))
                engine.dispose()

            run(f"CREATE DATABASE {name}")
            made.callback(run, f"DROP DATABASE {name}{force}")
            url = engine.url.set(database=name)
            return url.render_as_string(hide_password=False)

        yield make


@pytest.fixture
def make_database(tmp_path: Path, worker_id: str) -> Iterator[Callable[[str], str]]:
    """Make an empty database that no other test uses, and return its URL."""
    with databases(worker_id) as on_server:

        def make(backend: str) -> str:
            if backend == "sqlite":
                return f"sqlite:///{tmp_path}/store.db"
            return on_server(backend)

        yield make


@pytest.fixture
def database_url(backend: str, make_database: Callable[[str], str]) -> str:
    """The URL of an empty database, of each backend in turn."""
    return make_database(backend)


@pytest.fixture
def server(backend: str) -> Iterator[servers.Server | None]:
    """A server of the test's own, which it may kill; for SQLite None."""
    if backend == "sqlite":
        yield None
        return
    if backend in _missing():
        pytest.skip(f"there is no {backend} server on this machine")
    start = {
        "postgresql": servers.start_postgresql,
        "mariadb": servers.start_mariadb,
    }
    server = start[backend]()
    yield server
    server.stop()


@pytest.fixture
def session_store_url(database_url: str) -> str:
    """Have the package's own fixtures work on each backend in turn."""
    return database_url


@pytest.fixture
def session(session_store: SessionStore) -> SessionStore:
    """A session that is empty, of each backend in turn."""
    return session_store


@pytest.fixture
def other(session: SessionStore, database_url: str) -> SessionStore:
    """The same session, as another process would open it."""
    return SessionStore(database_url, create=False)
