"""Compressed payloads."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

from sessionstore.errors import DecodeError, EncodeError
from sessionstore.serializers.checksum import with_checksum, without_checksum
from sessionstore.serializers.envelope import is_of
from sessionstore.serializers.protocol import Serializer

__all__ = ["CompressedSerializer"]

#: Bytes of the number that says how long the decompressed payload is.
_SIZE = 8
#: The most by which zlib can shrink data; an honest payload claims no more.
_MOST_RATIO = 1032
_SLACK = 64


class CompressedSerializer:
    """What ``inner`` makes, compressed by zlib where that makes it smaller.

    No more than ``max_size`` bytes are compressed.  A payload that claims to be larger,
    or is larger than it claims, is not decompressed, so that a hostile one takes no
    more memory than that.  If payloads are also signed or encrypted, compress inside:
    ``SignedSerializer(CompressedSerializer(...), keys)``, so that only verified
    payloads are decompressed.  What was written without compression is read as it is.

    The payload is header ``Z``; four bytes of CRC-32, of all that follows them; eight
    bytes of the uncompressed size, both with the high byte first; and a zlib stream.

    >>> from sessionstore import SqlStore, Task
    >>> from sessionstore.serializers import CompressedSerializer, PickleSerializer
    >>> compressed = CompressedSerializer(PickleSerializer())
    >>> store = SqlStore("sqlite:///tasks.db", serializer=compressed)
    >>> len(store.load(store.save(Task("count", text="x" * 100_000))).text)
    100000
    """

    def __init__(self, inner: Serializer, *, max_size: int = 2**26) -> None:
        self._inner = inner
        self._max_size = max_size

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._inner!r})"

    def dumps(
        self, obj: object, persistent_id: Callable[[object], object | None]
    ) -> bytes:
        """Return ``obj`` as ``inner`` does, compressed if that is smaller."""
        plain = self._inner.dumps(obj, persistent_id)
        if len(plain) > self._max_size:
            raise EncodeError(
                f"it has {len(plain)} bytes, and CompressedSerializer accepts at most "
                f"{self._max_size}; raise its max_size"
            )
        body = len(plain).to_bytes(_SIZE, "big") + zlib.compress(plain)
        payload = with_checksum(b"Z", body)
        return payload if len(payload) < len(plain) else plain

    def loads(self, payload: bytes, persistent_load: Callable[[Any], object]) -> object:
        """Return the object."""
        if is_of(b"Z", payload):
            payload = self._decompressed(payload)
        return self._inner.loads(payload, persistent_load)

    def _decompressed(self, payload: bytes) -> bytes:
        body = without_checksum(payload)
        size, packed = int.from_bytes(body[:_SIZE], "big"), body[_SIZE:]
        if size > self._max_size:
            raise DecodeError(
                f"it claims to be {size} bytes after decompression, and at most "
                f"{self._max_size} are allowed; if the claim is true, raise the "
                "max_size of CompressedSerializer"
            )
        stream = zlib.decompressobj()
        wrong = size > _MOST_RATIO * len(packed) + _SLACK
        plain = b""
        if not wrong:
            try:
                # One byte more, to see whether it is larger than it says.
                plain = stream.decompress(packed, size + 1)
            except zlib.error:
                wrong = True
        if wrong or len(plain) != size or not stream.eof or stream.unused_data:
            raise DecodeError(f"it does not decompress to the {size} bytes it claims")
        return plain
