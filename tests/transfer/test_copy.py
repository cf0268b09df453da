"""Stores copied from any backend to any other."""

from __future__ import annotations

import itertools
import pickle
import uuid
import zlib
from collections.abc import Callable
from datetime import date, time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Date,
    Double,
    Enum,
    Integer,
    SmallInteger,
    Text,
    Time,
    Uuid,
    create_engine,
    inspect,
    select,
)

from sessionstore import (
    ConfigurationError,
    ConflictError,
    NotFoundError,
    SchemaError,
    SessionStore,
    SqlStore,
    State,
    StoreError,
    Task,
)
from sessionstore.errors import DecodeError
from sessionstore.get import GetItem
from sessionstore.ids import IdFactory
from sessionstore.serializers import PickleSerializer
from sessionstore.transfer import copy, export, import_archive, store_reader
from tests.conftest import BACKENDS
from tests.transfer import scene

PAIRS = [(a, b) for a in BACKENDS for b in BACKENDS]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_all_comes_across(
    source: str, target: str, make_database: Callable[[str], str], target_url: str
) -> None:
    """Objects, states, sessions, jobs, history and own columns are the same there."""
    from_url = make_database(source)
    to_url = target_url if target == "sqlite" else make_database(target)
    scene.fill(from_url)
    done = copy(from_url, to_url, verify=True)
    assert done.objects == done.written == scene.OBJECTS
    assert done.sessions == ["one", "two words"]
    extra = ", owner, cost, mark"
    assert scene.everything(to_url, extra) == scene.everything(from_url, extra)
    store = SqlStore(to_url, extra_fields=scene.columns())
    first, second = SessionStore(store, "one", create=False)
    assert first.tasks[0].owner == scene.NAME
    assert second.execution.returncode == -9


def test_columns_of_all_types_go_round_all_databases(
    backend: str, make_database: Callable[[str], str], target_url: str, tmp_path: Path
) -> None:
    """Values are the same after a way there, on, and into a file and back."""
    values: dict[str, tuple[Any, object]] = {
        "small": (SmallInteger(), -3),
        "whole": (Integer(), 2**31 - 1),
        "big": (BigInteger(), -(2**63)),
        "words": (Text(), "x" * 60_000),
        "document": (JSON(), {"a": [1, None, "\N{SNOWMAN}"], "b": 0.5}),
        "day": (Date(), date(2024, 2, 29)),
        "clock": (Time(), time(23, 59, 58)),
        "name": (Uuid(), uuid.UUID(int=5)),
        "kind": (Enum("a", "b", name="kind"), "b"),
        "double": (Double(), 0.1 + 0.2),
    }
    fields = {Column(n, t): GetItem(n) for n, (t, _) in values.items()}
    url = make_database(backend)
    store = SqlStore(url, extra_fields=fields)
    store.save({name: value for name, (_, value) in values.items()})
    store.save({})
    for to_url in (make_database("postgresql"), make_database("mariadb"), target_url):
        first = copy(url, to_url, verify=True)
        again = copy(url, to_url, verify=True)  # which looks at the table that is there
        assert (again.written, again.digest) == (0, first.digest)
        url = to_url
    export(url, tmp_path / "archive")
    back = f"{target_url}-back"
    import_archive(tmp_path / "archive", back, verify=True)
    with SqlStore(back, extra_fields=fields).transaction() as connection:
        table = SqlStore(back, extra_fields=fields)._tables
        row, empty = connection.execute(select(table).order_by(table.c.id)).mappings()
    assert {n: row[n] for n in values} == {n: v for n, (_, v) in values.items()}
    assert {empty[n] for n in values} == {None}


def test_unreadable_objects_come_across_byte_for_byte(
    source_url: str, target_url: str
) -> None:
    """What cannot be unpickled is carried as it is, and can be moved on (G7)."""
    scene.fill(source_url)
    copy(source_url, target_url, verify=True)
    session = SessionStore(target_url, "two words", create=False)
    broken, null = session.unreadable()
    assert isinstance(broken, DecodeError)
    session.transition(broken.id, State.SUBMITTED)
    assert "NULL" in str(null)


