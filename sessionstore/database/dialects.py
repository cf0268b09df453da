"""What differs between databases, in one table."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from sqlalchemy.engine import URL, Dialect
from sqlalchemy.exc import NoSuchModuleError

from sessionstore.database import preferred_tls, silence
from sessionstore.errors import ConfigurationError, SchemaError

__all__ = [
    "BusyTimeout",
    "MissingTableError",
    "Options",
    "Settings",
    "Telling",
    "absolute",
    "close_soon",
    "error_code",
    "has_failed",
    "load_dialect",
    "matches",
    "notifications",
    "prepare_sqlite_file",
    "settings_of",
]


#: SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE; naming it by the driver would import that.
NO_CHECKPOINT_ON_CLOSE = 1006


def _nothing(cursor: Any, options: Options) -> None:
    pass


class MissingTableError(SchemaError):
    """The table, or the file that it would be in, is not there."""


# Named tuples, as a data class takes five times as long to import.


class Options(NamedTuple):
    """What a caller may choose about connections."""

    create: bool = True
    synchronous: str = "FULL"
    busy_timeout: float = 30.0


class Telling(Enum):
    """How those who wait for a change learn of it; see ``changes``."""

    BY_ITSELF = "by itself"
    NOTIFY = "notify"
    COUNTER = "counter"


class Settings(NamedTuple):
    """How to talk to one kind of database."""

    #: The statement that opens a writing transaction; None: the driver opens it.
    begin: str | None = None
    #: Opens a driver connection; None: as the driver does.
    connect: Callable[..., Any] | None = None
    #: The statements that open a transaction which sees one state of the database.
    snapshot: Sequence[str] = ()
    #: Run on each new driver connection.
    on_connect: Callable[[Any, Options], None] = _nothing
    #: Statements that take and give back the lock under which tables are made,
    #: with the table's name as ``%s``.
    lock: str | None = None
    unlock: str | None = None
    #: Asks the server how many bytes it takes in one statement.
    packet_limit: str | None = None
    #: How many bytes of a table's or an index's name the server keeps.
    name_bytes: int | None = None
    #: Whether others can write while one transaction is writing.
    concurrent_writers: bool = True
    telling: Telling = Telling.BY_ITSELF
    #: Whether a statement has to name the index to use.
    names_index: bool = False
    #: Driver error codes (SQLSTATE, errno or SQLite's name) by what they mean.
    deadlock_codes: frozenset[object] = frozenset()
    busy_codes: frozenset[object] = frozenset()
    #: Those of them after which the statement is tried again, for busy_timeout at most.
    turn_codes: frozenset[object] = frozenset()
    #: The server has ended the statement: by a limit of time, or an administrator did.
    stopped_codes: frozenset[object] = frozenset()
    full_codes: frozenset[object] = frozenset()
    missing_codes: frozenset[object] = frozenset()
    unusable_codes: frozenset[object] = frozenset()
    #: The words by which, without a code, a refused connection is recognised.
    refusals: re.Pattern[str] | None = None
    too_large_codes: frozenset[object] = frozenset()
    duplicate_codes: frozenset[object] = frozenset()
    #: The extra of this package that installs a driver, and that driver.
    extra: tuple[str, str] | None = None


class BusyTimeout(Enum):
    """Milliseconds that SQLite waits for a lock before we ask again ourselves.

    Left to itself, SQLite asks less and less often, at last every 100 ms, so that those
    who came later are quicker (sqliteDefaultBusyCallback in its main.c): among 24
    writers the unluckiest waited for more than 5 s within a minute.
    """

    #: SQLite's first waits, of 1, 2, 5, 10 and 15.
    SHORT = 33
    #: For those who have waited long: 1 and 1.
    SHORTEST = 2

    def set(self, driver: Any, options: Options) -> None:
        """Set it for a connection, or for a cursor's connection."""
        allowed = int(options.busy_timeout * 1000)
        driver.execute(f"PRAGMA busy_timeout = {min(self.value, allowed)}")


def _configure_sqlite(cursor: Any, options: Options) -> None:
    cursor.execute(f"PRAGMA busy_timeout = {int(options.busy_timeout * 1000)}")
    cursor.execute(f"PRAGMA synchronous = {options.synchronous}")
    cursor.execute("PRAGMA foreign_keys = ON")
    if options.create:  # else the file stays as it is, whoever looks into it
        _use_wal(cursor, time.monotonic() + options.busy_timeout)
    BusyTimeout.SHORT.set(cursor, options)


