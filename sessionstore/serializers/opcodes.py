"""A pickle's opcodes, checked before any of them is run.

A pickle is a program for a small machine with a stack and a memo.  This module goes
through the program once, without making any object.  For each place on the stack and in
the memo it keeps one byte: what kind of thing will be there.  That is enough to know

- that the program is complete: nothing is missing, and no length exceeds what is there,
  so that no memory is reserved for a size that is only claimed;
- each class or function that it will import, before the first of them is called;
- that it calls only those, and changes only objects that it has made itself: neither
  a class, nor an Enum's member, nor an object from another row, which the rest of the
  program would see changed.

What real picklers do not write is refused, even where ``pickle`` would take it.
"""

from __future__ import annotations

import pickle
import pickletools
from pickle import UnpicklingError

from sessionstore.serializers.allowed import Allowed

__all__ = ["ENCODE", "GETATTR", "check_opcodes"]

#: What some versions of CPython write for an Enum's member.
GETATTR = ("builtins", "getattr")
#: What is written for bytes before protocol 3.
ENCODE = ("_codecs", "encode")

# What is in a place.
_VALUE = 0
_MARK = 1
#: A class or function that was imported.
_NAMED = 2
#: An Enum, or what returns the members of one.
_ENUM = 3
#: An object that something outside this pickle may have, too.
_SHARED = 4
_MARK_BYTE = bytes([_MARK])

# What an opcode does.
_PUSH, _WORD, _MEMOIZE, _PUT, _GET, _NOTHING, _GLOBAL, _STACK_GLOBAL = range(8)
_OTHER, _STOP, _REFUSED = range(8, 11)

#: How many words are kept by their place in the memo: a bound for the memory.
_MOST_WORDS = 1_000
_LONGEST_WORD = 255

# The length of an opcode's argument, as in pickletools: a number of bytes, or
_LINE, _COUNTED_1, _COUNTED_4, _COUNTED_8 = -1, -2, -3, -4
_LENGTHS = {
    pickletools.UP_TO_NEWLINE: _LINE,
    pickletools.TAKEN_FROM_ARGUMENT1: _COUNTED_1,
    pickletools.TAKEN_FROM_ARGUMENT4: _COUNTED_4,
    pickletools.TAKEN_FROM_ARGUMENT4U: _COUNTED_4,
    pickletools.TAKEN_FROM_ARGUMENT8U: _COUNTED_8,
}
_BYTES_OF_COUNT = {_COUNTED_1: 1, _COUNTED_4: 4, _COUNTED_8: 8}

#: Opcodes that take this many places (None: all down to the mark), and call what is
#: below them, with ``True``, or change it.
_ON_WHAT_IS_BELOW = {
    pickle.REDUCE[0]: (1, True),
    pickle.NEWOBJ[0]: (1, True),
    pickle.NEWOBJ_EX[0]: (2, True),
    pickle.BUILD[0]: (1, False),
    pickle.APPEND[0]: (1, False),
    pickle.SETITEM[0]: (2, False),
    pickle.APPENDS[0]: (None, False),
    pickle.SETITEMS[0]: (None, False),
    pickle.ADDITEMS[0]: (None, False),
}
_TUPLES = {pickle.TUPLE1[0]: 1, pickle.TUPLE2[0]: 2, pickle.TUPLE3[0]: 3}
_WORDS = {pickle.SHORT_BINUNICODE[0], pickle.BINUNICODE[0], pickle.BINUNICODE8[0]}
_MARKED_ONES = {pickle.LIST[0], pickle.TUPLE[0], pickle.DICT[0], pickle.FROZENSET[0]}
_PUTS = pickle.PUT + pickle.BINPUT + pickle.LONG_BINPUT
_GETS = pickle.GET + pickle.BINGET + pickle.LONG_BINGET
_OTHERS = (
    pickle.MARK
    + pickle.BINPERSID
    + pickle.PERSID
    + pickle.POP
    + pickle.POP_MARK
    + pickle.DUP
)


