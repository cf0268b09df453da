"""Drops the tables that a test had on a server."""

from __future__ import annotations

from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from sessionstore.database.location import database_and_table
from sessionstore.objects.extra import ExtraFields
from sessionstore.objects.schema import Schema

__all__ = ["drop_tables"]

#: A lock that the test has left behind must not stop the whole run.
_BOUNDED_LOCKS = {
    "postgresql": "SET lock_timeout = '10s'",
    "mysql": "SET lock_wait_timeout = 10",
    "mariadb": "SET lock_wait_timeout = 10",
}


def drop_tables(url: str, table: str) -> None:
    """Drop the tables of the store that has this table name, as far as they exist."""
    engine = create_engine(database_and_table(url)[0], poolclass=NullPool)
    with engine.begin() as connection:
        if bound := _BOUNDED_LOCKS.get(engine.dialect.name):
            connection.exec_driver_sql(bound)
        Schema(table, ExtraFields(None)).drop(connection)
