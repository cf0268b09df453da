"""Objects that have a row of their own in a store."""

from __future__ import annotations

from typing import Any

__all__ = [
    "NOTED",
    "Persistable",
    "is_persistable",
    "mark",
    "note",
    "without_bookkeeping",
]


class Persistable:
    """An object that a store keeps in a row of its own.

    A Persistable inside another one is stored as a reference to its own row,
    so it may be shared by many and may form cycles.

    Assigning or deleting an attribute marks the object changed; a committed
    save clears the mark.  A change inside a container (``obj.names.append(...)``)
    is not seen: set ``changed = True`` yourself.

    >>> from sessionstore import Persistable
    >>> obj = Persistable()
    >>> obj.persistent_id is None, obj.changed
    (True, True)
    >>> obj.changed = False
    >>> obj.colour = "blue"
    >>> obj.changed
    True
    """

    #: The ID in the store, or None for an object that is in none.
    persistent_id: int | None = None
    _changed: bool = True
    #: The store that gave ``persistent_id``.
    _store_name: str | None = None
    #: The ``id()`` of the object that it was given to: a copy has the same attributes,
    #: and is another object.
    _noted_on: int | None = None
    #: Which revision of its job this copy was read at or written as.
    _revision: int | None = None

    @property
    def changed(self) -> bool:
        """Whether the object differs from what its store holds."""
        return self._changed

    @changed.setter
    def changed(self, value: bool) -> None:
        self.__dict__["_changed"] = bool(value)

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name not in _BOOKKEEPING:
            self.__dict__["_changed"] = True

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        self.__dict__["_changed"] = True

    def __getstate__(self) -> Any:
        # The row has the ID, and the mark is about this process's copy.  A payload that
        # had them too could contradict the row, and a copy.copy() would have another
        # object's identity.
        state: Any = super().__getstate__()
        if isinstance(state, tuple):
            attributes, slots = state
            return without_bookkeeping(attributes), slots
        return without_bookkeeping(state)


def is_persistable(obj: object) -> bool:
    """Say whether an object can be a job; GC3Pie's own Persistable can, too."""
    return isinstance(obj, Persistable) or any(
        cls.__name__ == "Persistable" for cls in type(obj).__mro__
    )


#: What a store notes on an object about the object's row; never part of a payload.
NOTED = ("persistent_id", "_store_name", "_noted_on", "_revision")
_BOOKKEEPING = frozenset({*NOTED, "changed", "_changed"})


def note(obj: Persistable, **bookkeeping: object) -> None:
    """Note something on an object about its row; never a change of the object."""
    # Not by setattr(), which a frozen dataclass refuses.
    obj.__dict__.update(bookkeeping)


def mark(obj: Persistable, changed: bool) -> None:
    """Set whether an object is changed, even if it is frozen."""
    object.__setattr__(obj, "changed", changed)


def without_bookkeeping(attributes: dict[str, object] | None) -> dict[str, object]:
    """Return the attributes that are the object's own."""
    without = dict(attributes or {})
    for name in _BOOKKEEPING:
        without.pop(name, None)
    return without
