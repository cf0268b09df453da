"""Which classes and functions a payload may name."""

from __future__ import annotations

import _compat_pickle
import importlib
import inspect
from collections.abc import Iterable
from enum import Enum
from typing import Any

from sessionstore.errors import ConfigurationError, DecodeError
from sessionstore.renaming import current_name, find

__all__ = ["ALWAYS", "Allowed", "Entry"]

#: What a payload may always name: the store's own classes, and harmless values of the
#: standard library.  Not ``range`` or ``bytearray``, with which a few bytes could fill
#: the memory.
ALWAYS = frozenset(
    {
        ("builtins", "complex"),
        ("builtins", "frozenset"),
        ("builtins", "set"),
        ("datetime", "date"),
        ("datetime", "datetime"),
        ("datetime", "time"),
        ("datetime", "timedelta"),
        ("datetime", "timezone"),
        ("decimal", "Decimal"),
        ("sessionstore.ids", "IntId"),
        ("sessionstore.persistable", "Persistable"),
        ("sessionstore.task", "Run"),
        ("sessionstore.task", "State"),
        ("sessionstore.task", "Task"),
        ("uuid", "UUID"),
    }
)

#: A class or function; its ``"module:Qualified.name"``; or ``"module"`` for all the
#: classes that are defined at the top of a module.
Entry = Any


class Allowed:
    """The classes and functions that are listed, and those that always are."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        if isinstance(entries, str):
            raise ConfigurationError(
                f"allow needs a list of classes, and {entries!r} is a single string; "
                f"write [{entries!r}]"
            )
        listed = {pair for entry in entries for pair in _pairs_of(entry)}
        #: Module and qualified name of each.
        self.pairs = ALWAYS | listed
        #: All modules' and all qualified names, as a pickle has them.
        self.words = frozenset(word.encode() for pair in self.pairs for word in pair)
        self._enums: dict[tuple[str, str], bool] = {}

    def check(self, module: str, name: str) -> None:
        """Raise DecodeError for what is not listed; nothing is imported for that."""
        if (module, name) not in self.pairs:
            raise DecodeError(
                f"it names {module}:{name}, which is not on the list of allowed "
                f"classes; if that is safe to load, allow {f'{module}:{name}'!r}"
            )

    def named_now(self, module: str, name: str) -> tuple[str, str]:
        """Return the name of today for one that may be Python 2's, as pickle does."""
        if (module, name) in self.pairs:
            return module, name
        renamed: dict[tuple[str, str], tuple[str, str]] = _compat_pickle.NAME_MAPPING
        moved: dict[str, str] = _compat_pickle.IMPORT_MAPPING
        return renamed.get((module, name)) or (moved.get(module, module), name)

    def find(self, module: str, name: str) -> Any:
        """Return what a listed name stands for, or raise what importing it raises."""
        self.check(module, name)
        self.check(*current_name(module, name))
        return find(module, name)

    def is_enum(self, module: str, name: str) -> bool:
        """Say whether a listed name is that of an Enum, whose members are shared."""
        known = self._enums.get((module, name))
        if known is None:
            try:
                found = self.find(module, name)
            except Exception:  # it is raised again where the name is used
                return False
            known = isinstance(found, type) and issubclass(found, Enum)
            self._enums[module, name] = known
        return known


def _pairs_of(entry: Entry) -> Iterable[tuple[str, str]]:
    if isinstance(entry, str):
        module, colon, name = entry.partition(":")
        if colon and module and name:
            return [(module, name)]
        if not colon:
            return _classes_of(entry)
    else:
        pair = getattr(entry, "__module__", None), getattr(entry, "__qualname__", None)
        if isinstance(pair[0], str) and isinstance(pair[1], str) and "<" not in pair[1]:
            return [(pair[0], pair[1])]
    raise ConfigurationError(
        f"{entry!r} cannot be allowed: pass a class or function of a module, its "
        "'module:Qualified.name', or 'module' for all classes of a module"
    )


def _classes_of(module: str) -> Iterable[tuple[str, str]]:
    try:
        imported = importlib.import_module(module)
    except (ImportError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{module!r} cannot be allowed: {error}; for a class write "
            "'module:Qualified.name', with a colon"
        ) from error
    return [
        (module, cls.__qualname__)
        for cls in vars(imported).values()
        if inspect.isclass(cls) and cls.__module__ == module
    ]