def _what_it_does(opcode: pickletools.OpcodeInfo) -> int:
    code = ord(opcode.code)
    for codes, does in (
        (_WORDS, _WORD),
        (pickle.MEMOIZE, _MEMOIZE),
        (_PUTS, _PUT),
        (_GETS, _GET),
        (pickle.GLOBAL, _GLOBAL),
        (pickle.STACK_GLOBAL, _STACK_GLOBAL),
        (pickle.STOP, _STOP),
        (pickle.PROTO + pickle.FRAME, _NOTHING),
        ({*_ON_WHAT_IS_BELOW, *_TUPLES, *_MARKED_ONES, *_OTHERS}, _OTHER),
    ):
        if code in codes:
            return does
    # Any other opcode that takes nothing and gives one thing gives a value: a number,
    # bytes, an empty list.  What is left makes calls in ways that real pickles do not.
    is_value = not opcode.stack_before and len(opcode.stack_after) == 1
    return _PUSH if is_value and not opcode.name.startswith(_UNKNOWABLE) else _REFUSED


#: These give what was registered with copyreg, or is passed beside the pickle.
_UNKNOWABLE = ("EXT", "NEXT_BUFFER")

#: For each opcode its argument's length and what it does.
_TABLE = [(0, _REFUSED)] * 256
for _opcode in pickletools.opcodes:
    _length = 0 if _opcode.arg is None else _opcode.arg.n
    _TABLE[ord(_opcode.code)] = (
        _LENGTHS.get(_length, _length),
        _what_it_does(_opcode),
    )


def check_opcodes(payload: bytes, allowed: Allowed, *, of_enums: bool = True) -> None:
    """Raise DecodeError or UnpicklingError for a pickle that must not be run.

    ``of_enums`` lets GETATTR pass; the unpickler must then replace it.
    """
    program = _Program(payload, allowed)
    if of_enums:
        program.kinds[GETATTR] = _ENUM
    try:
        program.check()
    except (IndexError, ValueError):
        # An index of the payload, the stack or the memo; a number or a name.
        raise UnpicklingError(
            "it is truncated or corrupt, or refers to a stack or memo entry that does "
            "not exist"
        ) from None


