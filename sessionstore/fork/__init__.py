"""Fork safety for any SQLAlchemy engine, as the stores' own have it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sessionstore.fork.guard import Guard, is_guarded

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

__all__ = ["protect"]


def protect(engine: Engine) -> Engine:
    """Make ``engine`` fork-safe, and return it.

    After any fork, parent and child both go on with the engine, each on connections of
    its own (G4).  A connection that was checked out at the fork stays the parent's:
    using it in the child raises ForkError.  With SQLite the child can go on only if no
    connection was checked out at the fork; else each use of that database in the child
    raises ForkError, as any use of an in-memory one does.  An engine may be protected
    twice, which changes nothing, and when it has connections already.

    >>> from sqlalchemy import create_engine
    >>> from sessionstore import protect
    >>> engine = protect(create_engine("sqlite:///app.db"))
    """
    if not is_guarded(engine):
        Guard(engine)  # its listeners keep it for as long as the engine lives
    return engine
