"""A store in a folder: one file for each object, whole or not there."""

import errno
import multiprocessing
import os
import pickle
import stat
import threading
import warnings
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from sessionstore import files
from sessionstore.errors import (
    ConfigurationError,
    ConflictError,
    DecodeError,
    EncodeError,
    NotFoundError,
    StoreError,
    StoreUnavailableError,
)
from sessionstore.filesystem import FilesystemStore
from sessionstore.ids import IdFactory, IntId
from sessionstore.persistable import Persistable
from sessionstore.serializers import PickleSerializer
from sessionstore.task import State, Task
from sessionstore.url import Url


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "new" / "store"


@pytest.fixture
def store(folder: Path) -> FilesystemStore:
    return FilesystemStore(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# One object


def test_saved_object_is_loaded(folder: Path, store: FilesystemStore) -> None:
    """What another process loads is what was saved, with its state and ID."""
    task = Task("count", path="/etc/passwd")
    task.execution.state = State.RUNNING
    id_ = store.save(task)
    loaded = FilesystemStore(folder).load(id_)
    assert loaded is not task
    assert (loaded.jobname, loaded.path) == ("count", "/etc/passwd")
    assert loaded.execution.state is State.RUNNING
    assert (loaded.persistent_id, loaded.changed) == (id_, False)


@pytest.mark.parametrize("obj", [None, 7, "text", [1, {"a": 2}], b""], ids=repr)
def test_any_object_can_be_saved(store: FilesystemStore, obj: object) -> None:
    """An object need not be a Task, nor take attributes."""
    assert store.load(store.save(obj)) == obj


def test_saving_again_keeps_the_id(folder: Path, store: FilesystemStore) -> None:
    """An object has one file, whose name is its ID."""
    task = Task("one")
    id_ = store.save(task)
    task.jobname = "two"
    assert store.save(task) == id_
    assert [path.name for path in folder.iterdir()] == [str(id_)]
    assert FilesystemStore(folder).load(id_).jobname == "two"


def test_live_object_is_loaded_as_it_is(store: FilesystemStore) -> None:
    """One ID is one object for as long as somebody holds it."""
    task = Task("one")
    id_ = store.save(task)
    assert store.load(id_) is task
    store.invalidate_cache()
    again = store.load(id_)
    assert again is not task
    assert store.load(str(id_)) is again


def test_object_of_another_store_is_new_here(tmp_path: Path) -> None:
    """An ID means nothing in another folder."""
    first, second = FilesystemStore(tmp_path / "1"), FilesystemStore(tmp_path / "2")
    task = Task("one")
    first_id = first.save(task)
    second_id = second.save(task)
    assert first_id != second_id
    assert (first.list(), second.list()) == ([first_id], [second_id])


def test_removed_object_is_gone(store: FilesystemStore) -> None:
    """After remove there is no file; saving it again makes it a new object."""
    task = Task("one")
    id_ = store.save(task)
    store.remove(id_)
    assert store.list() == []
    with pytest.raises(NotFoundError):
        store.load(id_)
    assert store.save(task) != id_


def test_save_of_what_another_removed_is_refused(
    folder: Path, store: FilesystemStore
) -> None:
    """A removal is not undone by somebody who did not see it."""
    task = Task("one")
    id_ = store.save(task)
    FilesystemStore(folder).remove(id_)
    with pytest.raises(NotFoundError) as caught:
        store.save(task)
    assert caught.value.id == id_
    assert contents(folder) == {}


def test_replace_makes_the_file_a_copy(folder: Path, store: FilesystemStore) -> None:
    """The object given stays what and where it is."""
    old, other = Task("old"), Task("other")
    id_ = store.save(old)
    store.replace(id_, other)
    assert store.load(id_).jobname == "other"
    assert (other.persistent_id, other.changed) == (None, True)
    other_id = store.save(other)
    assert store.list() == sorted([id_, other_id])


@pytest.mark.parametrize("id_", [12345, "12345", -1, "x", None, "../new", 1e400])
def test_unknown_id_is_not_found(
    folder: Path, store: FilesystemStore, id_: Any
) -> None:
    """An ID that no file has is an error that carries it, before the first save too."""
    for call in (
        lambda: store.load(id_),
        lambda: store.remove(id_),
        lambda: store.replace(id_, Task()),
    ):
        with pytest.raises(NotFoundError):
            call()
    assert not folder.exists()
    existing = store.save(Task())
    for unknown in (id_, existing + 0.5):
        with pytest.raises(NotFoundError):
            store.load(unknown)
    assert store.list() == [existing]


def test_list_is_sorted_and_knows_objects_only(
    folder: Path, store: FilesystemStore
) -> None:
    """Files that are no objects, as a crash or a user leaves, are not listed."""
    assert store.list() == []
    ids = [store.save(Task()) for _ in range(5)]
    for name in (".7-00.tmp", "README", "007", "7.bak", "-0"):
        (folder / name).write_bytes(b"no object")
    assert store.list() == sorted(ids)
    store.save(Task())
    assert (folder / ".7-00.tmp").exists()


# Graphs


def test_graph_is_stored_in_files_of_its_own(
    folder: Path, store: FilesystemStore
) -> None:
    """Shared children and cycles come back as such."""
    parent, child, shared = Task("parent"), Task("child"), Task("shared")
    parent.tasks = [child, shared]
    child.friend, shared.parent = shared, parent
    id_ = store.save(parent)
    assert len(store.list()) == 3
    loaded = FilesystemStore(folder).load(id_)
    child, shared = loaded.tasks
    assert child.friend is shared
    assert shared.parent is loaded
    assert {loaded.persistent_id, child.persistent_id, shared.persistent_id} == set(
        store.list()
    )


def test_unchanged_child_is_not_written_again(
    folder: Path, store: FilesystemStore
) -> None:
    """Saving writes the object given, and of those inside it the changed ones."""
    child, other = Task("child"), Task("other")
    parent = Task("parent", tasks=[child, other])
    store.save(parent)
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}
    other.jobname = "changed"
    store.save(parent)
    after = {path.name: path.stat().st_ino for path in folder.iterdir()}
    same = {int(name) for name in before if before[name] == after[name]}
    assert same == {child.persistent_id}


