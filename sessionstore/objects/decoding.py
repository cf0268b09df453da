"""Payloads to objects: a batch of IDs, and all that they refer to."""

from __future__ import annotations

import copyreg
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from sessionstore import renaming
from sessionstore.errors import DecodeError
from sessionstore.objects.records import Decoded, Row, path_of
from sessionstore.persistable import NOTED, is_persistable
from sessionstore.renaming import Renaming
from sessionstore.row_ids import not_found
from sessionstore.serializers import Serializer
from sessionstore.serializers.pickles import globals_in
from sessionstore.task import State

__all__ = ["decode", "fill"]

log = logging.getLogger(__name__)

#: Py_TPFLAGS_HEAPTYPE: a class made by a class statement, not by C code.
_HEAP_TYPE = 1 << 9
#: How deep objects are read inside each other, where one is needed whole.
DEPTH = 50
#: The bytes of a payload in which its class is looked for.
_BEGINNING = 4096
_STATES = {state.value: state for state in State}


def decode(
    ids: Sequence[int],
    rows: Mapping[int, Row],
    *,
    fetch: Callable[[Sequence[int]], Mapping[int, Row]],
    live: Callable[[int], object | None],
    serializer: Serializer,
    renamed: Renaming | None = None,
) -> Decoded:
    """Read the objects with these IDs from their rows, and those they refer to.

    ``live`` returns an object that is in memory already, which is then referred to
    instead of read again, and ``fetch`` the rows of those that are not; the given IDs
    themselves are always read.
    """
    decoded = Decoded(rows)
    with renamed.used() if renamed else _NOTHING:
        done = _read_alone(ids, decoded, serializer)
        if done < len(ids):
            _Decoder(fetch, live, serializer, decoded).run(ids[done:])
    return decoded


_NOTHING = nullcontext()


def _read_alone(ids: Sequence[int], decoded: Decoded, serializer: Serializer) -> int:
    """Read objects up to the first that refers to others; return how many.

    Most refer to none, and need no bookkeeping.  One that cannot be read is left to the
    decoder too, which reports it.
    """
    rows, objects, loads = decoded.rows, decoded.objects, serializer.loads
    for number, object_id in enumerate(ids):
        try:
            objects[object_id] = _read(rows[object_id], loads, _refuse)
        except Exception:
            return number
    return len(ids)


def _refuse(reference: object) -> object:
    raise ValueError(f"it refers to {reference!r}")


def _read(
    row: Row,
    loads: Callable[[bytes, Callable[[Any], object]], object],
    refer: Callable[[Any], object],
) -> object:
    """Return the object of a row, in the state that the row has."""
    payload = row.payload
    if payload is None:
        raise ValueError("its data is NULL")
    obj = loads(bytes(payload), refer)
    if row.revision is not None and not is_persistable(obj):
        raise TypeError("it is listed as a task but is not a Persistable")
    # The column is the truth: a transition changes it and leaves the payload.
    execution = getattr(obj, "execution", None)
    if execution is not None and row.state is not None:
        _set_state(obj, execution, row.state)
    return obj


