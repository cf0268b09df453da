"""The pytest plugin: see ``sessionstore.testing``."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sessionstore.errors import SessionStoreError
from sessionstore.session import SessionStore
from sessionstore.sql import SqlStore
from sessionstore.testing import children
from sessionstore.testing.children import Child
from sessionstore.testing.isolation import drop_tables
from sessionstore.url import Url

__all__ = ["run_forked", "session_store", "session_store_url", "start_forked"]

pytest.register_assert_rewrite("sessionstore.testing.contract")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--sessionstore-url``."""
    parser.getgroup("sessionstore").addoption(
        "--sessionstore-url",
        metavar="URL",
        default=os.environ.get("SESSIONSTORE_TEST_URL"),
        help="database for the fixture session_store, which must be there (default: "
        "SQLite files); SESSIONSTORE_TEST_URL does not show in the list of processes",
    )


@pytest.fixture
def session_store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty store that no other test uses.

    For ``SessionStore``, here or in another process.
    """
    url = request.config.getoption("--sessionstore-url")
    if not url:
        yield f"sqlite:///{tmp_path}/session_store.db"
        return
    table = f"test_{secrets.token_hex(8)}"
    own = _QuietUrl(f"{url.partition('#')[0]}#table={table}")
    try:
        with SqlStore(own) as store, store.transaction():
            pass
    except SessionStoreError as error:
        # Without the driver's frames, whose arguments pytest prints: passwords too.
        pytest.fail(f"no database for session_store: {error}", pytrace=False)
    yield own
    drop_tables(url, table)


class _QuietUrl(str):
    """A URL as text, which pytest prints without its password."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(str(Url(self)))


@pytest.fixture
def session_store(session_store_url: str) -> Iterator[SessionStore]:
    """An empty ``SessionStore`` that no other test sees."""
    with SessionStore(session_store_url) as session:
        yield session


@pytest.fixture
def run_forked() -> Callable[..., Any]:
    """Run a function in a forked child, and return what it returned there.

    ``run_forked(function, *args, timeout=60)``; what it raises is raised here.
    """
    return children.run_forked


@pytest.fixture
def start_forked() -> Iterator[Callable[..., Child]]:
    """Start functions in forked children that run side by side.

    ``start_forked(function, *args, timeout=60)`` returns a ``Child``, whose
    ``wait()`` returns what the function returned, or raises what it raised.  The
    test must wait for each: what is left at its end is killed, and fails it.
    """
    parent = os.getpid()
    started: list[Child] = []

    def start(function: Callable[..., object], *args: object, **options: Any) -> Child:
        child = Child(function, *args, **options)
        started.append(child)
        return child

    yield start
    left = [child for child in started if not child.is_waited_for]
    if os.getpid() == parent:
        for child in left:
            child.kill()
    assert not left, "the test did not wait for all of its children"
