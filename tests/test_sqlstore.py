"""SqlStore keeps objects, their graphs and their states."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    DateTime,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    insert,
    select,
    text,
)
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.exc import OperationalError

from sessionstore import (
    ConfigurationError,
    DecodeError,
    EncodeError,
    NotFoundError,
    Persistable,
    SchemaError,
    SqlStore,
    State,
    StoreError,
    Task,
)
from sessionstore.get import GET
from sessionstore.ids import IdFactory


@pytest.fixture
def store(database_url: str) -> SqlStore:
    return SqlStore(database_url)


def test_object_comes_back_as_it_was_saved(store: SqlStore) -> None:
    """G1: what save returned for is read again from the database."""
    id_ = store.save(Task("count", path="/etc/passwd"))
    store.invalidate_cache()
    task = store.load(id_)
    assert (task.jobname, task.path, task.persistent_id) == (
        "count",
        "/etc/passwd",
        id_,
    )
    assert not task.changed


def test_live_object_is_the_same_each_time(store: SqlStore) -> None:
    """A process has one object for an ID while somebody holds it."""
    task = Task()
    assert store.load(store.save(task)) is task
    store.invalidate_cache()
    again = store.load(task.persistent_id)
    assert again is not task
    assert store.load(task.persistent_id) is again


def test_saving_again_keeps_the_id(store: SqlStore) -> None:
    """A known object's row is updated in place."""
    task = Task()
    id_ = store.save(task)
    task.execution.state = State.RUNNING
    task.colour = "blue"
    assert task.changed
    assert store.save(task) == id_
    store.invalidate_cache()
    assert store.load(id_).colour == "blue"
    assert store.counts() == {"RUNNING": 1}
    assert list(store.list()) == [id_]


def test_graph_with_cycle_and_shared_child_comes_back(store: SqlStore) -> None:
    """G2: every object of a graph has a row, and references find it."""
    shared = Task("shared")
    one, two = Task("one", child=shared), Task("two", child=shared)
    one.other, two.other, one.me = two, one, one
    id_ = store.save(one)
    assert len(store) == 3
    store.invalidate_cache()
    loaded = store.load(id_)
    assert loaded.me is loaded
    assert loaded.other.other is loaded
    assert loaded.child is loaded.other.child
    assert loaded.child.jobname == "shared"


def test_long_chain_comes_back(store: SqlStore) -> None:
    """No recursion limits the length of a chain."""
    first = last = Task("0")
    for number in range(3000):
        last.next = Task(str(number + 1))
        last = last.next
    id_ = store.save(first)
    store.invalidate_cache()
    length, task = 0, store.load(id_)
    while hasattr(task, "next"):
        length, task = length + 1, task.next
    assert length == 3000


def test_nothing_of_a_graph_is_stored_when_a_part_cannot(store: SqlStore) -> None:
    """G2: an object that cannot be pickled leaves no row of its graph."""
    good, bad = Task("good"), Task("bad", function=lambda: None)
    bad.child = good
    with pytest.raises(EncodeError, match="lambda"):
        store.save(bad)
    assert len(store) == 0
    assert good.persistent_id is None
    assert good.changed


def test_store_inside_an_object_is_refused(store: SqlStore) -> None:
    """A store in the graph is an EncodeError that says what to do."""
    with pytest.raises(EncodeError, match="cannot be part of what it stores"):
        store.save(Task(store=store))


def test_rollback_puts_objects_back(store: SqlStore) -> None:
    """G2: after a rollback IDs, marks and the cache are as before."""
    old = Task("old")
    old_id = store.save(old)
    old.colour = "blue"
    new = Task("new")

    def fail() -> None:
        with store.transaction():
            store.save(new)
            store.save(old)
            assert store.load(new.persistent_id) is new
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (new.persistent_id, new.changed) == (None, True)
    assert old.changed
    assert store.load(old_id) is old
    assert list(store.list()) == [old_id]


def test_error_in_inner_block_dooms_the_outer(store: SqlStore) -> None:
    """G2: half of a transaction is never committed."""

    def outer() -> None:
        with store.transaction():
            store.save(Task())
            with pytest.raises(ZeroDivisionError), store.transaction():
                raise ZeroDivisionError

    with pytest.raises(StoreError, match="rolled back"):
        outer()
    assert len(store) == 0


