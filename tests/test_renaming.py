"""Objects of classes that have moved are found under their new names."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from sessionstore import (
    ConfigurationError,
    DecodeError,
    FilesystemStore,
    SessionStore,
    SqlStore,
    Store,
    Task,
    make_store,
)
from sessionstore.renaming import Renaming
from sessionstore.serializers import (
    CompressedSerializer,
    JsonSerializer,
    PickleSerializer,
)

NAMES = {"old_place:Old": "new_place:New"}


@pytest.fixture(params=["sqlite", "postgresql", "mariadb", "filesystem"])
def uri(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    """The URI of an empty store of one kind."""
    if request.param == "filesystem":
        return str(tmp_path / "objects")
    uri: str = request.getfixturevalue("make_database")(request.param)
    return uri


@pytest.fixture
def move(monkeypatch: pytest.MonkeyPatch) -> Callable[[], type]:
    """Put a class into one module, and move it to another one when called."""

    def place(module_name: str, name: str) -> type:
        cls = type(name, (Task,), {"__module__": module_name, "__qualname__": name})
        module = ModuleType(module_name)
        setattr(module, name, cls)
        monkeypatch.setitem(sys.modules, module_name, module)
        return cls

    def move() -> type:
        monkeypatch.delitem(sys.modules, "old_place")
        return place("new_place", "New")

    place("old_place", "Old")
    return move


def old(**attributes: object) -> Any:
    return sys.modules["old_place"].Old(**attributes)


def test_moved_class_is_found(uri: str, move: Callable[[], type]) -> None:
    """As an object of its own, inside another one, and as what refers to another."""
    store: Store = make_store(uri)
    inner = old(n=1)
    id_ = store.save(Task(child=inner, parts=[old(n=2, again=inner)]))
    new = move()
    store.invalidate_cache()
    with pytest.raises(DecodeError, match="old_place"):
        store.load(id_)
    renaming: Store = make_store(uri, rename=NAMES)
    task = renaming.load(id_)
    assert type(task.child) is type(task.parts[0]) is new
    assert task.parts[0].again is task.child
    # What is saved is saved under the new name.
    task.child.changed = task.parts[0].changed = True
    renaming.save(task)
    assert make_store(uri).load(id_).child.n == 1


def test_live_object_is_read_again_under_its_new_name(
    tmp_path: Any, move: Callable[[], type]
) -> None:
    """By ``refresh``, by ``update``, and by a claim of what another process wrote."""
    url = f"sqlite:///{tmp_path}/store.db"
    id_ = SessionStore(url).add(old(n=1))
    move()
    session = SessionStore(url, rename=NAMES)
    task = session.load(id_)
    session.refresh(task)
    [claim] = SessionStore(url).claim()
    claim.release()
    [claim] = session.claim()
    assert claim.task is task
    claim.release()
    with session.update(id_) as updated:
        updated.n += 1
    assert SessionStore(url).load(id_).n == 2


def test_moved_module_is_found(tmp_path: Any, move: Callable[[], type]) -> None:
    """All that it had."""
    store = FilesystemStore(tmp_path)
    id_ = store.save(old(n=1))
    new = move()
    names = {"old_place": "new_place", "new_place:Old": "x:Y", "old_place:Old": "a:B"}
    with pytest.raises(DecodeError, match="'a'"):
        FilesystemStore(tmp_path, rename=names).load(id_)  # the class comes first
    del names["old_place:Old"]
    sys.modules["new_place"].Old = new  # type: ignore[attr-defined]
    assert FilesystemStore(tmp_path, rename=names).load(id_).n == 1


@pytest.mark.parametrize(
    "serializer",
    [
        CompressedSerializer(PickleSerializer()),
        PickleSerializer(allow=["old_place:Old", "new_place:New"]),
        JsonSerializer(["old_place:Old", "new_place:New"]),
    ],
    ids=repr,
)
def test_every_serializer_renames(
    tmp_path: Any, move: Callable[[], type], serializer: Any
) -> None:
    """Whatever stands around it."""
    url = f"sqlite:///{tmp_path}/store.db"
    id_ = SqlStore(url, serializer=serializer).save(Task(child=old(text="x" * 1000)))
    new = move()
    with SqlStore(url, serializer=serializer, rename=NAMES) as store:
        assert type(store.load(id_).child) is new


def test_allowed_is_what_both_names_are(
    tmp_path: Any, move: Callable[[], type]
) -> None:
    """A renaming must not lead past the list."""
    url = f"sqlite:///{tmp_path}/store.db"
    serializer = PickleSerializer(allow=["old_place:Old"])
    id_ = SqlStore(url, serializer=serializer).save(old())
    move()
    with SqlStore(url, serializer=serializer, rename=NAMES) as store:
        with pytest.raises(
            DecodeError, match="new_place:New, which is not on the list"
        ):
            store.load(id_)


def test_store_that_renames_pickles(tmp_path: Any, move: Callable[[], type]) -> None:
    """Its recipe has the names."""
    for store in (
        SqlStore(f"sqlite:///{tmp_path}/store.db", rename=NAMES),
        FilesystemStore(tmp_path / "objects", rename=NAMES),
    ):
        assert pickle.loads(pickle.dumps(store))._recipe["rename"] == NAMES


@pytest.mark.parametrize(
    "names", [{"a:B": "c"}, {"a": "c:D"}, {"": "x"}, {"a:": "b:C"}, {"a:B": ":C"}]
)
def test_what_is_no_pair_is_refused(names: dict[str, str]) -> None:
    """Both are classes, or both modules."""
    with pytest.raises(ConfigurationError, match="cannot rename"):
        Renaming(names)
