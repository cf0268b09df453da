"""Objects in the files of one folder."""

from __future__ import annotations

import os
import pickle
import re
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from operator import index
from typing import Any
from urllib.parse import unquote

from sessionstore.checks import check_mapping, check_methods
from sessionstore.errors import ConfigurationError, ConflictError
from sessionstore.files import (
    Draft,
    make_folder,
    sync_folder,
    translated,
    write_all,
)
from sessionstore.ids import IdFactory, IdSource
from sessionstore.objects.decoding import decode
from sessionstore.objects.encoding import encode
from sessionstore.objects.origin import Origin, assign_id
from sessionstore.objects.records import Record, Row
from sessionstore.persistable import Persistable, mark
from sessionstore.renaming import Renaming
from sessionstore.row_ids import invalid_id, not_found
from sessionstore.serializers import PickleSerializer, Serializer
from sessionstore.store import Store, register
from sessionstore.url import Url
from sessionstore.warn import warn_user

__all__ = ["FilesystemStore"]

_OPTIONS_OF_OTHERS = frozenset(
    {
        "table_name",
        "extra_fields",
        "create",
        "synchronous",
        "busy_timeout",
        "engine_options",
    }
)
#: How an ID is written as a file's name; anything else in the folder is no object.
_NAME = re.compile(r"0|-?[1-9][0-9]*")
#: How often another ID is asked for if a file has it already.
ATTEMPTS = 10


