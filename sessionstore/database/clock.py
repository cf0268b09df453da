"""The database's own clock, by which all that hosts compare is timed.

The tables have its instants as microseconds since 1970, UTC.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from sessionstore.errors import ConfigurationError

__all__ = ["Now", "instant", "maybe_instant", "microseconds"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Now(FunctionElement[int]):
    """The database's clock, in microseconds since 1970, UTC."""

    type = BigInteger()
    inherit_cache = True
    name = "sessionstore_now"


@compiles(Now)
def _now(element: Now, compiler: Any, **keywords: Any) -> str:
    raise ConfigurationError(
        f"sessions are not supported on {compiler.dialect.name}: reading its clock is "
        "not implemented"
    )


@compiles(Now, "sqlite")
def _now_sqlite(element: Now, compiler: Any, **keywords: Any) -> str:
    # 2440587.5 is the Julian day number of 1970-01-01 00:00 UTC.
    return "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"


@compiles(Now, "postgresql")
def _now_postgresql(element: Now, compiler: Any, **keywords: Any) -> str:
    # Not now(), which stands still within a transaction.
    return "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)"


@compiles(Now, "mysql", "mariadb")
def _now_mysql(element: Now, compiler: Any, **keywords: Any) -> str:
    return "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))"


def instant(at: int) -> datetime:
    """Return an instant of the tables as an aware datetime."""
    return _EPOCH + timedelta(microseconds=at)


def maybe_instant(at: int | None) -> datetime | None:
    """Return an instant of the tables, or None where there is none."""
    return None if at is None else instant(at)


def microseconds(at: datetime) -> int:
    """Return an instant as the tables have it."""
    return (at - _EPOCH) // timedelta(microseconds=1)
