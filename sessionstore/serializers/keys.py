"""Secret keys: read from a file or a systemd credential, and never shown.

A file of keys has one in each line, the newest first.  The first signs or encrypts,
and all of them verify or decrypt; so a key is replaced by writing the new one above
the old one, saving every object again, and taking the old one out.  Empty lines and
those that begin with ``#`` are skipped.  A key is 32 random bytes in base64, as from
``new_key()``, ``openssl rand -base64 32`` or cryptography's ``Fernet.generate_key()``.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sessionstore.errors import ConfigurationError
from sessionstore.refusal import refuse_in_payload

__all__ = ["Keys", "new_key", "read_keys"]

_SIZE = 32
#: The most bytes of a file of keys, so that a wrong path does not fill the memory.
_MOST = 2**20


class Keys:
    """Keys, the newest first; they show in no ``repr``, log, error or pickle.

    Those from a file pickle as its path, and are read again by whoever unpickles them;
    others do not pickle.
    """

    __slots__ = ("_keys", "_source")

    def __init__(self, keys: Iterable[str | bytes], *, source: str | None = None):
        if isinstance(keys, (str, bytes)):
            raise ConfigurationError(
                "keys must be a list, and a single key was given; read keys with "
                "read_keys(), or put this one into a list"
            )
        where = "" if source is None else f" in {source!r}"
        self._keys: Sequence[bytes] = [
            _decoded(key, f"key {number}{where}") for number, key in enumerate(keys, 1)
        ]
        self._source = source
        if not self._keys:
            raise ConfigurationError(f"there is no key{where}; make one with new_key()")

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        where = "" if self._source is None else f" from {self._source!r}"
        return f"<{len(self)} keys{where}>"

    def __reduce__(self) -> tuple[Any, ...]:
        refuse_in_payload(
            "an object to be stored contains keys, and everybody who can read the "
            "table would have them"
        )
        if self._source is None:
            raise ConfigurationError(
                "keys held only in memory cannot be pickled, and neither can a store "
                "that has them; get them with read_keys(), so that the other process "
                "can read the file"
            )
        return read_keys, (self._source,)


def new_key() -> str:
    """Return a new key, for a line in a file of keys."""
    return base64.urlsafe_b64encode(os.urandom(_SIZE)).decode()


def read_keys(source: str | os.PathLike[str]) -> Keys:
    """Return the keys in a file, or in the systemd credential of that name.

    ``source`` is a path, or, without any slash, the name of one of the service's
    credentials: ``LoadCredential=keys:/etc/daemon.keys`` in its unit makes ``keys``.

    Raises ConfigurationError for a file that is not there, that has no keys, or that
    others than its owner may read or write: ``chmod 600`` mends that.
    """
    path, is_credential = _located(os.fspath(source))
    try:
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read(_MOST)
    except OSError as error:
        raise ConfigurationError(
            f"the keys cannot be read: {path}: {error.strerror}"
        ) from error
    # systemd keeps others out of the folder of a service's credentials, and shows the
    # service's own right to read them as one of the group's.
    if mode & (0o007 if is_credential else 0o077):
        raise ConfigurationError(
            f"{path} contains keys, but users other than its owner can read or write "
            f"it (mode {mode:03o}): chmod 600 {path}"
        )
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith(b"#")]
    # A path is made absolute because a daemon changes its working directory.
    name = os.fspath(source)
    return Keys(keys, source=name if is_credential and "/" not in name else str(path))


def _located(source: str) -> tuple[Path, bool]:
    """Return where the keys are, and whether it is among systemd's credentials."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if "/" in source:
        path = Path(source).absolute()
        return path, folder is not None and path.parent == Path(folder)
    if not source or source in {".", ".."}:
        raise ConfigurationError(
            f"{source!r} is neither a file name nor the name of a credential"
        )
    if folder is None:
        raise ConfigurationError(
            f"{source!r} is the name of a credential, and systemd gave this process "
            f"none; for a file here write './{source}'"
        )
    return Path(folder, source), True


def _decoded(key: str | bytes, what: str) -> bytes:
    try:
        text = key.encode() if isinstance(key, str) else key
        raw = base64.b64decode(text.translate(_ONE_ALPHABET), validate=True)
    except (AttributeError, ValueError, binascii.Error):
        raw = b""
    if len(raw) != _SIZE:
        # Not quoted, as it may be most of a key.
        raise ConfigurationError(
            f"{what} is not {_SIZE} bytes in base64; make one with new_key()"
        ) from None
    return raw


_ONE_ALPHABET = bytes.maketrans(b"-_", b"+/")