class FilesystemStore(Store):
    """Save and load objects in a folder, each in one file, by default as a pickle.

    A file's name is its object's ID.  It is written under a temporary name, synced
    and renamed, so that readers see the old object or the new one, whole, and that
    it survives a power cut when ``save`` has returned (G1).  The folder is created,
    for its owner only, at the first save.

    Files do not change together.  In a graph all files are written first and then
    put in their places, the new objects' before those that refer to them, the one
    given last.  A crash in between may leave new objects that nothing refers to, and
    some of the changed ones in their former version; for graphs that must change as
    a whole, use an ``SqlStore``.  Nor is there a check for changes that somebody else
    made: the last writer wins.

    ``idfactory`` is an object whose ``new(obj)`` returns an integer that no object
    ever had.  The default draws 63 random bits from the system, so that processes,
    forks and hosts that share the folder need not know of each other (G5).

    Options: ``protocol`` (pickle's); ``serializer`` (see ``sessionstore.serializers``);
    ``rename`` (as for ``SqlStore``).  Other options of ``SqlStore`` are ignored, and so
    is anything else, with a warning.

    The constructor touches no file.

    Raises ConfigurationError for a URL that names no folder of this host.  Any call
    raises StoreUnavailableError while the disk is full or fails, and StoreError for
    what else the system refuses.

    >>> from sessionstore import FilesystemStore, Task
    >>> store = FilesystemStore("tasks")
    >>> id_ = store.save(Task("count", path="/etc/passwd"))
    >>> store.load(id_).path
    '/etc/passwd'
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | Url,
        idfactory: IdSource | None = None,
        protocol: int = pickle.HIGHEST_PROTOCOL,
        *,
        serializer: Serializer | None = None,
        rename: Mapping[str, str] | None = None,
        **extra_args: object,
    ) -> None:
        for name in sorted(extra_args.keys() - _OPTIONS_OF_OTHERS):
            warn_user(f"FilesystemStore has no option {name!r}; it is ignored")
        check_methods("idfactory", idfactory, "new")
        check_methods("serializer", serializer, "dumps", "loads")
        check_mapping("rename", rename)
        # Made absolute, as a daemon changes its working directory.
        self.directory = os.path.abspath(_path_of(directory))
        # What pickling takes to make this store again in another process.
        self._recipe = {
            "directory": self.directory,
            "idfactory": idfactory,
            "protocol": protocol,
            "serializer": serializer,
            "rename": rename,
        }
        if idfactory is None:
            idfactory = IdFactory()
        if isinstance(idfactory, IdFactory):
            idfactory = idfactory.bind(_random_id)
        self._idfactory = idfactory
        self._serializer = serializer or PickleSerializer(protocol)
        self._renamed = Renaming(rename) if rename else None
        self._origin = Origin(f"file://{self.directory}")
        self._live: weakref.WeakValueDictionary[int, Any] = (
            weakref.WeakValueDictionary()
        )
        self._pid = os.getpid()
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        self._refuse_to_be_stored()
        return _from_recipe, (type(self), self._recipe)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.directory!r}>"

    # The store's methods

    def save(self, obj: object) -> int:
        """Write an object, new or again, and return its ID.

        ``Persistable`` objects inside it, if new or ``changed``, are written to files
        of their own; see the class for what a crash in between may leave.

        Raises EncodeError if something in it cannot be stored, and NotFoundError if
        it was stored here before and has been removed; nothing is written then.
        """
        records = encode(
            [obj],
            known_id=self._origin.known_id,
            new_id=self._new_id,
            serializer=self._serializer,
        ).records
        self._write(records)
        for record in records:
            self._adopt(record.obj, record.id)
        return next(record.id for record in records if record.obj is obj)

    def load(self, id_: object) -> Any:
        """Return the object with this ID.

        While somebody in this process holds it, it is the same object each time.

        Raises NotFoundError if there is none, and DecodeError if there is one that
        cannot be read.
        """
        key = _key_of(id_)
        with self._loading():
            live = self._live.get(key)
            if live is not None:
                return live
            decoded = decode(
                [key],
                self._fetch([key]),
                fetch=self._fetch,
                live=self._live.get,
                serializer=self._serializer,
                renamed=self._renamed,
            )
            for object_id, obj in decoded.objects.items():
                self._adopt(obj, object_id)
            return decoded.only(key)

    def replace(self, id_: object, obj: object) -> None:
        """Make the object with this ID a copy of ``obj``.

        ``obj`` itself stays what and where it is.

        Raises NotFoundError if there is no object with this ID, and EncodeError as
        ``save`` does.
        """
        key = _key_of(id_)
        records = encode(
            [obj],
            known_id=lambda o: key if o is obj else self._origin.known_id(o),
            new_id=self._new_id,
            serializer=self._serializer,
        ).records
        self._write(records)
        for record in records:
            if record.obj is not obj:
                self._adopt(record.obj, record.id)
        self._live.pop(key, None)

    def remove(self, id_: object) -> None:
        """Remove the object with this ID.  Raises NotFoundError if there is none."""
        key = _key_of(id_)
        with translated(self.directory):
            try:
                os.unlink(self._path(key))
            except FileNotFoundError:
                raise not_found(key) from None
            sync_folder(self.directory)
        obj = self._live.pop(key, None)
        if obj is not None:
            assign_id(obj, None)
            if isinstance(obj, Persistable):
                mark(obj, True)

    def list(self) -> Sequence[int]:
        """Return the IDs of all objects, ascending."""
        with translated(self.directory):
            try:
                names = os.listdir(self.directory)
            except FileNotFoundError:
                return []
        return sorted(int(name) for name in names if _NAME.fullmatch(name))

    def invalidate_cache(self) -> None:
        """Forget the live objects, so that ``load`` reads each from its file."""
        self._live.clear()

    # Identity

    def _new_id(self, obj: object) -> int:
        for _ in range(ATTEMPTS):
            object_id = self._idfactory.new(obj)
            if not os.path.lexists(self._path(object_id)):
                return object_id
        raise self._taken(object_id)

    def _taken(self, object_id: object) -> ConflictError:
        return ConflictError(
            f"{self.directory} already has an object with ID {object_id}; the "
            "idfactory must never return the same ID twice",
            id=int(str(object_id)),
        )

    def _adopt(self, obj: object, object_id: int) -> None:
        self._origin.note_stored(obj, object_id)
        with suppress(TypeError):  # lists and the like cannot be referred to weakly
            self._live[int(object_id)] = obj

    @contextmanager
    def _loading(self) -> Iterator[None]:
        if self._pid != os.getpid():
            # Another thread of the parent may have held it at the fork.
            self._pid, self._lock = os.getpid(), threading.RLock()
        with self._lock:
            yield

    # Files

    def _path(self, object_id: int) -> str:
        return os.path.join(self.directory, str(int(object_id)))

    def _fetch(self, ids: Sequence[int]) -> Mapping[int, Row]:
        rows = {}
        with translated(self.directory):
            for object_id in ids:
                with (
                    suppress(FileNotFoundError),
                    open(self._path(object_id), "rb") as f,
                ):
                    rows[object_id] = Row(f.read(), None)
        return rows

    def _write(self, records: Sequence[Record]) -> None:
        with translated(self.directory):
            for record in records:
                if not record.is_new and not os.path.lexists(self._path(record.id)):
                    raise not_found(record.id)
            make_folder(self.directory)
            # The object given is the first of the records, and must be put in its
            # place after those that it refers to.
            drafts = [
                Draft(str(int(record.id)), record.payload, record.is_new)
                for record in reversed(records)
            ]
            try:
                write_all(self.directory, drafts)
            except FileExistsError as error:
                raise self._taken(
                    os.path.basename(error.filename2 or error.filename)
                ) from None


def _from_recipe(cls: type[FilesystemStore], recipe: dict[str, Any]) -> FilesystemStore:
    return cls(**recipe)


def _random_id() -> int:
    # The system's, as a generator's state would be the same on both sides of a fork.
    return int.from_bytes(os.urandom(8)) >> 1 or _random_id()


def _path_of(directory: str | os.PathLike[str] | Url) -> str:
    if not isinstance(directory, Url):
        path = os.fspath(directory)
        if not isinstance(directory, str) or not path.lower().startswith("file:"):
            if not path:
                raise ConfigurationError("the path of the directory is an empty string")
            return path
        directory = Url(path)
    if directory.scheme != "file" or directory.hostname not in {None, "localhost"}:
        raise ConfigurationError(
            f"{directory} does not name a directory on this host; write "
            "file:///absolute/path"
        )
    if not directory.path:
        raise ConfigurationError(
            f"{directory} has no path; write file:///absolute/path"
        )
    return unquote(directory.path)


def _key_of(id_: object) -> int:
    try:
        # int() alone would take 7.5 for 7.
        return int(id_) if isinstance(id_, str) else index(id_)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise invalid_id(id_, "integers") from None


register("file", FilesystemStore)
