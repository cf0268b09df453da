"""Which objects have a place in a store, and under which ID.

An object has its ID as an attribute, and the name of the store that gave it.  These
alone do not tell it from a copy, which has the same attributes.
"""

from __future__ import annotations

import logging
import weakref
from typing import Any

from sessionstore.persistable import Persistable, mark

__all__ = ["Origin", "assign_id"]

log = logging.getLogger(__name__)


class Origin:
    """One store, as it is named on the objects that are stored in it."""

    def __init__(self, name: str) -> None:
        self._name = name
        #: Objects that are not Persistable, by ``id(obj)`` and ID.
        self._plain: weakref.WeakValueDictionary[tuple[int, int], Any] = (
            weakref.WeakValueDictionary()
        )

    def known_id(self, obj: object) -> int | None:
        """Return the ID under which this store has ``obj``, None if it has not."""
        object_id = getattr(obj, "persistent_id", None)
        if object_id is None:
            return None
        if isinstance(obj, Persistable):
            is_here = obj._store_name == self._name and obj._noted_on == id(obj)
        else:
            is_here = (
                isinstance(object_id, int)
                and self._plain.get((id(obj), int(object_id))) is obj
            )
        return int(object_id) if is_here else None

    def note_stored(self, obj: object, object_id: int) -> None:
        """Note on an object that it is what this store has under an ID."""
        if isinstance(obj, Persistable):
            # As note() does, which takes twice as long.
            noted = obj.__dict__
            noted["persistent_id"] = object_id
            noted["_store_name"] = self._name
            noted["_noted_on"] = id(obj)
            mark(obj, False)
        elif hasattr(obj, "__dict__"):
            assign_id(obj, object_id)
            try:
                self._plain[id(obj), int(object_id)] = obj
            except TypeError:
                log.debug(
                    "objects of %s cannot be weakly referenced, so each save stores a "
                    "new one",
                    type(obj),
                )


def assign_id(obj: Any, object_id: int | None) -> None:
    """Set an object's ``persistent_id``, if it takes that."""
    # On a class, all its instances would have it.
    if not isinstance(obj, type):
        try:
            obj.persistent_id = object_id
        except Exception:  # whatever the object's own __setattr__ raises
            log.debug("objects of %s do not accept a persistent_id", type(obj))
