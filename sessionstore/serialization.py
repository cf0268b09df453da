"""The format of a payload, and what crosses between objects and tables.

A payload is one pickle of one object.  Where the object refers to a ``Persistable``,
itself included, the pickle holds a persistent ID, the tuple ``(id, module,
qualified name)``: enough to make an empty instance of the class at once and to fill
it when its own payload has been read, so that graphs with cycles and shared
children load whichever object comes first.  Payloads made by GC3Pie have a plain
integer there; what it names is loaded on the spot, as it was by GC3Pie.

``encoding`` and ``decoding`` are the two ways.  Both work from a list of what is still
to do, not by recursion, so a chain of any length fits, and neither sees a database
connection: a ``Record`` is all that goes down to SQL, a ``Row`` all that comes back.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from sessionstore.errors import LoadError
from sessionstore.task import State

__all__ = [
    "Decoded",
    "PickleSerializer",
    "Record",
    "Row",
    "Serializer",
    "globals_in",
    "path_of",
    "state_of",
]


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
        payload = buffer.getvalue()
        if b"__main__" in payload:
            _warn_of_main(payload)
        return payload

    def loads(self, payload: bytes, persistent_load: Callable[[Any], object]) -> object:
        """Return the object that was pickled."""
        unpickler = _Unpickler(io.BytesIO(payload))
        unpickler.persistent_load = persistent_load
        return unpickler.load()


# Records and rows are made by the ten thousand, and a frozen dataclass takes three
# times as long to make as a tuple.


class Record(NamedTuple):
    """One object, ready to become a row."""

    obj: object
    id: int
    is_new: bool
    payload: bytes
    state: str


class Row(NamedTuple):
    """One row, as it was read."""

    payload: bytes | None
    state: str | None
    #: Of the object's job, where a session reads it.
    revision: int | None = None
    returncode: int | None = None


@dataclass(slots=True)
class Decoded:
    """What could be read, and why the rest could not."""

    objects: dict[int, object] = field(default_factory=dict)
    errors: dict[int, LoadError] = field(default_factory=dict)
    #: The rows that were fetched for them, the nested objects' included.
    rows: dict[int, Row] = field(default_factory=dict)


def globals_in(payload: bytes) -> Iterator[tuple[str, str]]:
    """Yield module and qualified name of what a pickle imports, without running it.

    Raises ValueError or what else pickletools raises, where it is no pickle.
    """
    import pickletools  # a third of this package's import, and seldom needed

    memo: dict[int, str | None] = {}
    strings: list[str] = []
    top: str | None = None
    argument: Any
    for opcode, argument, _ in pickletools.genops(payload):
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            yield module, name
        elif opcode.name == "STACK_GLOBAL":
            yield strings[-2], strings[-1]
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = top
            continue
        elif "PUT" in opcode.name:
            memo[argument] = top
            continue
        top = memo.get(argument) if "GET" in opcode.name else argument
        if isinstance(top, str):
            strings.append(top)
        else:
            top = None


def _warn_of_main(payload: bytes) -> None:
    for module, name in dict.fromkeys(globals_in(payload)):
        if module == "__main__":
            warnings.warn(
                f"{name} is a class of __main__, which other programs do not have; "
                "put it into a module, or only this one can load it",
                stacklevel=2,
            )


def state_of(obj: object) -> str:
    """Return ``obj.execution.state``, or UNKNOWN for an object without one."""
    state = getattr(getattr(obj, "execution", None), "state", None)
    return State.UNKNOWN if state is None else str(state)


def path_of(cls: type) -> str:
    """Return a class's module and qualified name."""
    return f"{cls.__module__}.{cls.__qualname__}"
