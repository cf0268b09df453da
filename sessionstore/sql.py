"""Objects in a table of any SQL database that SQLAlchemy drives."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Column, Table
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from sessionstore.checks import check_mapping, check_methods, check_timeout
from sessionstore.database.access import Database
from sessionstore.database.dialects import Options
from sessionstore.database.location import database_and_table
from sessionstore.errors import ConfigurationError, ForkError, NotFoundError
from sessionstore.files import make_folder
from sessionstore.ids import IdSource, IntId
from sessionstore.objects.extra import ExtraFields
from sessionstore.objects.schema import Schema
from sessionstore.objects.table import ObjectTable
from sessionstore.renaming import Renaming
from sessionstore.row_ids import key_of
from sessionstore.serializers import Serializer
from sessionstore.store import Store, register_fallback
from sessionstore.url import Url
from sessionstore.warn import warn_user

__all__ = ["IntId", "SqlStore", "make_sqlstore"]

#: Objects that an iteration reads at once.
BATCH = 50
_SYNCHRONOUS = ("OFF", "NORMAL", "FULL", "EXTRA")
_OPTIONS_OF_OTHERS = frozenset({"directory", "protocol"})


class SqlStore(Store):
    """Save and load objects in a table, each in one row, by default as a pickle.

    ``url`` follows SQLAlchemy's conventions.  The table is ``table_name``, else the
    one named by ``#table=NAME`` at the URL's end, else ``store``.  It has the columns
    ``id``, ``data`` (the payload) and ``state`` (``obj.execution.state``, or UNKNOWN);
    a table that is there already is used as it is.  ``extra_fields`` maps further
    ``sqlalchemy.Column`` objects to functions of the object saved; where a function
    raises, that is logged and the column stays NULL.  ``idfactory`` is an object
    whose ``new(obj)`` returns an integer that no object ever had.

    With ``create=False`` nothing is created: no table, no SQLite file; one that is
    there keeps its journal mode.

    Options: ``serializer`` (see ``sessionstore.serializers``); ``rename`` (classes that
    have moved, as ``{"old.module:Old": "new.module:New"}``, or modules; objects are
    found under either name, and saved under the new one); ``synchronous`` (SQLite: OFF,
    NORMAL, FULL or EXTRA); ``busy_timeout`` (seconds to wait for other writers, and,
    with five more, for a network that has gone silent); ``engine_options`` (for
    ``sqlalchemy.create_engine``, but no ``isolation_level``).  Options of
    ``FilesystemStore`` are ignored, and so is any other, with a warning.

    The constructor touches no database.  A store may be used by any number of
    threads, and goes on working on both sides of a fork.

    Raises ConfigurationError for a URL or an option that cannot be used.  Any call
    raises StoreUnavailableError while the database is busy for longer than
    ``busy_timeout`` or cannot be reached, SchemaError where the table does not fit, and
    ForkError where a fork has left nothing to go on with.

    >>> from sessionstore import SqlStore, Task
    >>> store = SqlStore("sqlite:///tasks.db")
    >>> id_ = store.save(Task("count", path="/etc/passwd"))
    >>> store.load(id_).path
    '/etc/passwd'
    >>> store.counts()
    {'NEW': 1}
    """

    def __init__(
        self,
        url: str | Url | URL,
        table_name: str | None = None,
        idfactory: IdSource | None = None,
        extra_fields: Mapping[Column[Any], Callable[[Any], object]] | None = None,
        create: bool = True,
        *,
        serializer: Serializer | None = None,
        rename: Mapping[str, str] | None = None,
        synchronous: str = "FULL",
        busy_timeout: float = 30.0,
        engine_options: Mapping[str, Any] | None = None,
        **extra_args: object,
    ) -> None:
        for name in sorted(extra_args.keys() - _OPTIONS_OF_OTHERS):
            warn_user(f"SqlStore has no option {name!r}; it is ignored")
        check_methods("idfactory", idfactory, "new")
        check_methods("serializer", serializer, "dumps", "loads")
        check_mapping("extra_fields", extra_fields)
        check_mapping("rename", rename)
        check_mapping("engine_options", engine_options)
        if str(synchronous).upper() not in _SYNCHRONOUS:
            raise ConfigurationError(
                f"synchronous={synchronous!r} must be one of {', '.join(_SYNCHRONOUS)}"
            )
        check_timeout("busy_timeout", busy_timeout)
        database_url, table_in_url = database_and_table(url)
        # What pickling takes to make this store again in another process.
        self._recipe = {
            "url": database_url,
            "table_name": table_name or table_in_url or "store",
            "idfactory": idfactory,
            "extra_fields": dict(extra_fields or {}),
            "create": create,
            "serializer": serializer,
            "rename": rename,
            "synchronous": synchronous,
            "busy_timeout": busy_timeout,
            "engine_options": engine_options,
        }
        extra = ExtraFields(extra_fields)
        schema = Schema(str(self._recipe["table_name"]), extra)
        database = Database(
            database_url,
            options=Options(create, synchronous.upper(), busy_timeout),
            engine_options=engine_options,
        )
        schema.check_names(database.settings.name_bytes)
        self._recipe["url"] = database.url
        #: The objects' table, which a ``SessionStore`` shares with this store.
        self._objects = ObjectTable(
            database,
            schema,
            idfactory=idfactory,
            serializer=serializer,
            renamed=Renaming(rename) if rename else None,
            create=create,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        self._refuse_to_be_stored()
        if self._objects.database.connections.is_in_memory:
            # The other process would have a database of its own, and lose it at its
            # end.
            raise ForkError(
                "an in-memory SQLite database belongs to the process that opened it, "
                "and cannot be passed to another; use a file"
            )
        return _from_recipe, (type(self), self._recipe)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url!r} table={self._tables.name}>"

    @property
    def url(self) -> URL:
        """The database's URL; its ``repr`` and ``str`` hide the password."""
        return self._objects.database.url

    @property
    def _tables(self) -> Table:
        """The ``sqlalchemy.Table`` of the objects."""
        return self._objects.schema.objects

    @property
    def t_store(self) -> Table:
        """Deprecated: the same as ``_tables``."""
        warn_user(
            "SqlStore.t_store is deprecated; use SqlStore._tables", DeprecationWarning
        )
        return self._tables

    # One object

    def save(self, obj: object) -> int:
        """Write an object, new or again, and return its ID.

        ``Persistable`` objects inside it, if new or ``changed``, are written to rows
        of their own in the same transaction.

        Raises EncodeError if something in it cannot be stored, and NotFoundError if
        it was stored here before and has been removed; nothing is written then.
        """
        return self._objects.store([obj])[0]

    def save_many(self, objs: Iterable[object]) -> Sequence[int]:
        """``save`` objects in one transaction, and return their IDs in order."""
        objects = list(objs)
        return self._objects.store(objects) if objects else []

    def load(self, id_: object) -> Any:
        """Return the object with this ID.

        While somebody in this process holds it, it is the same object each time.

        Raises NotFoundError if there is none, and DecodeError if there is one that
        cannot be read.
        """
        return self._objects.load(key_of(id_))

    def load_many(self, ids: Iterable[object]) -> dict[int, Any]:
        """Return the objects with these IDs, by ID; as ``load``, in few statements."""
        keys = [*dict.fromkeys(map(key_of, ids))]
        decoded = self._objects.load_many(keys)
        return {key: decoded.only(key) for key in keys}

    def replace(self, id_: object, obj: object) -> None:
        """Make the row with this ID a copy of ``obj``.

        ``obj`` itself stays what and where it is.

        Raises NotFoundError if there is no such row, and EncodeError as ``save`` does.
        """
        self._objects.write_over(obj, key_of(id_))

    def remove(self, id_: object) -> None:
        """Remove the object with this ID.  Raises NotFoundError if there is none."""
        key = key_of(id_)
        self._objects.prepare()
        self._objects.database.write(lambda kept: self._objects.delete(kept, key))

    # Many

    def list(self) -> Sequence[int]:
        """Return the IDs of all objects, ascending."""
        return [*self.iter_ids()]

    def iter_ids(self, *, state: str | None = None) -> Iterator[int]:
        """Go through the IDs, of the objects in one state if it is given.

        Reads page by page and holds nothing in between, so that the loop's body may
        write and fork; it is no snapshot.
        """
        return self._objects.ids(state)

    def iter_objects(self, *, state: str | None = None) -> Iterator[Any]:
        """Go through the objects, as ``iter_ids`` goes through the IDs.

        Raises DecodeError at one that cannot be read.
        """
        ids = self.iter_ids(state=state)
        while some := [*islice(ids, BATCH)]:
            decoded = self._objects.load_many(some)
            for key in some:
                error = decoded.errors.get(key)
                if not isinstance(error, NotFoundError):  # removed meanwhile
                    yield decoded.only(key)

    def count(self, *, state: str | None = None) -> int:
        """Return the number of objects, of those in one state if it is given."""
        counts = self.counts()
        return sum(counts.values()) if state is None else counts.get(str(state), 0)

    def counts(self) -> dict[str, int]:
        """Return the number of objects in each state; NULL counts as UNKNOWN."""
        objects = self._objects
        objects.prepare()
        counts: dict[str, int] = {}
        rows = objects.database.read(lambda kept: kept.rows(objects.schema.counts))
        for state, number in rows:
            name = "UNKNOWN" if state is None else state
            counts[name] = counts.get(name, 0) + number
        return counts

    def __contains__(self, id_: object) -> bool:
        try:
            key = key_of(id_)
        except NotFoundError:
            return False
        return self._objects.exists(key)

    def __len__(self) -> int:
        return self.count()

    # Transactions and life

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Commit all that this thread does in the block at once.

        Yields the SQLAlchemy connection, so that rows of your own commit together
        with the store's; do not commit or roll back on it yourself.  Blocks may be
        nested: an exception that leaves an inner one rolls back the outermost too,
        and so does one that a store's or a session's call raises in it.

        MySQL and MariaDB commit what came before a CREATE, ALTER or DROP in it.

        >>> from sessionstore import SqlStore, Task
        >>> store = SqlStore("sqlite:///tasks.db")
        >>> with store.transaction() as connection:
        ...     first, second = store.save(Task("one")), store.save(Task("two"))
        >>> len(store)
        2
        """
        self._objects.prepare()
        with self._objects.database.transaction() as scope:
            connection = scope.kept.connection
            if not connection.in_transaction():
                # Otherwise a commit() by the caller would go unnoticed.
                connection.begin()
            # SQLAlchemy's has_table() leaves this on, and it would hide from us that a
            # statement of the caller's met a deadlock.
            connection.execution_options(skip_user_error_events=False)
            yield connection

    def invalidate_cache(self) -> None:
        """Forget the live objects, so that ``load`` reads each from the database."""
        self._objects.identities.forget_all()

    def pre_fork(self) -> None:
        """Close all connections; the next call opens one.

        Not needed before ``os.fork``, which is taken care of, but before anything that
        closes descriptors behind Python's back, such as becoming a daemon.  An
        in-memory database stays open, as closing it would delete it.
        """
        if not self._objects.database.connections.is_in_memory:
            self.close()

    def post_fork(self) -> None:
        """Do nothing: each process opens its own connections when it needs them."""

    def close(self) -> None:
        """Close all connections.  The store may still be used, and opens new ones.

        An in-memory database is deleted by that, and begins empty.
        """
        self._objects.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def make_sqlstore(url: str | Url | URL, *args: Any, **extra_args: Any) -> SqlStore:
    """Return ``SqlStore(url, *args, **extra_args)``, for use by ``make_store``.

    The parent directories of a SQLite file are created if need be.

    >>> from sessionstore import make_sqlstore
    >>> make_sqlstore("sqlite:///data/tasks.db").__class__.__name__
    'SqlStore'
    """
    store = SqlStore(url, *args, **extra_args)
    path = store.url.database
    create = args[3] if len(args) > 3 else extra_args.get("create", True)
    if (
        create
        and store.url.get_backend_name() == "sqlite"
        and path
        and path != ":memory:"
        and not path.startswith("file:")
    ):
        folder = Path(path).parent
        try:
            # Synced, or a power cut could take them, with what was committed in them.
            make_folder(str(folder))
        except OSError as error:
            raise ConfigurationError(
                f"cannot create the directory {folder}: {os.strerror(error.errno or 0)}"
            ) from error
    return store


def _from_recipe(cls: type[SqlStore], recipe: dict[str, Any]) -> SqlStore:
    return cls(**recipe)


def _is_sqlalchemy_scheme(scheme: str) -> bool:
    try:
        URL.create(scheme).get_dialect()
    except (NoSuchModuleError, ArgumentError, ImportError):
        return False
    return True


register_fallback(
    _is_sqlalchemy_scheme, make_sqlstore, ["sqlite", "postgresql", "mysql", "mariadb"]
)
