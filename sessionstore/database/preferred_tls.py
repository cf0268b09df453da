"""PyMySQL's connections, with one TLS context for all of them, and a bound for a login.

Where nothing is said about TLS, PyMySQL 1.2 uses it if the server has it, without
verifying anything.  For that it makes a context at each connect, and loads the system's
certificates into it.  This takes 20 ms, more than all else that a forked child does
before its first write.  So one context is made, also for all processes forked later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

__all__ = ["connect"]


def connect(*arguments: Any, **keywords: Any) -> Any:
    """Connect as ``pymysql.connect`` does."""
    import pymysql

    # Tracing, for instance, replaces it by a function that watches.
    is_plain = pymysql.connect is pymysql.connections.Connection
    open_: Callable[..., Any] = _class() if is_plain else pymysql.connect
    return open_(*arguments, **keywords)


@cache
def _class() -> type[Any]:
    from pymysql.connections import Connection

    plain: Any = Connection

    class WithOneContext(plain):  # type: ignore[misc]
        context: Any = None

        # PyMySQL's own method.  Should it go, connecting is slow again, and no more.
        def _create_ssl_ctx(self, sslp: Mapping[str, Any]) -> Any:
            if sslp:
                return super()._create_ssl_ctx(sslp)
            if WithOneContext.context is None:
                WithOneContext.context = super()._create_ssl_ctx(sslp)
            return WithOneContext.context

        # PyMySQL's connect_timeout is for TCP alone.  Whoever takes a connection and
        # then says nothing, as a host that is cut off just then, or a proxy without a
        # server behind it, would be waited for without an end.
        def connect(self, sock: Any = None) -> None:
            chosen = getattr(self, "_read_timeout", None)
            self._read_timeout = chosen or self.connect_timeout
            try:
                super().connect(sock)
            finally:
                self._read_timeout = chosen

    return WithOneContext
