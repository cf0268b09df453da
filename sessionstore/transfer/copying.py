"""The transfers themselves, and the proof that all has arrived."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import URL

from sessionstore.errors import ArchiveError, ConfigurationError, ConflictError
from sessionstore.jobs.opening import check_name, sql_store
from sessionstore.sql import SqlStore
from sessionstore.transfer.archive import ArchiveReader, write_archive
from sessionstore.transfer.items import Source, encoded
from sessionstore.transfer.store_reader import reading
from sessionstore.transfer.store_writer import StoreWriter
from sessionstore.url import Url

__all__ = [
    "Place",
    "Progress",
    "Transfer",
    "copy",
    "export",
    "import_archive",
    "opened",
    "silent",
]

Place = SqlStore | str | Url | URL
#: Called with what is being done, how many objects are done, and of how many if known.
Progress = Callable[[str, int, int | None], object]


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a transfer has done."""

    #: The names of the sessions that came, as they are called in the target.
    sessions: Sequence[str]
    #: How many objects the source has.
    objects: int
    #: How many of them were new to the target.
    written: int
    #: The SHA-256 of all objects, as in an archive; after a copy or an import, only if
    #: it was verified that both sides have the same.
    digest: str | None


def silent(what: str, done: int, total: int | None) -> None:
    """Ignore progress."""


def copy(
    source: Place,
    target: Place,
    *,
    session: str | None = None,
    rename: str | None = None,
    verify: bool = False,
    progress: Progress = silent,
) -> Transfer:
    """Copy a store, or one ``session`` of it, to another database or table.

    Either is a URL or an ``SqlStore``.  ``progress`` is called with what is being done,
    with how many objects, and of how many, which is None where it is not known yet.

    A session may be given another name by ``rename``.  It comes with the objects that
    were written through it; what these refer to outside of it stays behind.  With
    ``verify`` all is read back and compared.

    Raises ConflictError if the target has another object with one of the IDs, or
    another session of one of the names; ConfigurationError if there is no such session,
    or both are the same table; SchemaError if the target's table lacks a column.
    """
    with (
        opened(source, create=False) as from_store,
        opened(target, create=True) as to_store,
    ):
        if _table_of(from_store) == _table_of(to_store):
            raise ConfigurationError(
                f"the source and the target are the same table of {to_store.url!r}"
            )
        if rename is not None and session is None:
            raise ConfigurationError("rename= is for a copy of one session")
        if rename is not None:
            check_name(rename)
        with reading(from_store, session, rename) as reader:
            return _carry(reader, to_store, verify=verify, progress=progress)


def export(
    source: Place,
    path: str | os.PathLike[str],
    *,
    session: str | None = None,
    verify: bool = False,
    progress: Progress = silent,
) -> Transfer:
    """Write a store, or one ``session`` of it, to a new archive file.

    With ``verify`` the file is read back.  The other parameters are those of ``copy``.

    Raises ConfigurationError if the file is there already, or if there is no such
    session.
    """
    path = Path(path)
    with (
        opened(source, create=False) as store,
        reading(store, session) as reader,
    ):
        total = reader.count
        digest = write_archive(
            path, reader, lambda done: progress("writing", done, total)
        )
        if verify:
            written = ArchiveReader(
                path, tell=lambda done: progress("verifying", done, total)
            )
            if written.digest != digest:
                raise ArchiveError(f"{path} is not what was written to it")
        names = [session.name for session in reader.sessions]
        return Transfer(names, total, total, digest)


def import_archive(
    path: str | os.PathLike[str],
    target: Place,
    *,
    rename: str | None = None,
    verify: bool = False,
    progress: Progress = silent,
) -> Transfer:
    """Read an archive into a store.  The parameters are those of ``copy``.

    Raises ArchiveError, with nothing changed, for a file that is no archive, or not a
    whole one, or one of a newer release; and what ``copy`` raises.
    """
    archive = ArchiveReader(
        Path(path), rename, lambda done: progress("checking", done, None)
    )
    with opened(target, create=True) as store:
        return _carry(archive, store, verify=verify, progress=progress)


def _carry(
    source: Source, store: SqlStore, *, verify: bool, progress: Progress
) -> Transfer:
    """Write all of a source to a store."""
    target = StoreWriter(store, source.columns)
    total = source.count
    done = 0
    if not target.is_empty:
        for batch in source.batches():
            target.check(batch)
            done += len(batch)
            progress("checking", done, total)
    target.begin(source.sessions, source.largest)
    done = written = 0
    for batch in source.batches():
        written += target.write(batch)
        done += len(batch)
        progress("copying", done, total)
    digest = None
    if verify:
        digest = _digest_of(
            source, target, lambda done: progress("verifying", done, total)
        )
    names = [session.name for session in source.sessions]
    return Transfer(names, total, written, digest)


def _digest_of(
    source: Source, target: StoreWriter, tell: Callable[[int], object]
) -> str:
    """Return the digest of a source's objects, which are the same in the target.

    Raises ConflictError, naming it, if one of them is not.
    """
    there = target.sessions
    for session in source.sessions:
        if session not in there:
            raise ConflictError(
                f"the session {session.name!r} of {target.name} is not as it came"
            )
    digest = hashlib.sha256()
    done = 0
    for batch in source.batches():
        read = {item.id: item for item in target.read([item.id for item in batch])}
        for item in batch:
            ours, theirs = encoded(item), read.get(item.id)
            if theirs is None or encoded(theirs) != ours:
                what = "is not there" if theirs is None else "is not as it came"
                raise ConflictError(
                    f"object {item.id} of {target.name} {what}", id=item.id
                )
            digest.update(ours)
        done += len(batch)
        tell(done)
    return digest.hexdigest()


@contextmanager
def opened(place: Place, *, create: bool) -> Iterator[SqlStore]:
    """Yield the store of a place; close it afterwards if it was opened here."""
    store = sql_store(place, create, {})
    try:
        yield store
    finally:
        if store is not place:
            store.close()


def _table_of(store: SqlStore) -> tuple[str, str]:
    return store._objects.database.name, store._objects.schema.name
