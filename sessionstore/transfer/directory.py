"""A session directory of GC3Pie's, read without GC3Pie:

``session_ids.txt``  the tasks' IDs, one a line
``store.url``        where the objects are: a SQL database, or a folder of pickles
``created``          its time of change is when the session began
``finished``         the same for its end; it need not be there

IDs of a SQL database are integers; those of a folder are the files' names, as
"ShellApp.123".  While a file is rewritten, its old content is in a file with the ending
".OLD".  A pickle refers to another object by such an ID, of GC3Pie's class ``IntId`` or
``Id``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from sessionstore.errors import ConfigurationError
from sessionstore.row_ids import fits
from sessionstore.sql import SqlStore
from sessionstore.transfer.items import Columns
from sessionstore.transfer.sketches import Made, sketched
from sessionstore.transfer.store_reader import StoreReader, reading
from sessionstore.url import Url

__all__ = ["Directory", "Objects", "Stored", "id_in", "opened_objects"]


class Directory:
    """One session directory.  Raises ConfigurationError if it is none."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.name = self.path.name
        #: In the order in which they were added.
        self.ids = [*dict.fromkeys(self._read("session_ids.txt").split())]
        self.url = self._read("store.url").strip()
        created_at = self._changed_at("created")
        if created_at is None:
            created_at = self._changed_at("session_ids.txt")
        assert created_at is not None
        #: In microseconds since 1970.
        self.created_at = created_at
        self.finished_at = self._changed_at("finished")

    def _read(self, name: str) -> str:
        try:
            return (self.path / name).read_text()
        except OSError as error:
            raise ConfigurationError(
                f"{self.path} is no session directory of GC3Pie: its {name} cannot be "
                f"read: {error.strerror}"
            ) from error
        except UnicodeDecodeError as error:
            raise ConfigurationError(
                f"{self.path} is no session directory of GC3Pie: its {name} is no text"
            ) from error

    def _changed_at(self, name: str) -> int | None:
        try:
            return os.stat(self.path / name).st_mtime_ns // 1000
        except OSError:
            return None


class Stored(NamedTuple):
    """One object as it is stored."""

    data: bytes | None
    #: None if only the payload has it.
    state: str | None
    extra: Sequence[object]


class Objects(Protocol):
    """Where a session's objects are."""

    @property
    def columns(self) -> Columns:
        """The user's own columns."""

    def read(self, ids: Sequence[str]) -> Mapping[str, Stored]:
        """Return those of the objects that there are."""


@contextmanager
def opened_objects(directory: Directory, url: str | None) -> Iterator[Objects]:
    """Open the store of a session, at ``url`` if that is given.

    If the folder or the file that it names is gone, the directory was moved, and one of
    the same name in it is taken.
    """
    place = url or directory.url
    if not place:
        raise ConfigurationError(
            f"{directory.path} does not say where its objects are: its store.url is "
            "empty; say where they are now"
        )
    scheme = place.partition(":")[0] if "://" in place else "file"
    if scheme == "file":
        path = Path(Url(place).path if "://" in place else place)
        yield FolderObjects(_moved(directory, path))
        return
    if scheme == "sqlite" and url is None:
        # In GC3Pie's URLs all paths are absolute, after any number of slashes.
        name, mark, fragment = place.partition(":")[2].lstrip("/").partition("#")
        place = f"sqlite:///{_moved(directory, Path('/' + name))}{mark}{fragment}"
    with SqlStore(place, create=False) as store, reading(store) as reader:
        yield TableObjects(reader)


def _moved(directory: Directory, path: Path) -> Path:
    if not path.exists():
        there = directory.path / path.name
        if not there.exists():
            raise ConfigurationError(
                f"the objects of {directory.path} should be in {path}, which is not "
                "there; say where they are now"
            )
        return there
    return path


class TableObjects:
    """Objects in a SQL table."""

    def __init__(self, reader: StoreReader) -> None:
        self._reader = reader
        self.columns = reader.columns

    def read(self, ids: Sequence[str]) -> Mapping[str, Stored]:
        """Return those of the objects that there are."""
        numbers = [int(id_) for id_ in ids if id_.isdecimal() and fits(int(id_))]
        return {
            str(item.id): Stored(item.data, item.state, item.extra)
            for item in self._reader.items(numbers)
        }


class FolderObjects:
    """Objects in the files of a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.columns: Columns = {}

    def read(self, ids: Sequence[str]) -> Mapping[str, Stored]:
        """Return those of the objects that there are."""
        found = {}
        for id_ in ids:
            # A pickle may refer to anything, but nothing outside of the folder is read.
            if "/" in id_ or "\0" in id_ or id_ in {"", ".", ".."}:
                continue
            data = self._content(id_)
            if data is not None:
                found[id_] = Stored(data, None, ())
        return found

    def _content(self, id_: str) -> bytes | None:
        candidates = []
        for name in (id_, f"{id_}.OLD"):
            try:
                candidates.append((self._path / name).read_bytes())
            except FileNotFoundError:
                continue
            except OSError as error:
                raise ConfigurationError(
                    f"cannot read {self._path / name}: {error.strerror}"
                ) from error
        for data in candidates:
            if sketched(data) is not None:
                return data
        return candidates[0] if candidates else None


def id_in(reference: object) -> str | None:
    """Return the ID in a pickle's reference, as in ``session_ids.txt``."""
    if isinstance(reference, Made) and isinstance(reference.arguments, tuple):
        # IntId(None, 5) or Id("ShellApp", 5)
        match reference.arguments:
            case (None, int(number)):
                return str(number)
            case (prefix, int(number)):
                return f"{prefix}.{number}"
    if isinstance(reference, tuple) and reference:
        return id_in(reference[0])
    if isinstance(reference, (int, str)):
        return str(reference)
    return None
