"""The doctor finds each thing that is wrong, in a store damaged in just that way."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import create_engine, text

from sessionstore import SessionStore, SqlStore, State, Task
from sessionstore.doctor import Finding, Level, examine


@pytest.fixture
def damage(database_url: str) -> Callable[..., None]:
    """Run statements behind the store's back."""

    def run(*statements: str) -> None:
        engine = create_engine(database_url)
        with engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))
        engine.dispose()

    return run


def findings(store: SqlStore) -> dict[str, Finding]:
    return {finding.check: finding for finding in examine(store)}


def wrong(store: SqlStore) -> dict[str, Finding]:
    found = findings(store).values()
    return {finding.check: finding for finding in found if finding.level == "wrong"}


def only_wrong(store: SqlStore) -> Finding:
    """Return the one thing that is wrong."""
    [finding] = wrong(store).values()
    assert finding.why
    assert finding.remedy
    return finding


def test_nothing_is_wrong_with_a_good_store(session: SessionStore) -> None:
    """Also where tasks are held, nested, forgotten, redone and removed."""
    a, b, c, _ = session.add_many([Task("a"), Task("b"), Task("c"), Task("d")])
    session.add(Task("outer", tasks=[Task("inner")]))
    session.transition(a, State.SUBMITTED)
    session.transition(a, State.TERMINATED)
    session.redo(a)
    session.forget(b)
    session.remove(c)
    [claim] = session.claim()
    claim.transition(State.SUBMITTED)
    assert wrong(session.store) == {}
    assert {"server", "table", "schema version", "IDs", "states", "history"} < set(
        findings(session.store)
    )


def test_table_without_sessions_is_noted(database_url: str) -> None:
    """G8: an old table is no mistake."""
    with SqlStore(database_url) as store:
        store.save(Task())
        engine = create_engine(database_url)
        store._objects.schema.version.drop(engine)
        engine.dispose()
        finding = findings(store)["schema version"]
    assert (finding.level, finding.remedy) == (Level.NOTE, "sessionstore migrate")
    assert wrong(store) == {}


# The server


@pytest.mark.backends("sqlite")
def test_database_that_is_not_there(tmp_path: Path) -> None:
    """Nor is it made by looking."""
    store = SqlStore(f"sqlite:///{tmp_path}/no.db", create=False)
    assert only_wrong(store).check == "database"
    assert list(tmp_path.iterdir()) == []
    away = SqlStore("postgresql+psycopg://nobody@127.0.0.1:1/x", create=False)
    assert "cannot be reached" in only_wrong(away).what


