"""The fixtures, as the tests of somebody else's program see them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect

TESTS = """
    import os
    from sessionstore import SessionStore, Task

    import pytest

    @pytest.mark.parametrize("n", range(6))
    def test_each_has_its_own(session_store, n):
        assert len(session_store) == 0
        session_store.add(Task(str(n)))
        assert [task.jobname for task in session_store] == [str(n)]

    def test_second_store_sees_the_same(session_store, session_store_url):
        id_ = session_store.add(Task("x"))
        with SessionStore(session_store_url, create=False) as other:
            assert other.load(id_).jobname == "x"

    def test_child_works_on(session_store, run_forked):
        id_ = run_forked(lambda: session_store.add(Task("of the child")))
        assert session_store.load(id_).jobname == "of the child"

    def test_children_work_side_by_side(session_store, start_forked):
        children = [
            start_forked(session_store.add, Task(str(n)), timeout=30) for n in range(3)
        ]
        ids = {child.wait() for child in children}
        assert ids == set(session_store.ids())
"""


@pytest.fixture
def run_tests(tmp_path: Path) -> Callable[..., str]:
    """Run the text of a test module in a pytest of its own, and return its report."""
    # Not pytester, which takes modules that its tests import out of sys.modules.

    def run(text: str, *arguments: str) -> str:
        (tmp_path / "test_it.py").write_text(textwrap.dedent(text))
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
        command += ["--rootdir=.", f"--basetemp={tmp_path}/tmp", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        return done.stdout + done.stderr

    return run


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_fixtures_work_on_sqlite(
    run_tests: Callable[..., str], workers: list[str]
) -> None:
    """Nothing needs to be said, under xdist neither."""
    # From 3.12 on CPython warns of the forks, as xdist's workers have threads.
    assert "= 9 passed" in run_tests(TESTS, *workers)


@pytest.mark.backends("postgresql", "mariadb")
def test_fixtures_work_on_a_server(
    run_tests: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    make_database: Callable[[str], str],
    backend: str,
) -> None:
    """In the database that the environment names; no table is left there."""
    url = make_database(backend)
    where = f"""
    def test_where(session_store):
        assert session_store.store.url.drivername in {url!r}
    """
    monkeypatch.setenv("SESSIONSTORE_TEST_URL", url)
    assert "= 10 passed" in run_tests(TESTS + where, "-n", "2")
    engine = create_engine(url)
    assert inspect(engine).get_table_names() == []
    engine.dispose()


def test_option_names_the_database(
    run_tests: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes before the environment."""
    monkeypatch.setenv("SESSIONSTORE_TEST_URL", "sqlite:///elsewhere.db")
    test = """
    def test_where(session_store):
        assert session_store.store.url.database.endswith("/here.db")
    """
    said = run_tests(test, "--sessionstore-url=sqlite:///here.db")
    assert "= 1 passed in" in said


def test_database_that_is_not_there_is_told_in_a_line(
    run_tests: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each test, without the driver's frames, which show passwords (G9)."""
    url = "postgresql+psycopg://ann:s3cret@127.0.0.1:1/jobs"
    monkeypatch.setenv("SESSIONSTORE_TEST_URL", url)
    said = run_tests("def test_it(session_store): pass")
    assert "= 1 error in" in said
    assert "postgresql+psycopg://ann:***@127.0.0.1:1/jobs cannot be reached" in said
    assert "s3cret" not in said


@pytest.mark.backends("postgresql", "mariadb")
def test_failed_test_shows_no_password(
    run_tests: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    make_database: Callable[[str], str],
    backend: str,
) -> None:
    """The URL is among what pytest prints of a test that failed (G9)."""
    url = make_database(backend)
    monkeypatch.setenv("SESSIONSTORE_TEST_URL", url)
    said = run_tests("def test_it(session_store_url, session_store): assert 0")
    assert "session_store_url = " in said
    assert url.partition("@")[0] not in said


def test_child_that_was_not_waited_for_fails_the_test(
    run_tests: Callable[..., str],
) -> None:
    """And is gone."""
    said = run_tests(
        """
        import time, psutil, pytest

        @pytest.fixture(autouse=True)
        def nobody_is_left():
            yield
            assert not psutil.Process().children()

        def test_forgetful(start_forked):
            start_forked(time.sleep, 1000)
        """
    )
    assert "= 1 passed, 1 error in" in said
    assert "did not wait for all of its children" in said
