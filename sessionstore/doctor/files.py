"""A SQLite database's files: their mode, their place, and whether they are damaged."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil
from sqlalchemy.exc import DatabaseError

from sessionstore.doctor.finding import Finding, Level, Patient
from sessionstore.doctor.look import looking, reopened, sqlite_file
from sessionstore.sql import SqlStore

__all__ = ["check"]

#: File systems that hosts share, on which WAL does not work (sqlite.org/wal.html).
_OF_OTHER_HOSTS = (
    *("9p", "afs", "beegfs", "ceph", "cifs", "fuse.sshfs", "gfs2", "glusterfs"),
    *(
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "smb",
        "smb2",
        "smb3",
        "smbfs",
    ),
)
#: Bytes of a -wal file that is too large; SQLite writes back one of 4 MiB.
LARGE_WAL = 64 * 2**20


def check(patient: Patient) -> Iterator[Finding]:
    """Look at the files, if it is a SQLite database."""
    path = sqlite_file(patient.store)
    if path is None:
        return
    yield _journal(patient)
    yield _synchronous(patient)
    yield _mode(path)
    yield _place(path)
    yield _whole(patient)
    yield _wal(patient, path)


def _pragma(patient: Patient, pragma: str) -> object:
    return patient.connection.exec_driver_sql(f"PRAGMA {pragma}").scalar()


def _journal(patient: Patient) -> Finding:
    mode = str(_pragma(patient, "journal_mode"))
    if mode == "wal":
        return Finding("journal mode", Level.OK, mode)
    return Finding(
        "journal mode",
        Level.WRONG,
        f"it is {mode}, not wal",
        "readers and writers block each other",
        "PRAGMA journal_mode = WAL",
        lambda: _use_wal(patient.store),
    )


def _use_wal(store: SqlStore) -> None:
    # Every store that may create something does that when it opens the file.
    with reopened(store, create=True) as creating:
        creating._objects.database.read(lambda kept: None)


def _synchronous(patient: Patient) -> Finding:
    given = str(patient.store._recipe["synchronous"]).upper()
    if given in {"FULL", "EXTRA"}:
        return Finding("synchronous", Level.OK, given)
    return Finding(
        "synchronous",
        Level.WRONG,
        f"the store is opened with synchronous={given}",
        "a power cut can undo writes that were already reported as done",
        "remove that option",
    )


def _mode(path: Path) -> Finding:
    files = [path.with_name(path.name + end) for end in ("", "-wal", "-shm")]
    shared = [
        file
        for file in files
        if file.exists() and stat.S_IMODE(file.stat().st_mode) & 0o077
    ]
    if not shared:
        return Finding("file mode", Level.OK, f"only its owner can access {path}")

    def close_to_others() -> None:
        for file in shared:
            os.chmod(file, stat.S_IMODE(file.stat().st_mode) & 0o700)

    names = " ".join(map(str, shared))
    return Finding(
        "file mode",
        Level.WRONG,
        f"other users can access {names}",
        "whoever can write payloads can run code in the programs that read them",
        f"chmod go= {names}",
        close_to_others,
    )


def _place(path: Path) -> Finding:
    real = path.resolve()
    mounts = psutil.disk_partitions(all=True)
    under = [mount for mount in mounts if real.is_relative_to(mount.mountpoint)]
    if not under:
        return Finding("file system", Level.OK, "unknown")
    mount = max(under, key=lambda mount: len(mount.mountpoint))
    if mount.fstype not in _OF_OTHER_HOSTS:
        return Finding("file system", Level.OK, mount.fstype)
    return Finding(
        "file system",
        Level.WRONG,
        f"{mount.mountpoint} is of type {mount.fstype}, a file system that several "
        "hosts can share",
        "SQLite's WAL works on one host only, and file locks may not work at all here",
        f"sessionstore copy sqlite:///{path} to a database on a local disk, or to "
        "PostgreSQL",
    )


def _whole(patient: Patient) -> Finding:
    try:
        said = patient.connection.exec_driver_sql("PRAGMA integrity_check(3)").scalars()
        problems = [" ".join(str(line).split()) for line in said]
    except DatabaseError as error:  # a file so damaged that the check cannot go on
        problems = [str(error.orig)]
    if problems == ["ok"]:
        return Finding("integrity", Level.OK, "ok")
    return Finding(
        "integrity",
        Level.WRONG,
        "; ".join(problems),
        "rows may be missing or wrong",
        "stop all writers, then: sqlite3 FILE .recover | sqlite3 NEWFILE",
    )


def _wal(patient: Patient, path: Path) -> Finding:
    wal = path.with_name(path.name + "-wal")
    size = wal.stat().st_size if wal.exists() else 0
    if size <= LARGE_WAL:
        return Finding("write-ahead log", Level.OK, f"{size / 2**20:.1f} MiB")

    def write_back() -> None:
        # A new connection, as the patient's may be closed by now.
        with looking(patient.store) as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    return Finding(
        "write-ahead log",
        Level.WRONG,
        f"{wal} has grown to {size / 2**20:.0f} MiB",
        "a read transaction that never ends keeps it from being truncated; every "
        "program gets slower",
        "end that program, then run: PRAGMA wal_checkpoint(TRUNCATE)",
        write_back,
    )