def _use_wal(cursor: Any, deadline: float) -> None:
    while cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            # Changing the mode does not wait for busy_timeout: if several processes
            # open a new file at the same time, some are told "locked" at once.
            cursor.execute("PRAGMA journal_mode = WAL")
            # A database that has no file, or no shared memory, keeps its own mode.
            return
        except Exception as error:
            code = getattr(error, "sqlite_errorname", "")
            if code.startswith("SQLITE_READONLY"):
                return  # to be read in the mode that it has
            if not code.startswith("SQLITE_BUSY") or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _configure_postgresql(cursor: Any, options: Options) -> None:
    # 0 would mean to wait for ever.
    settings = {
        "lock_timeout": max(1, int(options.busy_timeout * 1000)),
        **silence.postgresql_settings(options.busy_timeout),
    }
    # In one message, as a worker waits for this before its first write.
    cursor.execute("; ".join(f"SET {name} = {n}" for name, n in settings.items()))


def _configure_mysql(cursor: Any, options: Options) -> None:
    cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
    seconds = max(1, round(options.busy_timeout))
    idle = silence.idle_limit(options.busy_timeout)
    cursor.execute(
        f"SET SESSION innodb_lock_wait_timeout = {seconds}, "
        # Without it a payload that is too long for its column is cut, with a warning
        # only.
        "sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES')"
        # MySQL, which has no such thing, takes it for a comment.
        f" /*M! , idle_transaction_timeout = {idle} */"
    )


# SQLITE_BUSY and kin: sqlite.org/rescode.html. SQLSTATEs: appendix A of the
# PostgreSQL manual. Numbers: MariaDB's error code reference.
_SQLITE = Settings(
    begin="BEGIN IMMEDIATE",
    snapshot=["BEGIN"],
    on_connect=_configure_sqlite,
    concurrent_writers=False,
    busy_codes=frozenset({"SQLITE_BUSY", "SQLITE_LOCKED"}),
    # Not SQLITE_BUSY_SNAPSHOT, which does not pass.
    turn_codes=frozenset(
        {"SQLITE_BUSY", "SQLITE_BUSY_RECOVERY", "SQLITE_BUSY_TIMEOUT"}
    ),
    full_codes=frozenset({"SQLITE_FULL", "SQLITE_IOERR"}),
    unusable_codes=frozenset(
        {"SQLITE_NOTADB", "SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM"}
    ),
    too_large_codes=frozenset({"SQLITE_TOOBIG"}),
    duplicate_codes=frozenset(
        {"SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_UNIQUE"}
    ),
)
_POSTGRESQL = Settings(
    begin="BEGIN",
    snapshot=["BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"],
    on_connect=_configure_postgresql,
    lock="SELECT pg_advisory_lock(hashtext('sessionstore %s'))",
    unlock="SELECT pg_advisory_unlock(hashtext('sessionstore %s'))",
    name_bytes=63,
    telling=Telling.NOTIFY,
    deadlock_codes=frozenset({"40001", "40P01"}),
    refusals=re.compile(
        "authentication failed|no password supplied|no pg_hba.conf entry"
        '|(role|database) ".*" does not exist|does not support SSL'
        "|permission denied for database|is not permitted to log in"
    ),
    busy_codes=frozenset({"55P03", "53300", "57P03"}),
    stopped_codes=frozenset({"57014"}),
    full_codes=frozenset({"53100", "53200"}),
    missing_codes=frozenset({"42P01", "42703"}),
    unusable_codes=frozenset({"28P01", "28000", "3D000", "42501", "25006"}),
    too_large_codes=frozenset({"54000"}),
    duplicate_codes=frozenset({"23505"}),
    extra=("postgresql", "psycopg"),
)
_MYSQL = Settings(
    begin="START TRANSACTION",
    snapshot=[
        # It locks nothing, and a copy may have to wait long for the other side.
        "SET SESSION sql_mode = @@sql_mode /*M! , idle_transaction_timeout = 0 */",
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY",
    ],
    on_connect=_configure_mysql,
    lock="SELECT GET_LOCK('sessionstore %s', 60)",
    unlock="SELECT RELEASE_LOCK('sessionstore %s')",
    packet_limit="SELECT @@max_allowed_packet",
    telling=Telling.COUNTER,
    names_index=True,
    deadlock_codes=frozenset({1213, 1020}),
    busy_codes=frozenset({1205, 1040, 1203, 1226}),
    stopped_codes=frozenset({1317, 1969, 3024, 1053}),
    full_codes=frozenset({1114, 1021}),
    missing_codes=frozenset({1146, 1054}),
    unusable_codes=frozenset({1044, 1045, 1049, 1142, 1290, 1698, 1792, 1836}),
    too_large_codes=frozenset({1153}),
    duplicate_codes=frozenset({1062}),
    extra=("mysql", "pymysql"),
)
_BY_NAME = {
    "sqlite": _SQLITE,
    "postgresql": _POSTGRESQL,
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
}
#: Drivers known to keep quiet in autocommit mode until they are told to BEGIN.
_AUTOCOMMIT_DRIVERS = frozenset(
    {"pysqlite", "psycopg", "psycopg2", "pymysql", "mysqldb"}
)


