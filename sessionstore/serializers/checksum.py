"""Payloads with a checksum, which shows whether they were cut off or damaged."""

from __future__ import annotations

import zlib
from typing import Literal

from sessionstore.errors import DecodeError
from sessionstore.serializers.envelope import HEADER, header

__all__ = ["with_checksum", "without_checksum"]

_SIZE = 4


def with_checksum(kind: Literal[b"Z", b"J"], body: bytes) -> bytes:
    """Return a payload: a header, the body's CRC-32, its high byte first, the body."""
    return header(kind) + zlib.crc32(body).to_bytes(_SIZE, "big") + body


def without_checksum(payload: bytes) -> memoryview:
    """Return a payload's body, or raise DecodeError if it is not what was written."""
    view = memoryview(payload)[HEADER:]
    checksum, body = view[:_SIZE], view[_SIZE:]
    if zlib.crc32(body).to_bytes(_SIZE, "big") != checksum:
        raise DecodeError("it was changed or truncated: its checksum does not match")
    return body
