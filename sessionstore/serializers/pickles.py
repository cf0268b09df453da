"""Objects as pickles, which is what a store writes unless it is told otherwise."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sessionstore import renaming
from sessionstore.serializers.allowed import Allowed, Entry
from sessionstore.serializers.envelope import refuse_envelope
from sessionstore.serializers.protocol import Serializer
from sessionstore.warn import warn_user

__all__ = ["PickleSerializer", "globals_in", "warn_of_main"]

#: The opcode of a reference, from protocol 1 on.
_BINPERSID = b"Q"


class _Pickler(pickle.Pickler):
    persistent_id: Callable[[object], object | None]


class _ReferenceError(Exception):
    """What is pickled refers to an object that has a row of its own."""


class _LonePickler(pickle.Pickler):
    # ``persistent_id`` is called for each part, down to every number and string, and
    # this for instances of classes only.  For the many objects that refer to no other,
    # that saves a quarter of the time.
    reducer_override: Callable[[object], Any]


class _Unpickler(pickle.Unpickler):
    persistent_load: Callable[[Any], object]


class _RenamingUnpickler(_Unpickler):
    # A class of its own, as a find_class in Python slows all loading down.
    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(*renaming.current_name(module, name))


class PickleSerializer:
    """Python's pickle, which stores use unless they are given something else.

    ``protocol`` is that of ``pickle.dump``.

    Reading a pickle can run any code: whoever can write to the database can run code in
    the processes that read it.  With ``allow`` a pickle may only name the classes and
    functions that are listed, and those in ``serializers.ALWAYS``; all that it names is
    checked before any of it is run.  Each entry is a class or function, the text
    ``"module:Qualified.name"`` for one, or ``"module"`` for all classes that a module
    has at its top.  An object of another class is not stored.

    Pickles of protocol 2 and later can be read, also those of Python 2.

    The listed classes themselves must be safe to call with any arguments, and so must
    their ``__setstate__``.

    >>> from sessionstore import SqlStore, Task
    >>> from sessionstore.serializers import PickleSerializer
    >>> store = SqlStore(
    ...     "sqlite:///tasks.db", serializer=PickleSerializer(allow=["pathlib:Path"])
    ... )
    >>> store.load(store.save(Task("count", lines=27))).lines
    27
    """

    def __init__(
        self,
        protocol: int = pickle.HIGHEST_PROTOCOL,
        *,
        allow: Iterable[Entry] | None = None,
    ) -> None:
        self._protocol = protocol
        self._checked: Serializer | None = None
        if allow is not None:
            # Imported here because pickletools is slow to import, and seldom needed.
            from sessionstore.serializers.checked import CheckedPickles

            self._checked = CheckedPickles(protocol, Allowed(allow))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'allow=[...]' if self._checked else ''})"

    def dumps(
        self, obj: object, persistent_id: Callable[[object], object | None]
    ) -> bytes:
        """Return a pickle of ``obj``."""
        if self._checked is not None:
            payload = self._checked.dumps(obj, persistent_id)
        else:
            payload = self._dumps(obj, persistent_id)
        if b"__main__" in payload:
            _warn_of_all_in_main(payload)
        return payload

    def _dumps(
        self, obj: object, persistent_id: Callable[[object], object | None]
    ) -> bytes:
        def refuse_reference(part: object) -> Any:
            if persistent_id(part) is not None:
                raise _ReferenceError
            return NotImplemented

        buffer = io.BytesIO()
        lone = _LonePickler(buffer, self._protocol)
        lone.reducer_override = refuse_reference
        try:
            lone.dump(obj)
        except _ReferenceError:
            buffer = io.BytesIO()
            pickler = _Pickler(buffer, self._protocol)
            pickler.persistent_id = persistent_id
            pickler.dump(obj)
        return buffer.getvalue()

    def loads(self, payload: bytes, persistent_load: Callable[[Any], object]) -> object:
        """Return the object that was pickled."""
        if self._checked is not None:
            return self._checked.loads(payload, persistent_load)
        is_renaming = renaming.current() is not None
        if not is_renaming and _BINPERSID not in payload:
            try:
                # An object that refers to no other is read faster so.
                return pickle.loads(payload)
            except pickle.UnpicklingError:
                pass  # a reference of protocol 0, or no pickle
        unpickler_class = _RenamingUnpickler if is_renaming else _Unpickler
        unpickler = unpickler_class(io.BytesIO(payload))
        unpickler.persistent_load = persistent_load
        try:
            return unpickler.load()
        except pickle.UnpicklingError:
            refuse_envelope(payload)
            raise


def globals_in(payload: bytes) -> Iterator[tuple[str, str]]:
    """Yield the module and name of what a pickle imports, without running it.

    Raises ValueError, or what else pickletools raises, for what is no pickle.
    """
    import pickletools  # a third of the time to import this package, and seldom needed

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


def _warn_of_all_in_main(payload: bytes) -> None:
    for module, name in dict.fromkeys(globals_in(payload)):
        if module == "__main__":
            warn_of_main(name)


def warn_of_main(name: str) -> None:
    """Warn that an object of a class of __main__ is being stored."""
    warn_user(
        f"{name} is a class of __main__, which other programs cannot import; move it "
        "into a module, or only this program can load the object"
    )
