"""Bad input gets an error that says what, where, and what to do."""

from __future__ import annotations

import importlib
import os
import pickle
import re
import sqlite3
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import create_engine, event, make_url, text

from sessionstore import (
    ConfigurationError,
    EncodeError,
    FilesystemStore,
    SchemaError,
    SessionStore,
    SqlStore,
    StoreError,
    StoreUnavailableError,
    Task,
    Url,
)
from tests import servers


def test_unreachable_server_is_named_without_the_password() -> None:
    """G9: StoreUnavailableError can be retried, and keeps the secret."""
    for scheme in ("postgresql+psycopg", "mysql+pymysql"):
        url = f"{scheme}://user:s3cret@127.0.0.1:1/db"
        with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1") as caught:
            SessionStore(url)
        assert caught.value.retryable
        assert "s3cret" not in str(caught.value)
        assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("url", "module", "said"),
    [
        ("postgresql+psycopg://h/d", "psycopg", r"; pip .*sessionstore\[postgresql\]"),
        ("mysql+pymysql://h/d", "pymysql", r"; pip .*sessionstore\[mysql\]"),
        ("postgresql+psycopg2://h/d", "psycopg2", r" or write postgresql\+psycopg://"),
        ("mysql://h/d", "MySQLdb", r" or write mysql\+pymysql:// and pip install"),
        ("mariadb://h/d", "MySQLdb", r" or write mariadb\+pymysql:// and pip install"),
        ("oracle+cx_oracle://h/d", "cx_Oracle", "; install the package that provides"),
    ],
)
def test_missing_driver_names_what_helps(
    url: str, module: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says what to install, and which driver that is for."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigurationError, match=said):
        SqlStore(url)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql+psycopg3", "http"])
def test_unknown_database_is_told_how_known_ones_are_written(scheme: str) -> None:
    """Of a name that is nearly right, too."""
    with pytest.raises(ConfigurationError, match=r"like .*postgresql\+psycopg://"):
        SessionStore(f"{scheme}://h/d")


def test_empty_url_is_not_the_working_folder() -> None:
    """It comes of a variable that is not set, and no file is to be named after it."""
    with pytest.raises(ConfigurationError, match="'' is not a database URL"):
        SessionStore("")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_read_only_folder_is_named(tmp_path: Path, run_forked) -> None:
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

    run_forked(child)
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
    with pytest.warns(UserWarning, match="bussy_timeout") as caught:
        SessionStore(f"sqlite:///{tmp_path}/s.db", bussy_timeout=3).close()
    assert caught[0].filename == __file__  # not a module of the package
    with pytest.raises(ConfigurationError, match="synchronous"):
        SqlStore("sqlite://", synchronous="sometimes")
    with pytest.raises(ConfigurationError, match="table name"):
        SqlStore("sqlite://", "t" * 41)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("serializer", "json", "dumps and loads; str has no dumps"),
        ("idfactory", 5, "with new; int has no new"),
        ("busy_timeout", "3", "'3' must be a number of seconds"),
        ("busy_timeout", -1, "-1 must be a number of seconds"),
        ("synchronous", None, "None must be one of OFF"),
        ("rename", "a:b", "must be a mapping, not str"),
        ("engine_options", 5, "must be a mapping, not int"),
    ],
)
def test_option_that_cannot_be_used_is_refused_at_once(
    name: str, value: Any, expected: str
) -> None:
    """The constructor names the option, what it was given, and what it takes."""
    with pytest.raises(ConfigurationError, match=f"^{name}.*{expected}"):
        SqlStore("sqlite://", **{name: value})


def test_a_serializer_that_is_none_is_not_shown(tmp_path: Path) -> None:
    """G9: who gives a key in its place does not find it in the error."""
    wrong: Any = "s3cret"
    with pytest.raises(ConfigurationError) as caught:
        FilesystemStore(tmp_path, serializer=wrong)
    assert "s3cret" not in str(caught.value)


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


@pytest.mark.backends("postgresql", "mariadb")
@pytest.mark.parametrize(
    "wrong", [{"password": "s3cret"}, {"username": "nobody"}, {"database": "nosuch"}]
)
def test_refused_connection_is_no_matter_of_time(
    database_url: str, wrong: dict[str, str]
) -> None:
    """G9: a ConfigurationError, which no retry mends, without the password."""
    with pytest.raises(ConfigurationError, match="credentials") as caught:
        SqlStore(make_url(database_url).set(**wrong)).save(Task())
    assert not caught.value.retryable
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.backends("postgresql")
@pytest.mark.parametrize("may_log_in", [True, False])
def test_role_that_is_not_let_in_is_no_matter_of_time(
    database_url: str, may_log_in: bool
) -> None:
    """A ConfigurationError too: libpq tells no SQLSTATE of these."""
    url = make_url(database_url)
    role = f"stranger_{url.database}_{int(may_log_in)}"
    login = "LOGIN" if may_log_in else "NOLOGIN"
    servers.execute(
        database_url,
        f"REVOKE CONNECT ON DATABASE {url.database} FROM PUBLIC",
        f"CREATE ROLE {role} {login} PASSWORD 's3cret'",
    )
    try:
        stranger = url.set(username=role, password="s3cret")
        with pytest.raises(ConfigurationError, match="credentials"):
            SqlStore(stranger).save(Task())
    finally:
        servers.execute(database_url, f"DROP ROLE {role}")


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///nul\0.db",
        "mysql+pymysql://u:s3cret@h/d?nosuch=1",
        "mysql+pymysql://u:s3cret@127.0.0.1:1/d?ssl_ca=/nonexistent.pem",
        "postgresql+psycopg://u:s3cret@127.0.0.1:1/d?nosuch=1",
    ],
)
def test_option_that_the_driver_refuses_is_told(url: str) -> None:
    """G9: a ConfigurationError, not what the driver stumbled over."""
    with pytest.raises(ConfigurationError) as caught:
        SqlStore(url).save(Task())
    assert "s3cret" not in str(caught.value)