def settings_of(dialect: Dialect | type[Dialect]) -> Settings:
    """Return the settings for a dialect; the defaults for one not known here."""
    settings = _BY_NAME.get(dialect.name, Settings())
    if dialect.driver == "pymysql":
        settings = settings._replace(connect=preferred_tls.connect)
    if dialect.driver in _AUTOCOMMIT_DRIVERS:
        return settings
    return settings._replace(begin=None, snapshot=(), on_connect=_nothing)


def load_dialect(url: URL) -> type[Dialect]:
    """Return the dialect class of a URL, or raise ConfigurationError."""
    try:
        dialect = url.get_dialect()
        if dialect.is_async:
            raise ConfigurationError(
                f"{url.drivername} is an asynchronous driver; use a synchronous one, "
                f"as in {url.get_backend_name()}://"
            )
        dialect.import_dbapi()
    except NoSuchModuleError as error:
        raise ConfigurationError(
            f"SQLAlchemy has no dialect {url.drivername!r} (in {url!r}); write the "
            "URL like sqlite:///, postgresql+psycopg:// or mysql+pymysql://"
        ) from error
    except ImportError as error:
        raise ConfigurationError(
            f"the driver for {url.drivername} is not installed ({error}); "
            f"{_how_to_install(url, dialect)}"
        ) from error
    return dialect


def _how_to_install(url: URL, dialect: type[Dialect]) -> str:
    settings = settings_of(dialect)
    if settings.extra is None:
        return "install the package that provides it"
    extra, driver = settings.extra
    install = f"pip install 'sessionstore[{extra}]'"
    if dialect.driver == driver:
        return install
    # Another driver than ours: for mysql:// SQLAlchemy takes mysqlclient.
    return (
        "install the package that provides it, or write "
        f"{url.get_backend_name()}+{driver}:// and {install}"
    )


def has_failed(dialect: Dialect, connection: Any) -> bool:
    """Say whether a statement in a driver connection's transaction has failed.

    PostgreSQL answers the COMMIT of such a transaction with ROLLBACK, and no driver
    takes that for an error.
    """
    if dialect.driver == "psycopg":
        return bool(connection.info.transaction_status.name == "INERROR")
    if dialect.driver == "psycopg2":
        return bool(connection.get_transaction_status() == 3)
    return False


def notifications(connection: Any) -> Sequence[object]:
    """Return what a PostgreSQL connection was notified of, without waiting."""
    if hasattr(connection, "poll"):  # psycopg2
        connection.poll()
        told, connection.notifies[:] = [*connection.notifies], []
        return told
    return [*connection.notifies(timeout=0)]


def error_code(original: BaseException | None) -> object:
    """Return what a driver's error says about its kind, for ``Settings``' sets."""
    # MySQL's number first: PyMySQL tells the SQLSTATE beside it since 1.2, which has
    # one value for many kinds.
    arguments = getattr(original, "args", ())
    if arguments and isinstance(arguments[0], int):
        return arguments[0]
    for attribute in ("sqlstate", "pgcode", "sqlite_errorname"):
        code = getattr(original, attribute, None)
        if code is not None:
            return code
    return None


def matches(code: object, codes: frozenset[object]) -> bool:
    """Say whether a code is one of ``codes``, or an extended form of one."""
    if code in codes:
        return True
    # SQLite's extended codes: SQLITE_BUSY_SNAPSHOT is a SQLITE_BUSY.
    return isinstance(code, str) and any(
        isinstance(known, str) and code.startswith(known + "_") for known in codes
    )


def prepare_sqlite_file(path: str, *, is_uri: bool, create: bool) -> None:
    """Make the database file readable by its owner only, before SQLite makes it."""
    if is_uri and path.startswith("file:"):
        parts = urlsplit(path)
        path = unquote(parts.path)
        create = create and not {"mode=ro", "mode=rw"} & {*parts.query.split("&")}
    if not path or os.path.exists(path):
        return
    if not create:
        raise MissingTableError(
            f"there is no SQLite database {path}, and this call does not create one; "
            "check the path"
        )
    try:
        # The -wal and -shm files take their mode from this one.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise ConfigurationError(
            f"cannot create the SQLite database {path}: {error.strerror}; check that "
            f"{Path(path).parent} exists and is writable"
        ) from error


def close_soon(connection: Any) -> None:
    """Make a SQLite connection close fast."""
    # The last one would move all of the WAL into the database, with two fsyncs, and
    # after a fork both processes open the database again.  Python 3.12 can stop it.
    if hasattr(connection, "setconfig"):
        connection.setconfig(NO_CHECKPOINT_ON_CLOSE, True)


def absolute(url: URL) -> URL:
    """Return a SQLite URL with its path made absolute, any other as it is."""
    # Connections are opened again after a fork and in each thread, and a daemon
    # changes its working directory: a relative path would then name another file.
    path = url.database
    if (
        url.get_backend_name() != "sqlite"
        or not path
        or path == ":memory:"
        or path.startswith("file:")
    ):
        return url
    return url.set(database=os.path.abspath(path))
