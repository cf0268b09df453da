"""What every store promises, as a suite of tests for your own ``Store`` class.

>>> import pytest
>>> from sessionstore import FilesystemStore
>>> from sessionstore.testing.contract import StoreContract
>>> class TestMyStore(StoreContract):
...     @pytest.fixture
...     def store(self, tmp_path):
...         return FilesystemStore(tmp_path)

The store must be empty, and lasting: another process that has a pickled copy of it, or
is a forked child, sees the same objects.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import pytest

from sessionstore.errors import DecodeError, EncodeError, NotFoundError
from sessionstore.store import Store
from sessionstore.task import State, Task
from sessionstore.testing.children import run_forked

__all__ = ["StoreContract"]


class Vanishing(Task):
    """A class that is taken away in a test."""


class StoreContract:
    """A subclass named ``Test...`` gives the fixture ``store``, which returns a store.

    Tests of ``list`` hold for stores that have it.
    """

    def test_store_is_true(self, store: Store) -> None:
        """Also an empty one, so that ``if store:`` means what it seems to."""
        assert store

    def test_what_was_saved_is_loaded(self, store: Store) -> None:
        """The object comes back with its state, its ID and no mark of a change."""
        task = Task("name", value={"a": [1, None, "ü\0"]})
        task.execution.state = State.RUNNING
        id_ = store.save(task)
        assert (task.persistent_id, task.changed) == (id_, False)
        store.invalidate_cache()
        again = store.load(id_)
        assert again is not task
        assert (again.jobname, again.value) == ("name", {"a": [1, None, "ü\0"]})
        assert again.execution.state is State.RUNNING
        assert (again.persistent_id, again.changed) == (id_, False)

    def test_any_object_can_be_saved(self, store: Store) -> None:
        """Not only tasks: whatever pickles."""
        for value in ({"a": 1}, [1, 2], "text", b"\0" * 1000, 7, None):
            id_ = store.save(value)
            store.invalidate_cache()
            assert store.load(id_) == value

    def test_saving_again_keeps_the_id(self, store: Store) -> None:
        """And the object is as it was saved last."""
        task = Task(value=1)
        id_ = store.save(task)
        task.value = 2
        assert store.save(task) == id_
        store.invalidate_cache()
        assert store.load(id_).value == 2
        assert _listed(store) in (None, [id_])

    def test_graphs_come_back(self, store: Store) -> None:
        """Cycles and shared parts are the same objects again."""
        one, two, shared = Task("1"), Task("2"), Task("3")
        one.two, two.one, one.shared, two.shared = two, one, shared, shared
        id_ = store.save(one)
        store.invalidate_cache()
        again = store.load(id_)
        assert again.two.one is again
        assert again.shared is again.two.shared

    def test_what_cannot_be_pickled_is_refused(self, store: Store) -> None:
        """EncodeError, and nothing of it is stored."""

        class Local:
            pass

        for part in (lambda: None, Local(), store):
            with pytest.raises(EncodeError):
                store.save(Task(part=part))
        assert _listed(store) in (None, [])

    def test_unknown_ids_are_not_found(self, store: Store) -> None:
        """NotFoundError names the ID, whatever was asked."""
        id_ = store.save(Task())
        store.remove(id_)
        for call in (store.load, store.remove, lambda i: store.replace(i, Task())):
            for unknown in (id_, 10**15, "nonsense", 7.5, None):
                with pytest.raises(NotFoundError) as caught:
                    call(unknown)
                assert str(unknown) in str(caught.value)
        assert _listed(store) in (None, [])

    def test_ids_are_for_ever(self, store: Store) -> None:
        """What is saved after a removal gets an ID that nothing ever had."""
        task = Task()
        old = store.save(task)
        store.remove(old)
        assert store.save(task) != old
        assert store.save(Task()) not in {old, task.persistent_id}

    def test_replace_copies(self, store: Store) -> None:
        """The object given stays what and where it is."""
        first, second = Task("first"), Task("second")
        id_ = store.save(first)
        store.replace(id_, second)
        assert second.persistent_id is None
        store.invalidate_cache()
        assert store.load(id_).jobname == "second"

    def test_object_of_a_class_that_is_gone_stays(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """DecodeError names ID and class, and it loads once the class is back."""
        id_ = store.save(Vanishing("x"))
        with monkeypatch.context() as context:
            context.delattr(f"{__name__}.Vanishing")
            store.invalidate_cache()
            with pytest.raises(DecodeError, match="Vanishing") as caught:
                store.load(id_)
            assert caught.value.id == id_
        assert store.load(id_).jobname == "x"

    def test_store_pickles_as_its_recipe(self, store: Store) -> None:
        """A copy made by pickling sees the same objects."""
        id_ = store.save(Task("x"))
        assert pickle.loads(pickle.dumps(store)).load(id_).jobname == "x"

    def test_store_works_on_both_sides_of_a_fork(self, store: Store) -> None:
        """The child reads and writes, and the parent sees what it wrote."""
        before = store.save(Task("before"))

        def work() -> int:
            store.invalidate_cache()
            assert store.load(before).jobname == "before"
            return store.save(Task("of the child"))

        store.pre_fork()
        made = run_forked(work)
        store.post_fork()
        after = store.save(Task("after"))
        assert len({before, made, after}) == 3
        assert store.load(made).jobname == "of the child"


def _listed(store: Store) -> Sequence[int] | None:
    """Return the IDs that the store lists, None if it cannot."""
    try:
        return [*store.list()]
    except NotImplementedError:
        return None
