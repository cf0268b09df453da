"""The tables: their version, and whether the object table fits."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import inspect

from sessionstore.doctor.finding import Finding, Level, Patient
from sessionstore.doctor.look import reopened
from sessionstore.errors import SchemaError
from sessionstore.objects.schema import CURRENT_VERSION
from sessionstore.sql import SqlStore

__all__ = ["check", "migrate"]


def check(patient: Patient) -> Iterator[Finding]:
    """Compare the tables with what this release expects."""
    yield from _columns(patient)
    yield _version(patient)


def _columns(patient: Patient) -> Iterator[Finding]:
    schema, connection = patient.schema, patient.connection
    try:
        schema.check_columns(connection)
    except SchemaError as error:
        is_there = inspect(connection).has_table(schema.name)
        yield Finding(
            "table",
            Level.WRONG,
            str(error),
            "no object can be read",
            f"{'ALTER TABLE' if is_there else 'sessionstore migrate'}, or name "
            "another table with #table=NAME at the end of the URL",
        )
        return
    columns = {
        column["name"]: column["type"]
        for column in inspect(connection).get_columns(schema.name)
    }
    kind = type(columns["data"]).__name__.upper()
    if patient.backend in {"mysql", "mariadb"} and kind != "LONGBLOB":
        quoted = connection.dialect.identifier_preparer.quote(schema.name)
        yield Finding(
            "table",
            Level.WRONG,
            f"the column 'data' is of type {kind}",
            "it holds less than 64 MiB; a larger object cannot be saved",
            f"ALTER TABLE {quoted} MODIFY data LONGBLOB",
        )
    else:
        yield Finding("table", Level.OK, schema.name)


def _version(patient: Patient) -> Finding:
    version = patient.schema.version_in(patient.connection)
    if version == CURRENT_VERSION:
        return Finding("schema version", Level.OK, version)
    if version is None:
        return Finding(
            "schema version",
            Level.NOTE,
            "there are no session tables",
            "objects can be stored here, but sessions cannot",
            "sessionstore migrate",
        )
    if version > CURRENT_VERSION:
        return Finding(
            "schema version",
            Level.WRONG,
            f"it is {version}, and this release supports versions up to "
            f"{CURRENT_VERSION}",
            "an older release cannot write to the tables of a newer one",
            "pip install --upgrade sessionstore",
        )
    return Finding(
        "schema version",
        Level.WRONG,
        f"it is {version}; the current version is {CURRENT_VERSION}",
        "programs that open the store with create=False may find tables missing",
        "sessionstore migrate",
        lambda: migrate(patient.store),
    )


def migrate(store: SqlStore) -> None:
    """Bring the tables up to date, or make those that sessions need.

    Raises SchemaError where they are of a newer release, or do not fit.
    """
    # Tables are made only in a database that exists: a misspelt file is an error.
    store._objects.database.read(lambda kept: None)
    # The store given may not create anything, and so does not migrate.
    with reopened(store, create=True) as creating:
        creating._objects.prepare()
