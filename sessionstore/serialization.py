"""Objects to bytes and back.

A payload is one pickle of one object.  Where the object refers to a ``Persistable``,
itself included, the pickle holds a persistent ID, the tuple ``(id, module,
qualified name)``: enough to make an empty instance of the class at once and to fill
it when its own payload has been read, so that graphs with cycles and shared
children load whichever object comes first.  Payloads made by GC3Pie have a plain
integer there; what it names is loaded on the spot, as it was by GC3Pie.

Both ways work from a list of what is still to do, not by recursion, so a chain of
any length fits.  No database connection is involved in either.
"""

from __future__ import annotations

import copyreg
import importlib
import io
import logging
import pickle
import pickletools
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sessionstore.errors import DecodeError, EncodeError, LoadError, NotFoundError
from sessionstore.persistable import Persistable
from sessionstore.task import State

__all__ = [
    "Decoded",
    "PickleSerializer",
    "Record",
    "Row",
    "Serializer",
    "decode",
    "encode",
    "fill",
    "is_encoding",
    "state_of",
]

log = logging.getLogger(__name__)

_STATES = {state.value: state for state in State}


class Serializer(Protocol):
    """Turns one object into bytes and back."""

    def dumps(
        self, obj: object, persistent_id: Callable[[object], object | None]
    ) -> bytes:
        """Return ``obj`` as bytes; what ``persistent_id`` knows, as that only."""

    def loads(self, payload: bytes, persistent_load: Callable[[Any], object]) -> object:
        """Return the object; ``persistent_load`` gives those that stand outside."""


class _Pickler(pickle.Pickler):
    persistent_id: Callable[[object], object | None]


class _Unpickler(pickle.Unpickler):
    persistent_load: Callable[[Any], object]


class PickleSerializer:
    """Python's pickle, as the seed of this project has it.

    Reading a pickle can run any code: whoever can write to the database can run
    code in the processes that read it.
    """

    def __init__(self, protocol: int = pickle.HIGHEST_PROTOCOL) -> None:
        self._protocol = protocol

    def dumps(
        self, obj: object, persistent_id: Callable[[object], object | None]
    ) -> bytes:
        """Return a pickle of ``obj``."""
        buffer = io.BytesIO()
        pickler = _Pickler(buffer, self._protocol)
        pickler.persistent_id = persistent_id
        pickler.dump(obj)
        return buffer.getvalue()

    def loads(self, payload: bytes, persistent_load: Callable[[Any], object]) -> object:
        """Return the object that was pickled."""
        unpickler = _Unpickler(io.BytesIO(payload))
        unpickler.persistent_load = persistent_load
        return unpickler.load()