def test_payloads_are_opaque(source_url: str, target_url: str) -> None:
    """What a serializer of the user's own wrote is the same there."""

    class Packed(PickleSerializer):
        def dumps(self, obj: object, persistent_id: Callable[..., object]) -> bytes:
            return zlib.compress(super().dumps(obj, persistent_id))

        def loads(
            self, payload: bytes, persistent_load: Callable[..., object]
        ) -> object:
            return super().loads(zlib.decompress(payload), persistent_load)

    source = SqlStore(source_url, serializer=Packed())
    id_ = source.save(Task("outer", tasks=[Task("inner")]))
    copy(source_url, target_url)
    there = SqlStore(target_url, serializer=Packed()).load(id_)
    assert [task.jobname for task in there.tasks] == ["inner"]


def test_one_session_comes_alone_and_under_another_name(
    source_url: str, target_url: str
) -> None:
    """Of one session its objects come, the nested ones too, and no others."""
    scene.fill(source_url)
    done = copy(source_url, target_url, session="one", rename="uno", verify=True)
    assert (done.sessions, done.objects) == (["uno"], 3)
    with pytest.raises(ConfigurationError, match="no session 'one'"):
        SessionStore(target_url, "one", create=False)
    there = SessionStore(target_url, "uno", create=False)
    assert [task.jobname for task in there] == ["first", "done"]
    assert len(there.store) == 3
    copy(source_url, target_url, session="two words")
    assert len(SessionStore(target_url, "two words", create=False)) == 5


def test_unknown_session_is_told_with_those_that_there_are(
    source_url: str, target_url: str
) -> None:
    """Nothing is made in the target then."""
    scene.fill(source_url)
    with pytest.raises(ConfigurationError, match="'one', 'two words'"):
        copy(source_url, target_url, session="three")
    assert not Path(target_url.removeprefix("sqlite:///")).exists()


def test_claimed_task_is_free_in_the_copy(
    backend: str, make_database: Callable[[str], str], target_url: str
) -> None:
    """A claim stays behind; the copy of its task is UNKNOWN, or STOPPED (G6)."""
    url = make_database(backend)
    session = SessionStore(url, "one")
    ids = session.add_many([Task("new"), Task("running"), Task("stopped")])
    new, running, stopped = session.claim(3)
    running.transition(State.SUBMITTED)
    running.transition(State.RUNNING)
    stopped.transition(State.SUBMITTED)
    stopped.transition(State.STOPPED)
    copy(url, target_url, verify=True)
    copy(url, target_url, verify=True)
    there = SessionStore(target_url, "one", create=False)
    assert there.counts() == {State.UNKNOWN: 2, State.STOPPED: 1}
    last = there.history(ids[1])[-1]
    assert (last.from_state, last.to_state) == (State.RUNNING, State.UNKNOWN)
    assert "held it when it was copied" in last.info
    claimed = there.claim(3, states=[State.UNKNOWN, State.STOPPED])
    assert [claim.id for claim in claimed] == ids
    assert [claim.attempts for claim in claimed] == [2, 2, 2]
    assert claimed[0].token > new.token
    assert claimed[1].task.execution.state is State.UNKNOWN
    running.transition(State.TERMINATED)  # the holder has it still


