"""Which object in this process's memory stands for which row.

Each change to an object's bookkeeping (its ID, its ``changed`` mark, its revision, its
place in this map) is noted in the open transaction, together with what undoes it at a
rollback.  What is written in one statement, without a transaction, is noted when it is
committed.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from sessionstore.database.access import Database
from sessionstore.database.scopes import Scope
from sessionstore.objects.origin import Origin, assign_id
from sessionstore.objects.records import Record
from sessionstore.persistable import NOTED, Persistable, mark, note

__all__ = ["IdentityMap", "set_unmarked"]


class IdentityMap:
    """The live objects of one table, held weakly.

    ``origin`` names the table on the objects that are stored in it.
    """

    def __init__(self, database: Database, origin: str) -> None:
        self._database = database
        own = Origin(origin)
        #: Returns the ID under which this table has an object, None if it has not.
        self.known_id = own.known_id
        self._note_stored = own.note_stored
        self._live: weakref.WeakValueDictionary[int, Any] = (
            weakref.WeakValueDictionary()
        )
        database.on_reset.append(self._reset_in_child)

    def _reset_in_child(self) -> None:
        # The child cannot know what becomes of what the parent's open transactions
        # touched.
        for scope in self._database.scopes:
            for object_id in self._noted(scope):
                self._live.pop(object_id, None)

    def _noted(self, scope: Scope) -> dict[int, Any]:
        """Return what is live in one transaction only, None for what it removed."""
        noted: dict[int, Any] = scope.notes.setdefault(self, {})
        return noted

    # Which object is which

    def live(self, object_id: int) -> Any | None:
        """Return the object that this process has in memory for an ID."""
        scope = self._database.scope
        if scope is not None and object_id in (noted := self._noted(scope)):
            return noted[object_id]
        obj = self._live.get(object_id)
        return obj if obj is not None and self._is_here(obj, object_id) else None

    def live_among(self, ids: Iterable[int]) -> dict[int, Any]:
        """Return the live objects of these IDs."""
        scope = self._database.scope
        noted = {} if scope is None else self._noted(scope)
        get = self._live.get
        live: dict[int, Any] = {}
        for i in ids:
            obj = noted[i] if i in noted else get(i)
            if obj is not None and self._is_here(obj, i):
                live[i] = obj
        return live

    def _is_here(self, obj: object, object_id: int) -> bool:
        # An object that was since saved to another store belongs to that one, whatever
        # happens to the row here.
        return not isinstance(obj, Persistable) or self.known_id(obj) == object_id

    # Bookkeeping on objects

    def stored(self, records: Sequence[Record]) -> None:
        """Note on objects, after ``undo_later``, that their rows were written."""
        objects = {int(record.id): record.obj for record in records}
        for object_id, obj in objects.items():
            self._note_stored(obj, object_id)
        self._remember(objects)

    def found(self, obj: Persistable, object_id: int, revision: int | None) -> None:
        """Note that an object is stored; it may have been changed since it was sent."""
        self._note_stored(obj, object_id)
        note(obj, _revision=revision)
        mark(obj, True)
        self._keep({object_id: obj})

    def adopt(self, objects: Mapping[int, Any]) -> None:
        """Note on objects that they are what the table has under these IDs."""
        for object_id, obj in objects.items():
            self._note_stored(obj, object_id)
            if isinstance(obj, Persistable) and obj._revision is not None:
                # It is from the payload, of a class whose __getstate__ returns
                # everything.
                note(obj, _revision=None)
        self._remember(objects)

    def _remember(self, objects: Mapping[int, Any]) -> None:
        scope = self._database.scope
        if scope is None:
            self._keep(objects)
        else:
            # Nobody else may see what is not committed yet.
            self._noted(scope).update(objects)
            scope.after_commit.append(lambda: self._keep(objects))

    def _keep(self, objects: Mapping[int, Any]) -> None:
        try:
            self._live.update(objects)
        except TypeError:  # lists and the like cannot be referred to weakly
            for object_id, obj in objects.items():
                with suppress(TypeError):
                    self._live[object_id] = obj

    def undo_later(self, objects: Sequence[object]) -> None:
        """Put bookkeeping and ``changed`` marks back if the transaction fails."""
        scope = self._database.scope
        if scope is None:
            return
        # A list for each attribute: so many tuples would have the garbage collector
        # go through all that is alive.
        before = [[getattr(obj, name, None) for obj in objects] for name in NOTED]
        changed = [getattr(obj, "changed", False) for obj in objects]

        def restore() -> None:
            for obj, was_changed, *values in zip(
                objects, changed, *before, strict=True
            ):
                if isinstance(obj, Persistable):
                    note(obj, **dict(zip(NOTED, values, strict=True)))
                    mark(obj, was_changed or obj.changed)
                else:
                    assign_id(obj, values[0])

        scope.undo.append(restore)

    def set_until_rollback(self, obj: Any, name: str, value: object) -> None:
        """Set an attribute without marking the object changed."""
        scope = self._database.scope
        assert scope is not None
        old = getattr(obj, name, None)
        scope.undo.append(lambda: set_unmarked(obj, name, old))
        set_unmarked(obj, name, value)

    def follow(self, object_id: int, before: int, after: int) -> Any | None:
        """Let the live object keep up with a change that left its payload alone.

        An object that was not at the revision ``before`` is out of date, and stays so:
        its next save would undo what somebody else wrote.
        """
        live = self.live(object_id)
        if not isinstance(live, Persistable):  # unreadable, to a session
            return None
        if live._revision == before:
            self.undo_later([live])
            note(live, _revision=after)
            scope = self._database.scope
            if scope is not None:
                self._noted(scope)[object_id] = live
        return live

    def read_at(self, obj: Persistable, revision: int | None) -> None:
        """Note the revision that an object was read at."""
        scope = self._database.scope
        if scope is not None and (
            obj._revision != revision or obj.persistent_id in self._noted(scope)
        ):
            # This transaction may have written what was read.  After a rollback, the
            # object has to be read again before it can be saved, whatever else is put
            # back.
            scope.undo.insert(0, lambda: note(obj, _revision=None))
        note(obj, _revision=revision)

    # Forgetting

    def note_removed(self, object_id: int) -> None:
        """Forget an object: in the transaction at once, elsewhere when it commits."""
        scope = self._database.scope
        assert scope is not None
        obj = self.live(object_id)
        self.evict(object_id)
        if isinstance(obj, Persistable):
            self.undo_later([obj])
            note(obj, persistent_id=None)
            scope.after_commit.append(lambda: mark(obj, True))
        elif obj is not None:
            self.undo_later([obj])
            assign_id(obj, None)

    def evict(self, object_id: int) -> None:
        """Forget which object is live under an ID, in the transaction and after it."""
        scope = self._database.scope
        assert scope is not None
        self._noted(scope)[object_id] = None
        scope.after_commit.append(lambda: self._live.pop(object_id, None))

    def forget_all(self) -> None:
        """Forget the live objects, so that each is read anew."""
        self._live.clear()
        scope = self._database.scope
        if scope is not None:
            self._noted(scope).clear()


def set_unmarked(obj: Any, name: str, value: object) -> None:
    """Set an attribute without marking the object changed."""
    marked = getattr(obj, "_changed", None)
    setattr(obj, name, value)
    if marked is not None:
        obj.__dict__["_changed"] = marked