def test_own_rows_commit_with_the_stores(store: SqlStore) -> None:
    """G2: the yielded connection is in the transaction."""
    with store.transaction() as connection:
        connection.execute(text("CREATE TABLE mine (x INTEGER)"))
    with store.transaction() as connection:
        store.save(Task())
        connection.execute(text("INSERT INTO mine VALUES (1)"))

    def fail() -> None:
        with store.transaction() as connection:
            connection.execute(text("INSERT INTO mine VALUES (2)"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with store.transaction() as connection:
        assert connection.execute(text("SELECT x FROM mine")).all() == [(1,)]


def test_removed_id_is_never_used_again(store: SqlStore, database_url: str) -> None:
    """G5: not by this store, nor by one opened later."""
    task = Task()
    id_ = store.save(task)
    store.remove(id_)
    assert id_ not in store
    with pytest.raises(NotFoundError):
        store.load(id_)
    assert store.save(task) != id_
    assert SqlStore(database_url).save(Task()) not in {id_, task.persistent_id}


def test_ids_move_on_past_another_programs_rows(store: SqlStore) -> None:
    """G5: an ID that another program has put there is not taken, nor written over."""
    store.save(Task())
    with store.transaction() as connection:
        connection.execute(
            text("INSERT INTO store (id) VALUES (:id)"),
            [{"id": id_} for id_ in range(2, 400)],
        )
    id_ = store.save(Task("x", child=Task()))
    assert id_ >= 400
    with store.transaction() as connection:
        connection.execute(text("INSERT INTO store (id) VALUES (:i)"), {"i": id_ + 2})
    store.replace(id_, Task("y", child=Task("child of y")))
    assert store.load(id_).child.persistent_id > id_ + 2
    with pytest.raises(DecodeError, match="NULL"):
        store.load(2)


def test_replace_makes_a_copy(store: SqlStore) -> None:
    """The row is the object's copy, and the object stays where it is."""
    first, second = Task("first"), Task("second")
    store.save_many([first, second])
    store.replace(first.persistent_id, second)
    assert store.load(first.persistent_id).jobname == "second"
    assert second.persistent_id != first.persistent_id
    with pytest.raises(NotFoundError):
        store.replace(10**9, second)


def test_extra_fields_are_columns(database_url: str) -> None:
    """A function's result is the column's value, NULL where it raises."""
    fields = {
        Column("jobname", String(50)): lambda task: task.jobname,
        Column("size", Integer): lambda task: task.size,
    }
    store = SqlStore(database_url, extra_fields=fields)
    store.save(Task("a", size=3))
    store.save(Task("b"))
    with store.transaction() as connection:
        rows = connection.execute(text("SELECT jobname, size FROM store ORDER BY id"))
        assert rows.all() == [("a", 3), ("b", None)]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (Column("x", DateTime), "no time"),
        (Column("x", Integer), 2**70),
        (Column("x", String(9)), "\ud800"),
        (Column("x", String(9)), object()),
    ],
    ids=["time", "integer", "surrogate", "object"],
)
def test_value_that_no_column_takes_is_an_error_of_ours(
    database_url: str, column: Column[Any], value: object
) -> None:
    """G2: whatever type or driver refuses it, a StoreError, and nothing is stored."""
    store = SqlStore(database_url, extra_fields={column: lambda task: value})
    task = Task(child=Task())
    with pytest.raises(StoreError):
        store.save(task)
    assert len(store) == 0
    assert task.persistent_id is task.child.persistent_id is None


@pytest.mark.parametrize("given", [None, "12", 1.5, 2**63])
def test_idfactory_that_gives_no_integer_is_named(
    database_url: str, given: object
) -> None:
    """A ConfigurationError, and nothing is stored."""
    factory: Any = IdFactory(next_id_fn=lambda: given, id_class=lambda _, n: n)
    store = SqlStore(database_url, idfactory=factory)
    with pytest.raises(ConfigurationError, match="idfactory returned"):
        store.save(Task())
    assert len(store) == 0


users = Table("users", MetaData(), Column("id", Integer, primary_key=True))


