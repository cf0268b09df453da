"""Statements that are built once and run as text.

Compiling a Core construct, and wrapping what it returns, takes SQLAlchemy several
times as long as SQLite takes to answer.  So a ``Statement`` is compiled at its first
use and kept, and goes to the driver's cursor as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import LargeBinary, bindparam
from sqlalchemy.engine import Dialect
from sqlalchemy.sql import Executable

__all__ = ["ByIds", "Parameters", "Statement", "among"]

Parameters = Mapping[str, Any]

#: The most IDs that one statement names.
MOST_IDS = 500


class Statement:
    """One statement, with its parameters by name.

    It belongs to one database, so that there is one dialect to compile it for.
    """

    __slots__ = ("_arrange", "_constants", "_processors", "construct", "text")

    def __init__(self, construct: Executable) -> None:
        # Where SQLAlchemy runs it, an INSERT's row count would go with its cursor.
        self.construct = construct.execution_options(preserve_rowcount=True)
        #: As the driver takes it; empty until it is compiled.
        self.text = ""
        # Numbers and strings in the construct itself are parameters too.
        self._constants: dict[str, Any] = {}
        self._processors: Sequence[tuple[str, Callable[[Any], Any]]] = ()
        self._arrange: Callable[[Parameters], Any] | None = None

    def compile(self, dialect: Dialect) -> None:
        """Make the text and what else the driver needs."""
        construct: Any = self.construct
        compiled = construct.compile(dialect=dialect)
        self._constants = {
            name: bind.effective_value
            for name, bind in compiled.binds.items()
            if not bind.required
        }
        self._processors = [
            (name, processor)
            for name, bind in compiled.binds.items()
            # PEP 249's Binary() is for other types than bytes, which is all we send.
            if not isinstance(bind.type, LargeBinary)
            and (processor := bind.type.dialect_impl(dialect).bind_processor(dialect))
        ]
        names = compiled.positiontup
        if names is None:
            self._arrange = None
        elif len(names) > 1:
            self._arrange = itemgetter(*names)
        else:
            self._arrange = lambda parameters: [parameters[name] for name in names]
        self.text = str(compiled)

    def arranged(self, parameters: Parameters) -> Any:
        """Return parameters in the order and the types that the driver takes."""
        if self._constants or self._processors:
            parameters = {**self._constants, **parameters}
            for name, process in self._processors:
                parameters[name] = process(parameters[name])
        return parameters if self._arrange is None else self._arrange(parameters)


class ByIds:
    """A statement about any number of IDs, compiled for lists of a few lengths only.

    ``build`` makes the construct for a list of that many bound parameters, which
    are named ``id_0`` and so on.
    """

    #: Shorter lists are filled up: naming an ID twice changes nothing.
    _LENGTHS = (1, 8, 64, MOST_IDS)

    def __init__(self, build: Callable[[Sequence[str]], Executable]) -> None:
        self._build = build
        self._made: dict[int, tuple[Statement, Sequence[str]]] = {}

    def parts(self, ids: Sequence[int]) -> Iterator[tuple[Statement, dict[str, int]]]:
        """Yield the statements that together name all IDs, with their parameters."""
        if len(ids) == 1:  # which is asked for most
            statement, _ = self._made.get(1) or self._make(1)
            yield statement, {"id_0": int(ids[0])}
            return
        for start in range(0, len(ids), MOST_IDS):
            some = [int(i) for i in ids[start : start + MOST_IDS]]
            length = next(n for n in self._LENGTHS if n >= len(some))
            some += [some[-1]] * (length - len(some))
            statement, names = self._made.get(length) or self._make(length)
            yield statement, dict(zip(names, some, strict=True))

    def _make(self, length: int) -> tuple[Statement, Sequence[str]]:
        names = [f"id_{n}" for n in range(length)]
        made = self._made[length] = Statement(self._build(names)), names
        return made


def among(column: Any, names: Sequence[str]) -> Any:
    """Return the condition that a column has one of these parameters' values."""
    return column.in_([bindparam(name) for name in names])