def test_missing_child_is_a_decode_error(folder: Path, store: FilesystemStore) -> None:
    """G7: an object whose child is lost is reported, not loaded in part."""
    child = Task("child")
    id_ = store.save(Task("parent", tasks=[child]))
    child_id = child.persistent_id
    (folder / str(child_id)).unlink()
    with pytest.raises(DecodeError, match=str(child_id)):
        FilesystemStore(folder).load(id_)


def test_long_chain_is_stored(folder: Path, store: FilesystemStore) -> None:
    """The length of a chain is not limited by the stack."""
    last = task = Task("0")
    for number in range(1, 1200):
        task = Task(str(number), next=task)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        id_ = store.save(task)
    task = FilesystemStore(folder).load(id_)
    while hasattr(task, "next"):
        task = task.next
    assert task.jobname == last.jobname


# Files


def test_folder_and_files_are_their_owner_s(
    folder: Path, store: FilesystemStore
) -> None:
    """G9: nobody else may read the objects, whatever the umask."""
    umask = os.umask(0)
    try:
        id_ = store.save(Task())
    finally:
        os.umask(umask)
    assert stat.S_IMODE((folder / str(id_)).stat().st_mode) == 0o600
    for made in (folder, folder.parent):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_constructor_touches_no_file(tmp_path: Path) -> None:
    """A store can be described before its folder may be used."""
    FilesystemStore(tmp_path / "store").list()
    assert list(tmp_path.iterdir()) == []


