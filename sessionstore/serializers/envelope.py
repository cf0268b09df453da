"""The first bytes of a payload that is no plain pickle.

====== =====================================================================
bytes  are
====== =====================================================================
0-2    ``F5 73 73``, which no pickle begins with, nor any text
3      what wrote it: ``S`` signed, ``Z`` compressed, ``J`` JSON
4      the version of that format, 1 for now
5-     the body, in that format
====== =====================================================================

An encrypted payload is a Fernet token as in its specification, and begins with
``gAAAA``.  What begins with neither is a pickle.

A version is raised only if an older reader could not read what is written.  Readers go
on reading what they once read.
"""

from __future__ import annotations

from typing import Literal

from sessionstore.errors import DecodeError

__all__ = ["FERNET", "HEADER", "header", "is_of", "refuse_envelope", "writer_of"]

_MAGIC = b"\xf5ss"
_VERSION = 1
#: How long a header is.
HEADER = 5
#: How a Fernet token begins: its version, and the upper bytes of a time.
FERNET = b"gAAAA"

_WRITERS = {
    b"S": "SignedSerializer",
    b"Z": "CompressedSerializer",
    b"J": "JsonSerializer",
}


def header(kind: Literal[b"S", b"Z", b"J"]) -> bytes:
    """Return the header of a payload of this kind."""
    return _MAGIC + kind + bytes([_VERSION])


def is_of(kind: Literal[b"S", b"Z", b"J"], payload: bytes) -> bool:
    """Say whether a payload is of this kind.

    Raises DecodeError if it is, in a version that is newer than this package.
    """
    if not payload.startswith(_MAGIC + kind):
        return False
    version = payload[HEADER - 1 : HEADER]
    if version != bytes([_VERSION]):
        raise DecodeError(
            f"it is in version {version[0] if version else 'none'} of the format of "
            f"{_WRITERS[kind]}, and this release supports version {_VERSION}; upgrade "
            "sessionstore"
        )
    return True


def writer_of(payload: bytes) -> str:
    """Return what wrote a payload, as its first bytes say."""
    if payload.startswith(FERNET):
        return "EncryptedSerializer"
    if payload.startswith(_MAGIC):
        kind = payload[HEADER - 2 : HEADER - 1]
        return _WRITERS.get(kind, "a serializer unknown to this release")
    return "PickleSerializer"


def refuse_envelope(payload: bytes) -> None:
    """Raise DecodeError for a payload that is no pickle, but another serializer's."""
    if payload.startswith((_MAGIC, FERNET)):
        raise DecodeError(
            f"it was written by {writer_of(payload)}, and only that can read it; pass "
            "it to the store as serializer="
        )
