"""Columns of the user's own beside an object's ``id``, ``data`` and ``state``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Column, Table
from sqlalchemy.types import NullType

from sessionstore.errors import ConfigurationError

__all__ = ["ExtraFields", "add_referred"]

log = logging.getLogger(__name__)


class ExtraFields:
    """Columns, and the functions of the object saved that fill them.

    Raises ConfigurationError for a column that cannot be an extra one.
    """

    def __init__(
        self, fields: Mapping[Column[Any], Callable[[Any], object]] | None = None
    ) -> None:
        fields = dict(fields or {})
        columns: list[Column[Any]] = []
        for column, function in fields.items():
            own = _own(column, function)
            if any(own.name == other.name for other in columns):
                raise ConfigurationError(
                    f"two extra fields are named {own.name!r}; give each its own name"
                )
            columns.append(own)
        #: The columns, by the names of the parameters that give their values.  The
        #: names are numbered, as a column's own may be anything.
        self.columns = {f"extra_{n}": column for n, column in enumerate(columns)}
        self._functions = list(fields.values())

    def values(self, obj: object) -> dict[str, object]:
        """Return the parameters' values for an object, None where a function raises."""
        values: dict[str, object] = {}
        if not self._functions:
            return values
        for (parameter, column), function in zip(
            self.columns.items(), self._functions, strict=True
        ):
            try:
                values[parameter] = function(obj)
            except Exception:
                log.warning(
                    "the extra field %r of %r is left NULL",
                    column.name,
                    obj,
                    exc_info=True,
                )
                values[parameter] = None
        return values


def _own(column: object, function: object) -> Column[Any]:
    """Return a copy: a column belongs to one table, a mapping to many stores."""
    if not callable(function):
        raise ConfigurationError(
            f"extra_fields must map columns to functions; {function!r} is not callable"
        )
    if not isinstance(column, Column) or not column.name:
        raise ConfigurationError(
            f"extra_fields must map columns to functions; {column!r} is not a "
            "sqlalchemy.Column with a name"
        )
    if column.name.lower() in {"id", "data", "state"}:
        raise ConfigurationError(
            f"the extra field {column.name!r} has the name of one of the store's own "
            "columns; rename it"
        )
    if isinstance(column.type, NullType):
        raise ConfigurationError(
            f"the extra field {column.name!r} has no type; give it one"
        )
    return column._copy()


def add_referred(table: Table) -> None:
    """Add the tables that a table's foreign keys refer to, by their names alone."""
    # A foreign key looks for its table in the metadata of its own column, and needs no
    # more than the names.
    for foreign in list(table.foreign_keys):
        *schema, name, column = foreign.target_fullname.split(".")
        there = table.metadata.tables.get(".".join([*schema, name]))
        if there is None:
            there = Table(name, table.metadata, schema=".".join(schema) or None)
        if column not in there.c:
            there.append_column(Column(column, foreign.parent.type))
