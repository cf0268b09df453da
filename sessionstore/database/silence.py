"""How long a network may say nothing before a connection is given up.

If a host is cut off, or a firewall drops packets, nobody is told: TCP sends again for a
quarter of an hour (tcp_retries2 in tcp(7)), and waits for an answer for ever.  So the
sockets of the drivers that this package comes with get bounds, unless the URL or
``engine_options`` has others.

The kernel at the other end answers even while the server is busy, so that no query and
no wait for a lock is cut off, however long.  A driver's read_timeout would do that.

One thing that a server is busy with looks like silence: while it waits for a lock, and
psycopg has more statements under way than it has room for, TCP_USER_TIMEOUT runs though
the probes are answered.  Therefore it is longer than ``busy_timeout``, after which the
server itself gives up the lock and reads on.

A server has to notice silence too: a host that vanishes in the middle of a transaction
leaves rows locked, for which others wait.  By default they wait until TCP gives up, or
for two hours if the server has nothing to send.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from sessionstore.fork.inherited import descriptor_of

__all__ = ["connect_options", "idle_limit", "postgresql_settings", "watch"]

#: Seconds for connecting, PyMySQL's own default; psycopg's is 130, others have no end.
CONNECT = 10
#: Seconds by which the server gives up earlier.
MARGIN = 5
#: Probes in a row; the time has one part before each, and one for the last answer.
PROBES = 4
#: Seconds that a transaction may pause between two statements, on MariaDB.
IDLE = 60
#: The kernel takes at most 32767 seconds between two probes.
_LONGEST = 86_400


def _bounds(busy_timeout: float) -> tuple[int, int]:
    """Return the seconds after which to give up, and those before each probe."""
    limit = math.ceil(min(busy_timeout, _LONGEST)) + MARGIN
    return limit, limit // (PROBES + 1)


def connect_options(driver: str, busy_timeout: float) -> Mapping[str, int]:
    """Return the defaults for the options of a driver's ``connect``."""
    if driver in ("pymysql", "mysqldb"):
        return {"connect_timeout": CONNECT}
    if driver not in ("psycopg", "psycopg2"):
        return {}
    limit, pause = _bounds(busy_timeout)
    options = {
        "keepalives_idle": pause,
        "keepalives_interval": pause,
        "keepalives_count": PROBES,
        # libpq ignores all of these on Unix sockets, and where there is no such thing.
        "tcp_user_timeout": limit * 1000,
    }
    if "PGCONNECT_TIMEOUT" not in os.environ:
        options["connect_timeout"] = CONNECT
    return options


def postgresql_settings(busy_timeout: float) -> Mapping[str, int]:
    """Return the settings by which a PostgreSQL server watches its end."""
    # Not idle_in_transaction_session_timeout: a block that is only slow goes on.
    limit, pause = _bounds(busy_timeout)
    return {
        "tcp_keepalives_idle": pause,
        "tcp_keepalives_interval": pause,
        "tcp_keepalives_count": PROBES,
        "tcp_user_timeout": limit * 1000,
    }


def idle_limit(busy_timeout: float) -> int:
    """Return the seconds after which MariaDB ends a transaction that is idle.

    It cannot tell a slow one from one whose host is gone, as its keepalive is set by
    the administrator, for all connections.
    """
    return max(_bounds(busy_timeout)[0], IDLE)


def watch(driver: str, connection: object, busy_timeout: float) -> None:
    """Make the kernel notice that a connection's other end is gone.

    libpq does that itself; MySQL's drivers have no options for it.
    """
    descriptor = descriptor_of(connection)
    if driver not in ("pymysql", "mysqldb") or descriptor is None:
        return
    import socket  # SQLite needs none

    limit, pause = _bounds(busy_timeout)
    values = {
        "TCP_KEEPIDLE": pause,
        "TCP_KEEPALIVE": pause,  # what macOS calls it
        "TCP_KEEPINTVL": pause,
        "TCP_KEEPCNT": PROBES,
        "TCP_USER_TIMEOUT": limit * 1000,
    }
    blocks = os.get_blocking(descriptor)
    with socket.socket(fileno=os.dup(descriptor)) as same:
        # setdefaulttimeout() would have changed what the driver relies on.
        os.set_blocking(descriptor, blocks)
        if same.family in (socket.AF_INET, socket.AF_INET6):
            same.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in values.items():
                if hasattr(socket, name):
                    same.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
