"""Classes that have moved since objects of theirs were stored."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from sessionstore.errors import ConfigurationError

__all__ = ["Renaming", "current", "current_name", "find"]

#: The renaming of the store that is reading.  A context variable, so that serializers
#: that wrap each other need not pass it on.
_current: ContextVar[Renaming | None] = ContextVar("renaming", default=None)


class Renaming:
    """Old names of classes and modules, and what they are called now.

    ``{"old.module:Old": "new.module:New"}`` for a class, ``{"old": "new"}`` for all
    that a module had.

    Raises ConfigurationError for what is no such pair.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._modules: dict[str, str] = {}
        self._classes: dict[tuple[str, str], tuple[str, str]] = {}
        for old, new in names.items():
            was, now = old.partition(":"), new.partition(":")
            if not (was[0] and now[0] and was[1] == now[1]) or bool(was[2]) != bool(
                now[2]
            ):
                raise ConfigurationError(
                    f"cannot rename {old!r} to {new!r}: write 'old.module:Old' and "
                    "'new.module:New', or two modules"
                )
            if was[1]:
                self._classes[was[0], was[2]] = now[0], now[2]
            else:
                self._modules[old] = new

    def __call__(self, module: str, name: str) -> tuple[str, str]:
        """Return the module and name that something has now."""
        there = self._classes.get((module, name))
        return there or (self._modules.get(module, module), name)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Look up what this thread loads in the block under its new names."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


def current() -> Renaming | None:
    """Return the renaming that is in use now, None if none is."""
    return _current.get()


def current_name(module: str, name: str) -> tuple[str, str]:
    """Return the module and name under which something is found now."""
    renaming = _current.get()
    return (module, name) if renaming is None else renaming(module, name)


def find(module: str, name: str) -> Any:
    """Return what a module and qualified name, old or new, stand for.

    Raises what the import raises, and AttributeError.
    """
    module, name = current_name(module, name)
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found
