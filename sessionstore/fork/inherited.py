"""What becomes of a driver connection that came along with a fork.

It belongs to the parent.  The child must neither use nor free it, and closing it would
disturb the parent.  So it is put out of reach, and kept for ever.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from sessionstore.errors import ForkError

__all__ = ["PARENTS", "ParentsConnection", "descriptor_of", "disown", "is_disowned"]


PARENTS = (
    "this connection was opened by the parent process and cannot be used in a forked "
    "child; open a new one in the child"
)
#: By ``id()``, which is never used again, as they live for ever.
_disowned: set[int] = set()


class ParentsConnection:
    """Takes the place of a driver connection that belongs to the parent process.

    Giving it back is quiet, so that an exception can unwind an inherited
    ``with`` block; using it is a ForkError.
    """

    # SQLAlchemy's dialects ask one of these before they roll back, and an error
    # in the answer would be logged, with a traceback, in every child.
    autocommit = True
    isolation_level = None

    def get_autocommit(self) -> bool:
        """Say that there is no transaction to end here."""
        return True

    def __getattr__(self, name: str) -> Any:
        raise ForkError(PARENTS)

    def rollback(self) -> None:
        """Send nothing: the transaction is the parent's."""

    def close(self) -> None:
        """Close nothing: the connection is the parent's."""


def disown(connection: object, record: Any, *, silence: bool) -> None:
    """Put the parent's driver connection out of this process's reach.

    ``record`` is SQLAlchemy's record of it, None if that is gone.  ``silence`` it if it
    is a socket, or what is sent on it would still reach the server.
    """
    _make_immortal(connection)
    _disowned.add(id(connection))
    if record is not None and record.dbapi_connection is connection:
        stand_in = ParentsConnection()
        if hasattr(record, "finalize_callback"):  # not while it is being set up
            record.finalize_callback.clear()
        record.dbapi_connection = stand_in
        fairy = record.fairy_ref() if record.fairy_ref is not None else None
        if fairy is not None:
            fairy.dbapi_connection = stand_in
    if silence:
        _silence(connection)


def is_disowned(connection: object) -> bool:
    """Say whether this is a driver connection that the parent opened."""
    return id(connection) in _disowned


def _make_immortal(connection: object) -> None:
    # A reference that nobody gives back: even the interpreter's end must not run
    # the destructor, as mysqlclient's sends COM_QUIT and sqlite3's drops locks.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def _silence(connection: object) -> None:
    """Lay /dev/null over the connection's socket, in this process only."""
    # This stops stray bytes, and it gives up the child's share of the socket: for as
    # long as a child held it, the server would keep a dead parent's transaction open.
    descriptor = descriptor_of(connection)
    if descriptor is None:
        return
    try:
        null = os.open(os.devnull, os.O_RDWR)
    except OSError:
        # This process has none left but the one that is given up here.
        os.close(descriptor)
        try:
            null = os.open(os.devnull, os.O_RDWR)
        except OSError:
            return  # the whole system has none: nobody can write to this one either
    if null != descriptor:
        os.dup2(null, descriptor, inheritable=False)
        os.close(null)


def descriptor_of(connection: Any) -> int | None:
    """Return the descriptor of a driver connection's socket, if it has one."""
    try:
        socket = getattr(connection, "_sock", None) or connection
        descriptor = socket.fileno()
    except Exception:  # a driver without a socket, or one that is closed already
        return None
    return descriptor if isinstance(descriptor, int) and descriptor >= 0 else None