def test_source_is_read_as_it_was_at_one_moment(
    database_url: str, target_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others write to the source meanwhile is not seen."""
    monkeypatch.setattr(store_reader, "BATCH_OBJECTS", 2)
    session = SessionStore(database_url, "one")
    ids = session.add_many([Task(f"{n}") for n in range(6)])

    def meddle(what: str, done: int, total: int | None) -> None:
        if what == "copying" and done == 2:
            session.transition(ids[5], State.SUBMITTED)
            session.add(Task("late"))

    done = copy(database_url, target_url, verify=True, progress=meddle)
    assert done.objects == 6
    there = SessionStore(target_url, "one", create=False)
    assert there.counts() == {State.NEW: 6}


def test_old_table_is_a_source_and_stays_as_it_is(
    source_url: str, target_url: str
) -> None:
    """A table with just id, data, state is read, and nothing made beside it (G8)."""
    scene.write(
        source_url,
        "CREATE TABLE store (id INTEGER PRIMARY KEY, data BLOB, state VARCHAR(128))",
    )
    payload = pickle.dumps(["old"])
    scene.write(source_url, "INSERT INTO store VALUES (7, :p, 'NEW')", p=payload)
    assert copy(source_url, target_url, verify=True).objects == 1
    assert SqlStore(target_url).load(7) == ["old"]
    engine = create_engine(source_url)
    assert inspect(engine).get_table_names() == ["store"]
    engine.dispose()


def test_missing_source_is_told_and_nothing_made(
    source_url: str, target_url: str
) -> None:
    """No file appears on either side."""
    with pytest.raises(SchemaError, match=r"no SQLite database .*source\.db"):
        copy(source_url, target_url)
    for url in (source_url, target_url):
        assert not Path(url.removeprefix("sqlite:///")).exists()


def test_same_table_is_no_target(source_url: str) -> None:
    """A store is not copied onto itself, and another table of its database is fine."""
    session = SessionStore(source_url)
    session.add(Task("one"))
    with pytest.raises(ConfigurationError, match="same table"):
        copy(source_url, session.store)
    other = f"{source_url}#table=other"
    assert copy(source_url, other, verify=True).written == 1
    assert len(SessionStore(other, create=False)) == 1


def test_in_memory_databases_are_copied(source_url: str) -> None:
    """They are reached by their store alone."""
    memory = SqlStore("sqlite://")
    SessionStore(memory, "one").add(Task("a"))
    assert copy(memory, source_url, verify=True).objects == 1
    other = SqlStore("sqlite://")
    copy(source_url, other, verify=True)
    assert [task.jobname for task in SessionStore(other, "one")] == ["a"]


def test_target_that_lacks_a_column_is_not_changed(
    backend: str, database_url: str, source_url: str
) -> None:
    """One line names table and column."""
    scene.fill(source_url)
    blob = "BYTEA" if backend == "postgresql" else "BLOB"
    scene.write(
        database_url,
        f"CREATE TABLE store (id INTEGER PRIMARY KEY, state VARCHAR(128), data {blob})",
    )
    with pytest.raises(SchemaError, match=r"'store' of .* lacks the column 'owner'"):
        copy(source_url, database_url)
    engine = create_engine(database_url)
    assert inspect(engine).get_table_names() == ["store"]
    engine.dispose()


def test_target_that_needs_another_column_is_not_changed(
    source_url: str, target_url: str
) -> None:
    """A column without a default that the source has not is told by name."""
    SessionStore(source_url).add(Task("one"))
    needed = Column("must", Integer, nullable=False)
    SqlStore(target_url, extra_fields={needed: lambda _: 1}).save(Task("there"))
    with pytest.raises(SchemaError, match="needs a value in its column 'must'"):
        copy(source_url, target_url)
    assert len(SqlStore(target_url)) == 1


def test_other_object_with_the_same_id_is_a_conflict_before_anything_is_written(
    backend: str,
    database_url: str,
    source_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last of the source's objects is found taken before the first is written."""
    monkeypatch.setattr(store_reader, "BATCH_OBJECTS", 2)
    last = SessionStore(source_url, "one").add_many([Task(f"{n}") for n in range(5)])[
        -1
    ]
    target = SqlStore(database_url)
    target.save_many([Task("there")])
    scene.write(database_url, "UPDATE store SET id = :id", id=last)
    before = scene.everything(database_url)
    with pytest.raises(
        ConflictError, match=f"object {last} of .* is another"
    ) as caught:
        copy(source_url, database_url)
    assert caught.value.id == last
    assert scene.everything(database_url) == before


def test_other_session_of_the_same_name_is_a_conflict(
    source_url: str, target_url: str
) -> None:
    """Nothing is changed, and another name helps."""
    SessionStore(source_url, "one").add(Task("a"))
    SessionStore(target_url, "one")
    before = scene.everything(target_url)
    with pytest.raises(ConflictError, match="another session 'one'"):
        copy(source_url, target_url)
    assert scene.everything(target_url) == before
    copy(source_url, target_url, session="one", rename="two")
    assert len(SessionStore(target_url, "two", create=False)) == 1


def test_verifying_finds_a_flipped_byte(
    backend: str, database_url: str, source_url: str, target_url: str
) -> None:
    """A payload that changed on its way is named by its ID."""
    ids = SessionStore(source_url).add_many([Task(f"{n}") for n in range(3)])
    payload = bytearray(copy_of(source_url, ids[1]))
    payload[-3] ^= 1

    def flip(what: str, done: int, total: int | None) -> None:
        if what == "copying":
            change = "UPDATE store SET data = :data WHERE id = :id"
            scene.write(database_url, change, data=bytes(payload), id=ids[1])

    with pytest.raises(ConflictError, match="is not as it came") as caught:
        copy(source_url, database_url, verify=True, progress=flip)
    assert caught.value.id == ids[1]


def copy_of(url: str, id_: int) -> bytes:
    rows = scene.everything(url)["objects"]
    return next(bytes(row[1]) for row in rows if row[0] == id_)


def test_unreachable_ids_are_refused(source_url: str, target_url: str) -> None:
    """An ID so large that new ones would not fit above it comes nowhere (G5)."""
    SqlStore(source_url).save(Task("a"))
    scene.write(source_url, "UPDATE store SET id = :id", id=2**63 - 5)
    with pytest.raises(StoreError, match="so large an ID"):
        copy(source_url, target_url)
    assert len(SqlStore(target_url)) == 0
    with pytest.raises(NotFoundError):
        SqlStore(target_url).load(2**63 - 5)


def test_new_ids_are_above_those_that_came(
    backend: str, database_url: str, source_url: str
) -> None:
    """Neither a block taken before nor one taken after gives an ID again (G5)."""
    numbers = itertools.count(21)
    factory = IdFactory(next_id_fn=lambda: next(numbers))
    SqlStore(source_url, idfactory=factory).save_many([Task(f"{n}") for n in range(40)])
    early = SqlStore(database_url)
    first = early.save(Task("early"))  # which takes a block of 256
    assert copy(source_url, database_url, verify=True).written == 40
    later = SqlStore(database_url)
    new = [
        early.save(Task("x")),
        *(early.save(Task("y")) for _ in range(30)),
    ]
    new += [later.save(Task("z")) for _ in range(30)]
    came = set(range(21, 61))
    assert len({first, *new}) == 62
    assert not came & {first, *new}


def test_ids_that_came_and_went_are_not_given_again(
    database_url: str, source_url: str
) -> None:
    """The counter stands above them, not the largest ID that is still there (G5)."""
    came = SqlStore(source_url).save_many([Task(f"{n}") for n in range(500)])
    copy(source_url, database_url)
    scene.write(database_url, "DELETE FROM store")
    assert SqlStore(database_url).save(Task("after")) > max(came)


def test_ids_of_what_the_source_has_removed_are_not_given_again(
    source_url: str, target_url: str
) -> None:
    """What refers to a removed object would have found another one (G5)."""
    source = SessionStore(source_url)
    gone = source.add(Task("gone", kept=source.add(Task("kept"))))
    source.remove(gone)
    copy(source_url, target_url)
    assert SessionStore(target_url).add(Task("new")) > gone


def test_large_objects_are_read_a_few_at_a_time(
    source_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is bounded in bytes, not in objects alone."""
    monkeypatch.setattr(store_reader, "BATCH_BYTES", 1000)
    store = SqlStore(source_url)
    store.save_many([Task("a", log="x" * size) for size in (10, 400, 2000, 3000, 10)])
    with store_reader.reading(store) as reader:
        batches = [*reader.batches()]
    assert [len(batch) for batch in batches] == [2, 1, 1, 1]
