"""Bad input gets an error that says what, where, and what to do."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import event

from sessionstore import (
    ConfigurationError,
    SessionStore,
    SqlStore,
    StoreError,
    StoreUnavailableError,
    Task,
)


def test_unreachable_server_is_named_without_the_password() -> None:
    """G9: StoreUnavailableError can be retried, and keeps the secret."""
    for scheme in ("postgresql+psycopg", "mysql+pymysql"):
        url = f"{scheme}://user:s3cret@127.0.0.1:1/db"
        with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1") as caught:
            SessionStore(url)
        assert caught.value.retryable
        assert "s3cret" not in str(caught.value)
        assert caught.value.__cause__ is not None


def test_missing_driver_names_the_extra() -> None:
    """The message says what to install."""
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from sessionstore import SqlStore, ConfigurationError\n"
        "try: SqlStore('postgresql+psycopg://h/d')\n"
        "except ConfigurationError as error: print(error)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "sessionstore[postgresql]" in said.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_read_only_folder_is_named(tmp_path: Path, fork) -> None:
    """A ConfigurationError names the file that cannot be made."""
    # Only pytest's own folders: the one that holds them is the machine's.
    temporary = Path(tempfile.gettempdir())
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to(temporary) and folder != temporary:
            folder.chmod(0o755)
    # Nobody may be unable to read the interpreter's own folder.
    importlib.import_module("sqlite3.dbapi2")

    def child() -> None:
        os.setgid(65534)
        os.setuid(65534)
        with pytest.raises(ConfigurationError, match=r"store\.db"):
            SqlStore(f"sqlite:///{tmp_path}/store.db").save(Task())

    fork(child).wait()
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_told_and_changes_nothing(tmp_path: Path) -> None:
    """A StoreUnavailableError says so; what was there stays."""
    store = SqlStore(f"sqlite:///{tmp_path}/store.db")
    task = Task("kept")
    store.save(task)
    store.close()

    @event.listens_for(store._objects.database.connections.engine, "connect")
    def limit(connection, record) -> None:
        connection.execute("PRAGMA max_page_count = 40")

    task.blob = bytes(2**20)
    with pytest.raises(StoreUnavailableError, match="full"):
        store.save(task)
    assert task.changed
    store.invalidate_cache()
    assert not hasattr(store.load(task.persistent_id), "blob")


@pytest.mark.backends("mariadb")
def test_server_limit_is_named(database_url: str) -> None:
    """An object over max_allowed_packet gets an error that names it."""
    store = SqlStore(database_url)
    store.save(Task())
    with pytest.raises(StoreError, match="max_allowed_packet"):
        store.save(Task(blob=bytes(300 * 2**20)))
    assert len(store) == 1
    store.save(Task())


def test_misspelt_option_is_warned_about(tmp_path: Path) -> None:
    """An unknown option is ignored, and not silently."""
    with pytest.warns(UserWarning, match="bussy_timeout"):
        SqlStore(f"sqlite:///{tmp_path}/s.db", bussy_timeout=3)
    with pytest.raises(ConfigurationError, match="synchronous"):
        SqlStore("sqlite://", synchronous="sometimes")
    with pytest.raises(ConfigurationError, match="table name"):
        SqlStore("sqlite://", "t" * 41)


@pytest.mark.parametrize("password", ["s3cret", "p@ss/w:rd"])
def test_password_shows_nowhere(password: str) -> None:
    """G9: neither in a repr nor in a str, wherever the URL has it."""
    encoded = quote(password, safe="")
    for url in (
        f"postgresql+psycopg://u:{encoded}@h/d",
        f"postgresql+psycopg://u@h/d?password={encoded}",
        f"mysql+pymysql://u@h/d?passwd={encoded}&charset=utf8mb4",
    ):
        store = SqlStore(url)
        assert store.url.password == password
        for shown in (repr(store), str(store), repr(store.url), str(store.url)):
            assert password not in shown
            assert encoded not in shown


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://u:s3#cret@h/d",
        "postgresql+psycopg://u:12#cret@h/d",
        "postgresql+psycopg://u:s3@cret@h/d",
        "postgresql+psycopg://u:s3cret@h:port/d",
        "u:s3cret@h/d",
    ],
)
def test_password_that_breaks_the_url_shows_nowhere(url: str) -> None:
    """G9: not even the piece of it that was taken for a host or a port."""
    with pytest.raises(ConfigurationError, match="percent-encoded") as caught:
        SqlStore(url)
    assert not re.search("s3|12|cret", str(caught.value))
    assert caught.value.__cause__ is caught.value.__context__ is None
