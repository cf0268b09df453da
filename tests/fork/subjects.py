"""What the matrix is run against: the same few verbs over stores and engines.

Labels are short strings, one for each row; who reads the rows back knows by them
what was lost and what was never meant to be there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    insert,
    select,
)
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.pool import QueuePool, StaticPool

from sessionstore import Persistable, SqlStore, protect

__all__ = ["NAIVE", "PROTECTED", "SUBJECTS", "Subject"]


class Subject(Protocol):
    """Something that keeps labels in a database."""

    @property
    def engine(self) -> Engine:
        """The engine that opens its connections."""

    def prepare(self) -> None:
        """Make its table."""

    def write(self, label: str) -> None:
        """Write one row as a unit of work of its own."""

    def write_inside(self, label: str) -> None:
        """Write one row in the transaction that is open."""

    def transaction(self) -> AbstractContextManager[object]:
        """Open a transaction for the block."""

    def nested(self) -> AbstractContextManager[object]:
        """Open a transaction inside that transaction."""

    def forget(self) -> None:
        """Let go of the open transaction without ending it."""

    def iterate(self) -> Iterator[str]:
        """Go through the labels, in the way that is usual for it."""

    def before_descriptors_close(self) -> None:
        """Do what its documentation asks for before all descriptors are closed."""

    def in_child(self) -> None:
        """Do what its documentation asks of a forked child."""

    def close(self) -> None:
        """Close its connections."""


class _Labelled(Persistable):
    def __init__(self, label: str) -> None:
        self.label = label


def _label_of(obj: Any) -> str:
    return str(obj.label)


class Store:
    """A SqlStore."""

    def __init__(self, url: str) -> None:
        self.store = SqlStore(
            url, "labels", extra_fields={Column("label", String(255)): _label_of}
        )

    @property
    def engine(self) -> Engine:
        return self.store._objects.database.connections.engine

    def prepare(self) -> None:
        self.store.counts()

    def write(self, label: str) -> None:
        self.store.save(_Labelled(label))

    write_inside = write

    def transaction(self) -> AbstractContextManager[object]:
        return self.store.transaction()

    nested = transaction

    def forget(self) -> None:
        pass

    def iterate(self) -> Iterator[str]:
        for obj in self.store.iter_objects():
            yield obj.label

    def before_descriptors_close(self) -> None:
        self.store.pre_fork()

    def in_child(self) -> None:
        pass

    def close(self) -> None:
        self.store.close()


_table = Table(
    "labels",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("label", String(255)),
)


class Core:
    """An engine, used as SQLAlchemy's Core tutorial shows."""

    connection: Connection | None = None
    #: For the driver; a child without protection would wait for locks in vain.
    waiting: Mapping[str, float] = {"timeout": 0.2}

    def __init__(self, url: str) -> None:
        if url == "sqlite://":
            # As SQLAlchemy's documentation has it for one in-memory database.
            self._engine = create_engine(
                url,
                poolclass=StaticPool,
                connect_args={"check_same_thread": False},
            )
        else:
            waiting = self.waiting if url.startswith("sqlite") else {}
            self._engine = create_engine(
                url, poolclass=QueuePool, connect_args=dict(waiting)
            )

    @property
    def engine(self) -> Engine:
        return self._engine

    def prepare(self) -> None:
        _table.metadata.create_all(self._engine)

    def write(self, label: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(insert(_table).values(label=label))

    def write_inside(self, label: str) -> None:
        assert self.connection is not None
        self.connection.execute(insert(_table).values(label=label))

    @contextmanager
    def transaction(self) -> Iterator[object]:
        with self._engine.begin() as self.connection:
            yield self.connection
        self.connection = None

    def nested(self) -> AbstractContextManager[object]:
        assert self.connection is not None
        return self.connection.begin_nested()

    def forget(self) -> None:
        self.connection = None

    def iterate(self) -> Iterator[str]:
        query = select(_table.c.label)
        if self.connection is not None:
            yield from self.connection.execute(query).scalars()
            return
        with self._engine.connect() as connection:
            yield from connection.execute(query).scalars()

    def before_descriptors_close(self) -> None:
        self._engine.dispose()

    def in_child(self) -> None:
        pass

    def close(self) -> None:
        self._engine.dispose()


class ProtectedCore(Core):
    """A protected engine."""

    waiting: Mapping[str, float] = {}

    def __init__(self, url: str) -> None:
        super().__init__(url)
        protect(self._engine)


class _Mapped(DeclarativeBase):
    pass


class _Row(_Mapped):
    __table__ = _table

    def __init__(self, label: str) -> None:
        self.label = label


class ProtectedOrm(ProtectedCore):
    """A protected engine under an ORM Session."""

    session: Session | None = None

    def write(self, label: str) -> None:
        with Session(self._engine) as session, session.begin():
            session.add(_Row(label))

    def write_inside(self, label: str) -> None:
        assert self.session is not None
        # A flush that fails would end the transaction, and leave no end to refuse.
        self.session.execute(insert(_Row).values(label=label))

    @contextmanager
    def transaction(self) -> Iterator[object]:
        with Session(self._engine) as self.session, self.session.begin():
            yield self.session
        self.session = None

    def nested(self) -> AbstractContextManager[object]:
        assert self.session is not None
        return self.session.begin_nested()

    def forget(self) -> None:
        self.session = None

    def iterate(self) -> Iterator[str]:
        if self.session is not None:
            yield from self.session.scalars(select(_Row.label))
            return
        with Session(self._engine) as session:
            yield from session.scalars(select(_Row.label))


class DisposedInChild(Core):
    """An engine that the child disposes of."""

    def in_child(self) -> None:
        self._engine.dispose()


class DisposedWithoutClosing(Core):
    """An engine that the child disposes of as SQLAlchemy's documentation advises."""

    def in_child(self) -> None:
        self._engine.dispose(close=False)


PROTECTED: dict[str, Callable[[str], Subject]] = {
    "SqlStore": Store,
    "protect(engine)": ProtectedCore,
    "protect(engine), ORM": ProtectedOrm,
}
NAIVE: dict[str, Callable[[str], Subject]] = {
    "plain engine": Core,
    "dispose() in the child": DisposedInChild,
    "dispose(close=False) in the child": DisposedWithoutClosing,
}
SUBJECTS: dict[str, Callable[[str], Subject]] = {**PROTECTED, **NAIVE}
