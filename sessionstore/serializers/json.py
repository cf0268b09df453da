"""Objects as JSON, which runs nothing when it is read."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable
from datetime import datetime
from enum import Enum
from typing import Any

from sessionstore.errors import (
    ConfigurationError,
    DecodeError,
    EncodeError,
    LoadError,
)
from sessionstore.persistable import Persistable, without_bookkeeping
from sessionstore.serializers.allowed import Allowed, Entry
from sessionstore.serializers.checksum import with_checksum, without_checksum
from sessionstore.serializers.envelope import is_of, writer_of
from sessionstore.serializers.pickles import PickleSerializer, warn_of_main
from sessionstore.serializers.protocol import Serializer

__all__ = ["JsonSerializer"]


class JsonSerializer:
    """Objects as JSON: for those whose attributes are values that JSON can have.

    ``types`` lists the classes, as ``allow`` does for ``PickleSerializer``; ``Task``,
    ``Run``, ``State`` and ``Persistable`` always are.  An object of a class is made
    without a call of ``__init__``, and gets its attributes, by ``__setstate__`` where
    it has that; a class that pickles in a way of its own, or has ``__slots__``, cannot
    be stored.  Attributes may be None, booleans, integers, floats, text, bytes, lists,
    tuples, sets, dictionaries, ``datetime``, Enums and objects of the classes listed; a
    ``Persistable`` inside another is a reference, as always.  Anything else is an
    EncodeError.  An ID (``IntId``) becomes a plain integer, and a list that an object
    has twice becomes two lists.

    ``allow_plain`` reads pickles that were written before, of the same classes.

    The payload is header ``J``, four bytes of CRC-32 of what follows, and JSON.  What
    JSON cannot express is an object with one member, whose name says what it is:
    ``$object``: class and attributes; ``$enum``: class and member; ``$ref``: ID, module
    and class of a ``Persistable`` in a row of its own; ``$tuple``, ``$set``; ``$dict``:
    pairs, where a key is no text or begins with ``$``; ``$bytes`` in base64;
    ``$datetime`` in ISO 8601; ``$float``: inf, -inf or nan.

    Raises ConfigurationError if ``msgspec`` is not installed.
    """

    def __init__(
        self, types: Iterable[Entry] = (), *, allow_plain: bool = False
    ) -> None:
        try:
            import msgspec.json  # noqa: F401
        except ImportError as error:
            raise ConfigurationError(
                "JsonSerializer needs the package msgspec: "
                "pip install 'sessionstore[json]'"
            ) from error
        entries = list(types)
        self._allowed = Allowed(entries)
        self._plain: Serializer | None = None
        if allow_plain:
            self._plain = PickleSerializer(allow=entries)

    def __repr__(self) -> str:
        return f"{type(self).__name__}([...])"

    def dumps(
        self, obj: object, persistent_id: Callable[[object], object | None]
    ) -> bytes:
        """Return ``obj`` as JSON."""
        import msgspec.json

        try:
            tree = _Writer(persistent_id, self._allowed).tree(obj)
            return with_checksum(b"J", msgspec.json.encode(tree))
        except EncodeError:
            raise
        except Exception as error:
            said = "" if isinstance(error, DecodeError) else f"{type(error).__name__}: "
            raise EncodeError(
                f"an object of {_path(type(obj))} cannot be stored as JSON: "
                f"{said}{error}"
            ) from error

    def loads(self, payload: bytes, persistent_load: Callable[[Any], object]) -> object:
        """Return the object."""
        import msgspec.json

        if not is_of(b"J", payload):
            if self._plain is not None:
                return self._plain.loads(payload, persistent_load)
            raise DecodeError(
                f"it is not JSON (written by {writer_of(payload)}); if it dates from "
                "before objects were stored as JSON, read it with allow_plain=True "
                "and save it again"
            )
        body = without_checksum(payload)
        try:
            # First check that it is JSON at all, which takes no memory.
            msgspec.json.decode(body, type=msgspec.Raw)
            tree = msgspec.json.decode(body)
            _check_names(tree, self._allowed)
            return _Reader(persistent_load, self._allowed).value(tree)
        except LoadError:
            raise
        except Exception as error:
            raise DecodeError(f"{type(error).__name__}: {error}") from error


class _Writer:
    """Turns an object into what JSON can express."""

    def __init__(
        self, persistent_id: Callable[[object], object | None], allowed: Allowed
    ) -> None:
        self._persistent_id = persistent_id
        self._allowed = allowed

    def tree(self, value: Any) -> Any:
        cls = type(value)
        if value is None or cls in {bool, int, str}:
            return value
        if cls is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if cls is list:
            return self._trees(value)
        if cls is dict:
            return self._of_dict(value)
        if cls is tuple or cls is set:
            return {f"${cls.__name__}": self._trees(value)}
        if cls is bytes:
            return {"$bytes": base64.b64encode(value).decode()}
        if cls is datetime:
            return {"$datetime": value.isoformat()}
        reference = self._persistent_id(value)
        if reference is not None:
            return self._of_reference(reference)
        if isinstance(value, int) and not isinstance(value, Enum):
            return int(value)
        return self._of_object(value)

    def _trees(self, values: Iterable[Any]) -> list[Any]:
        return [self.tree(value) for value in values]

    def _of_dict(self, value: dict[Any, Any]) -> dict[str, Any]:
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: self.tree(part) for key, part in value.items()}
        return {"$dict": [self._trees(pair) for pair in value.items()]}

    def _of_reference(self, reference: Any) -> dict[str, Any]:
        object_id, module, name = reference
        self._allowed.check(module, name)
        return {"$ref": [int(object_id), module, name]}

    def _of_object(self, value: Any) -> dict[str, Any]:
        cls: Any = type(value)
        if isinstance(value, Enum) and value.name in cls.__members__:
            self._allowed.check(cls.__module__, cls.__qualname__)
            return {"$enum": [_path(cls), value.name]}
        if isinstance(value, type) or not _is_plain(cls):
            raise TypeError(f"{_path(cls)} cannot be written as JSON")
        self._allowed.check(cls.__module__, cls.__qualname__)
        state = value.__getstate__()
        if state is not None and type(state) is not dict:
            raise TypeError(f"{_path(cls)} has __slots__ or its own __getstate__")
        if isinstance(value, Persistable):
            state = without_bookkeeping(state)
        if cls.__module__ == "__main__":
            warn_of_main(cls.__qualname__)
        return {"$object": [_path(cls), self.tree(state)]}


class _Reader:
    """Turns what was in JSON into objects again."""

    def __init__(
        self, persistent_load: Callable[[Any], object], allowed: Allowed
    ) -> None:
        self._allowed = allowed
        self._ways: dict[str, Callable[[Any], Any]] = {
            "$object": self._object,
            "$enum": self._enum,
            "$ref": lambda part: persistent_load(_reference(part)),
            "$tuple": lambda part: tuple(map(self.value, part)),
            "$set": lambda part: set(map(self.value, part)),
            "$dict": lambda part: {self.value(k): self.value(v) for k, v in part},
            "$bytes": lambda part: base64.b64decode(part, validate=True),
            "$datetime": datetime.fromisoformat,
            "$float": _not_finite,
        }

    def value(self, tree: Any) -> Any:
        if isinstance(tree, list):
            return [self.value(part) for part in tree]
        if not isinstance(tree, dict):
            return tree
        if len(tree) == 1 and next(iter(tree)).startswith("$"):
            ((tag, part),) = tree.items()
            return self._ways[tag](part)
        return {key: self.value(part) for key, part in tree.items()}

    def _object(self, part: Any) -> Any:
        path, tree = part
        cls = self._allowed.find(*_pair(path))
        if not isinstance(cls, type) or not _is_plain(cls):
            raise TypeError(f"an object of {path} cannot be built from JSON")
        state = self.value(tree)
        obj: Any = object.__new__(cls)
        if hasattr(cls, "__setstate__"):
            obj.__setstate__(state)
        elif state is not None:
            obj.__dict__.update(state)
        return obj

    def _enum(self, part: Any) -> Any:
        path, name = part
        if not self._allowed.is_enum(*_pair(path)):
            raise TypeError(f"{path} is not an Enum")
        return self._allowed.find(*_pair(path))[name]


def _check_names(tree: Any, allowed: Allowed) -> None:
    """Raise DecodeError for a class that is not listed, before any is made."""
    todo = [tree]
    while todo:
        tree = todo.pop()
        if isinstance(tree, dict):
            for tag in ("$object", "$enum"):
                if tag in tree:
                    allowed.check(*_pair(tree[tag][0]))
            if "$ref" in tree:
                allowed.check(*_reference(tree["$ref"])[1:])
            todo.extend(tree.values())
        elif isinstance(tree, list):
            todo.extend(tree)


def _reference(part: Any) -> tuple[int, str, str]:
    object_id, module, name = part
    if type(object_id) is not int or not isinstance(module, str):
        raise TypeError("it refers to something that is not an object")
    return object_id, module, name


def _pair(path: str) -> tuple[str, str]:
    module, _, name = path.partition(":")
    return module, name


def _path(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _not_finite(text: str) -> float:
    if text not in {"inf", "-inf", "nan"}:
        raise ValueError(f"{text!r} is not a special float")
    return float(text)


def _is_plain(cls: Any) -> bool:
    """Say whether an object is its class and its attributes, and nothing else."""
    names = ("__new__", "__reduce__", "__reduce_ex__")
    return all(getattr(cls, name) is getattr(object, name) for name in names) and not (
        hasattr(cls, "__getnewargs__") or hasattr(cls, "__getnewargs_ex__")
    )