def test_package_that_the_driver_lacks_is_named() -> None:
    """PyMySQL finds it out when MySQL asks for a password, and has no error for it."""

    def refuse() -> object:
        raise RuntimeError("'cryptography' package is required for sha256_password")

    store = SqlStore("mysql+pymysql://h/d", engine_options={"creator": refuse})
    with pytest.raises(ConfigurationError, match="'cryptography' package is required"):
        store.save(Task())


@pytest.mark.backends("mariadb")
def test_payload_too_long_for_an_old_column_is_never_cut(database_url: str) -> None:
    """G7: also where the server would do so, and only warn."""
    lax = make_url(database_url).set(query={"init_command": "SET sql_mode = ''"})
    engine = create_engine(lax)
    with engine.begin() as connection:
        connection.execute(
            text("CREATE TABLE store (id INT PRIMARY KEY, data BLOB, state TEXT)")
        )
        connection.execute(text("INSERT INTO store VALUES (1, REPEAT('x', 70000), '')"))
    engine.dispose()
    store = SqlStore(lax)
    with pytest.raises(StoreError, match="data"):
        store.save(Task(blob=bytes(2**16)))
    assert len(store) == 1


def test_sqlite_uri_is_treated_as_a_path(tmp_path: Path) -> None:
    """G9: create=False makes no file, and a new file is its owner's only."""
    url = f"sqlite:///file:{tmp_path}/store.db?uri=true"
    for missing in (SqlStore(url, create=False), SqlStore(f"{url}&mode=ro")):
        with pytest.raises(SchemaError):
            missing.save(Task())
    assert list(tmp_path.iterdir()) == []
    SqlStore(url).save(Task("kept"))
    assert (tmp_path / "store.db").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigurationError, match="readonly"):
        SqlStore(f"{url}&mode=ro").save(Task())


def test_old_sqlite_file_can_be_read_without_writing_to_it(tmp_path: Path) -> None:
    """G8: not even its journal mode is changed."""
    with sqlite3.connect(tmp_path / "old.db") as connection:
        connection.execute("CREATE TABLE store (id INTEGER PRIMARY KEY, data, state)")
        connection.execute("INSERT INTO store VALUES (7, NULL, 'NEW')")
    connection.close()
    store = SqlStore(f"sqlite:///file:{tmp_path}/old.db?mode=ro&uri=true", create=False)
    assert list(store.list()) == [7]
    assert [path.name for path in tmp_path.iterdir()] == ["old.db"]


def test_engine_options_do_not_undo_what_forks_need(tmp_path: Path, run_forked) -> None:
    """G4: connect_args of the user's own stand beside the store's."""
    options = {"connect_args": {"cached_statements": 50}}
    store = SqlStore(f"sqlite:///{tmp_path}/store.db", engine_options=options)
    opened, done = threading.Event(), threading.Event()

    def use() -> None:
        store.save(Task())
        opened.set()
        done.wait(60)

    thread = threading.Thread(target=use)
    thread.start()
    opened.wait(60)
    run_forked(store.save, Task())
    done.set()
    thread.join()
    assert len(store) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"isolation_level": "SERIALIZABLE"},
        {"execution_options": {"isolation_level": "READ COMMITTED"}},
    ],
)
def test_isolation_in_which_nothing_would_be_committed_is_refused(
    database_url: str, options: dict[str, Any]
) -> None:
    """G1: in SQLAlchemy's other levels each statement begins a transaction."""
    with pytest.raises(ConfigurationError, match=r"isolation_level=.*leave it out"):
        SqlStore(database_url, engine_options=options)


def test_password_of_a_url_gets_into_no_payload(tmp_path: Path) -> None:
    """G9: a task that holds one is refused, and says what to do."""
    store = SqlStore(f"sqlite:///{tmp_path}/store.db")
    store.save(Task(url=Url("postgresql://u@h/d")))
    with pytest.raises(EncodeError, match="without") as caught:
        store.save(Task(url=Url("postgresql://u:s3cret@h/d")))
    assert "s3cret" not in str(caught.value)
    assert pickle.loads(pickle.dumps(Url("x://u:s3cret@h"))).password == "s3cret"
    assert len(store) == 1