@pytest.mark.parametrize(
    "column",
    [
        Column("object_id", Integer),
        Column("name", Integer, key="other"),
        Column("100% (it's)", Integer),
        Column("Select", Integer, index=True),
        Column("number", Integer, unique=True),
        Column("owner", Integer, ForeignKey("users.id")),
        Column("owner", Integer, ForeignKey(users.c.id)),
    ],
    ids=lambda column: f"{column.name}-{len(column.foreign_keys)}",
)
def test_extra_field_may_be_any_column(database_url: str, column: Column[Any]) -> None:
    """Whatever its name, key, index or foreign key; in several stores at once."""
    engine = create_engine(database_url)
    users.create(engine)
    with engine.begin() as connection:
        connection.execute(users.insert(), [{"id": 3}, {"id": 4}])
    engine.dispose()
    for table in ("one", "two"):
        store = SqlStore(database_url, table, extra_fields={column: GET.size})
        task = Task(size=3)
        id_ = store.save(task)
        task.size = 4
        store.save(task)
        own = store._tables.c[column.key]
        with store.transaction() as connection:
            rows = connection.execute(select(store._tables.c.id, own)).all()
        assert rows == [(id_, 4)]


@pytest.mark.parametrize(
    "fields",
    [
        {"name": GET.size},
        {Column("ID", Integer): GET.size},
        {Column(Integer): GET.size},
        {Column("x"): GET.size},
        {Column("x", Integer): "size"},
        {Column("x", Integer): GET.size, Column("x", Integer): GET.length},
        [Column("x", Integer)],
    ],
)
def test_extra_field_that_cannot_be_one_is_refused(fields: Any) -> None:
    """A ConfigurationError, before anything is made."""
    with pytest.raises(ConfigurationError, match="extra"):
        SqlStore("sqlite://", extra_fields=fields)


def test_old_table_is_used_as_it_is(database_url: str) -> None:
    """G8: a table of just id, data, state, with plain pickles in it."""
    engine = create_engine(database_url)
    blob = {"postgresql": "BYTEA", "mysql": "BLOB"}.get(engine.dialect.name, "BLOB")
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TABLE old (id INTEGER PRIMARY KEY NOT NULL, "
                f"data {blob}, state VARCHAR(128))"
            )
        )
        connection.execute(
            text("INSERT INTO old VALUES (41, :data, NULL)"),
            {"data": pickle.dumps({"a": 1})},
        )
    engine.dispose()
    store = SqlStore(database_url + "#table=other&table=old")
    assert store.load(41) == {"a": 1}
    assert store.save(Task()) > 41
    assert store.counts() == {"UNKNOWN": 1, "NEW": 1}


def test_table_that_lacks_a_column_is_named(database_url: str) -> None:
    """A SchemaError names table and column at first use."""
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE store (id INTEGER PRIMARY KEY)"))
    engine.dispose()
    with pytest.raises(SchemaError, match=r"'store' has no column 'data'"):
        SqlStore(database_url).save(Task())


@pytest.mark.backends("postgresql")
def test_table_that_would_keep_objects_as_text_is_refused(database_url: str) -> None:
    """G8: PostgreSQL takes bytes for it, and what is read back is no object."""
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(
            text("CREATE TABLE store (id INTEGER PRIMARY KEY, data TEXT, state TEXT)")
        )
    engine.dispose()
    for url in (database_url, database_url.replace("psycopg", "psycopg2")):
        with pytest.raises(
            SchemaError, match=r"'data' of the table 'store' is not BYTEA"
        ):
            SqlStore(url).save(Task())


def test_nothing_is_created_unless_asked(database_url: str) -> None:
    """create=False makes neither table nor file."""
    store = SqlStore(database_url, create=False)
    with pytest.raises(SchemaError):
        store.save(Task())
    if store.url.get_backend_name() == "sqlite":
        assert not Path(str(store.url.database)).exists()


def test_unreadable_object_stays_and_is_named(store: SqlStore) -> None:
    """G7: DecodeError carries the ID, and the row is as it was."""
    task = Task("torn")
    id_ = store.save(task)
    with store.transaction() as connection:
        connection.execute(text("UPDATE store SET data = :d"), {"d": b"\x80\x05junk"})
    store.invalidate_cache()
    with pytest.raises(DecodeError, match=f"object {id_}") as caught:
        store.load(id_)
    assert caught.value.id == id_
    assert id_ in store