@dataclass(frozen=True, slots=True)
class Record:
    """One object, ready to become a row."""

    obj: object
    id: int
    is_new: bool
    payload: bytes
    state: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row, as it was read."""

    payload: bytes | None
    state: str | None
    #: Of the object's job, where a session reads it.
    revision: int | None = None
    returncode: int | None = None


@dataclass(frozen=True, slots=True)
class Decoded:
    """What could be read, and why the rest could not."""

    objects: dict[int, object] = field(default_factory=dict)
    errors: dict[int, LoadError] = field(default_factory=dict)
    #: The rows that were fetched for them, the nested objects' included.
    rows: dict[int, Row] = field(default_factory=dict)


def state_of(obj: object) -> str:
    """Return ``obj.execution.state``, or UNKNOWN for an object without one."""
    state = getattr(getattr(obj, "execution", None), "state", None)
    return State.UNKNOWN if state is None else str(state)


_encoding = threading.local()


def is_encoding() -> bool:
    """Say whether this thread is turning an object into a payload just now."""
    return getattr(_encoding, "active", False)


def encode(
    roots: Iterable[object],
    *,
    known_id: Callable[[object], int | None],
    new_id: Callable[[object], int],
    serializer: Serializer,
) -> list[Record]:
    """Return the records that storing ``roots`` takes, nested objects included.

    Each root is among them, and each ``Persistable`` reached from one that is
    new (``known_id`` gives None) or ``changed``.  Nothing is assigned to any object.

    Raises EncodeError if one of them cannot be stored.
    """
    todo: list[object] = []
    ids: dict[int, tuple[int, bool]] = {}
    must_write: set[int] = set()

    def meet(obj: object) -> int:
        known = ids.get(id(obj))
        if known is None:
            stored = known_id(obj)
            is_new = stored is None
            known = ids[id(obj)] = (new_id(obj) if stored is None else stored, is_new)
            todo.append(obj)
            if is_new or getattr(obj, "changed", False):
                must_write.add(id(obj))
        return known[0]

    for root in roots:
        meet(root)
        must_write.add(id(root))

    records = []
    for obj in todo:  # which grows as objects are met
        payload = _dump(obj, ids[id(obj)][0], meet, serializer)
        if id(obj) in must_write:
            object_id, is_new = ids[id(obj)]
            records.append(Record(obj, object_id, is_new, payload, state_of(obj)))
    return records


def _dump(
    obj: object,
    object_id: int,
    meet: Callable[[object], int],
    serializer: Serializer,
) -> bytes:
    at_root = True

    def persistent_id(part: object) -> object | None:
        nonlocal at_root
        if isinstance(part, Persistable):
            if at_root and part is obj:
                at_root = False
                return None
            cls = type(part)
            return int(meet(part)), cls.__module__, cls.__qualname__
        if isinstance(part, type) and part.__module__ == "__main__":
            warnings.warn(
                f"{part.__qualname__} is a class of __main__, which other programs "
                "do not have; put it into a module, or only this one can load it",
                stacklevel=2,
            )
        return None

    outer = is_encoding()
    _encoding.active = True
    try:
        return serializer.dumps(obj, persistent_id)
    except EncodeError:
        raise
    except Exception as error:
        raise EncodeError(
            f"an object of {_path(type(obj))} cannot be stored: "
            f"{type(error).__name__}: {error}; nothing of it was",
            id=object_id,
        ) from error
    finally:
        _encoding.active = outer


def decode(
    ids: Sequence[int],
    *,
    fetch: Callable[[Sequence[int]], Mapping[int, Row]],
    live: Callable[[int], object | None],
    serializer: Serializer,
) -> Decoded:
    """Read the objects with these IDs, and those they refer to.

    ``live`` returns an object that is in memory already, which is then referred to
    instead of read again; the given IDs themselves are always read.
    """
    return _Decoder(fetch, live, serializer).run(ids)


class _Decoder:
    def __init__(
        self,
        fetch: Callable[[Sequence[int]], Mapping[int, Row]],
        live: Callable[[int], object | None],
        serializer: Serializer,
    ) -> None:
        self._fetch = fetch
        self._live = live
        self._serializer = serializer
        self._decoded = Decoded()
        self._empty: dict[int, object] = {}
        self._todo: list[int] = []
        self._refers_to: dict[int, set[int]] = {}
        self._under_way: list[int] = []

    def run(self, ids: Sequence[int]) -> Decoded:
        self._todo = list(dict.fromkeys(ids))
        seen = set(self._todo)
        while self._todo:
            batch, self._todo = self._todo, []
            self._decoded.rows.update(self._fetch(batch))
            for object_id in batch:
                if object_id not in self._decoded.objects:
                    self._read(object_id)
            self._todo = [i for i in dict.fromkeys(self._todo) if i not in seen]
            seen.update(self._todo)
        self._spread_errors()
        return self._decoded

    def _read(self, object_id: int) -> None:
        row = self._decoded.rows.get(object_id)
        if row is None:
            self._decoded.errors[object_id] = NotFoundError(
                f"there is no object with ID {object_id}", id=object_id
            )
            return
        self._under_way.append(object_id)
        try:
            obj = self._load(object_id, row)
            self._decoded.objects[object_id] = obj
        except Exception as error:
            self._decoded.errors[object_id] = DecodeError(
                f"object {object_id} of {_class_path(row.payload)} cannot be read: "
                f"{type(error).__name__}: {error}; it stays where it is",
                id=object_id,
            )
            self._decoded.errors[object_id].__cause__ = error
        finally:
            self._under_way.pop()

    def _load(self, object_id: int, row: Row) -> object:
        if row.payload is None:
            raise ValueError("its data is NULL")
        obj = self._serializer.loads(bytes(row.payload), self._refer)
        _set_state(obj, row.state)
        empty = self._empty.get(object_id)
        if empty is None:
            return obj
        fill(empty, obj)
        return empty

    def _refer(self, reference: Any) -> object:
        if isinstance(reference, tuple) and len(reference) == 3:
            object_id, module, name = reference
            self._refers_to.setdefault(self._under_way[-1], set()).add(object_id)
            there = self._there(object_id)
            if there is None:
                cls = _find_class(module, name)
                there = self._empty[object_id] = cls.__new__(cls)
                self._todo.append(object_id)
            return there
        return self._refer_as_gc3pie(int(reference))

    def _refer_as_gc3pie(self, object_id: int) -> object:
        self._refers_to.setdefault(self._under_way[-1], set()).add(object_id)
        there = self._there(object_id)
        if there is not None:
            return there
        if object_id in self._under_way:
            raise ValueError(f"it and object {object_id} refer to each other by number")
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
        # An object that refers to one that cannot be read would hold an empty shell.
        errors = self._decoded.errors
        spread = True
        while spread and errors:
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


def _set_state(obj: object, state: str | None) -> None:
    # The column is the truth: a transition changes it and leaves the payload alone.
    execution = getattr(obj, "execution", None)
    if state is None or not hasattr(execution, "state"):
        return
    try:
        execution.state = _STATES.get(state, state)  # type: ignore[union-attr]
    except ValueError:
        log.warning("%r cannot have the state %r of its row", obj, state)


def fill(target: object, source: object) -> None:
    """Make ``target`` hold what ``source`` holds, an object of the same class."""
    if type(target) is not type(source):
        raise TypeError(
            f"it is an object of {_path(type(source))}, and was expected to be one "
            f"of {_path(type(target))}"
        )
    if hasattr(source, "__dict__"):
        kept = {
            name: value
            for name, value in target.__dict__.items()
            if name in {"persistent_id", "_origin", "_revision"}
        }
        target.__dict__.clear()
        target.__dict__.update(source.__dict__)
        target.__dict__.update(kept)
    for name in copyreg._slotnames(type(source)):  # type: ignore[attr-defined]
        if hasattr(source, name):
            setattr(target, name, getattr(source, name))
    if isinstance(source, list):
        target[:] = source  # type: ignore[index]
    elif isinstance(source, (dict, set)):
        target.clear()  # type: ignore[attr-defined]
        target.update(source)  # type: ignore[attr-defined]


def _find_class(module: str, name: str) -> Any:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _class_path(payload: bytes | None) -> str:
    """Return the class a pickle begins with, without running any of it."""
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(bytes(payload or b"")):
            if opcode.name == "GLOBAL":
                return str(argument).replace(" ", ".")
            if opcode.name == "STACK_GLOBAL":
                return ".".join(strings[-2:])
            if isinstance(argument, str):
                strings.append(argument)
    except Exception:  # no pickle at all, or a torn one
        log.debug("a payload's class could not be told", exc_info=True)
    return "unknown class"
