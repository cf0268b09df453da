"""Files that appear whole or not at all, and are there after a power cut."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from sessionstore.errors import StoreError, StoreUnavailableError

__all__ = [
    "Draft",
    "make_folder",
    "open_for_owner",
    "sync_folder",
    "translated",
    "write_all",
]

#: Conditions that may pass, so that the same call may succeed later.
_PASSING = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})


class Draft(NamedTuple):
    """One file to be written: a new one, or in the place of one that is there."""

    name: str
    content: bytes
    is_new: bool


def write_all(folder: str, drafts: Sequence[Draft]) -> None:
    """Write all files under temporary names, then rename the new ones, then the others.

    Up to the first replacement a failure leaves nothing behind.

    Raises FileExistsError, before any replacement, if the name of a new one is taken.
    """
    new = [draft for draft in drafts if draft.is_new]
    others = [draft for draft in drafts if not draft.is_new]
    # Named before any is made: a signal's handler may raise as soon as one is there.
    temporary = {
        draft.name: os.path.join(folder, f".{draft.name}-{os.urandom(8).hex()}.tmp")
        for draft in drafts
    }
    placed: list[str] = []
    try:
        for draft in drafts:
            _write_new(temporary[draft.name], draft.content)
        for draft in new:
            path = os.path.join(folder, draft.name)
            _place_new(temporary[draft.name], path)
            placed.append(path)
        for draft in others:
            os.rename(temporary[draft.name], os.path.join(folder, draft.name))
            placed.clear()  # what has been replaced may refer to them from now on
    except BaseException:
        _unlink(placed)
        raise
    finally:
        _unlink(temporary.values())
    sync_folder(folder)


def _unlink(paths: Iterable[str]) -> None:
    for path in paths:
        with suppress(OSError):
            os.unlink(path)


def _write_new(path: str, content: bytes) -> None:
    with open(path, "xb", opener=open_for_owner) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def open_for_owner(path: str, flags: int) -> int:
    """Open a file, for its owner only if it is new; as ``open`` takes it."""
    return os.open(path, flags, 0o600)


def _place_new(temporary: str, path: str) -> None:
    try:
        os.link(temporary, path)  # unlike a rename, never over another file
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(path):
            raise FileExistsError(
                errno.EEXIST, "the file already exists", path
            ) from None
        os.rename(temporary, path)


def make_folder(path: str) -> None:
    """Create a folder, and those above it, for their owner only."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    if parent != path:
        make_folder(parent)
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
        sync_folder(parent)


def sync_folder(path: str) -> None:
    """Make the names in a folder last, as ``fsync`` does what is in a file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has no such thing
            raise
    finally:
        os.close(descriptor)


@contextmanager
def translated(folder: str) -> Iterator[None]:
    """Raise this package's errors for the system's."""
    try:
        yield
    except OSError as error:
        said = os.strerror(error.errno or 0)
        if error.errno in _PASSING:
            raise StoreUnavailableError(
                f"{folder} cannot be used at the moment: {said}; free some space or "
                "repair the disk, then retry"
            ) from error
        raise StoreError(
            f"{folder} cannot be used: {said}; check that it is a directory this user "
            "can read and write, and check the limits on file size"
        ) from error
