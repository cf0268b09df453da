"""The tables, and the statements that read and write the objects' own one.

The object table is exactly what old programs made: ``id``, ``data``, ``state`` and
columns of the user's own.  Everything else is in tables beside it:

``<table>_session``     the sessions
``<table>_job``         one row for each object written through a session
``<table>_transition``  the history of states, append-only
``<table>_ids``         where the next block of IDs begins
``<table>_change``      counts changes, on MySQL and MariaDB only: see ``changes``
``<table>_version``     the schema's version, kept by Alembic

Instants are microseconds since 1970, UTC, by the database's clock.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    bindparam,
    delete,
    func,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.compiler import compiles

from sessionstore.database.dialects import MissingTableError
from sessionstore.database.statements import ByIds, Statement, among
from sessionstore.errors import ConfigurationError, SchemaError
from sessionstore.objects.extra import ExtraFields, add_referred
from sessionstore.objects.migrating import migrate

__all__ = [
    "CURRENT_VERSION",
    "MAX_INFO",
    "MAX_NAME",
    "Payload",
    "Schema",
]

#: The newest migration; a test holds it against the migrations' folder.
CURRENT_VERSION = "0002"
#: So that the names of the side tables and their indexes fit 63 characters.
MAX_TABLE_NAME = 40
MAX_NAME = 255
MAX_INFO = 4000
MAX_STATE = 128


Id = BigInteger().with_variant(Integer, "sqlite")


class Payload(LargeBinary):
    """Bytes, 64 MiB of them and more on every database."""


@compiles(Payload, "mysql", "mariadb")
def _longblob(element: Payload, compiler: Any, **keywords: Any) -> str:
    # A plain BLOB holds 64 KiB. SQLAlchemy's own type for this would have every
    # program import its MySQL dialect.
    return "LONGBLOB"


#: The options with which MySQL and MariaDB make a table.
_OPTIONS = {"engine": "InnoDB", "charset": "utf8mb4", "collate": "utf8mb4_bin"}


class Schema:
    """The tables of one store."""

    def __init__(self, table_name: str, extra: ExtraFields) -> None:
        if not table_name or len(table_name) > MAX_TABLE_NAME:
            raise ConfigurationError(
                f"the table name {table_name!r} must have 1 to {MAX_TABLE_NAME} "
                "characters, to leave room for the side tables' names"
            )
        self.metadata = MetaData()
        self.extra = extra
        self.objects = Table(
            table_name,
            self.metadata,
            Column("id", Id, primary_key=True, autoincrement=False),
            Column("data", Payload),
            Column("state", String(MAX_STATE), index=True),
            *self.extra.columns.values(),
        )
        add_referred(self.objects)
        #: The columns of an object's row, except its ID, by their names in statements.
        self.parameters = {
            "data": self.objects.c.data,
            "state": self.objects.c.state,
            **self.extra.columns,
        }
        self.sessions = Table(
            f"{table_name}_session",
            self.metadata,
            Column("id", Id, primary_key=True),
            Column("name", String(MAX_NAME), nullable=False, unique=True),
            Column("created_at", BigInteger, nullable=False),
            Column("finished_at", BigInteger),
            sqlite_autoincrement=True,
        )
        self.jobs = Table(
            f"{table_name}_job",
            self.metadata,
            Column("job_id", Id, primary_key=True, autoincrement=False),
            Column("session_id", BigInteger),
            Column("position", BigInteger),
            Column("name", String(MAX_NAME), nullable=False),
            Column("state", String(MAX_STATE), nullable=False),
            Column("claimable_at", BigInteger),
            Column("returncode", BigInteger),
            Column("revision", BigInteger, nullable=False),
            Column("attempts", Integer, nullable=False),
            Column("holder", String(MAX_NAME)),
            Column("token", BigInteger, nullable=False),
            Column("lease_expires_at", BigInteger),
            Column("request", String(16)),
            Column("write_id", String(32)),
            Column("created_at", BigInteger, nullable=False),
            Column("updated_at", BigInteger, nullable=False),
        )
        # One index finds what a claim looks for: the oldest free job in some state.
        self.claim_index = f"ix_{table_name}_job_claim"
        Index(
            self.claim_index,
            *(
                self.jobs.c[name]
                for name in ("session_id", "state", "claimable_at", "position")
            ),
        )
        self.order_index = f"ix_{table_name}_job_order"
        Index(
            self.order_index,
            *(self.jobs.c[name] for name in ("session_id", "position", "job_id")),
        )
        self.transitions = Table(
            f"{table_name}_transition",
            self.metadata,
            # The job's revision orders its history, whatever the clocks said.
            Column("job_id", Id, primary_key=True, autoincrement=False),
            Column("revision", BigInteger, primary_key=True, autoincrement=False),
            Column("from_state", String(MAX_STATE)),
            Column("to_state", String(MAX_STATE), nullable=False),
            Column("at", BigInteger, nullable=False),
            Column("info", String(MAX_INFO), nullable=False),
            Column("returncode", BigInteger),
            Column("host", String(MAX_NAME), nullable=False),
            Column("pid", BigInteger, nullable=False),
        )
        self.ids = Table(
            f"{table_name}_ids",
            self.metadata,
            Column("id", Integer, primary_key=True, autoincrement=False),
            Column("next_id", BigInteger, nullable=False),
        )
        # Not among the others, as other databases have no such table.
        self.changes = Table(
            f"{table_name}_change",
            MetaData(),
            Column("session_id", BigInteger, primary_key=True, autoincrement=False),
            Column("slot", Integer, primary_key=True, autoincrement=False),
            Column("number", BigInteger, nullable=False),
        )
        self.version = Table(
            f"{table_name}_version", self.metadata, Column("version_num", String(32))
        )

    @property
    def name(self) -> str:
        """The object table's name."""
        return str(self.objects.name)

    def check_names(self, limit: int | None) -> None:
        """Raise ConfigurationError for a name that the server would cut short."""
        names = {f"{self.name}_transition"}
        names.update(
            str(index.name)
            for table in self.metadata.tables.values()
            for index in table.indexes
        )
        longest = max(len(name.encode()) for name in names)
        if limit is not None and longest > limit:
            raise ConfigurationError(
                f"the table name {self.name!r} is {longest - limit} bytes too long: "
                f"this database allows names of {limit} bytes, and the names of side "
                "tables and indexes begin with it"
            )

    @property
    def lock_name(self) -> str:
        """A name for the lock under which the tables are made."""
        # A hash, as it is put between quotes in a statement, and a table's name may
        # have quotes.
        return hashlib.sha256(self.name.encode()).hexdigest()[:32]

    @staticmethod
    def hint(index: str) -> str:
        """Return what MySQL and MariaDB are told so that they use an index."""
        # Quoted as in MySQL.  SQLAlchemy and then the driver halve each doubled percent
        # sign.
        quoted = index.replace("`", "``").replace("%", "%%%%")
        return f"FORCE INDEX (`{quoted}`)"

    # Statements about objects, built once

    @cached_property
    def insert(self) -> Statement:
        """Add an object's row."""
        return Statement(
            insert(self.objects).values({"id": bindparam("id"), **self._values()})
        )

    @cached_property
    def update(self) -> Statement:
        """Rewrite an object's row."""
        return Statement(
            update(self.objects)
            .where(self.objects.c.id == bindparam("object_id"))
            .values(self._values())
        )

    def _values(self) -> dict[str, Any]:
        return {
            column.key: bindparam(name, type_=column.type)
            for name, column in self.parameters.items()
        }

    @cached_property
    def set_state(self) -> Statement:
        """Change an object's state and leave its payload alone."""
        return Statement(
            update(self.objects)
            .where(self.objects.c.id == bindparam("object_id"))
            .values(state=bindparam("new_state"))
        )

    @cached_property
    def delete(self) -> Statement:
        """Remove an object's row."""
        return Statement(
            delete(self.objects).where(self.objects.c.id == bindparam("object_id"))
        )

    @cached_property
    def read_one(self) -> Statement:
        """Read an object."""
        table = self.objects
        return Statement(
            select(table.c.data, table.c.state).where(
                table.c.id == bindparam("object_id")
            )
        )

    @cached_property
    def read(self) -> ByIds:
        """Read objects."""
        table = self.objects
        return ByIds(
            lambda names: select(table.c.id, table.c.data, table.c.state).where(
                among(table.c.id, names)
            )
        )

    @cached_property
    def exists(self) -> Statement:
        """Find an object's row."""
        column = self.objects.c.id
        return Statement(select(column).where(column == bindparam("object_id")))

    @cached_property
    def counts(self) -> Statement:
        """Count the objects in each state."""
        return Statement(
            select(self.objects.c.state, func.count()).group_by(self.objects.c.state)
        )

    # Statements about IDs

    @cached_property
    def next_ids(self) -> Statement:
        """Read where the next block begins, and the largest ID in use."""
        largest = select(func.max(self.objects.c.id)).scalar_subquery()
        return Statement(select(self.ids.c.next_id, largest).where(self.ids.c.id == 1))

    @cached_property
    def take_ids(self) -> Statement:
        """Take a block, unless somebody else took it first."""
        return Statement(
            update(self.ids)
            .where(self.ids.c.id == 1, self.ids.c.next_id == bindparam("seen"))
            .values(next_id=bindparam("following"))
        )

    # Making and checking the tables

    def version_in(self, connection: Connection) -> str | None:
        """Return the version of the tables in the database, None for none."""
        # Read before it is known to exist: usually it does, and one query is enough.
        statement = select(self.version.c.version_num)
        try:
            return connection.execute(statement).scalar()
        except SQLAlchemyError:
            connection.rollback()
            if not inspect(connection).has_table(self.version.name):
                return None
            # It is there after all: another process has made it meanwhile.
            return connection.execute(statement).scalar()

    def check_version(self, version: str) -> None:
        """Raise SchemaError for a version that this code does not know."""
        if version > CURRENT_VERSION:
            raise SchemaError(
                f"the tables of {self.name!r} have schema version {version}, and this "
                f"release supports versions up to {CURRENT_VERSION}; upgrade "
                "sessionstore"
            )

    def check_columns(self, connection: Connection, *, may_lack: bool = False) -> None:
        """Raise SchemaError, naming table and column, if the object table lacks one.

        The table itself ``may_lack`` when it is about to be made.
        """
        try:
            self._look_at_columns(connection)
        except SQLAlchemyError:
            connection.rollback()
            inspector = inspect(connection)
            if not inspector.has_table(self.name):
                if may_lack:
                    return
                raise MissingTableError(
                    f"there is no table {self.name!r}, and this call does not create "
                    "it; check the table name"
                ) from None
            there = {column["name"] for column in inspector.get_columns(self.name)}
            for column in self.objects.columns:
                if column.name not in there:
                    raise SchemaError(
                        f"the table {self.name!r} has no column {column.name!r} "
                        f"({column.type}); add it, or choose another table name"
                    ) from None
            # It is there after all: another process has made it meanwhile.
            self._look_at_columns(connection)

    def _look_at_columns(self, connection: Connection) -> None:
        rows: Any = connection.execute(select(self.objects).limit(0))
        dialect: Any = connection.dialect
        # Only PostgreSQL would silently store bytes in a text column, as digits.
        is_text = (
            dialect.name == "postgresql"
            and rows.cursor.description[1][1] != dialect.dbapi.BINARY
        )
        rows.close()
        if is_text:
            raise SchemaError(
                f"the column 'data' of the table {self.name!r} is not BYTEA, and "
                "cannot hold objects; change its type, or choose another table name"
            )

    def has_ids(self, connection: Connection) -> bool:
        """Say whether IDs can be given out by the database."""
        return inspect(connection).has_table(self.ids.name)

    def build(self, connection: Connection) -> None:
        """Make what is missing, inside a transaction and under the setup lock."""
        if inspect(connection).has_table(self.version.name):
            version = self.version_in(connection)
            if version is not None:
                self.check_version(version)
        name = connection.dialect.name
        if name in {"mysql", "mariadb"}:
            # Not earlier, as SQLAlchemy imports the dialect of each option.
            for option, value in _OPTIONS.items():
                self.objects.dialect_kwargs[f"{name}_{option}"] = value
        self.metadata.create_all(connection, tables=[self.objects])
        migrate(connection, table=self.name, version_table=self.version.name)

    def drop(self, connection: Connection) -> None:
        """Drop all of the tables that are there, with what is in them."""
        self.changes.drop(connection, checkfirst=True)
        self.metadata.drop_all(connection)
