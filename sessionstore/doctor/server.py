"""The server: its version, driver, limits, time zone and clock."""

from __future__ import annotations

import time
from collections.abc import Iterator

from sqlalchemy import select

from sessionstore.database.clock import Now
from sessionstore.doctor.finding import Finding, Level, Patient

__all__ = ["check"]

_NO_CLAIMS = "it has no SKIP LOCKED, so no task can be claimed"
#: The oldest release that works, and why older ones do not.
_OLDEST = {
    "postgresql": ((12,), "it has no tcp_user_timeout, which every connection sets"),
    "mysql": ((8, 0, 1), _NO_CLAIMS),
    "mariadb": ((10, 6), _NO_CLAIMS),
}
#: Bytes of an object that every store promises to take.
PAYLOAD = 64 * 2**20
#: Seconds that this host's clock and the database's may differ.
APART = 5.0


def check(patient: Patient) -> Iterator[Finding]:
    """Look at the server, and at the driver that talks to it."""
    yield _version(patient)
    yield _driver(patient)
    if patient.backend in {"mysql", "mariadb"}:
        yield _packet_limit(patient)
    if patient.backend != "sqlite":
        yield _time_zone(patient)
    yield _clock(patient)


def _version(patient: Patient) -> Finding:
    dialect = patient.connection.dialect
    found = dialect.server_version_info or ()
    name = "mariadb" if getattr(dialect, "is_mariadb", False) else dialect.name
    # In MariaDB's, text follows the numbers.
    numbers = tuple(part for part in found if isinstance(part, int))
    said = f"{name} {'.'.join(map(str, numbers))}"
    oldest, why = _OLDEST.get(name, ((), ""))
    if numbers >= oldest:
        return Finding("server", Level.OK, said)
    return Finding(
        "server",
        Level.WRONG,
        f"{said} is older than {'.'.join(map(str, oldest))}",
        why,
        "upgrade the server",
    )


def _driver(patient: Patient) -> Finding:
    driver = patient.connection.dialect.driver
    if driver != "mysqldb":
        return Finding("driver", Level.OK, driver)
    return Finding(
        "driver",
        Level.NOTE,
        "when a forked child exits, mysqlclient closes the parent's connection",
        "stores are protected from that; your own engines are not",
        "call sessionstore.protect(engine), or use the driver pymysql",
    )


def _packet_limit(patient: Patient) -> Finding:
    limit = patient.connection.exec_driver_sql("SELECT @@max_allowed_packet").scalar()
    mebibytes = f"max_allowed_packet is {int(limit or 0) / 2**20:g} MiB"
    if limit and limit > PAYLOAD:
        return Finding("packet limit", Level.OK, mebibytes)
    return Finding(
        "packet limit",
        Level.NOTE,
        mebibytes,
        "a larger object cannot be saved",
        "SET GLOBAL max_allowed_packet = 134217728, and set it in the server's "
        "configuration",
    )


def _time_zone(patient: Patient) -> Finding:
    variable = "TimeZone" if patient.backend == "postgresql" else "time_zone"
    if patient.backend == "postgresql":
        zone = patient.connection.exec_driver_sql("SHOW TimeZone").scalar()
    else:
        zone = patient.connection.exec_driver_sql(
            "SELECT IF(@@time_zone = 'SYSTEM', @@system_time_zone, @@time_zone)"
        ).scalar()
    if str(zone) in {"UTC", "Etc/UTC", "GMT", "+00:00"}:
        return Finding("time zone", Level.OK, f"{variable} is {zone}")
    return Finding(
        "time zone",
        Level.NOTE,
        f"{variable} is {zone}",
        "the store's own times are always UTC, but now() in your own columns is in "
        "this time zone",
        "set it to UTC if you compare those columns with the store",
    )


def _clock(patient: Patient) -> Finding:
    before = time.time()
    now = patient.connection.execute(select(Now())).scalar_one() / 1e6
    after = time.time()
    apart = max(before - now, now - after, 0.0)
    said = f"this host's clock differs from the database's by {apart:.1f} s"
    if apart <= APART:
        return Finding("clock", Level.OK, said)
    return Finding(
        "clock",
        Level.WRONG,
        said,
        "leases follow the database's clock, but times in logs and in the history "
        "will disagree",
        "timedatectl set-ntp true",
    )
