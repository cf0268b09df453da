"""Examines a store: what is wrong, why it matters, and what mends it.

>>> from sessionstore import SessionStore, Task
>>> from sessionstore.doctor import examine
>>> session = SessionStore("sqlite:///tasks.db")
>>> id_ = session.add(Task("count"))
>>> {finding.level.value for finding in examine(session.store)}
{'ok'}
"""

from __future__ import annotations

from collections.abc import Iterator

from sessionstore.doctor import (
    files,
    holders,
    ids,
    mismatches,
    payloads,
    server,
    tables,
)
from sessionstore.doctor.finding import Finding, Level, Patient
from sessionstore.doctor.look import looking
from sessionstore.doctor.payloads import unreadable
from sessionstore.doctor.repickling import Repickled, repickle
from sessionstore.doctor.tables import migrate
from sessionstore.errors import SessionStoreError
from sessionstore.sql import SqlStore

__all__ = [
    "Finding",
    "Level",
    "Repickled",
    "examine",
    "migrate",
    "repickle",
    "unreadable",
]

_ALWAYS = (server.check, files.check, tables.check)
#: Checks that can be made only if the tables fit.
_OF_WHAT_IS_KEPT = (ids.check, mismatches.check, holders.check, payloads.check)


def examine(store: SqlStore) -> Iterator[Finding]:
    """Make all checks, one after the other; nothing is changed but by ``mend``.

    Reading payloads runs what unpickling them runs.  Rows that are written meanwhile
    may not seem to fit; what is really wrong shows again the next time.
    """
    try:
        with looking(store) as connection:
            patient = Patient(store, connection)
            fits = True
            for check in _ALWAYS:
                for finding in check(patient):
                    fits &= finding.level is not Level.WRONG or check != tables.check
                    yield finding
            if fits:
                for check in _OF_WHAT_IS_KEPT:
                    yield from check(patient)
    except SessionStoreError as error:
        yield Finding(
            "database",
            Level.WRONG,
            str(error),
            "nothing can be read or written",
            "check that the database is running and that the URL is right",
        )
