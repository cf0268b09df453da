"""The user's own columns: their types and values, as they move to another database.

A value becomes a plain one, of JSON's types, that is the same from whichever database
it was read: an instant with a time zone becomes one in UTC without, true becomes 1.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

from sqlalchemy import JSON, inspect, types
from sqlalchemy.engine import Connection
from sqlalchemy.types import NullType, TypeEngine

from sessionstore.errors import SchemaError
from sessionstore.objects.schema import Payload
from sessionstore.transfer.items import Columns

__all__ = [
    "columns_in",
    "fitting",
    "from_plain",
    "from_specification",
    "on_any",
    "specification",
    "to_plain",
]

_OWN = frozenset({"id", "data", "state"})
#: What a type is called in an archive, with the names of its arguments.
_TYPES: Mapping[str, tuple[type[TypeEngine[Any]], Sequence[str]]] = {
    "Boolean": (types.Boolean, ()),
    "SmallInteger": (types.SmallInteger, ()),
    "Integer": (types.Integer, ()),
    "BigInteger": (types.BigInteger, ()),
    "Double": (types.Double, ()),
    "Numeric": (types.Numeric, ("precision", "scale")),
    "String": (types.String, ("length",)),
    "Text": (types.Text, ()),
    "LargeBinary": (Payload, ()),
    "DateTime": (types.DateTime, ("timezone",)),
    "Date": (types.Date, ()),
    "Time": (types.Time, ()),
    "JSON": (types.JSON, ()),
    "Uuid": (types.Uuid, ()),
}


def columns_in(connection: Connection, table: str) -> Columns | None:
    """Return a table's columns beside the store's own, None if there is no table."""
    inspector = inspect(connection)
    if not inspector.has_table(table):
        return None
    columns: dict[str, TypeEngine[Any]] = {}
    for column in inspector.get_columns(table):
        if column["name"].lower() in _OWN:
            continue
        if isinstance(column["type"], NullType):
            raise SchemaError(
                f"the column {column['name']!r} of the table {table!r} has a type that "
                "SQLAlchemy does not know, so that it cannot be copied"
            )
        is_float = isinstance(column["type"], types.Float)
        # MySQL's doubles would be read as decimals.
        columns[column["name"]] = types.Double() if is_float else column["type"]
    return columns


def fitting(
    connection: Connection, table: str, wanted: Columns, where: str
) -> Columns | None:
    """Return the types by which a target's table takes ``wanted``, None for no table.

    Raises SchemaError if it lacks one, or needs another that the source has not.
    """
    there = columns_in(connection, table)
    if there is None:
        return None
    for name, type_ in wanted.items():
        if name not in there:
            raise SchemaError(
                f"the table {table!r} of {where} lacks the column {name!r} "
                f"({type_!r}); add it, or choose another table name"
            )
    for column in inspect(connection).get_columns(table):
        name = column["name"]
        if (
            name in there.keys() - wanted.keys()
            and not column["nullable"]
            and column.get("default") is None
        ):
            raise SchemaError(
                f"the table {table!r} of {where} needs a value in its column {name!r}, "
                "which the source has not; give the column a default, or choose "
                "another table name"
            )
    return {
        name: type_ if _is_kept_as_text(type_, there[name]) else there[name]
        for name, type_ in wanted.items()
    }


def _is_kept_as_text(wanted: TypeEngine[Any], there: TypeEngine[Any]) -> bool:
    # SQLite has no JSON or UUID columns, and MariaDB reports JSON as text.
    return isinstance(wanted, (JSON, types.Uuid)) and isinstance(there, types.String)


def _portable(name: str, type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return the type that a column has on any database, or raise SchemaError."""
    generic = type_.as_generic(allow_nulltype=True)
    if isinstance(generic, types.Enum):
        return types.String(generic.length)
    if isinstance(generic, types.Text) or (
        isinstance(generic, types.String) and generic.length is None
    ):
        return types.Text()
    if isinstance(generic, (types.Float, types.Double)):
        return types.Double()  # MySQL's FLOAT holds seven digits
    for cls, arguments in _TYPES.values():
        wanted = types.LargeBinary if cls is Payload else cls
        if type(generic) is wanted:
            return cls(*(getattr(generic, argument) for argument in arguments))
    raise SchemaError(
        f"the column {name!r} has the type {type_!r}, which not every database has, so "
        "that it cannot be copied"
    )


def on_any(name: str, type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return the type with which a column is created, so that no value is cut."""
    # Imported where it is needed: it takes as long as this whole package.
    from sqlalchemy.dialects import mysql

    type_ = _portable(name, type_)
    larger: TypeEngine[Any] | None = None
    if isinstance(type_, types.Text):
        larger = mysql.LONGTEXT()
    elif isinstance(type_, types.DateTime):
        larger = mysql.DATETIME(fsp=6)
    elif isinstance(type_, types.Time):
        larger = mysql.TIME(fsp=6)
    elif isinstance(type_, JSON):
        return JSON(none_as_null=True)
    return type_ if larger is None else type_.with_variant(larger, "mysql", "mariadb")


def specification(name: str, type_: TypeEngine[Any]) -> Sequence[object]:
    """Return a column as an archive's header has it."""
    type_ = _portable(name, type_)
    for called, (cls, arguments) in _TYPES.items():
        if type(type_) is cls:
            values = {argument: getattr(type_, argument) for argument in arguments}
            return name, called, values
    raise AssertionError(type_)


def from_specification(called: str, arguments: Mapping[str, Any]) -> TypeEngine[Any]:
    """Return the type that an archive's header names; raises KeyError or TypeError."""
    return _TYPES[called][0](**arguments)


def _instant(value: datetime) -> str:
    if value.tzinfo is not None:
        value = value.astimezone(UTC).replace(tzinfo=None)
    return value.isoformat()


_TAGS: Sequence[tuple[type, str, Callable[[Any], str], Callable[[str], object]]] = [
    (bytes, "bytes", lambda v: base64.b64encode(v).decode("ascii"), base64.b64decode),
    (datetime, "datetime", _instant, datetime.fromisoformat),
    (date, "date", date.isoformat, date.fromisoformat),
    (time, "time", time.isoformat, time.fromisoformat),
    (Decimal, "decimal", lambda v: format(v.normalize(), "f"), Decimal),
    (uuid.UUID, "uuid", str, uuid.UUID),
    *(
        (cls, "json", lambda v: json.dumps(v, sort_keys=True), json.loads)
        for cls in (dict, list)
    ),
]
_FROM = {tag: read for _, tag, _, read in _TAGS}


def to_plain(value: object) -> object:
    """Return a column's value in its plain form."""
    if isinstance(value, bool):
        return int(value)
    if value is None or isinstance(value, (int, float, str)):
        return value
    if isinstance(value, (memoryview, bytearray)):
        value = bytes(value)
    for cls, tag, write, _ in _TAGS:
        if isinstance(value, cls):
            return {tag: write(value)}
    raise SchemaError(
        f"a column holds {value!r}, of a type that not every database has, so that it "
        "cannot be copied"
    )


def from_plain(plain: object, type_: TypeEngine[Any]) -> object:
    """Return a value for a target's column of a type; raises ValueError or KeyError."""
    if not isinstance(plain, dict):
        return plain
    [(tag, text)] = plain.items()
    value = _FROM[tag](text)
    if isinstance(value, datetime) and getattr(type_, "timezone", False):
        return value.replace(tzinfo=UTC)
    return value
