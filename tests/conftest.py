"""Fixtures: a database of its own for each test, and children with bounds."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pymysql
import pytest

from tests import servers

BACKENDS = ("sqlite", "postgresql", "mariadb")


def _missing() -> list[str]:
    missing = []
    if servers.postgresql_binary("initdb") is None:
        missing.append("postgresql")
    if servers.mariadb_binary("mariadbd") is None:
        missing.append("mariadb")
    return missing


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "backends(*names): run on these only")
    if hasattr(config, "workerinput"):
        return
    missing = _missing()
    if missing and os.environ.get("CI"):
        raise pytest.UsageError(f"no server programs found for: {', '.join(missing)}")
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


@pytest.fixture
def database_url(backend: str, tmp_path: Path, worker_id: str) -> Iterator[str]:
    """The URL of an empty database that no other test uses."""
    if backend == "sqlite":
        yield f"sqlite:///{tmp_path}/store.db"
        return
    address = os.environ.get(f"SESSIONSTORE_TEST_{backend.upper()}")
    if address is None:
        pytest.skip(f"there is no {backend} server on this machine")
    name = f"test_{worker_id}_{os.getpid()}_{time.monotonic_ns()}"
    if backend == "postgresql":
        with psycopg.connect(
            f"postgresql://{address}/postgres", autocommit=True
        ) as connection:
            connection.execute(f"CREATE DATABASE {name}")
            yield f"postgresql+psycopg://{address}/{name}"
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    else:
        host, _, port = address.partition("@")[2].partition(":")
        with pymysql.connect(
            host=host, port=int(port), user="root", autocommit=True
        ) as connection:
            connection.cursor().execute(f"CREATE DATABASE {name}")
            yield f"mysql+pymysql://{address}/{name}"
            connection.cursor().execute(f"DROP DATABASE {name}")


class Child:
    """A forked process that runs one function and leaves by os._exit."""

    def __init__(self, function: Callable[[], object]) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.close(reader)
                signal.alarm(60)
                function()
                status = 0
            except BaseException:
                os.write(writer, traceback.format_exc().encode()[-60_000:])
            finally:
                os._exit(status)
        os.close(writer)
        self._reader = reader

    def wait(self) -> None:
        """Wait for the child's end; its exception fails the test."""
        with os.fdopen(self._reader, "rb") as pipe:
            said = pipe.read().decode()
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code == 0, f"the child ended with {code}:\n{said}"


@pytest.fixture
def fork() -> Iterator[Callable[[Callable[[], object]], Child]]:
    """Run functions in children, each with a bound of its own."""
    yield Child
    assert threading.active_count() >= 1
