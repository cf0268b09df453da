"""The tables: made once, by migrations, the same as the code describes them."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, create_engine, inspect, text

import sessionstore
from sessionstore import SchemaError, SessionStore, SqlStore, Task
from sessionstore.objects.schema import CURRENT_VERSION


def test_current_version_is_the_newest_migration() -> None:
    """The constant that is compared at start is the head of the folder."""
    folder = Path(sessionstore.__file__).parent / "objects" / "migrations"
    assert ScriptDirectory(str(folder)).get_current_head() == CURRENT_VERSION


def test_migrations_make_what_the_code_describes(database_url: str) -> None:
    """No difference between the tables made and the tables described."""
    store = SqlStore(database_url)
    store.save(Task())
    engine = create_engine(database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": "store_version"}
        )
        metadata = store._objects.schema.metadata
        metadata.remove(store._objects.schema.version)
        if engine.dialect.name in {"mysql", "mariadb"}:
            store._objects.schema.changes.to_metadata(metadata)
        assert compare_metadata(context, metadata) == []
    engine.dispose()


@pytest.mark.backends("mariadb")
def test_mariadb_makes_transactional_tables_that_tell_texts_apart(
    database_url: str,
) -> None:
    """G2, whatever the server's default; and a state is compared byte by byte."""
    SqlStore(database_url).save(Task())
    engine = create_engine(database_url)
    with engine.connect() as connection:
        tables = connection.execute(
            text(
                "SELECT table_name, engine, table_collation "
                "FROM information_schema.tables WHERE table_schema = DATABASE()"
            )
        ).all()
    engine.dispose()
    made = {name: rest for name, *rest in tables if name != "store_version"}
    assert {"store", "store_job", "store_transition"} <= made.keys()
    assert all(rest == ["InnoDB", "utf8mb4_bin"] for rest in made.values())


def test_many_processes_create_the_tables_at_once(
    database_url: str, start_forked
) -> None:
    """Creation is no race."""

    def create() -> None:
        SessionStore(database_url, "same").add(Task())

    children = [start_forked(create) for _ in range(6)]
    for child in children:
        child.wait()
    assert len(SessionStore(database_url, "same", create=False)) == 6


def test_threads_create_tables_in_several_databases_at_once(tmp_path: Path) -> None:
    """Each in its own: what Alembic has one of for all threads is not used."""
    stores = [SqlStore(f"sqlite:///{tmp_path}/{n}.db") for n in range(16)]
    together = threading.Barrier(len(stores))

    def tables(store: SqlStore) -> list[str]:
        with store.transaction() as connection:
            return inspect(connection).get_table_names()

    def create(store: SqlStore) -> list[str]:
        together.wait(60)
        return tables(store)

    with ThreadPoolExecutor(len(stores)) as pool:
        made = list(pool.map(create, stores))
    assert made == [tables(SqlStore(f"sqlite:///{tmp_path}/alone.db"))] * len(stores)


def test_newer_schema_is_refused(database_url: str) -> None:
    """A SchemaError tells to upgrade, and nothing is changed."""
    SessionStore(database_url).add(Task())
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE store_version SET version_num = '9999'"))
        connection.execute(text("ALTER TABLE store_job DROP COLUMN request"))

    def content() -> dict[str, object]:
        tables = MetaData()
        tables.reflect(engine)
        with engine.connect() as connection:
            rows = {t: connection.execute(t.select()) for t in tables.sorted_tables}
            found = {t.name: (t.columns.keys(), r.all()) for t, r in rows.items()}
        engine.dispose()
        return found

    before = content()
    for create in (True, False):
        with pytest.raises(SchemaError, match=r"9999.*upgrade"):
            SessionStore(database_url, create=create)
        with pytest.raises(SchemaError, match=r"9999.*upgrade"):
            SqlStore(database_url, create=create).save(Task())
    assert content() == before


def test_opening_imports_what_is_needed_only(tmp_path: Path) -> None:
    """A store that is there does not pay for migrations, nor for other databases."""
    url = f"sqlite:///{tmp_path}/store.db"
    SqlStore(url).save(Task())
    code = (
        "import sys; from sessionstore import SessionStore; "
        f"len(SessionStore({url!r})); "
        "assert not {'alembic', 'sqlalchemy.dialects.mysql'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("lost", ["store_version", "store_ids", "store_transition"])
def test_migration_goes_on_where_it_was_cut_off(database_url: str, lost: str) -> None:
    """G2: MariaDB commits each step by itself, so that each can run twice."""
    session = SessionStore(database_url)
    session.add(Task())
    session.close()
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM store_version"))
        connection.execute(text(f"DROP TABLE {lost}"))
        schema = session.store._objects.schema
        next(iter(schema.jobs.indexes)).drop(connection)
    assert SessionStore(database_url).add(Task("after")) > 1
    with engine.connect() as connection:
        there = {i["name"] for i in inspect(connection).get_indexes("store_job")}
    assert there == {"ix_store_job_claim", "ix_store_job_order"}
    engine.dispose()


def test_older_tables_are_migrated(database_url: str) -> None:
    """What they hold stays, and can be waited for and claimed."""
    session = SessionStore(database_url)
    id_ = session.add(Task())
    session.close()
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE store_version SET version_num = '0001'"))
        connection.execute(text("DROP TABLE IF EXISTS store_change"))
    session = SessionStore(database_url)
    session.wait(0)
    with session.claim()[0] as claim:
        assert claim.id == id_
        claim.transition("SUBMITTED")
    with engine.begin() as connection:
        version = connection.execute(text("SELECT version_num FROM store_version"))
        assert version.scalar() == CURRENT_VERSION
    engine.dispose()


@pytest.mark.parametrize("name", ["it's", "100%", "%(x)s", 'a"b`c', "select", "ü" * 25])
def test_table_may_have_any_name(database_url: str, name: str) -> None:
    """Also where the name stands in the statements that lock and migrate."""
    session = SessionStore(SqlStore(database_url, name))
    id_ = session.add(Task("x"))
    with session.claim()[0] as claim:
        claim.transition("SUBMITTED")
    session.store.invalidate_cache()
    assert session.load(id_).jobname == "x"
    session.remove(id_)
    session.destroy()


def test_destroyed_sessions_handle_sees_no_later_session(database_url: str) -> None:
    """G3: a session's number is not used again."""
    old = SessionStore(database_url, "old")
    SessionStore(database_url, "old").destroy()
    id_ = SessionStore(database_url, "new").add(Task())
    assert list(old.ids()) == []
    assert id_ not in old