class _Program:
    def __init__(self, payload: bytes, allowed: Allowed) -> None:
        self._payload = payload
        self._allowed = allowed
        self._stack = bytearray()
        self._memo = bytearray()
        #: Where in the payload a word is, by its place in the memo.
        self._kept: dict[int, slice] = {}
        #: Of what was imported.
        self.kinds: dict[tuple[str, str], int] = {ENCODE: _NAMED}

    def check(self) -> None:
        payload, end = self._payload, len(self._payload)
        stack, memo, words = self._stack, self._memo, self._allowed.words
        # The two topmost places, if they are words, as STACK_GLOBAL imports by two
        # words.
        below: slice | None = None
        top: slice | None = None
        has_gap = False
        after = 0
        while True:
            opcode = payload[after]
            length, does = _TABLE[opcode]
            start = after + 1
            if length >= 0:
                after = start + length
            else:
                start, after = self._argument(start, length)
            if after > end:
                raise UnpicklingError("it is truncated")
            if does == _MEMOIZE:
                if has_gap or stack[-1] == _MARK:
                    raise IndexError
                if top is not None and payload[top] in words:
                    self._keep(len(memo), top)
                memo.append(stack[-1])
            elif does == _WORD:
                stack.append(_VALUE)
                below, top = top, None
                if after - start <= _LONGEST_WORD:
                    top = slice(start, after)
            elif does == _PUSH:
                stack.append(_VALUE)
                top = None
            elif does == _GET:
                place = self._number(opcode, start, after)
                stack.append(memo[place])
                below, top = top, self._kept.get(place)
            elif does == _PUT:
                place = self._number(opcode, start, after)
                # Python 2 began to count with 1, and MEMOIZE then counts differently.
                has_gap = has_gap or (place == 1 and not memo)
                self._put(place, top)
            elif does == _STACK_GLOBAL:
                if below is None or top is None:
                    raise UnpicklingError(
                        "it imports something by a name that cannot be checked"
                    )
                self._pop(2)
                stack.append(self._import(payload[below], payload[top]))
                top = None
            elif does == _OTHER:
                self._other(opcode, start, after)
                top = None
            elif does == _GLOBAL:
                after = self._argument(after, _LINE)[1]
                module, name, _ = payload[start:after].split(b"\n")
                stack.append(self._import(module, name))
                top = None
            elif does == _STOP:
                break
            elif does == _REFUSED:
                raise UnpicklingError(
                    f"it has the opcode {opcode:#04x}, which is not allowed"
                )
        if after != end or len(stack) != 1:
            raise UnpicklingError(
                "it has data after its end, or leaves something on the stack"
            )

    def _argument(self, start: int, length: int) -> tuple[int, int]:
        """Return where an argument starts, and where it ends."""
        if length == _LINE:
            end = self._payload.find(b"\n", start)
            if end < 0:
                raise UnpicklingError("it is truncated")
            return start, end + 1
        text = start + _BYTES_OF_COUNT[length]
        return text, text + int.from_bytes(self._payload[start:text], "little")

    def _number(self, opcode: int, start: int, end: int) -> int:
        argument = self._payload[start:end]
        if opcode in {pickle.PUT[0], pickle.GET[0]}:
            number = int(argument)
            if number < 0:
                raise IndexError
            return number
        return int.from_bytes(argument, "little")

    def _put(self, place: int, word: slice | None) -> None:
        memo, kind = self._memo, self._stack[-1]
        if kind == _MARK or place > max(len(memo), 1):
            raise IndexError
        memo.extend([_MARK] * (place + 1 - len(memo)))
        memo[place] = kind
        self._kept.pop(place, None)
        if word is not None and self._payload[word] in self._allowed.words:
            self._keep(place, word)

    def _keep(self, place: int, word: slice) -> None:
        if len(self._kept) < _MOST_WORDS:
            self._kept[place] = word

    def _pop(self, number: int) -> None:
        for _ in range(number):
            if self._stack.pop() == _MARK:
                raise IndexError

    def _drop_to_mark(self) -> None:
        place = self._stack.rfind(_MARK_BYTE)
        if place < 0:
            raise IndexError
        del self._stack[place:]

    def _other(self, opcode: int, start: int, end: int) -> None:
        stack = self._stack
        if opcode in _ON_WHAT_IS_BELOW:
            number, calls = _ON_WHAT_IS_BELOW[opcode]
            if number is None:
                self._drop_to_mark()
            else:
                self._pop(number)
            stack[-1] = _after_call(stack[-1]) if calls else _after_change(stack[-1])
        elif opcode == pickle.MARK[0]:
            stack.append(_MARK)
        elif opcode in _TUPLES:
            self._pop(_TUPLES[opcode])
            stack.append(_VALUE)
        elif opcode in _MARKED_ONES:
            self._drop_to_mark()
            stack.append(_VALUE)
        elif opcode == pickle.BINPERSID[0]:
            self._pop(1)
            stack.append(_SHARED)
        elif opcode == pickle.PERSID[0]:
            stack.append(_SHARED)
        elif opcode == pickle.POP_MARK[0]:
            self._drop_to_mark()
        elif opcode == pickle.POP[0]:
            stack.pop()
        elif stack[-1] == _MARK:
            raise IndexError
        else:  # DUP
            stack.append(stack[-1])

    def _import(self, module: bytes, name: bytes) -> int:
        pair = self._allowed.named_now(module.decode(), name.decode())
        kind = self.kinds.get(pair)
        if kind is None:
            self._allowed.check(*pair)
            kind = _ENUM if self._allowed.is_enum(*pair) else _NAMED
            self.kinds[pair] = kind
        return kind


def _after_call(called: int) -> int:
    if called == _NAMED:
        return _VALUE
    if called == _ENUM:
        return _SHARED
    raise UnpicklingError("it calls something it did not import")


def _after_change(changed: int) -> int:
    if changed == _VALUE:
        return _VALUE
    raise UnpicklingError("it changes an object it did not create")
