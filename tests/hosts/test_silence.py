"""A network that loses all packets and tells nobody: who finds out, and when."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from sqlalchemy import make_url, text

from sessionstore import Persistable, SessionStore, SqlStore, StoreUnavailableError
from tests import servers
from tests.daemon.conftest import until
from tests.hosts.network import Namespace, Network, namespace
from tests.systemd.host import need_boxes

BUSY = 1
#: Connecting has a bound of its own, which libpq would have no less than 2.
CONNECT = {"connect_args": {"connect_timeout": 2}}
#: Fails only when something hangs: the kernel's own bound is 15 minutes.
BOUND = 60
DRIVERS = {
    "postgresql+psycopg": servers.start_postgresql,
    "postgresql+psycopg2": servers.start_postgresql,
    "mysql+pymysql": servers.start_mariadb,
    "mysql+mysqldb": servers.start_mariadb,
}
SLEEP = {"postgresql": "SELECT pg_sleep({})", "mysql": "SELECT sleep({})"}
SLEEPERS = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE query = '{}'",
    "mysql": "SELECT count(*) FROM information_schema.processlist WHERE info = '{}'",
}
#: Seconds.
LONG, SHORT = 600, 3


class Wire:
    """A database, and another host that reaches it until the wire is cut."""

    def __init__(self, network: Network, far: Namespace, server: servers.Server):
        self._network = network
        #: Has the calling thread on the other host.
        self.far = far.entered
        #: Of a server that the test reaches whatever happens.
        self.near_url = server.url
        self._url = make_url(server.url).set(host=network.ADDRESS)

    def url(self, driver: str) -> str:
        """Return the database's URL on the other host."""
        return self._url.set(drivername=driver).render_as_string(hide_password=False)

    def cut(self) -> None:
        """Have it lose all that is sent on it; not to be called on the other host."""
        self._network.cut("far")

    def mend(self) -> None:
        """Undo that."""
        self._network.mend("far")


@pytest.fixture
def wire(driver: str) -> Iterator[Wire]:
    """A server for a driver, and a host that a wire leads to."""
    need_boxes("ip")
    if servers.postgresql_binary("initdb") is None or not servers.mariadb_binary(
        "mariadbd"
    ):
        pytest.skip("there is no PostgreSQL, or no MariaDB")
    if driver == "mysql+mysqldb":
        pytest.importorskip("MySQLdb")
    with Network() as network, namespace() as far:
        network.connect(far, "far", 2)
        server = DRIVERS[driver](f"{network.ADDRESS}/24")
        if driver.startswith("mysql"):
            server.url = server.make_database()
        try:
            yield Wire(network, far, server)
        finally:
            server.stop()


def sleepers(store: SqlStore, seconds: int) -> int:
    """Return how many sessions of a server sleep for that long now."""
    backend = store.url.get_backend_name()
    query = SLEEPERS[backend].format(SLEEP[backend].format(seconds))
    with store.transaction() as connection:
        return int(connection.execute(text(query)).scalar_one())


@contextmanager
def bounded() -> Iterator[None]:
    """Fail when the block was not over soon after the kernel's patience is."""
    began_at = time.monotonic()
    yield
    assert time.monotonic() - began_at < BOUND


@pytest.mark.parametrize("driver", DRIVERS)
def test_silence_is_found_out(wire: Wire, driver: str) -> None:
    """Whoever writes, or waits for an answer, is told, and goes on afterwards."""
    store = SqlStore(wire.url(driver), busy_timeout=BUSY, engine_options=CONNECT)
    backend = make_url(wire.near_url).get_backend_name()

    def wait_for_answer() -> None:
        with wire.far(), store.transaction() as connection:
            connection.execute(text(SLEEP[backend].format(LONG)))

    with SqlStore(wire.near_url) as near, ThreadPoolExecutor(1) as pool:
        with wire.far():
            id_ = store.save(Persistable())
        waiting = pool.submit(wait_for_answer)
        until(lambda: sleepers(near, LONG))
        wire.cut()
        with bounded():
            with wire.far(), pytest.raises(StoreUnavailableError):
                store.save(Persistable())
            with pytest.raises(StoreUnavailableError, match="lost"):
                waiting.result(BOUND)
        wire.mend()
        with wire.far():
            assert id_ in store
            store.close()


def wait_as_another(
    wire: Wire, driver: str, *, is_answered: bool, patience: float = BOUND
) -> None:
    """Cut a host off in a transaction, and write a row that it has locked."""
    far = SqlStore(wire.url(driver), busy_timeout=BUSY, engine_options=CONNECT)
    backend = make_url(wire.near_url).get_backend_name()
    obj = Persistable()
    answered, cut = threading.Event(), threading.Event()

    def vanish() -> None:
        with wire.far(), far.transaction() as connection:
            far.remove(id_)
            connection.execute(text(SLEEP[backend].format(SHORT)))
            answered.set()
            cut.wait()
            far.save(Persistable())

    with (
        SqlStore(wire.near_url, busy_timeout=patience) as near,
        ThreadPoolExecutor(1) as pool,
    ):
        id_ = near.save(obj)
        vanishing = pool.submit(vanish)
        until(answered.is_set if is_answered else lambda: sleepers(near, SHORT))
        wire.cut()
        cut.set()
        try:
            near.save(obj)
        finally:
            with pytest.raises(StoreUnavailableError):
                vanishing.result(BOUND)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("is_answered", [True, False])
def test_rows_of_a_host_that_vanished_are_given_back(
    wire: Wire, driver: str, is_answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G6: cut off in a transaction, with an answer on its way to it or not."""
    monkeypatch.setattr("sessionstore.database.silence.IDLE", 6)
    wait_as_another(wire, driver, is_answered=is_answered)


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "mysql+pymysql"])
def test_server_would_not_notice_by_itself(
    wire: Wire, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G6: else all who need these rows wait for it."""
    monkeypatch.setattr(
        "sessionstore.database.silence.postgresql_settings", lambda busy_timeout: {}
    )
    monkeypatch.setattr(
        "sessionstore.database.silence.idle_limit", lambda busy_timeout: 0
    )
    with pytest.raises(StoreUnavailableError, match="is busy"):
        wait_as_another(wire, driver, is_answered=True, patience=20)


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+psycopg2"])
def test_who_waits_for_changes_is_told(wire: Wire, driver: str) -> None:
    """The connection that listens asks nothing, and is watched too."""
    url = wire.url(driver)
    with wire.far():
        session = SessionStore(url, busy_timeout=BUSY, engine_options=CONNECT)
        assert not session.wait(0)
    wire.cut()
    with wire.far(), bounded(), pytest.raises(StoreUnavailableError):
        session.wait(600)
    wire.mend()
    with wire.far():
        # Something may have happened while the connection was away.
        assert session.wait(0)
        assert not session.wait(0)
        session.store.close()
