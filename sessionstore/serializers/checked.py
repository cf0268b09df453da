"""Pickles that may name listed classes and functions only."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from enum import Enum, EnumType
from typing import Any

from sessionstore.errors import DecodeError, EncodeError, LoadError
from sessionstore.serializers.allowed import Allowed
from sessionstore.serializers.envelope import refuse_envelope
from sessionstore.serializers.opcodes import ENCODE, GETATTR, check_opcodes

__all__ = ["CheckedPickles"]


class CheckedPickles:
    """A serializer whose pickles name only what is allowed.

    The opcodes are checked first, so that nothing at all is called if anything is
    refused.  ``find_class`` checks again, when something is used.
    """

    def __init__(self, protocol: int, allowed: Allowed) -> None:
        self._protocol = protocol
        self._allowed = allowed

    def dumps(
        self, obj: object, persistent_id: Callable[[object], object | None]
    ) -> bytes:
        """Return a pickle of ``obj``, or raise EncodeError if it could not be read."""
        allowed = self._allowed

        def checked_id(part: object) -> object | None:
            reference = persistent_id(part)
            if reference is not None:
                _check_reference(reference, allowed)
            return reference

        buffer = io.BytesIO()
        pickler = _Pickler(buffer, self._protocol, fix_imports=False)
        pickler.persistent_id = checked_id
        try:
            pickler.dump(obj)
            payload = buffer.getvalue()
            check_opcodes(payload, allowed, of_enums=False)
        except (DecodeError, pickle.UnpicklingError) as error:
            raise EncodeError(
                f"an object of {type(obj).__module__}.{type(obj).__qualname__} cannot "
                f"be stored: {error}"
            ) from error
        return payload

    def loads(self, payload: bytes, persistent_load: Callable[[Any], object]) -> object:
        """Return the object that was pickled."""
        refuse_envelope(payload)
        try:
            check_opcodes(payload, self._allowed)
            return _Unpickler(payload, persistent_load, self._allowed).load()
        except LoadError:
            raise
        except Exception as error:
            raise DecodeError(f"{type(error).__name__}: {error}") from error


class _Pickler(pickle.Pickler):
    persistent_id: Callable[[object], object | None]

    def reducer_override(self, obj: object) -> Any:
        if isinstance(obj, Enum):
            # Some versions of CPython write getattr(cls, name) for it.
            made = obj.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
            if isinstance(made, tuple) and made[0] is getattr:
                return type(obj), (obj.value,)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(
        self,
        payload: bytes,
        persistent_load: Callable[[Any], object],
        allowed: Allowed,
    ) -> None:
        # Not fix_imports, as find_class itself knows the names of Python 2.
        super().__init__(io.BytesIO(payload), fix_imports=False)
        self._refer = persistent_load
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        pair = self._allowed.named_now(module, name)
        return _HARMLESS[pair] if pair in _HARMLESS else self._allowed.find(*pair)

    def persistent_load(self, reference: Any) -> object:
        _check_reference(reference, self._allowed)
        return self._refer(reference)


def _enum_member(cls: object, name: str) -> object:
    """Do what getattr does in a pickle of an Enum's member, and nothing else."""
    if not isinstance(cls, EnumType):
        raise pickle.UnpicklingError(
            "it takes an attribute of something that is not an Enum"
        )
    return cls.__members__[name]


def _encoded(text: str, encoding: str) -> bytes:
    """Do what ``_codecs.encode`` does in a pickle of bytes, and nothing else."""
    if encoding != "latin1":
        raise pickle.UnpicklingError("it encodes something that is not bytes")
    return text.encode(encoding)


#: Replacements for functions that pickles of plain values call.
_HARMLESS = {GETATTR: _enum_member, ENCODE: _encoded}


def _check_reference(reference: Any, allowed: Allowed) -> None:
    if isinstance(reference, tuple) and len(reference) == 3:
        allowed.check(*reference[1:])
