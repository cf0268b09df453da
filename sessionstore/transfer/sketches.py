"""Looking into pickles, and changing their references, without running them.

A pickle is a program for a small machine with a stack.  This is such a machine that
imports and calls nothing: instead it makes a ``Made``, which notes what was to be
called.  So it reads pickles whose classes are not installed, and harmful ones do no
harm.

References are changed in the program itself: just before the operation that looks one
up, its ID is dropped, and another one put in its place.  All else stays as it is,
except that the frames of protocol 4, which only help to read files, are left out.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Made", "Reference", "Sketch", "attributes_of", "sketched"]

#: What the machine raises for a broken pickle.
BROKEN = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


@dataclass(eq=False, slots=True)
class Made:
    """Stands for what a class or a function would make."""

    #: Module and name with a space between them, None where a pickle computes it.
    of: str | None
    arguments: object = ()
    state: object = None


@dataclass(eq=False, slots=True)
class Reference:
    """Stands for another object, which is not in the pickle, by its ID."""

    id: object
    #: Where the operation that looks it up begins and ends.
    place: int
    end: int


class _Mark:
    pass


class _Unknown:
    pass


_MARK, _UNKNOWN = _Mark(), _Unknown()


@dataclass(frozen=True, slots=True)
class Sketch:
    """What a pickle would make, as far as that is known without running it."""

    payload: bytes
    top: object
    references: Sequence[Reference]
    _frames: Sequence[int]

    def rewritten(self, new_ids: Mapping[int, int]) -> bytes:
        """Return the pickle with other IDs, each by the place of its reference."""
        if not new_ids:
            return self.payload
        return b"".join(self._parts(new_ids))

    def _parts(self, new_ids: Mapping[int, int]) -> Iterator[bytes]:
        ends = {reference.place: reference.end for reference in self.references}
        done = 0
        for place in sorted([*new_ids, *self._frames]):
            yield self.payload[done:place]
            if place not in new_ids:
                done = place + 9  # FRAME and its eight bytes
                continue
            done, new_id = ends[place], new_ids[place]
            if self.payload[place : place + 1] == pickle.PERSID:
                yield b"%s%d\n" % (pickle.PERSID, new_id)
            else:
                number = pickle.dumps(new_id, 2)[2:-1]  # without PROTO and STOP
                yield pickle.POP + number + pickle.BINPERSID
        yield self.payload[done:]


def sketched(payload: bytes) -> Sketch | None:
    """Go through a pickle; return None for what is none, or a broken one."""
    machine = _Machine()
    frames = []
    operations = iter(pickletools.genops(payload))
    try:
        operation, argument, place = next(operations)
        for following in operations:
            assert place is not None
            if operation.name == "FRAME":
                frames.append(place)
            machine.step(operation.name, argument, place, following[2] or 0)
            operation, argument, place = following
        return Sketch(payload, machine.stack[-1], machine.references, frames)
    except BROKEN:
        return None


def attributes_of(value: object) -> Mapping[str, object]:
    """Return the attributes that an object would have."""
    state = value.state if isinstance(value, Made) else None
    parts = state if isinstance(state, tuple) else (state,)
    found: dict[str, object] = {}
    for part in parts:
        if isinstance(part, dict):
            found.update(part)
    return found


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.references: list[Reference] = []
        self._memo: dict[int, object] = {}

    def step(self, name: str, argument: Any, place: int, end: int) -> None:
        stack = self.stack
        if name in _PUSHES:
            stack.append(argument)
        elif name in _MAKES:
            stack.append(_MAKES[name]())
        elif name in _TUPLES:
            self._replace(_TUPLES[name], tuple)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "PERSID":
            self._refer(argument, place, end)
        elif name == "BINPERSID":
            self._refer(stack.pop(), place, end)
        elif name not in ("PROTO", "FRAME", "STOP"):
            getattr(self, f"_{name.lower()}", self._other)(argument)

    def _refer(self, id_: object, place: int, end: int) -> None:
        reference = Reference(id_, place, end)
        self.references.append(reference)
        self.stack.append(reference)

    def _replace(self, number: int, make: Callable[[list[Any]], object]) -> None:
        start = len(self.stack) - number
        if start < 0:
            raise ValueError("its stack is empty")
        self.stack[start:] = [make(self.stack[start:])]

    def _above_mark(self) -> list[Any]:
        index = len(self.stack) - 1
        while self.stack[index] is not _MARK:
            if index == 0:
                raise ValueError("a mark is missing")
            index -= 1
        values = self.stack[index + 1 :]
        del self.stack[index:]
        return values

    def _other(self, argument: object) -> None:
        raise ValueError("it has an operation that is not known here")

    def _pop(self, _: object) -> None:
        self.stack.pop()

    def _pop_mark(self, _: object) -> None:
        self._above_mark()

    def _dup(self, _: object) -> None:
        self.stack.append(self.stack[-1])

    def _tuple(self, _: object) -> None:
        self.stack.append(tuple(self._above_mark()))

    def _list(self, _: object) -> None:
        self.stack.append(self._above_mark())

    def _frozenset(self, _: object) -> None:
        self._above_mark()
        self.stack.append(_UNKNOWN)

    def _dict(self, _: object) -> None:
        values = self._above_mark()
        self.stack.append({})
        self._set(values)

    def _append(self, _: object) -> None:
        self._extend([self.stack.pop()])

    def _appends(self, _: object) -> None:
        self._extend(self._above_mark())

    def _additems(self, _: object) -> None:
        self._above_mark()

    def _extend(self, values: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)

    def _setitem(self, _: object) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _setitems(self, _: object) -> None:
        self._set(self._above_mark())

    def _set(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            for key, value in zip(values[::2], values[1::2], strict=True):
                if isinstance(key, str):
                    target[key] = value

    def _global(self, argument: object) -> None:
        self.stack.append(Made(str(argument)))

    def _stack_global(self, _: object) -> None:
        self._replace(2, lambda names: Made(f"{names[0]} {names[1]}"))

    def _call(self, values: list[Any]) -> Made:
        function, arguments = values[0], values[1]
        of = function.of if isinstance(function, Made) else None
        return Made(of, arguments)

    def _reduce(self, _: object) -> None:
        self._replace(2, self._call)

    _newobj = _reduce

    def _newobj_ex(self, _: object) -> None:
        self._replace(3, self._call)

    def _obj(self, _: object) -> None:
        function, *arguments = self._above_mark()
        self.stack.append(self._call([function, tuple(arguments)]))

    def _inst(self, argument: object) -> None:
        self.stack.append(Made(str(argument), tuple(self._above_mark())))

    def _build(self, _: object) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Made):
            self.stack[-1].state = state

    def _ext1(self, _: object) -> None:
        self.stack.append(_UNKNOWN)

    _ext2 = _ext4 = _next_buffer = _ext1

    def _readonly_buffer(self, _: object) -> None:
        pass


#: Operations that push their argument.
_PUSHES = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "FLOAT", "BINFLOAT"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)
_MAKES: Mapping[str, Callable[[], object]] = {
    "MARK": lambda: _MARK,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": _Unknown,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
