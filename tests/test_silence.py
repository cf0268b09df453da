"""What sockets are told of silence; who is slow, or elsewhere, does not notice."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import make_url, text

from sessionstore import Persistable, SqlStore, StoreUnavailableError
from sessionstore.database.silence import CONNECT, MARGIN, connect_options
from sessionstore.fork.inherited import descriptor_of
from sessionstore.transfer.store_reader import reading
from tests import servers

BUSY = 1
#: Fails only when something hangs.
BOUND = 30
SLEEP = {"postgresql": "SELECT pg_sleep({})", "mariadb": "SELECT sleep({})"}
DRIVERS = {
    "postgresql+psycopg": "postgresql",
    "postgresql+psycopg2": "postgresql",
    "mysql+pymysql": "mariadb",
    "mysql+mysqldb": "mariadb",
}

only_mariadb = pytest.mark.skipif(
    servers.MYSQLD is not None, reason="MySQL has no idle_transaction_timeout"
)


def with_driver(url: str, driver: str) -> str:
    if driver == "mysql+mysqldb":
        pytest.importorskip("MySQLdb")
    return make_url(url).set(drivername=driver).render_as_string(hide_password=False)


def told(store: SqlStore) -> list[int]:
    """Return what the socket of a store's connection was told, in seconds."""
    with store.transaction() as connection:
        descriptor = descriptor_of(connection.connection.dbapi_connection)
        assert descriptor is not None
        with socket.socket(fileno=os.dup(descriptor)) as same:
            assert same.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            names = ("KEEPIDLE", "KEEPINTVL", "KEEPCNT", "USER_TIMEOUT")
            idle, pause, count, limit = (
                same.getsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{name}"))
                for name in names
            )
    return [idle, pause, count, limit // 1000]


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux has these")
@pytest.mark.parametrize("driver", DRIVERS)
def test_kernel_gives_up_soon_after_busy_timeout(
    make_database: Callable[[str], str], driver: str
) -> None:
    """Whether something was sent or is waited for; the server is first to give up."""
    url = with_driver(make_database(DRIVERS[driver]), driver)
    with SqlStore(url) as store:
        assert told(store) == [7, 7, 4, 35]
    with SqlStore(url, busy_timeout=1e6) as store:
        assert told(store)[3] == 86_405


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux has these")
@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+psycopg2"])
def test_what_the_user_chose_stays(
    make_database: Callable[[str], str], driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the URL, in engine_options, or where libpq looks for it."""
    url = with_driver(make_database("postgresql"), driver) + "&tcp_user_timeout=77000"
    arguments = {"connect_args": {"keepalives_idle": 66}}
    with SqlStore(url, engine_options=arguments) as store:
        assert told(store) == [66, 7, 4, 77]
    name = driver.rpartition("+")[2]
    assert connect_options(name, BUSY)["connect_timeout"] == CONNECT
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "60")
    assert "connect_timeout" not in connect_options(name, BUSY)


@pytest.mark.parametrize("driver", DRIVERS)
def test_who_takes_a_connection_and_says_nothing_is_given_up(driver: str) -> None:
    """As a proxy without a server does, or a host that is cut off just then."""
    if driver == "mysql+mysqldb":
        pytest.importorskip("MySQLdb")
    with socket.create_server(("127.0.0.1", 0)) as mute, ThreadPoolExecutor(1) as pool:
        url = f"{driver}://tester@127.0.0.1:{mute.getsockname()[1]}/none"
        # libpq would have no less than 2.
        options = {"connect_args": {"connect_timeout": 2}}
        store = SqlStore(url, engine_options=options)
        saving = pool.submit(store.save, Persistable())
        try:
            with pytest.raises(StoreUnavailableError, match="cannot be reached"):
                saving.result(BOUND)
        finally:
            mute.close()  # which ends what is still waiting


@pytest.mark.backends("postgresql", "mariadb")
def test_unix_sockets_are_left_alone(server: servers.Server, backend: str) -> None:
    """There is no network that could be silent."""
    login = server.url.partition("://")[2].rpartition("@")[0]
    port = make_url(server.url).port
    places = {
        "postgresql": f"{login}@/postgres?host={server.folder}&port={port}",
        "mariadb": f"root@localhost/mysql?unix_socket={server.folder}/socket",
    }
    for driver in (name for name, its in DRIVERS.items() if its == backend):
        with SqlStore(with_driver(f"{driver}://{places[backend]}", driver)) as store:
            assert store.load(store.save(Persistable())) is not None


def test_slow_statement_is_not_silence(make_database: Callable[[str], str]) -> None:
    """It is answered, though it takes longer than silence and connecting may."""

    def run_slowly(driver: str) -> None:
        with SqlStore(urls[driver], busy_timeout=BUSY) as store:
            with store.transaction() as connection:
                seconds = max(BUSY + MARGIN, CONNECT) + 1
                sleep = SLEEP[DRIVERS[driver]].format(seconds)
                connection.execute(text(sleep))

    urls = {
        driver: with_driver(make_database(backend), driver)
        for driver, backend in DRIVERS.items()
    }
    with ThreadPoolExecutor(len(urls)) as pool:
        list(pool.map(run_slowly, urls))


@only_mariadb
@pytest.mark.backends("postgresql", "mariadb")
def test_server_watches_its_end_too(database_url: str, backend: str) -> None:
    """Whoever vanishes with rows locked must not keep them for hours."""
    queries = {
        "postgresql": "SELECT current_setting('tcp_keepalives_idle'), "
        "current_setting('tcp_keepalives_interval'), "
        "current_setting('tcp_keepalives_count'), current_setting('tcp_user_timeout')",
        "mariadb": "SELECT @@idle_transaction_timeout",
    }
    expected = {"postgresql": [("7", "7", "4", "35000"), ("1", "1", "4", "6000")]}
    expected["mariadb"] = [(60,), (60,)]
    asked = []
    for busy_timeout in (30, BUSY):
        with SqlStore(database_url, busy_timeout=busy_timeout) as store:
            with store.transaction() as connection:
                asked.append(tuple(connection.execute(text(queries[backend])).one()))
    assert asked == expected[backend]


@only_mariadb
@pytest.mark.backends("mariadb")
def test_block_that_says_nothing_for_long_is_ended(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By MariaDB, as a whole; a copy, which locks nothing, may take its time."""
    monkeypatch.setattr(
        "sessionstore.database.silence.idle_limit", lambda busy_timeout: 1
    )
    with SqlStore(database_url) as store:
        id_ = store.save(Persistable())
        with pytest.raises(StoreUnavailableError), store.transaction():
            store.remove(id_)
            time.sleep(2)
            store.save(Persistable())
        assert store.list() == [id_]
        with reading(store) as reader:
            time.sleep(2)
            assert [item.id for items in reader.batches() for item in items] == [id_]


@pytest.mark.backends("postgresql")
def test_server_that_waits_for_a_lock_is_not_silent(database_url: str) -> None:
    """It takes no more of what psycopg sends meanwhile, and still is who gives up."""
    many = [Persistable() for _ in range(200)]
    with SqlStore(database_url, busy_timeout=BUSY) as store:
        store.save_many(many)
        for each in many:
            each.filling = os.urandom(50_000)  # type: ignore[attr-defined]
        with SqlStore(database_url) as other, other.transaction() as connection:
            connection.execute(text("SELECT 1 FROM store FOR UPDATE"))
            with pytest.raises(StoreUnavailableError, match="is busy"):
                store.save_many(many)
        store.save_many(many)
