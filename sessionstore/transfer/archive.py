r"""Archives: sessions and objects in one file.

An archive is a gzip file (RFC 1952).  Unpacked, it is:

1.  One line of JSON, the header: ``format`` is "sessionstore archive" and ``version``
    is 1; ``columns`` lists the user's own columns, each as name, type and the type's
    arguments; ``sessions`` lists the sessions, each as name, created_at, finished_at;
    ``largest_id`` is the largest ID that was ever given out, null for none; ``job`` and
    ``entry`` name the values of a job and of a history entry.
2.  For each object, in the order of their IDs, one line of JSON, the payload, and a
    newline.  The line is a list: ID, state, the payload's length in bytes (null where
    there is none), the values of the user's own columns, the job (null where there is
    none, else its session's name, null if it was forgotten, and then the values that
    the header names), and the history (a list of entries).
3.  One line of JSON, the trailer: a list of "end", the number of objects, and the
    SHA-256 of all that stands between header and trailer.

All lines are ASCII and end in ``\n``.  Instants are microseconds since 1970, UTC.  A
value of a user's own column that JSON has no type for is an object of one member, its
type's name and its text: {"datetime": "2024-02-29T12:00:00"}, and so on.

The same store makes the same archive, byte for byte.  A reader takes its own version
only, and no file without a trailer.  Whoever can write an archive writes the payloads
that programs will read: keep it as safe as the database.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from sessionstore.errors import ArchiveError, ConfigurationError
from sessionstore.files import open_for_owner, sync_folder, translated
from sessionstore.jobs.opening import check_name
from sessionstore.row_ids import fits
from sessionstore.transfer.columns import from_specification, specification
from sessionstore.transfer.items import (
    ENTRY_COLUMNS,
    JOB_COLUMNS,
    Columns,
    Item,
    SessionItem,
    Source,
    encoded,
    in_batches,
)

__all__ = ["ArchiveReader", "write_archive"]

FORMAT = "sessionstore archive"
VERSION = 1
#: The most bytes of a line; a job with some million history entries has so many.
MOST = 2**30
#: What reading raises for a file that is no archive, or a broken one.
_BROKEN = (
    EOFError,
    gzip.BadGzipFile,
    zlib.error,
    ValueError,
    LookupError,
    TypeError,
    RecursionError,
)


def write_archive(
    path: Path, source: Source, tell: Callable[[int], object] = lambda done: None
) -> str:
    """Write all of a source to a new file, and return its digest.

    The file appears when it is complete.  Raises ConfigurationError if its name is
    taken.
    """
    with _appearing(path) as file:
        digest = hashlib.sha256()
        # Without time and name, so that the same content makes the same file.
        with gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed:
            packed.write(_line(_header(source)))
            done = 0
            for batch in source.batches():
                some = b"".join(map(encoded, batch))
                digest.update(some)
                packed.write(some)
                done += len(batch)
                tell(done)
            packed.write(_line(["end", done, digest.hexdigest()]))
    return digest.hexdigest()


def _header(source: Source) -> dict[str, object]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "columns": [specification(*column) for column in source.columns.items()],
        "sessions": source.sessions,
        "largest_id": source.largest,
        "job": JOB_COLUMNS,
        "entry": ENTRY_COLUMNS,
    }


def _line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


@contextmanager
def _appearing(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file to write, which gets its name at the block's end."""
    taken = ConfigurationError(
        f"{path} is there already; choose another name, or remove it"
    )
    if os.path.lexists(path):
        raise taken
    temporary = path.with_name(f".{path.name[:200]}-{os.urandom(8).hex()}.tmp")
    with translated(str(path.parent)):
        try:
            with open(temporary, "xb", opener=open_for_owner) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if os.path.lexists(path):
                raise taken
            os.rename(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(str(path.parent))


class ArchiveReader:
    """An archive as a source, checked from end to end first.

    Raises ArchiveError for anything but a complete archive of this version.
    """

    def __init__(
        self,
        path: Path,
        rename: str | None = None,
        tell: Callable[[int], object] = lambda done: None,
    ) -> None:
        self.name = str(path)
        self.columns: Columns = {}
        self.sessions: Sequence[SessionItem] = ()
        self.count = 0
        self._largest_given: int | None = None
        self.digest = ""
        self._path = path
        self._rename = rename
        last: int | None = None
        for item in self._items():
            if last is not None and item.id <= last:
                raise self._damaged(f"object {item.id} is out of order")
            last = item.id
            self.count += 1
            if self.count % 1000 == 0:
                tell(self.count)
        ids = (last, self._largest_given)
        self.largest = max((i for i in ids if i is not None), default=None)
        if rename is not None and len(self.sessions) != 1:
            raise ConfigurationError(
                f"{path} has {len(self.sessions)} sessions, and one alone can be given "
                "another name"
            )

    def batches(self) -> Iterator[Sequence[Item]]:
        """Go through all objects in the order of their IDs."""
        return in_batches(self._items())

    def _items(self) -> Iterator[Item]:
        try:
            with open(self._path, "rb") as file, gzip.GzipFile(fileobj=file) as packed:
                # GzipFile is slow at short reads.
                buffered = io.BufferedReader(packed, 2**18)
                yield from self._parsed(_Digesting(buffered))
        except OSError as error:
            if isinstance(error, gzip.BadGzipFile):
                raise self._damaged(str(error)) from error
            raise ConfigurationError(
                f"cannot read {self._path}: {error.strerror}"
            ) from error

    def _parsed(self, file: _Digesting) -> Iterator[Item]:
        try:
            header = self._header(file)
        except ArchiveError:
            raise
        except _BROKEN as error:
            raise ArchiveError(
                f"{self._path} is no archive of sessionstore, or its beginning is "
                "damaged; nothing was changed"
            ) from error
        count = 0
        try:
            while True:
                line = file.line()
                fields = json.loads(line)
                if fields[0] == "end":
                    break
                file.digest.update(line)
                yield self._item(fields, file, len(header["columns"]))
                count += 1
            if fields[1:] != [count, file.digest.hexdigest()]:
                raise ValueError("its digest is another one")
            if file.rest():
                raise ValueError("something stands after its end")
        except _BROKEN as error:
            raise self._damaged(str(error), count) from error
        self.digest = file.digest.hexdigest()

    def _header(self, file: _Digesting) -> dict[str, Any]:
        header: dict[str, Any] = json.loads(file.line())
        if header["format"] != FORMAT or not isinstance(header["version"], int):
            raise ValueError("another format")
        if header["version"] > VERSION:
            raise ArchiveError(
                f"{self._path} is an archive of version {header['version']}, and this "
                f"release reads version {VERSION}; upgrade sessionstore"
            )
        if (header["job"], header["entry"]) != ([*JOB_COLUMNS], [*ENTRY_COLUMNS]):
            raise ValueError("other columns")
        self.columns = {
            str(name): from_specification(type_, arguments)
            for name, type_, arguments in header["columns"]
        }
        self.sessions = [
            SessionItem(check_name(self._renamed(name)), int(created_at), finished_at)
            for name, created_at, finished_at in header["sessions"]
        ]
        largest = header["largest_id"]
        self._largest_given = None if largest is None else _checked_id(largest)
        return header

    def _item(self, fields: Sequence[Any], file: _Digesting, columns: int) -> Item:
        id_, state, size, extra, job, history = fields
        _checked_id(id_)
        if size is not None and not 0 <= size < MOST:
            raise ValueError(f"object {id_} of {size!r} bytes")
        payload = file.payload(size or 0)
        if len(extra) != columns or (job and len(job) != len(JOB_COLUMNS) + 1):
            raise ValueError(f"object {id_} lacks a column")
        if any(len(entry) != len(ENTRY_COLUMNS) for entry in history):
            raise ValueError(f"object {id_} has a torn history")
        if job and job[0] is not None:
            job[0] = self._renamed(job[0])
            if all(session.name != job[0] for session in self.sessions):
                raise ValueError(f"object {id_} is in a session that is not there")
        return Item(id_, state, None if size is None else payload, extra, job, history)

    def _renamed(self, session: str) -> str:
        return session if self._rename is None else self._rename

    def _damaged(self, what: str, count: int | None = None) -> ArchiveError:
        where = "" if count is None else f" after {count} objects"
        return ArchiveError(
            f"{self._path} is damaged or was cut short{where} ({what}); nothing more "
            "was changed: make it anew"
        )


def _checked_id(id_: object) -> int:
    if type(id_) is not int or not fits(id_):
        raise ValueError(f"the ID {id_!r}")
    return id_


class _Digesting:
    """A file that is read, and the digest of its objects."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def line(self) -> bytes:
        line = self._file.readline(MOST)
        if not line.endswith(b"\n"):
            raise EOFError("the end is missing")
        return line

    def payload(self, size: int) -> bytes:
        payload = self._file.read(size + 1)
        if len(payload) != size + 1 or payload[-1:] != b"\n":
            raise EOFError("the end is missing")
        self.digest.update(payload)
        return payload[:-1]

    def rest(self) -> bytes:
        return self._file.read(1)
