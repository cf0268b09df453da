"""Payloads that only somebody with the key can have written."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from typing import Any

from sessionstore.errors import DecodeError
from sessionstore.serializers.envelope import HEADER, header, is_of, writer_of
from sessionstore.serializers.keys import Keys
from sessionstore.serializers.protocol import Serializer

__all__ = ["SignedSerializer"]

_SIZE = 32
#: Keys are derived with it, as one file of keys may be used to sign and to encrypt.
_PURPOSE = b"sessionstore: signed payloads, version 1"


class SignedSerializer:
    """What ``inner`` makes, with a signature (HMAC-SHA256) that is verified first.

    The first of ``keys`` signs, and each of them verifies.  ``allow_plain`` also reads
    what was written earlier, without a signature.  Then whoever can write to the store
    needs no signature, so turn it off when all objects have been saved again.

    A signature says that somebody with the key wrote the payload.  It does not say
    for which row, nor that it is the latest: who can write to the database can put an
    old payload back, or another row's.

    Raises ConfigurationError for what is no key.

    The payload is header ``S``, what ``inner`` made, and 32 bytes of signature, over
    all that is before it.

    >>> from sessionstore import SqlStore, Task
    >>> from sessionstore.serializers import (
    ...     PickleSerializer, SignedSerializer, new_key
    ... )
    >>> signed = SignedSerializer(PickleSerializer(), [new_key()])
    >>> store = SqlStore("sqlite:///tasks.db", serializer=signed)
    >>> store.load(store.save(Task("count"))).jobname
    'count'
    """

    def __init__(
        self,
        inner: Serializer,
        keys: Keys | Iterable[str | bytes],
        *,
        allow_plain: bool = False,
    ) -> None:
        self._inner = inner
        self._keys = keys if isinstance(keys, Keys) else Keys(keys)
        self._allow_plain = allow_plain

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._inner!r}, {self._keys!r})"

    def dumps(
        self, obj: object, persistent_id: Callable[[object], object | None]
    ) -> bytes:
        """Return ``obj`` as ``inner`` does, signed."""
        signed = header(b"S") + self._inner.dumps(obj, persistent_id)
        return signed + _signature(next(iter(self._keys)), signed)

    def loads(self, payload: bytes, persistent_load: Callable[[Any], object]) -> object:
        """Return the object, if the signature is one of these keys'."""
        if not is_of(b"S", payload):
            if self._allow_plain:
                return self._inner.loads(payload, persistent_load)
            raise DecodeError(
                f"it has no signature (written by {writer_of(payload)}); if it dates "
                "from before payloads were signed, read it with allow_plain=True and "
                "save it again"
            )
        signed, signature = memoryview(payload)[:-_SIZE], payload[-_SIZE:]
        if len(signed) < HEADER or not any(
            hmac.compare_digest(_signature(k, signed), signature) for k in self._keys
        ):
            raise DecodeError(
                f"its signature matches none of the {len(self._keys)} keys: either it "
                "was changed or truncated, or its key is missing; add a missing key "
                "after the others"
            )
        return self._inner.loads(payload[HEADER:-_SIZE], persistent_load)


def _signature(key: bytes, signed: bytes | memoryview) -> bytes:
    own = hmac.digest(key, _PURPOSE, "sha256")
    return hmac.digest(own, signed, "sha256")