def test_iteration_goes_on_while_its_body_writes(store: SqlStore) -> None:
    """A loop over more than a page may write to what it loops over."""
    store.save_many([Task(str(n)) for n in range(1100)])
    seen = []
    for task in store.iter_objects():
        seen.append(task.jobname)
        if len(seen) <= 3:
            store.save(Task("late"))
    assert seen[:1100] == [str(n) for n in range(1100)]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["sqlite://"], "store"),
        (["sqlite://#table=a"], "a"),
        (["sqlite://#table=a&table=b"], "b"),
        (["sqlite://#table=a#table=b"], "b"),
        (["sqlite://#table="], "store"),
        (["sqlite://#other=a"], "store"),
        (["sqlite://#table=a%20b%23"], "a b#"),
        (["sqlite://#table=a", "argument"], "argument"),
    ],
)
def test_table_name_is_the_arguments_else_the_last_in_the_url(
    arguments: list[str], name: str
) -> None:
    """The argument, else #table=, else store."""
    assert SqlStore(*arguments)._tables.name == name


def test_table_name_that_the_server_would_cut_is_refused() -> None:
    """PostgreSQL counts bytes, and cuts names without a word."""
    with pytest.raises(ConfigurationError, match="bytes too long"):
        SqlStore("postgresql+psycopg://h/d", "ü" * 40)
    SqlStore("sqlite://", "ü" * 40).save(Task())


@pytest.mark.parametrize("size", [64 * 2**20])
def test_large_object_comes_back(store: SqlStore, size: int) -> None:
    """64 MiB fit on every backend."""
    id_ = store.save(Task(blob=bytes(size)))
    store.invalidate_cache()
    assert len(store.load(id_).blob) == size


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nosuch://x", "nosuch"),
        ("no url", "not a database URL"),
        ("sqlite+aiosqlite:///x", "asynchronous|not installed"),
        ("oracle+oracledb://u:secret@h/x", "not installed"),
    ],
)
def test_bad_url_is_named_without_its_password(url: str, said: str) -> None:
    """G9: a ConfigurationError says what is wrong and keeps the password."""
    with pytest.raises(ConfigurationError, match=said) as caught:
        SqlStore(url)
    assert "secret" not in str(caught.value)


def test_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    """A ConfigurationError names the file, which stays as it is."""
    path = tmp_path / "notes.txt"
    path.write_text("no database at all, just some text that is long enough" * 50)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match=r"notes\.txt"):
        SqlStore(f"sqlite:///{path}").save(Task())
    assert path.read_bytes() == before


def test_new_sqlite_file_is_its_owners_only(tmp_path: Path) -> None:
    """G9: mode 0600."""
    SqlStore(f"sqlite:///{tmp_path}/new.db").save(Task())
    assert (tmp_path / "new.db").stat().st_mode & 0o777 == 0o600


class Plain:
    """An object that knows nothing of stores."""


class Pair(Persistable, tuple[int, ...]):
    """Holds what it was made with, so that no empty one can be filled."""


class Named(Persistable):
    def __new__(cls, name: str) -> Named:
        return super().__new__(cls)

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[object, ...]:
        return Named, (self.name,)


@pytest.mark.parametrize("cls", [Plain, Task])
def test_object_of_another_database_is_new_here(
    database_url: str, tmp_path: Path, cls: type
) -> None:
    """G3: an ID that another store gave never names a row here."""
    here, there = SqlStore(database_url), SqlStore(f"sqlite:///{tmp_path}/there.db")
    obj, occupant = cls(), cls()
    assert here.save(obj) == here.save(obj)
    first = there.save(occupant)
    assert there.save(obj) != first
    assert there.load(first) is occupant


def test_in_memory_databases_are_told_apart() -> None:
    """G3: they have one URL, and are two databases all the same."""
    one, two = SqlStore("sqlite://"), SqlStore("sqlite://")
    task, occupant = Task("a"), Task("b")
    assert one.save(task) == two.save(occupant)
    assert two.save(task) != occupant.persistent_id


def test_in_memory_database_outlives_pre_fork_and_begins_anew_after_close() -> None:
    """Closing the only connection is the end of the database, not of the store."""
    store = SqlStore("sqlite://")
    store.save(Task())
    store.pre_fork()
    assert len(store) == 1
    store.close()
    assert len(store) == 0
    store.save(Task())


