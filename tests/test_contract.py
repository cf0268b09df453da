"""What every store promises, on every backend."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sessionstore import (
    DecodeError,
    EncodeError,
    FilesystemStore,
    ForkError,
    NotFoundError,
    Persistable,
    SqlStore,
    Store,
    Task,
    make_store,
)
from sessionstore.ids import IdFactory
from sessionstore.serializers import (
    CompressedSerializer,
    EncryptedSerializer,
    JsonSerializer,
    PickleSerializer,
    Serializer,
    SignedSerializer,
    new_key,
    read_keys,
)
from sessionstore.testing import contract, run_forked
from sessionstore.testing.contract import StoreContract

KINDS = [
    *["sqlite", "memory", "postgresql", "mariadb", "filesystem"],
    *["sqlite checked", "sqlite signed", "sqlite encrypted", "sqlite compressed"],
    *["sqlite JSON", "filesystem signed"],
]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Where the objects are, and what makes payloads of them."""
    return str(request.param)


@pytest.fixture
def uri(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """The URI of an empty store of one kind."""
    backend = kind.partition(" ")[0]
    if backend == "filesystem":
        return str(tmp_path / "objects")
    if backend == "memory":
        return "sqlite://"
    return request.getfixturevalue("make_database")(backend)


@pytest.fixture
def serializer(kind: str, tmp_path: Path) -> Serializer | None:
    """What makes payloads; None is what a store does by itself."""
    classes = [__name__, contract.__name__, "__main__:Mine"]
    pickles = PickleSerializer()
    if kind.endswith("checked"):
        return PickleSerializer(allow=classes)
    if kind.endswith("JSON"):
        return JsonSerializer(classes)
    if kind.endswith("compressed"):
        return CompressedSerializer(pickles)
    keys = tmp_path / "keys"
    keys.write_text(new_key())
    keys.chmod(0o600)
    if kind.endswith("signed"):
        return SignedSerializer(pickles, read_keys(keys))
    if kind.endswith("encrypted"):
        return EncryptedSerializer(pickles, read_keys(keys))
    return None


@pytest.fixture
def store(uri: str, serializer: Serializer | None) -> Store:
    made: Store = make_store(uri, serializer=serializer)
    return made


def test_uri_makes_the_right_kind_of_store(store: Store, uri: str) -> None:
    """A plain path is a folder; what SQLAlchemy knows is a table."""
    assert type(store) is (FilesystemStore if uri.startswith("/") else SqlStore)


def test_object_in_the_place_of_its_id_is_told(store: Store) -> None:
    """Some of a session's methods take either, so that they are easily mixed up."""
    task = Task("count")
    id_ = store.save(task)
    for call in (store.load, store.remove):
        with pytest.raises(NotFoundError, match=rf"pass its persistent_id, {id_}$"):
            call(task)


class TestStores(StoreContract):
    """The contract, on every kind of store."""

    def test_store_pickles_as_its_recipe(self, store: Store) -> None:
        """A database in memory is its process's own, and cannot be handed on."""
        if is_in_memory(store):
            with pytest.raises(ForkError, match="in-memory"):
                pickle.dumps(store)
        else:
            super().test_store_pickles_as_its_recipe(store)

    def test_store_works_on_both_sides_of_a_fork(self, store: Store) -> None:
        """G4: or the child is told at once that it cannot."""
        if is_in_memory(store):
            store.save(Task())
            with pytest.raises(ForkError, match="in-memory"):
                run_forked(store.save, Task())
        else:
            super().test_store_works_on_both_sides_of_a_fork(store)


def is_in_memory(store: Store) -> bool:
    """Say whether the store ends with this process."""
    return isinstance(store, SqlStore) and str(store.url) == "sqlite://"


def test_loaded_object_is_the_one_that_is_held(store: Store) -> None:
    """One row is one live object, while somebody holds it."""
    task = Task()
    id_ = store.save(task)
    assert store.load(id_) is task


def test_parts_are_rows_of_their_own(store: Store) -> None:
    """Each of a graph's Persistable objects has its own ID."""
    one, two, shared = Task("1"), Task("2"), Task("3")
    one.two, two.one, one.shared, two.shared = two, one, shared, shared
    ids = {store.save(one), two.persistent_id, shared.persistent_id}
    assert len(ids) == 3
    assert set(store.list()) == ids


def test_part_that_cannot_be_pickled_keeps_others_out(store: Store) -> None:
    """G2: neither the object nor its good child is stored."""
    child = Task()
    with pytest.raises(EncodeError):
        store.save(Task(child=child, part=lambda: None))
    assert list(store.list()) == []
    assert child.persistent_id is None


def test_unchanged_child_is_not_written_again(store: Store) -> None:
    """Of a graph, the object given is always written, others if changed."""
    child = Task(value=1)
    parent = Task(child=child)
    store.save(parent)
    child.__dict__["value"] = 2  # behind the mark's back
    store.save(parent)
    child_id = child.persistent_id
    store.invalidate_cache()
    assert store.load(child_id).value == 1
    child.changed = True
    store.save(parent)
    store.invalidate_cache()
    assert store.load(child_id).value == 2


def test_object_of_another_store_is_new_here(store: Store, tmp_path: Path) -> None:
    """G5: an ID of another store names nothing in this one."""
    other = FilesystemStore(tmp_path / "other")
    task, neighbour = Task("moved"), Task("neighbour")
    there = store.save(neighbour)
    other.save(task)
    here = store.save(task)
    assert here != there
    store.invalidate_cache()
    assert store.load(there).jobname == "neighbour"


class Vanishing(Task):
    """A class that is taken away in a test."""


def test_object_of_a_class_that_is_gone_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G7: DecodeError names ID and class, and it loads once the class is back."""
    id_ = store.save(Vanishing("x"))
    parent = store.save(Task(child=store.load(id_)))
    with monkeypatch.context() as context:
        context.delattr(f"{__name__}.Vanishing")
        store.invalidate_cache()
        with pytest.raises(DecodeError, match="Vanishing") as caught:
            store.load(id_)
        assert caught.value.id == id_
        with pytest.raises(DecodeError) as caught:
            store.load(parent)
        assert caught.value.id == parent
        assert id_ in store.list()
    assert store.load(parent).child.jobname == "x"


def test_class_of_main_is_warned_about(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other programs do not have it."""
    made: Callable[..., Task] = type("Mine", (Task,), {"__module__": "__main__"})
    monkeypatch.setattr("__main__.Mine", made, raising=False)
    with pytest.warns(UserWarning, match="__main__"):
        store.save(made())


class Frank(Task):
    """Pickles all that it has, as many a __getstate__ does."""

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__.copy()


class Plain:
    """An object that knows nothing of stores."""

    name = ""


@pytest.mark.parametrize("cls", [Task, Frank, Plain])
def test_copy_is_another_object(store: Store, cls: type) -> None:
    """G5: whatever its attributes say, it has no place in the store yet."""
    original: Any = cls()
    original.name = "original"
    id_ = store.save(original)
    twin = copy.copy(original)
    twin.name = "copy"
    assert store.save(twin) != id_
    store.invalidate_cache()
    assert store.load(id_).name == "original"


def test_plain_object_of_another_store_is_new_here(
    store: Store, tmp_path: Path
) -> None:
    """G5: its ID names nothing in this store."""
    occupant, thing = Plain(), Plain()
    there = store.save(occupant)
    factory = IdFactory(next_id_fn=lambda: there)
    assert FilesystemStore(tmp_path / "other", idfactory=factory).save(thing) == there
    assert store.save(thing) != there
    assert len(store.list()) == 2


@dataclass(frozen=True)
class Frozen(Persistable):
    """Takes no attribute, after it was made."""

    x: int
    part: object = None


class Strict:
    """Takes no attribute that it does not know."""

    def __setattr__(self, name: str, value: object) -> None:
        raise ValueError(f"no field {name!r}")


def test_object_that_takes_no_attribute_can_be_stored(store: Store) -> None:
    """A frozen dataclass, a strict model: saved, and left as they are."""
    frozen = Frozen(1, Frozen(2))
    id_ = store.save(frozen)
    assert store.save(frozen) == id_
    assert not frozen.changed
    strict = store.save(Strict())
    store.invalidate_cache()
    assert store.load(id_) == Frozen(1, Frozen(2))
    assert isinstance(store.load(strict), Strict)


def test_class_can_be_stored(store: Store, serializer: Serializer | None) -> None:
    """It is left as it is; and JSON has no way to write it."""
    if isinstance(serializer, JsonSerializer):
        with pytest.raises(EncodeError, match="cannot be written as JSON"):
            store.save(Plain)
        return
    id_ = store.save(Plain)
    assert not hasattr(Plain, "persistent_id")
    store.invalidate_cache()
    assert store.load(id_) is Plain


class Summed(Task):
    """Looks into its parts as it is loaded."""

    total: int

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__dict__["total"] = sum(part.n for part in self.parts)


@dataclass(frozen=True)
class Key(Persistable):
    """Its hash is that of its attributes, which have defaults."""

    name: str = ""


def test_parts_are_whole_where_somebody_looks_into_them(store: Store) -> None:
    """G2: in __setstate__, and in a set or a dictionary by their hash."""
    parts = [Task(n=1), Summed(n=2, parts=[Task(n=3)])]
    outer = Summed(parts=parts, keys={Key("a"): 1}, names={Key("b"), Key("c")})
    parts[0].outer = outer
    ids = [store.save(outer), *(part.persistent_id for part in parts)]
    for id_ in ids:  # whichever comes first
        store.invalidate_cache()
        store.load(id_)
        again = store.load(ids[0])
        assert again.total == 3
        assert again.parts[1].total == 3
        assert again.keys[Key("a")] == 1
        assert again.names == {Key("b"), Key("c")}
        assert again.parts[0].outer is again
        del again


def test_chain_of_hashable_objects_may_be_long(store: Store) -> None:
    """Nothing depends on how deep Python may recurse."""
    node = None
    for n in range(300):
        node = Link(n, node)
    id_ = store.save(node)
    del node
    store.invalidate_cache()
    node, length = store.load(id_), 0
    while node is not None:
        node, length = node.following, length + 1
    assert length == 300


@dataclass(frozen=True)
class Link(Persistable):
    """One of a chain."""

    n: int
    following: object = None