class _Decoder:
    """Reads objects, and what they refer to, into ``decoded``."""

    def __init__(
        self,
        fetch: Callable[[Sequence[int]], Mapping[int, Row]],
        live: Callable[[int], object | None],
        serializer: Serializer,
        decoded: Decoded,
    ) -> None:
        self._fetch = fetch
        self._live = live
        self._loads = serializer.loads
        self._decoded = decoded
        self._empty: dict[int, object] = {}
        self._todo: list[int] = []
        self._refers_to: dict[int, set[int]] = {}
        self._under_way: list[int] = []

    def run(self, ids: Sequence[int]) -> None:
        """Read the objects with these IDs, whose rows were fetched."""
        self._read_all(ids)
        seen: set[int] = set()
        while self._todo:
            seen.update(ids)
            ids = [i for i in dict.fromkeys(self._todo) if i not in seen]
            self._todo.clear()
            self._decoded.rows.update(self._fetch(ids))
            self._read_all(ids)
        if self._decoded.errors:
            self._spread_errors()

    def _read_all(self, ids: Sequence[int]) -> None:
        for object_id in ids:
            if object_id not in self._decoded.objects:
                self._read(object_id)

    def _read(self, object_id: int) -> None:
        row = self._decoded.rows.get(object_id)
        if row is None:
            self._decoded.errors[object_id] = not_found(object_id)
            return
        self._under_way.append(object_id)
        try:
            try:
                obj = _read(row, self._loads, self._refer)
            except Exception:
                # Its __setstate__ may have looked into a part that was still empty.
                if not self._read_parts(object_id):
                    raise
                obj = _read(row, self._loads, self._refer)
            if object_id in self._empty:
                fill(self._empty[object_id], obj)
                obj = self._empty[object_id]
            self._decoded.objects[object_id] = obj
        except Exception as error:
            kind = "" if isinstance(error, DecodeError) else f"{type(error).__name__}: "
            self._decoded.errors[object_id] = DecodeError(
                f"object {object_id} of {_class_path(row.payload)} cannot be read: "
                f"{kind}{error}; it was left in place",
                id=object_id,
            )
            self._decoded.errors[object_id].__cause__ = error
        finally:
            self._under_way.pop()

    def _read_parts(self, object_id: int) -> bool:
        """Fill what an object refers to; say whether there was anything to fill."""
        decoded = self._decoded
        parts = [
            i
            for i in sorted(self._refers_to.get(object_id, ()))
            if i in self._empty
            and i not in decoded.objects
            and i not in decoded.errors
            and i not in self._under_way
        ]
        if not parts or len(self._under_way) > DEPTH:
            return False
        decoded.rows.update(self._fetch(parts))
        for part in parts:
            if part not in decoded.objects:
                self._read(part)
        return True

    def _refer(self, reference: Any) -> object:
        if isinstance(reference, tuple) and len(reference) == 3:
            object_id, module, name = reference
            if not isinstance(object_id, int):
                raise ValueError(f"it refers to {object_id!r}, which is not an ID")
            self._refers_to.setdefault(self._under_way[-1], set()).add(object_id)
            there = self._there(object_id)
            if there is None:
                cls = renaming.find(module, name)
                if not _can_be_filled(cls) or self._is_wanted_whole(cls, object_id):
                    return self._read_at_once(object_id)
                there = self._empty[object_id] = cls.__new__(cls)
                self._todo.append(object_id)
            return there
        return self._read_at_once(int(reference))

    def _is_wanted_whole(self, cls: type, object_id: int) -> bool:
        # A set or a dictionary asks for its members' hashes as it is made, and an empty
        # object may have another hash than the whole one.
        own_hash: object = cls.__hash__  # None for a list
        return (
            own_hash not in {None, object.__hash__}
            and object_id not in self._under_way
            and len(self._under_way) <= DEPTH
        )

    def _read_at_once(self, object_id: int) -> object:
        self._refers_to.setdefault(self._under_way[-1], set()).add(object_id)
        there = self._there(object_id)
        if there is not None:
            return there
        if object_id in self._under_way:
            raise ValueError(
                f"it and object {object_id} refer to each other, and neither can be "
                "built without the other"
            )
        self._decoded.rows.update(self._fetch([object_id]))
        self._read(object_id)
        if object_id in self._decoded.errors:
            raise self._decoded.errors[object_id]
        return self._decoded.objects[object_id]

    def _there(self, object_id: int) -> object | None:
        for known in (self._empty, self._decoded.objects):
            if object_id in known:
                return known[object_id]
        return self._live(object_id)

    def _spread_errors(self) -> None:
        # Or an object would refer to an empty shell of one that cannot be read.
        errors = self._decoded.errors
        spread = True
        while spread:
            spread = False
            for object_id, references in self._refers_to.items():
                broken = next((i for i in references if i in errors), None)
                if broken is not None and object_id not in errors:
                    errors[object_id] = DecodeError(
                        f"object {object_id} cannot be read: it refers to object "
                        f"{broken}: {errors[broken]}",
                        id=object_id,
                    )
                    errors[object_id].__cause__ = errors[broken]
                    spread = True
        for object_id in errors:
            self._decoded.objects.pop(object_id, None)


def _set_state(obj: object, execution: Any, state: str) -> None:
    if getattr(execution, "state", state) == state:
        return
    try:
        execution.state = _STATES.get(state, state)
    except ValueError:
        log.warning("%r does not accept the state %r of its row", obj, state)


def _can_be_filled(cls: type) -> bool:
    """Say whether an empty instance can be made first, and filled by ``fill``."""
    # A tuple, a number or an exception cannot be filled after it was made.
    builtin = {base for base in cls.__mro__ if not base.__flags__ & _HEAP_TYPE}
    return builtin <= {object, list, dict, set} and cls.__new__ in {
        base.__new__ for base in builtin
    }


def fill(target: object, source: object) -> None:
    """Make ``target`` hold what ``source`` holds, an object of the same class."""
    if type(target) is not type(source):
        raise TypeError(
            f"it is a {path_of(type(source))}, but a {path_of(type(target))} was "
            "expected"
        )
    if hasattr(source, "__dict__"):
        kept = {name: value for name, value in target.__dict__.items() if name in NOTED}
        target.__dict__.clear()
        target.__dict__.update(source.__dict__)
        target.__dict__.update(kept)
    for name in copyreg._slotnames(type(source)):  # type: ignore[attr-defined]
        if hasattr(source, name):
            # Not by setattr(), which a frozen dataclass refuses.
            object.__setattr__(target, name, getattr(source, name))
    if isinstance(source, list):
        target[:] = source  # type: ignore[index]
    elif isinstance(source, (dict, set)):
        target.clear()  # type: ignore[attr-defined]
        target.update(source)  # type: ignore[attr-defined]


def _class_path(payload: bytes | None) -> str:
    """Return the class a pickle begins with, without running any of it."""
    try:
        # Only its beginning, as going through a hostile one could take much memory.
        return ".".join(next(globals_in(bytes((payload or b"")[:_BEGINNING]))))
    except Exception:  # no pickle at all, or a torn one
        return "unknown class"