@pytest.mark.backends("postgresql", "mariadb")
def test_old_server(session: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims, or connections, need what it has not."""
    dialect = session.store._objects.database.connections.engine.dialect
    version, lacks = {
        "postgresql": ((11, 22), "tcp_user_timeout"),
        "mariadb": ((5, 5, 9), "SKIP LOCKED"),
        "mysql": ((8, 0, 0), "SKIP LOCKED"),
    }["mariadb" if getattr(dialect, "is_mariadb", False) else dialect.name]
    monkeypatch.setattr(type(dialect), "_get_server_version_info", lambda *_: version)
    finding = wrong(session.store)["server"]
    assert f"{'.'.join(map(str, version))} is older than" in finding.what
    assert lacks in finding.why


def test_host_whose_clock_is_wrong(
    session: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By more than a few seconds."""
    monkeypatch.setattr(
        "sessionstore.doctor.server.time",
        SimpleNamespace(time=lambda: time.time() + 60),
    )
    # On a busy machine some time goes by between the two clocks.
    assert re.search(r"\b6[0-5]\.\d s", only_wrong(session.store).what)


@pytest.mark.backends("mariadb")
def test_packet_limit_and_driver_are_noted(
    session: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit, where it is below what stores promise to take."""
    assert findings(session.store)["packet limit"].level is Level.OK
    monkeypatch.setattr("sessionstore.doctor.server.PAYLOAD", 2**30)
    finding = findings(session.store)["packet limit"]
    assert (finding.level, finding.what) == (
        Level.NOTE,
        "max_allowed_packet is 256 MiB",
    )
    url = session.store.url.set(drivername="mysql+mysqldb")
    pytest.importorskip("MySQLdb")
    finding = findings(SqlStore(url, create=False))["driver"]
    assert finding.level is Level.NOTE
    assert "protect" in finding.remedy


@pytest.mark.backends("postgresql")
def test_time_zone_is_noted(session: SessionStore, damage: Callable[..., None]) -> None:
    """Where it is another one than UTC."""
    name = session.store.url.database
    damage(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'")
    finding = findings(session.store)["time zone"]
    assert (finding.level, finding.what) == (Level.NOTE, "TimeZone is Asia/Tokyo")
    damage(f"ALTER DATABASE {name} SET timezone = 'UTC'")
    assert findings(session.store)["time zone"].level is Level.OK


# SQLite's files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A SQLite file with one task."""
    path = tmp_path / "tasks.db"
    with SessionStore(f"sqlite:///{path}") as session:
        session.add(Task("a"))
    return path


@pytest.fixture
def store(path: Path) -> SqlStore:
    return SqlStore(f"sqlite:///{path}", create=False)


def test_journal_mode(path: Path, store: SqlStore) -> None:
    """Is found and mended."""
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode = DELETE")
    engine.dispose()
    finding = only_wrong(store)
    assert finding.what == "it is delete, not wal"
    assert finding.mend is not None
    finding.mend()
    assert wrong(store) == {}


def test_synchronous(path: Path) -> None:
    """G1: a store that is opened with less is not durable."""
    store = SqlStore(f"sqlite:///{path}", create=False, synchronous="normal")
    assert "synchronous=NORMAL" in only_wrong(store).what


def test_file_that_others_may_use(path: Path, store: SqlStore) -> None:
    """G9: is found and mended, and the owner's own rights stay."""
    path.chmod(0o664)
    finding = only_wrong(store)
    assert finding.remedy.startswith("chmod go= ")
    assert finding.mend is not None
    finding.mend()
    assert path.stat().st_mode & 0o777 == 0o600
    assert wrong(store) == {}


def test_network_file_system(
    path: Path, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the mount that the file is in."""
    mounts = [("/", "ext4"), (str(path.parent.parent), "nfs4"), ("/elsewhere", "ext4")]
    monkeypatch.setattr(
        "psutil.disk_partitions",
        lambda all: [SimpleNamespace(mountpoint=m, fstype=t) for m, t in mounts],
    )
    assert "of type nfs4" in only_wrong(store).what


def test_torn_file(path: Path, store: SqlStore) -> None:
    """SQLite's own check tells; the rest of the examination does not fail for it."""
    with path.open("r+b") as file:
        file.seek(-4096 * 3, os.SEEK_END)
        file.write(b"\xff" * 4096)
    assert "integrity" in wrong(store)


def test_file_that_is_no_database(path: Path, store: SqlStore) -> None:
    """Is said so."""
    path.write_bytes(b"not a database, and long enough to be read as one " * 50)
    assert "not a database" in only_wrong(store).what


def test_write_ahead_log_that_has_grown(
    path: Path, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is found, and written back once nobody reads."""
    monkeypatch.setattr("sessionstore.doctor.files.LARGE_WAL", 50_000)
    reader = create_engine(f"sqlite:///{path}").connect()
    reader.exec_driver_sql("SELECT * FROM store").fetchone()
    with SqlStore(f"sqlite:///{path}") as writer:
        writer.save(Task(value=b"x" * 100_000))
        finding = only_wrong(store)
        assert "-wal has grown" in finding.what
        reader.close()
        reader.engine.dispose()
        assert finding.mend is not None
        finding.mend()
        assert wrong(store) == {}


# Tables


def test_older_schema_is_migrated(
    session: SessionStore, damage: Callable[..., None]
) -> None:
    """Nothing else is looked at before."""
    damage("UPDATE store_version SET version_num = '0001'")
    store = SqlStore(session.store.url, create=False)
    finding = only_wrong(store)
    assert finding.remedy == "sessionstore migrate"
    assert finding.mend is not None
    finding.mend()
    assert wrong(store) == {}


def test_newer_schema(session: SessionStore, damage: Callable[..., None]) -> None:
    """Cannot be mended from here."""
    damage("UPDATE store_version SET version_num = '9999'")
    finding = only_wrong(SqlStore(session.store.url, create=False))
    assert "upgrade" in finding.remedy
    assert finding.mend is None


def test_missing_column(session: SessionStore, damage: Callable[..., None]) -> None:
    """Is named."""
    damage("ALTER TABLE store RENAME COLUMN data TO payload")
    finding = only_wrong(SqlStore(session.store.url, create=False))
    assert "has no column 'data'" in finding.what


def test_missing_table(database_url: str, damage: Callable[..., None]) -> None:
    """Can be made; nothing is there to be altered."""
    damage("CREATE TABLE other (id INTEGER)")  # or SQLite would have no file
    finding = wrong(SqlStore(database_url, create=False))["table"]
    assert "no table 'store'" in finding.what
    assert finding.remedy.startswith("sessionstore migrate")


@pytest.mark.backends("mariadb")
def test_small_column(session: SessionStore, damage: Callable[..., None]) -> None:
    """As old programs made it; the remedy works as it stands."""
    damage("ALTER TABLE store MODIFY data BLOB")
    finding = only_wrong(session.store)
    assert finding.what == "the column 'data' is of type BLOB"
    damage(finding.remedy)
    assert wrong(session.store) == {}


# Rows


def mended(session: SessionStore) -> Finding:
    """Mend the one thing that is wrong, and return it."""
    finding = only_wrong(session.store)
    assert finding.mend is not None
    finding.mend()
    assert wrong(session.store) == {}
    return finding


def test_block_of_ids_that_is_behind(
    session: SessionStore, damage: Callable[..., None]
) -> None:
    """G5: it is moved on, or made anew."""
    session.add_many([Task(), Task()])
    for statement in ("UPDATE store_ids SET next_id = 1", "DELETE FROM store_ids"):
        damage(statement)
        assert mended(session).check == "IDs"


def test_job_without_object(session: SessionStore, damage: Callable[..., None]) -> None:
    """Is not thrown away; the remedy works as it stands."""
    id_ = session.add(Task())
    damage(f"DELETE FROM store WHERE id = {id_}")
    finding = only_wrong(session.store)
    assert finding.what.endswith(f": {id_}")
    assert (finding.mend, finding.remedy) == (None, "sessionstore forget ID")
    session.forget(id_)
    assert wrong(session.store) == {}


def test_jobs_of_a_session_that_is_gone(
    session: SessionStore, other: SessionStore, damage: Callable[..., None]
) -> None:
    """Can be added to another one then."""
    id_ = session.add(Task("a"))
    damage("DELETE FROM store_session")
    assert mended(session).check == "jobs and sessions"
    second = SessionStore(session.store.url, "second")
    assert second.add(second.store.load(id_)) == id_


def test_state_that_was_written_past_the_session(
    session: SessionStore, damage: Callable[..., None]
) -> None:
    """The session's is the truth; many at once are mended in batches."""
    ids = session.add_many([Task() for _ in range(1100)])
    damage("UPDATE store SET state = 'RUNNING'", "UPDATE store SET state = NULL")
    assert mended(session).what.endswith("and 1095 more")
    assert session.store.counts() == {"NEW": len(ids)}


def test_job_whose_history_ends_otherwise(
    session: SessionStore, damage: Callable[..., None]
) -> None:
    """An entry that says so is added, and the task goes on."""
    one, two = session.add_many([Task(), Task()])
    damage(
        f"UPDATE store_job SET state = 'SUBMITTED' WHERE job_id = {one}",
        f"UPDATE store SET state = 'SUBMITTED' WHERE id = {one}",
        f"DELETE FROM store_transition WHERE job_id = {two}",
    )
    assert mended(session).what.endswith(f": {one}, {two}")
    [_, entry] = session.history(one)
    assert (entry.from_state, entry.to_state) == (State.NEW, State.SUBMITTED)
    [entry] = session.history(two)
    assert (entry.from_state, entry.to_state) == (None, State.NEW)
    session.transition(one, State.RUNNING)


def test_history_without_a_job(
    session: SessionStore, damage: Callable[..., None]
) -> None:
    """Nobody can ask for it any more."""
    id_ = session.add(Task())
    damage(f"DELETE FROM store_job WHERE job_id = {id_}")
    assert mended(session).check == "history and jobs"


def test_lease_that_ran_out(session: SessionStore, damage: Callable[..., None]) -> None:
    """Of a holder elsewhere."""
    id_ = session.add(Task())
    session.claim()
    damage(
        "UPDATE store_job SET holder = 'elsewhere/b/1/2/3', "
        "claimable_at = 5, lease_expires_at = 5"
    )
    assert only_wrong(session.store).what == f"tasks with an expired lease: {id_}"
    session.recover()
    assert wrong(session.store) == {}


def test_holder_that_is_gone(
    session: SessionStore, run_forked: Callable[..., None]
) -> None:
    """Though its lease goes on."""
    id_ = session.add(Task())
    run_forked(lambda: len(session.claim(lease=3600)))
    assert only_wrong(session.store).check == "holders"
    assert str(id_) in only_wrong(session.store).what


def test_payload_that_cannot_be_read(
    session: SessionStore, damage: Callable[..., None]
) -> None:
    """G7: its ID is told."""
    id_ = session.add(Task())
    damage("UPDATE store SET data = NULL")
    session.store.invalidate_cache()
    assert only_wrong(session.store).what == f"1 cannot be read: {id_}"


# The command


@pytest.mark.backends("sqlite")
def test_command_tells_and_mends(
    session: SessionStore,
    damage: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Status 1 as long as something is wrong."""
    from sessionstore.cli.running import run

    monkeypatch.setenv("SESSIONSTORE_URL", str(session.store.url))
    session.add(Task())
    assert run(["doctor"]) == 0
    damage("UPDATE store SET state = 'RUNNING'")
    capsys.readouterr()
    assert run(["doctor", "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    [line] = [line for line in lines if line["level"] == "wrong"]
    assert line["check"] == "states"
    assert line["remedy"] == "sessionstore doctor --fix"
    assert run(["doctor", "--fix"]) == 0
    assert run(["doctor"]) == 0