def test_nested_objects_of_any_class_come_back(store: SqlStore) -> None:
    """G2: also those that cannot be made empty first and filled later."""
    id_ = store.save(Task("outer", pair=Pair((1, 2)), named=Named("x")))
    store.invalidate_cache()
    task = store.load(id_)
    assert (task.pair, task.named.name) == (Pair((1, 2)), "x")


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_block_cannot_be_ended_from_inside(store: SqlStore, end: str) -> None:
    """G2: a caller's own commit() would let half of the block be."""
    with pytest.raises(StoreError, match="leave the block"):
        with store.transaction() as connection:
            store.save(Task())
            getattr(connection, end)()
    assert len(store) == 0
    with store.transaction() as connection:
        connection.execute(text("SELECT 1"))
        store.save(Task())
    assert len(store) == 1


@pytest.mark.parametrize("id_", [2**63, -(2**70), "x", None, 1.5])
def test_what_cannot_be_an_id_is_not_found(store: SqlStore, id_: object) -> None:
    """A driver's OverflowError is nothing for users."""
    assert id_ not in store
    with pytest.raises(NotFoundError, match="64-bit"):
        store.load(id_)


def test_largest_id_that_there_can_be_leaves_none_to_give(store: SqlStore) -> None:
    """G8: another program may have given it; a driver's OverflowError tells nothing."""
    with store.transaction() as connection:
        connection.execute(insert(store._tables).values(id=2**63 - 1))
    with pytest.raises(StoreError, match="give the store an idfactory"):
        store.save(Task())


@pytest.mark.backends("mariadb")
def test_deadlock_that_is_not_let_through_dooms_the_block(database_url: str) -> None:
    """G2: MySQL has rolled back by then, and what follows would be committed alone."""
    store = SqlStore(database_url)
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE mine (id INT PRIMARY KEY, v INT)"))
        connection.execute(text("INSERT INTO mine VALUES (1, 0), (2, 0)"))
    mine = text("UPDATE mine SET v = v + 1 WHERE id = :id")
    both_have_one = threading.Barrier(2, timeout=60)

    def other() -> None:
        with engine.connect() as connection:
            for _ in range(20):  # the server ends the one that has written less
                connection.execute(mine, {"id": 2})
            both_have_one.wait()
            connection.execute(mine, {"id": 1})

    thread = threading.Thread(target=other)
    task = Task()
    with pytest.raises(StoreError, match="Deadlock"), store.transaction() as connection:
        store.save(task)
        connection.execute(mine, {"id": 1})
        thread.start()
        both_have_one.wait()
        with pytest.raises(OperationalError, match="Deadlock"):
            connection.execute(mine, {"id": 2})
        store.save(Task("alone"))
    thread.join()
    assert task.persistent_id is None
    assert "alone" not in [task.jobname for task in store.iter_objects()]
    engine.dispose()


def test_block_whose_outer_block_has_ended_says_so(store: SqlStore) -> None:
    """G2: a generator that holds the outer block may be closed too early."""

    def hold() -> Iterator[None]:
        with store.transaction():
            yield

    holder = hold()
    next(holder)
    task = Task()
    with pytest.raises(StoreError, match="ended before this block"):
        with store.transaction():
            store.save(task)
            holder.close()
    assert task.persistent_id is None
    assert len(store) == 0


class OtherDriver(SQLiteDialect_pysqlite):
    """A driver that the package has no settings for."""

    driver = "other"
    supports_statement_cache = True


def test_store_goes_on_after_a_commit_that_failed(tmp_path: Path) -> None:
    """G2: also with a driver that is not known here."""
    registry.register("sqlite.other", __name__, "OtherDriver")
    store = SqlStore(f"sqlite+other:///{tmp_path}/store.db")
    kept = store.save(Task("kept"))
    task = Task()
    with pytest.raises(StoreError), store.transaction() as connection:
        store.save(task)
        event.listen(connection.engine, "commit", _fail, once=True)
    assert task.persistent_id is None
    assert list(store.list()) == [kept]
    store.save(task)
    assert len(store) == 2


def _fail(connection: object) -> None:
    raise OperationalError("COMMIT", None, Exception("no space"))