def test_files_are_synced_before_they_are_named(
    folder: Path, store: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G1: first the content reaches the disk, then the name, then the folder."""
    steps: list[str] = []
    fsync, link, rename = os.fsync, os.link, os.rename

    def noting_fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        steps.append("sync folder" if is_folder else "sync file")
        fsync(descriptor)

    def noting_link(source: str, target: str) -> None:
        steps.append("link")
        link(source, target)

    def noting_rename(source: str, target: str) -> None:
        steps.append("rename")
        rename(source, target)

    child = Task("child")
    parent = Task("parent")
    store.save(parent)
    parent.tasks = [child]
    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "link", noting_link)
    monkeypatch.setattr(os, "rename", noting_rename)
    store.save(parent)
    assert steps == ["sync file", "sync file", "link", "rename", "sync folder"]
    steps.clear()
    store.remove(child.persistent_id)
    assert steps == ["sync folder"]


def test_new_object_is_named_after_those_inside_it(
    store: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What refers to a new object is put in its place after it."""
    names: list[str] = []
    link = os.link

    def noting_link(source: str, target: str) -> None:
        names.append(os.path.basename(target))
        link(source, target)

    monkeypatch.setattr(os, "link", noting_link)
    grandchild = Task("grandchild")
    child = Task("child", tasks=[grandchild])
    store.save(parent := Task("parent", tasks=[child]))
    assert names == [str(t.persistent_id) for t in (grandchild, child, parent)]


def test_store_follows_no_change_of_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that changes to / keeps its store."""
    monkeypatch.chdir(tmp_path)
    store = FilesystemStore("store")
    monkeypatch.chdir("/")
    store.save(Task())
    assert len(list((tmp_path / "store").iterdir())) == 1


def test_file_system_without_links_is_used(
    store: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system has no hard links, a rename does it."""

    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", link)
    task = Task("one")
    assert store.list() == [] != [store.save(task)] == store.list()


# Failures


@pytest.mark.parametrize("failing", ["fsync", "link", "rename"])
def test_failed_save_leaves_everything_as_it_was(
    folder: Path,
    store: FilesystemStore,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
) -> None:
    """A full disk is reported as one, and neither files nor objects have changed."""
    parent = Task("parent")
    id_ = store.save(parent)
    before = contents(folder)
    child = Task("child")
    parent.tasks = [child]

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        with pytest.raises(StoreUnavailableError, match="free some space") as caught:
            store.save(parent)
    assert caught.value.retryable
    assert str(folder) in str(caught.value)
    assert contents(folder) == before
    assert (child.persistent_id, child.changed, parent.changed) == (None, True, True)
    assert store.save(parent) == id_
    assert len(store.list()) == 2


@pytest.mark.parametrize("call", ["open", "fsync", "link", "rename", "unlink"])
def test_interrupted_save_leaves_no_draft(
    folder: Path,
    store: FilesystemStore,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    """Ctrl-C is noticed as soon as the system has done what it was asked for."""
    parent = Task("parent")
    id_ = store.save(parent)
    parent.tasks = [Task("child")]
    real = getattr(os, call)

    def interrupted(*args: Any, **options: Any) -> None:
        monkeypatch.undo()
        real(*args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, call, interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.save(parent)
    assert [name for name in os.listdir(folder) if not name.isdigit()] == []
    assert id_ in store.list()


def test_crash_between_files_leaves_what_can_be_loaded(
    folder: Path, store: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a crash before the last file the former version is whole."""
    parent = Task("former")
    id_ = store.save(parent)
    parent.jobname, parent.tasks = "later", [Task("child", parent=parent)]

    class Crash(BaseException):
        pass

    def crash(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", crash)
        patch.setattr(os, "unlink", lambda path: None)
        with pytest.raises(Crash):
            store.save(parent)
    loaded = FilesystemStore(folder).load(id_)
    assert loaded.jobname == "former"
    orphan = next(i for i in store.list() if i != id_)
    assert FilesystemStore(folder).load(orphan).jobname == "child"


def test_unusable_folder_is_named(tmp_path: Path) -> None:
    """A path that is no folder gives an error that says what to do."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        store = FilesystemStore(path)
        for call in (lambda s=store: s.save(Task()), store.list):
            with pytest.raises(
                StoreError, match="check that it is a directory"
            ) as caught:
                call()
            assert str(path) in str(caught.value)
            assert isinstance(caught.value.__cause__, OSError)


def test_folder_without_permission_is_named(
    folder: Path, store: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only folder is no reason to wait and retry."""
    store.save(Task())

    def refuse(*_: object, **__: object) -> int:
        # A real one does not stop root, who may be running this.
        raise PermissionError(errno.EACCES, "refused")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreError, match="this user can read and write") as caught:
        store.save(Task())
    assert not caught.value.retryable


def test_torn_payload_is_a_decode_error(folder: Path, store: FilesystemStore) -> None:
    """G7: a file that cannot be read is reported by ID, and stays."""
    id_ = store.save(Task())
    (folder / str(id_)).write_bytes(b"torn")
    with pytest.raises(DecodeError) as caught:
        FilesystemStore(folder).load(id_)
    assert caught.value.id == id_
    assert contents(folder) == {str(id_): b"torn"}


def test_what_cannot_be_pickled_is_refused(
    folder: Path, store: FilesystemStore
) -> None:
    """G2: nothing of a graph is stored if one object in it cannot be."""
    task = Task("parent", tasks=[Task("good"), Task("bad", function=lambda: None)])
    with pytest.raises(EncodeError):
        store.save(task)
    with pytest.raises(EncodeError):
        store.save(Task("store inside", store=store))
    assert not folder.exists()
    assert task.persistent_id is None


# IDs


def test_ids_are_not_used_again(store: FilesystemStore) -> None:
    """G5: neither removal nor another store on the folder brings an ID back."""
    ids = set()
    for _ in range(20):
        ids.add(id_ := store.save(Task()))
        store.remove(id_)
        ids.add(FilesystemStore(store.directory).save(Task()))
    assert len(ids) == 40
    assert all(0 < id_ < 2**63 for id_ in ids)


def test_ids_are_intids_by_default(store: FilesystemStore) -> None:
    """An ID remembers what it was made for, as SqlStore's do."""
    id_ = store.save(Task())
    assert isinstance(id_, IntId)
    assert id_.prefix == "Task"


def test_idfactory_of_the_caller_is_asked(folder: Path) -> None:
    """An idfactory's ``new`` is given the object."""
    store = FilesystemStore(
        folder, IdFactory(prefix="job", next_id_fn=count(7).__next__)
    )
    assert (store.save(Task()), store.save(Task())) == (7, 8)
    assert sorted(contents(folder)) == ["7", "8"]


def test_taken_id_is_passed_over(folder: Path) -> None:
    """G5: a factory that starts anew writes over nobody's object."""
    first = FilesystemStore(folder, IdFactory(next_id_fn=count(1).__next__))
    first.save(Task("first"))
    second = FilesystemStore(folder, IdFactory(next_id_fn=count(1).__next__))
    assert second.save(Task("second")) == 2
    assert first.load(1).jobname == "first"


def test_factory_that_always_repeats_is_told_so(folder: Path) -> None:
    """G5: an object that is there is never written over by a new one."""
    store = FilesystemStore(folder, IdFactory(next_id_fn=lambda: 1))
    store.save(Task("first"))
    before = contents(folder)
    with pytest.raises(ConflictError, match="never return the same ID twice"):
        store.save(Task("second"))
    assert contents(folder) == before


def test_race_for_an_id_has_one_winner(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G5: an ID taken between the look and the write is not written over."""
    store = FilesystemStore(folder, IdFactory(next_id_fn=lambda: 1))
    real = files.write_all

    def late(directory: str, drafts: Any) -> None:
        (folder / "1").write_bytes(b"somebody else's")
        real(directory, drafts)

    monkeypatch.setattr("sessionstore.filesystem.write_all", late)
    task = Task()
    with pytest.raises(ConflictError) as caught:
        store.save(task)
    assert caught.value.id == 1
    assert contents(folder) == {"1": b"somebody else's"}
    assert task.persistent_id is None


# Processes


def _save_some(store: FilesystemStore, queue: Any) -> None:
    queue.put([store.save(Task(str(os.getpid()))) for _ in range(10)])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_a_folder(store: FilesystemStore, method: str) -> None:
    """G4, G5: parent and children write at once, each object with its own ID."""
    context: Any = multiprocessing.get_context(method)
    queue = context.Queue()
    store.save(Task("before"))
    children = [
        context.Process(target=_save_some, args=(store, queue)) for _ in range(2)
    ]
    for child in children:
        child.start()
    _save_some(store, queue)
    ids = [id_ for _ in range(3) for id_ in queue.get(timeout=60)]
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert len(set(ids)) == 30
    assert set(ids) < set(store.list())


def test_child_does_not_wait_for_the_parent_s_lock(store: FilesystemStore) -> None:
    """G4: a fork while another thread loads leaves the child able to load."""
    id_ = store.save([1])
    context = multiprocessing.get_context("fork")
    with store._lock:
        codes: list[int | None] = []

        def fork_from_another_thread() -> None:
            child = context.Process(target=store.load, args=(id_,))
            child.start()
            child.join(20)
            codes.append(child.exitcode)
            child.kill()

        thread = threading.Thread(target=fork_from_another_thread)
        thread.start()
        thread.join(30)
    assert codes == [0]


def test_store_pickles_as_its_recipe(folder: Path) -> None:
    """A store crosses to another process without what it has in memory."""
    store = FilesystemStore(folder, protocol=2)
    id_ = store.save(Task("one"))
    other = pickle.loads(pickle.dumps(store))
    assert other.directory == store.directory
    assert other.load(id_) is not store.load(id_)
    assert repr(other) == f"<FilesystemStore '{folder}'>"


# Options


def test_protocol_is_pickle_s(folder: Path) -> None:
    """Older readers can be served."""
    FilesystemStore(folder, protocol=2).save(Task())
    assert [data[:2] for data in contents(folder).values()] == [b"\x80\x02"]


def test_serializer_is_used(folder: Path) -> None:
    """The bytes are the serializer's business."""

    class Reversed(PickleSerializer):
        def dumps(self, *arguments: Any) -> bytes:
            return super().dumps(*arguments)[::-1]

        def loads(self, payload: bytes, *arguments: Any) -> object:
            return super().loads(payload[::-1], *arguments)

    id_ = FilesystemStore(folder, serializer=Reversed()).save(Task("one"))
    assert contents(folder)[str(id_)].startswith(b".")
    assert FilesystemStore(folder, serializer=Reversed()).load(id_).jobname == "one"


def test_sqlstore_s_options_are_ignored_and_others_warned_of(folder: Path) -> None:
    """A misspelt option does not pass unseen."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FilesystemStore(
            folder, table_name="t", extra_fields={}, create=False, busy_timeout=1
        )
    with pytest.warns(UserWarning, match="protocoll"):
        FilesystemStore(folder, protocoll=2)


@pytest.mark.parametrize(
    "url",
    ["", "file://elsewhere/tmp", "file://localhost", Url("sqlite:///a"), "file://h:x/"],
)
def test_url_of_no_folder_here_is_refused(url: Any) -> None:
    """A URL that names no folder of this host makes no folder of that name."""
    with pytest.raises(ConfigurationError):
        FilesystemStore(url)


class Slotted(Persistable):
    """A class whose objects keep an attribute outside their dictionary."""

    __slots__ = ("colour",)


def test_slots_are_stored(folder: Path, store: FilesystemStore) -> None:
    """An object's slots are part of it."""
    obj = Slotted()
    obj.colour = "blue"
    assert FilesystemStore(folder).load(store.save(obj)).colour == "blue"
